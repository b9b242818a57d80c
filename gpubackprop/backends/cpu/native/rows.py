"""Native softmax, cross-entropy and normalisation by layers: which calls the kernels of
``row_kernels.py`` serve."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native import row_kernels as kernels
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers, spacing
from gpubackprop.backends.cpu.native.vectors import whole

f32 = np.float32
SERIAL = 1 << 14
"""Elements that are left to one thread."""
BLOCKS = 32
"""Sums over rows are made of at most this many sums over neighbouring rows."""

Outs = tuple[np.ndarray, ...]
Instructions = list[Instruction] | None


def lines(x: np.ndarray, axes: int = 1) -> np.ndarray | None:
    """A float32 array as a matrix whose rows are its last axes, without a copy; None where a row
    has gaps or rows are not evenly spaced, or the array is empty."""
    if x.dtype != f32 or not x.size or not 0 < axes <= x.ndim:
        return None
    n, step = 1, x.itemsize
    for size, stride in zip(x.shape[: -axes - 1 : -1], x.strides[: -axes - 1 : -1], strict=True):
        if size != 1 and stride != step * n:
            return None
        n *= size
    apart = spacing(x.shape[:-axes], x.strides[:-axes], step * n)
    if apart is None:
        return None
    return np.lib.stride_tricks.as_strided(x, (x.size // n, n), (apart, step))


def _own(site: Site, n: int, rows: int = 1) -> np.ndarray:
    """Memory of each thread for some rows."""
    return site.scratch((site.parts, rows, whole(n)))


def _matrices(*arrays: np.ndarray, axes: int = 1) -> list[np.ndarray] | None:
    """:func:`lines` of each array, if all have one shape."""
    found = [lines(x, axes) for x in arrays]
    if any(m is None or m.shape != found[0].shape for m in found):  # type: ignore[union-attr]
        return None
    return found  # type: ignore[return-value]


def _strided(matrices: list[np.ndarray]) -> list[Any]:
    return [slot for m in matrices for slot in (m, m.strides[0])]


def _last(axis: int, x: np.ndarray) -> bool:
    return bool(x.ndim) and axis in (-1, x.ndim - 1)


def _softmax(site: Site, outs: Outs, x: np.ndarray, axis: int, logarithm: bool) -> Instructions:
    both = _matrices(x, outs[0]) if _last(axis, x) else None
    if both is None:
        return None
    rows, n = both[0].shape
    slots = [*_strided(both), rows, n, _own(site, n), logarithm]
    return [Instruction(kernels.softmax, slots, parallel=x.size > SERIAL)]


@lowers("softmax", inplace=("x",))
def lower_softmax(site: Site, outs: Outs, x: np.ndarray, axis: int = -1) -> Instructions:
    """Softmax along the last axis."""
    return _softmax(site, outs, x, axis, False)


@lowers("log_softmax", inplace=("x",))
def lower_log_softmax(site: Site, outs: Outs, x: np.ndarray, axis: int = -1) -> Instructions:
    """The logarithm of softmax along the last axis."""
    return _softmax(site, outs, x, axis, True)


def _softmax_backward(
    site: Site, outs: Outs, dy: np.ndarray, y: np.ndarray, axis: int, logarithm: bool
) -> Instructions:
    three = _matrices(dy, y, outs[0]) if _last(axis, y) else None
    if three is None:
        return None
    rows, n = three[0].shape
    slots = [*_strided(three), rows, n, _own(site, n, 2), logarithm]
    return [Instruction(kernels.softmax_backward, slots, parallel=y.size > SERIAL)]


@lowers("softmax_backward", inplace=("dy", "y"))
def lower_softmax_backward(
    site: Site, outs: Outs, dy: np.ndarray, y: np.ndarray, axis: int = -1
) -> Instructions:
    """The derivative of softmax along the last axis."""
    return _softmax_backward(site, outs, dy, y, axis, False)


@lowers("log_softmax_backward", inplace=("dy", "y"))
def lower_log_softmax_backward(
    site: Site, outs: Outs, dy: np.ndarray, y: np.ndarray, axis: int = -1
) -> Instructions:
    """The derivative of the logarithm of softmax along the last axis."""
    return _softmax_backward(site, outs, dy, y, axis, True)


def _labels(x: np.ndarray, target: Any, weight: Any) -> bool:
    """Whether there is an int64 for each row, and a weight for each class or none."""
    return (
        isinstance(target, np.ndarray)
        and fit(target, dtype=np.int64)
        and target.shape == x.shape[:1]
        and (weight is None or (fit(weight) and weight.shape == x.shape[1:]))
    )


@lowers("softmax_cross_entropy")
def lower_cross_entropy(
    site: Site,
    outs: Outs,
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Instructions:
    """Cost of each row, and what the exponentials of its logits add up to."""
    one = _matrices(x) if x.ndim == 2 and _labels(x, target, weight) else None
    if one is None or not fit(*outs):
        return None
    rows, n = x.shape
    slots = [*_strided(one), *outs, target, 0 if weight is None else weight, rows, n]
    slots += [_own(site, n), int(ignore_index), float(label_smoothing), site.status]
    return [Instruction(kernels.cross_entropy, slots, parallel=x.size > SERIAL)]


@lowers("softmax_cross_entropy_backward", inplace=("x",))
def lower_cross_entropy_backward(
    site: Site,
    outs: Outs,
    dy: np.ndarray,
    x: np.ndarray,
    top: np.ndarray,
    total: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Instructions:
    """The derivative of the costs."""
    both = _matrices(x, outs[0]) if x.ndim == 2 and _labels(x, target, weight) else None
    if both is None or not fit(top, total) or dy.dtype != f32 or dy.shape != x.shape[:1]:
        return None
    rows, n = x.shape
    slots = [dy, dy.strides[0], *_strided(both[:1]), top, total, *_strided(both[1:]), target]
    slots += [0 if weight is None else weight, rows, n]
    slots += [_own(site, n), int(ignore_index), float(label_smoothing), site.status]
    return [Instruction(kernels.cross_entropy_backward, slots, parallel=x.size > SERIAL)]


def _features(x: np.ndarray, axes: int, *values: np.ndarray | None) -> bool:
    """Whether there are numbers, or none, for each of the last axes' elements."""
    return all(v is None or (fit(v) and v.shape == x.shape[x.ndim - axes :]) for v in values)


