"""Native kernels along the last axis: softmax, cross-entropy, layer and RMS norm. Each row is read
while it is in a core's cache; parts share the rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native import mathematics as m
from gpubackprop.backends.cpu.native.abi import (
    floats,
    inline_fast,
    kernel,
    longs,
    number,
    raise_status,
    share,
)
from gpubackprop.backends.cpu.native.chains import add_columns
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers

f32 = np.float32
SERIAL = 1 << 12
"""Elements that are left to one thread."""


@inline_fast
def largest(x):
    """The largest number of a row (a NaN may be missed)."""
    top = x[0]
    for j in range(1, x.size):
        top = x[j] if x[j] > top else top
    return top


@inline_fast
def sum_of_exponentials(x, top):
    """sum(exp(x - top))."""
    total = f32(0)
    for j in range(x.size):
        total += m.exp(x[j] - top)
    return total


@kernel
def softmax_rows(frame, part, parts):
    """softmax or, with the flag, log-softmax of each row. Frame: x, y, rows, n, flag."""
    n = frame[3]
    start, stop = share(frame[2], part, parts, 1)
    for i in range(start, stop):
        x, y = floats(frame[0] + 4 * i * n, n), floats(frame[1] + 4 * i * n, n)
        top = largest(x)
        if frame[4]:
            shift = top + m.log(sum_of_exponentials(x, top))
            for j in range(n):
                y[j] = x[j] - shift
        else:
            total = f32(0)
            for j in range(n):
                e = m.exp(x[j] - top)
                y[j] = e
                total += e
            for j in range(n):
                y[j] /= total


@kernel
def softmax_rows_backward(frame, part, parts):
    """y (dy - sum(dy y)), or for the logarithm dy - exp(y) sum(dy). Frame: dy, y, dx, rows, n,
    flag."""
    n = frame[4]
    start, stop = share(frame[3], part, parts, 1)
    for i in range(start, stop):
        at = 4 * i * n
        dy, y, dx = floats(frame[0] + at, n), floats(frame[1] + at, n), floats(frame[2] + at, n)
        total = f32(0)
        if frame[5]:
            for j in range(n):
                total += dy[j]
            for j in range(n):
                dx[j] = dy[j] - m.exp(y[j]) * total
        else:
            for j in range(n):
                total += dy[j] * y[j]
            for j in range(n):
                dx[j] = y[j] * (dy[j] - total)


@kernel
def cross_entropy_rows(frame, part, parts):
    """Frame: logits, targets, loss, log-probabilities, rows, classes, ignore_index, status."""
    n = frame[5]
    start, stop = share(frame[4], part, parts, 1)
    target, loss = longs(frame[1], frame[4]), floats(frame[2], frame[4])
    for i in range(start, stop):
        x, y = floats(frame[0] + 4 * i * n, n), floats(frame[3] + 4 * i * n, n)
        top = largest(x)
        shift = m.log(sum_of_exponentials(x, top))
        for j in range(n):
            y[j] = (x[j] - top) - shift
        t = target[i]
        if t == frame[6]:
            loss[i] = 0
        elif t < 0 or t >= n:
            loss[i] = f32(np.nan)
            raise_status(frame[7], 2)
        else:
            loss[i] = -y[t]


@kernel
def cross_entropy_rows_backward(frame, part, parts):
    """(exp(logp) - onehot) dy. Frame: dy, log-probabilities, targets, dx, rows, classes,
    ignore_index."""
    n = frame[5]
    start, stop = share(frame[4], part, parts, 1)
    dy, target = floats(frame[0], frame[4]), longs(frame[2], frame[4])
    for i in range(start, stop):
        y, dx = floats(frame[1] + 4 * i * n, n), floats(frame[3] + 4 * i * n, n)
        t, g = target[i], dy[i]
        if t == frame[6]:
            for j in range(n):
                dx[j] = 0
        else:
            for j in range(n):
                dx[j] = m.exp(y[j]) * g
            if 0 <= t < n:
                dx[t] = (m.exp(y[t]) - f32(1.0)) * g


@kernel
def norm_rows(frame, part, parts):
    """Layer norm, or with the flag RMS norm. Frame: x, weight (0), bias (0), y, mean, rstd, rows,
    n, eps, flag."""
    n = frame[7]
    start, stop = share(frame[6], part, parts, 1)
    mean, rstd = floats(frame[4] if frame[4] else frame[5], frame[6]), floats(frame[5], frame[6])
    weight = floats(frame[1] if frame[1] else frame[0], n)
    bias = floats(frame[2] if frame[2] else frame[0], n)
    eps, count = f32(number(frame[8])), f32(n)
    for i in range(start, stop):
        x, y = floats(frame[0] + 4 * i * n, n), floats(frame[3] + 4 * i * n, n)
        middle = f32(0)
        if not frame[9]:
            for j in range(n):
                middle += x[j]
            middle /= count
            mean[i] = middle
        spread = f32(0)
        for j in range(n):
            d = x[j] - middle
            spread += d * d
        scale = f32(1.0) / np.sqrt(spread / count + eps)
        rstd[i] = scale
        if frame[1] and frame[2]:
            for j in range(n):
                y[j] = (x[j] - middle) * scale * weight[j] + bias[j]
        elif frame[1]:
            for j in range(n):
                y[j] = (x[j] - middle) * scale * weight[j]
        else:
            for j in range(n):
                y[j] = (x[j] - middle) * scale
            if frame[2]:
                for j in range(n):
                    y[j] += bias[j]


@kernel
def norm_rows_backward(frame, part, parts):
    """dx, and each part's sums of dy * xhat over its rows, in blocks of 32 rows.

    Frame: dy, x, weight (0), mean (0 for RMS norm), rstd, dx, block sums (parts, n), sums
    (parts, n), rows, n.
    """
    rows, n = frame[8], frame[9]
    start, stop = share(rows, part, parts, 1)
    weight = floats(frame[2] if frame[2] else frame[0], n)
    mean, rstd = floats(frame[3] if frame[3] else frame[4], rows), floats(frame[4], rows)
    block, total = floats(frame[6] + 4 * part * n, n), floats(frame[7] + 4 * part * n, n)
    count = f32(n)
    for j in range(n):
        block[j] = 0
        total[j] = 0
    for i in range(start, stop):
        at = 4 * i * n
        dy, x, dx = floats(frame[0] + at, n), floats(frame[1] + at, n), floats(frame[5] + at, n)
        middle = mean[i] if frame[3] else f32(0)
        scale = rstd[i]
        along, offset = f32(0), f32(0)
        if frame[2]:
            for j in range(n):
                xhat = (x[j] - middle) * scale
                block[j] += dy[j] * xhat
                g = dy[j] * weight[j]
                along += g * xhat
                offset += g
        else:
            for j in range(n):
                xhat = (x[j] - middle) * scale
                block[j] += dy[j] * xhat
                along += dy[j] * xhat
                offset += dy[j]
        along /= count
        offset = offset / count if frame[3] else f32(0)
        if frame[2]:
            for j in range(n):
                xhat = (x[j] - middle) * scale
                dx[j] = scale * (dy[j] * weight[j] - offset - xhat * along)
        else:
            for j in range(n):
                xhat = (x[j] - middle) * scale
                dx[j] = scale * (dy[j] - offset - xhat * along)
        if i % 32 == 31 or i == stop - 1:
            for j in range(n):
                total[j] += block[j]
                block[j] = 0


def _last(x: np.ndarray, axis: int) -> bool:
    return bool(x.ndim and x.size and axis in (-1, x.ndim - 1))


def _softmax(flag: int) -> Any:
    def lower(site: Site, outs: Any, x: np.ndarray, axis: int = -1) -> list[Instruction] | None:
        if not _last(x, axis) or not fit(x, outs[0]):
            return None
        n = x.shape[-1]
        slots = [x, outs[0], x.size // n, n, flag]
        return [Instruction(softmax_rows, slots, parallel=x.size > SERIAL)]

    return lower


def _softmax_backward(flag: int) -> Any:
    def lower(
        site: Site, outs: Any, dy: np.ndarray, y: np.ndarray, axis: int = -1
    ) -> list[Instruction] | None:
        if not _last(y, axis) or not fit(dy, y, outs[0]) or dy.shape != y.shape:
            return None
        n = y.shape[-1]
        slots = [dy, y, outs[0], y.size // n, n, flag]
        return [Instruction(softmax_rows_backward, slots, parallel=y.size > SERIAL)]

    return lower


for _flag, _name in enumerate(("softmax", "log_softmax")):
    lowers(_name)(_softmax(_flag))
    lowers(f"{_name}_backward")(_softmax_backward(_flag))


@lowers("softmax_cross_entropy")
def lower_cross_entropy(
    site: Site,
    outs: Any,
    x: np.ndarray,
    target: np.ndarray,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> list[Instruction] | None:
    """Cross-entropy with class indices, unweighted and unsmoothed."""
    if weight is not None or label_smoothing or not x.size:
        return None
    if not fit(x, *outs) or not fit(target, dtype=np.int64):
        return None
    slots = [x, target, *outs, *x.shape, int(ignore_index), site.status]
    return [Instruction(cross_entropy_rows, slots, parallel=x.size > SERIAL)]


@lowers("softmax_cross_entropy_backward")
def lower_cross_entropy_backward(
    site: Site,
    outs: Any,
    dy: np.ndarray,
    log_probabilities: np.ndarray,
    target: np.ndarray,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> list[Instruction] | None:
    """Its cotangent. A `dy` that is one number for all rows is first written out."""
    logp = log_probabilities
    if weight is not None or label_smoothing or not logp.size:
        return None
    if not fit(logp, outs[0]) or not fit(target, dtype=np.int64) or dy.dtype != np.float32:
        return None
    before = []
    if not dy.flags.c_contiguous:
        from gpubackprop.backends.cpu.native.reductions import copy_instruction

        spread = site.scratch(dy.shape)
        made = copy_instruction(spread, dy)
        if made is None:
            return None
        before, dy = [made], spread
    slots = [dy, logp, target, outs[0], *logp.shape, int(ignore_index)]
    parallel = logp.size > SERIAL
    return [*before, Instruction(cross_entropy_rows_backward, slots, parallel=parallel)]


def _norm(
    site: Site, x: np.ndarray, weight: Any, bias: Any, axes: int, eps: float, results: Any, rms: int
) -> list[Instruction] | None:
    present = [a for a in (x, weight, bias, *results) if a is not None]
    if not fit(*present) or not x.size:
        return None
    y, mean, rstd = results
    n = math.prod(x.shape[x.ndim - axes :])
    zero = 0
    slots = [x, zero if weight is None else weight, zero if bias is None else bias]
    slots += [y, zero if mean is None else mean, rstd, x.size // n, n, float(eps), rms]
    return [Instruction(norm_rows, slots, parallel=x.size > SERIAL)]


@lowers("layer_norm")
def lower_layer_norm(
    site: Site, outs: Any, x: np.ndarray, weight: Any, bias: Any, axes: int, eps: float
) -> list[Instruction] | None:
    """Layer norm over the last axes."""
    return _norm(site, x, weight, bias, axes, eps, outs, 0)


@lowers("rms_norm")
def lower_rms_norm(
    site: Site, outs: Any, x: np.ndarray, weight: Any, axes: int, eps: float
) -> list[Instruction] | None:
    """RMS norm over the last axes."""
    return _norm(site, x, weight, None, axes, eps, (outs[0], None, outs[1]), 1)


def _norm_backward(
    site: Site, dy: Any, x: Any, weight: Any, mean: Any, rstd: Any, axes: int, outs: Any
) -> list[Instruction] | None:
    present = [a for a in (dy, x, weight, mean, rstd, *outs) if a is not None]
    if not fit(*present) or not x.size or dy.shape != x.shape:
        return None
    n = math.prod(x.shape[x.ndim - axes :])
    parallel = x.size > SERIAL and site.parts > 1
    used = site.parts if parallel else 1
    block = site.scratch((used, n))
    total = site.scratch((used, n)) if used > 1 else outs[1]
    slots = [dy, x, 0 if weight is None else weight, 0 if mean is None else mean, rstd, outs[0]]
    slots += [block, total, x.size // n, n]
    made = [Instruction(norm_rows_backward, slots, parallel=parallel)]
    if used > 1:
        made.append(Instruction(add_columns, [total, used, n, outs[1]], parallel=n > 4096))
    return made


@lowers("layer_norm_backward")
def lower_layer_norm_backward(
    site: Site, outs: Any, dy: Any, x: Any, weight: Any, mean: Any, rstd: Any, axes: int
) -> list[Instruction] | None:
    """Cotangents of x and of the weight."""
    return _norm_backward(site, dy, x, weight, mean, rstd, axes, outs)


@lowers("rms_norm_backward")
def lower_rms_norm_backward(
    site: Site, outs: Any, dy: Any, x: Any, weight: Any, rstd: Any, axes: int
) -> list[Instruction] | None:
    """Cotangents of x and of the weight."""
    return _norm_backward(site, dy, x, weight, None, rstd, axes, outs)