def _normalised(
    site: Site,
    outs: Outs,
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    axes: int,
    eps: float,
) -> Instructions:
    y, *mean, rstd = outs
    both = _matrices(x, y, axes=axes)
    if both is None or not _features(x, axes, weight, bias) or not fit(*mean, rstd):
        return None
    rows, n = both[0].shape
    slots = [*_strided(both), mean[0] if mean else 0, rstd]
    slots += [0 if v is None else v for v in (weight, bias)]
    slots += [rows, n, _own(site, n), float(eps)]
    return [Instruction(kernels.layer_norm, slots, parallel=x.size > SERIAL)]


@lowers("layer_norm", inplace=("x",))
def lower_layer_norm(
    site: Site,
    outs: Outs,
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    axes: int,
    eps: float,
) -> Instructions:
    """Normalisation over the last axes."""
    return _normalised(site, outs, x, weight, bias, axes, eps)


@lowers("rms_norm", inplace=("x",))
def lower_rms_norm(
    site: Site, outs: Outs, x: np.ndarray, weight: np.ndarray | None, axes: int, eps: float
) -> Instructions:
    """Normalisation by the root mean square."""
    return _normalised(site, outs, x, weight, None, axes, eps)


def _cotangents(
    site: Site,
    outs: Outs,
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray | None,
    rstd: np.ndarray,
    axes: int,
) -> Instructions:
    dx, *found = outs
    three = _matrices(dy, x, dx, axes=axes)
    moments = (rstd,) if mean is None else (mean, rstd)
    if three is None or not _features(x, axes, weight) or not fit(*moments, *found):
        return None
    rows, n = three[0].shape
    blocks = min(rows, BLOCKS)
    sums = [site.scratch((blocks, n)) for _ in found]
    slots = [*_strided(three), 0 if mean is None else mean, rstd, 0 if weight is None else weight]
    slots += [rows, n, _own(site, n, 2), sums[0], blocks, sums[1] if len(sums) > 1 else 0]
    many = x.size > SERIAL and blocks > 1
    return [
        Instruction(kernels.layer_norm_backward, slots, parallel=many),
        *(
            Instruction(kernels.add_blocks, [s, blocks, n, out], parallel=s.size > 1 << 16)
            for s, out in zip(sums, found, strict=True)
        ),
    ]


@lowers("layer_norm_backward", inplace=("dy", "x"))
def lower_layer_norm_backward(
    site: Site,
    outs: Outs,
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    axes: int,
) -> Instructions:
    """The derivative of normalisation over the last axes."""
    return _cotangents(site, outs, dy, x, weight, mean, rstd, axes)


@lowers("rms_norm_backward", inplace=("dy", "x"))
def lower_rms_norm_backward(
    site: Site,
    outs: Outs,
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    rstd: np.ndarray,
    axes: int,
) -> Instructions:
    """The derivative of normalisation by the root mean square."""
    return _cotangents(site, outs, dy, x, weight, None, rstd, axes)
