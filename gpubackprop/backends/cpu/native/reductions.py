"""Native reductions, copies between any two layouts, and arrays of one value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends.composites import normalize_axes
from gpubackprop.backends.cpu.native.abi import floats, kernel, longs, octets, share, words
from gpubackprop.backends.cpu.native.chains import Chain, Operand, Result, Step, lower_chain
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.layouts import FLAT, Table, memory_order
from gpubackprop.backends.cpu.native.lowering import TABLE, Site, lowers

COPY = (Step("copy", (Operand("input", 0),)),)
NEGATED = (Step("negative", (Operand("input", 0),)),)
SERIAL = 1 << 13
MOST_AXES = 5


def how_summed(shape: tuple[int, ...], axis: Any) -> tuple[str, int, int] | None:
    """How a reduction of a C-contiguous array over axes is one of a table: ``(how, rows,
    columns)``; None where it is neither over the first axes nor over the last, or over none."""
    axes = set(normalize_axes(axis, len(shape)))
    kept = [i for i in range(len(shape)) if i not in axes and shape[i] != 1]
    summed = [i for i in axes if shape[i] != 1]
    size = math.prod(shape)
    if not size:
        return None
    if not kept:
        return "all", 1, size
    if not summed:
        return None
    if max(summed) < min(kept):
        columns = math.prod(shape[i] for i in kept)
        return "columns", size // columns, columns
    if min(summed) > max(kept):
        columns = math.prod(shape[i] for i in summed)
        return "rows", size // columns, columns
    return None


def _reduce(
    site: Site, out: np.ndarray, x: np.ndarray, axis: Any, op: str = "sum", sign: bool = False
) -> list[Instruction] | None:
    """A reduction over any axes of an array of any layout; with `sign`, of the negated elements.

    Axes are taken in the order of memory. Where that leaves the reduced ones in the middle, or the
    array has gaps, it is copied first, the reduced axes last.
    """
    if not x.size or not out.flags.c_contiguous:
        return None
    axes = set(normalize_axes(axis, x.ndim))
    order = memory_order(x)
    found = None
    if order is not None:
        kept = [i for i in order if i not in axes and x.shape[i] != 1]
        # The result's elements lie in the order of its axes.
        if kept == sorted(kept):
            shape = tuple(x.shape[i] for i in order)
            found = how_summed(shape, tuple(order.index(i) for i in axes))
    made: list[Instruction] = []
    if found is None:
        last = [*(i for i in range(x.ndim) if i not in axes), *sorted(axes)]
        spread = x.transpose(last)
        x = site.scratch(spread.shape, x.dtype)
        copied = copy_instruction(x, spread)
        if copied is None:
            return None
        made.append(copied)
        first = x.ndim - len(axes)
        found = how_summed(x.shape, tuple(range(first, x.ndim)))
    if found is None:
        return None
    how, rows, columns = found
    if how == "rows" and op == "sum" and columns > 4096 and x.dtype == out.dtype == np.float32:
        return [*made, Instruction(sum_long_rows, [x, rows, columns, out], parallel=rows > 1)]
    steps = NEGATED if sign else COPY
    chain = Chain(Table(rows, columns, (FLAT,)), steps, (Result(0, how, op),))
    rest = lower_chain(site, (out,), (x,), chain)
    return None if rest is None else [*made, *rest]


def _afterwards(site: Site, out: np.ndarray, name: str, *numbers: Any) -> list[Instruction] | None:
    """An elementwise kernel of a result and numbers, in its own place."""
    steps = (Step(name, (Operand("input", 0), *numbers)),)
    chain = Chain(Table(1, out.size, (FLAT,)), steps, (Result(0, FLAT),))
    return lower_chain(site, (out,), (out,), chain)


@kernel
def sum_long_rows(frame, part, parts):
    """y[i] = sum over j of x[i, j], in float64 over blocks of 4,096; parts share the rows.

    Frame: x, rows, columns, y. NumPy adds long rows in pairs; this loses no more.
    """
    n = frame[2]
    first, last = share(frame[1], part, parts, 1)
    y = floats(frame[3], frame[1])
    for i in range(first, last):
        total = 0.0
        for start in range(0, n, 4096):
            count = min(4096, n - start)
            x = floats(frame[0] + 4 * (i * n + start), count)
            some = np.float32(0)
            for j in range(count):
                some += x[j]
            total += some
        y[i] = np.float32(total)


@lowers("sum")
def lower_sum(
    site: Site,
    outs: tuple[np.ndarray, ...],
    x: np.ndarray,
    axis: Any = None,
    keepdims: bool = False,
) -> list[Instruction] | None:
    """Sums over any axes."""
    return _reduce(site, outs[0], x, axis)


@lowers("sum_to")
def lower_sum_to(
    site: Site, outs: tuple[np.ndarray, ...], x: np.ndarray, shape: tuple[int, ...]
) -> list[Instruction] | None:
    """Sums over what was broadcast."""
    lead = x.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        i + lead for i, n in enumerate(shape) if n == 1 and x.shape[i + lead] != 1
    )
    return _reduce(site, outs[0], x, axes) if axes else _copy(outs[0], x.reshape(outs[0].shape))


@lowers("mean")
def lower_mean(
    site: Site,
    outs: tuple[np.ndarray, ...],
    x: np.ndarray,
    axis: Any = None,
    keepdims: bool = False,
) -> list[Instruction] | None:
    """Sums, then divided."""
    count = math.prod(x.shape[i] for i in normalize_axes(axis, x.ndim))
    total = _reduce(site, outs[0], x, axis)
    if total is None:
        return None
    divided = _afterwards(site, outs[0], "divide", count)
    return None if divided is None else [*total, *divided]


@lowers("max")
def lower_max(
    site: Site,
    outs: tuple[np.ndarray, ...],
    x: np.ndarray,
    axis: Any = None,
    keepdims: bool = False,
) -> list[Instruction] | None:
    """The largest elements over any axes."""
    return _reduce(site, outs[0], x, axis, "max")


@lowers("min")
def lower_min(
    site: Site,
    outs: tuple[np.ndarray, ...],
    x: np.ndarray,
    axis: Any = None,
    keepdims: bool = False,
) -> list[Instruction] | None:
    """The largest of the negated elements, negated."""
    top = _reduce(site, outs[0], x, axis, "max", sign=True)
    if top is None:
        return None
    back = _afterwards(site, outs[0], "negative")
    return None if back is None else [*top, *back]


@kernel
def strided_copy(frame, part, parts):
    """target[...] = source[...] for arrays of any strides.

    Frame: target, source, bytes of an element (1, 4 or 8), number of outer axes (4), lengths,
    target strides, source strides, then length and both strides of the innermost axis.
    """
    size = frame[2]
    outer = frame[3] * frame[4] * frame[5] * frame[6]
    n, target_step, source_step = frame[15], frame[16], frame[17]
    start, stop = share(outer, part, parts, 1)
    first, last = np.int64(0), n
    if outer < parts:
        start, stop = np.int64(0), outer
        first, last = share(n, part, parts, 64)
    for z in range(start, stop):
        rest = z
        t, s = frame[0] + first * target_step, frame[1] + first * source_step
        i = rest % frame[6]
        rest = rest // frame[6]
        t += i * frame[10]
        s += i * frame[14]
        i = rest % frame[5]
        rest = rest // frame[5]
        t += i * frame[9]
        s += i * frame[13]
        i = rest % frame[4]
        rest = rest // frame[4]
        t += i * frame[8] + rest * frame[7]
        s += i * frame[12] + rest * frame[11]
        count = last - first
        if size == 4:
            if target_step == 4 and source_step == 4:
                to, of = words(t, count), words(s, count)
                for k in range(count):
                    to[k] = of[k]
            else:
                for k in range(count):
                    words(t + k * target_step, 1)[0] = words(s + k * source_step, 1)[0]
        elif size == 8:
            for k in range(count):
                longs(t + k * target_step, 1)[0] = longs(s + k * source_step, 1)[0]
        else:
            for k in range(count):
                octets(t + k * target_step, 1)[0] = octets(s + k * source_step, 1)[0]


def copy_instruction(target: np.ndarray, source: np.ndarray) -> Instruction | None:
    """The instruction that copies an array over another of its shape (or broadcast to it)."""
    if target.dtype != source.dtype or target.dtype.itemsize not in (1, 4, 8):
        return None
    source = np.broadcast_to(source, target.shape)
    order = sorted(range(target.ndim), key=lambda i: -abs(target.strides[i]))
    axes: list[list[int]] = []
    for i in order:
        n, t, s = target.shape[i], target.strides[i], source.strides[i]
        if n == 1:
            continue
        if axes and axes[-1][1] == n * t and axes[-1][2] == n * s:
            axes[-1] = [axes[-1][0] * n, t, s]
        else:
            axes.append([n, t, s])
    if len(axes) > MOST_AXES:
        return None
    *outer, inner = axes or [[1, 0, 0]]
    outer = [[1, 0, 0]] * (4 - len(outer)) + outer
    slots = [target, source, target.dtype.itemsize]
    for k in range(3):
        slots += [a[k] for a in outer]
    return Instruction(strided_copy, [*slots, *inner], parallel=target.size > SERIAL)


def _copy(target: np.ndarray, source: Any) -> list[Instruction] | None:
    if not target.size:
        return []
    made = copy_instruction(target, source)
    return None if made is None else [made]


_chain_copyto = TABLE["copyto"].lower  # of chains.py


@lowers("copy")
def lower_copy(site: Site, outs: Any, x: np.ndarray) -> list[Instruction] | None:
    """A copy, from any layout to any other."""
    return _copy(outs[0], x)


@lowers("copyto")
def lower_copyto(site: Site, outs: Any, target: np.ndarray, source: Any) -> Any:
    """A copy over an array; numbers and other dtypes go through a chain."""
    if isinstance(source, np.ndarray) and source.dtype == target.dtype:
        return _copy(target, source)
    return _chain_copyto(site, outs, target, source)


@lowers("concatenate")
def lower_concatenate(
    site: Site, outs: Any, arrays: Any, axis: int = 0
) -> list[Instruction] | None:
    """One copy for each array."""
    out, at = outs[0], 0
    made: list[Instruction] = []
    axis %= out.ndim
    for x in arrays:
        n = x.shape[axis]
        part = out[(slice(None),) * axis + (slice(at, at + n),)]
        at += n
        if not x.size:
            continue
        found = copy_instruction(part, x)
        if found is None:
            return None
        made.append(found._replace(wait=not made))
    return made


def _fill(site: Site, out: np.ndarray, value: Any) -> Any:
    return _chain_copyto(site, (), out, value)


@lowers("zeros")
def lower_zeros(site: Site, outs: Any, shape: Any, dtype: Any) -> Any:
    """Zeros that the step writes to, so that they must be zeros anew."""
    return _fill(site, outs[0], False if outs[0].dtype == bool else 0)


@lowers("ones")
def lower_ones(site: Site, outs: Any, shape: Any, dtype: Any) -> Any:
    """Ones, written at each step."""
    return _fill(site, outs[0], True if outs[0].dtype == bool else 1)


@lowers("full")
def lower_full(site: Site, outs: Any, shape: Any, value: Any, dtype: Any) -> Any:
    """One value, written at each step."""
    if isinstance(value, np.ndarray):
        return lower_copyto(site, (), outs[0], value)
    return _fill(site, outs[0], value)


@lowers("pad")
def lower_pad(site: Site, outs: Any, x: np.ndarray, pad_width: Any, value: float = 0.0) -> Any:
    """The value everywhere, then the array over it."""
    out = outs[0]
    filled = _fill(site, out, value)
    inside = tuple(slice(a, a + n) for (a, _), n in zip(pad_width, x.shape, strict=True))
    copied = _copy(out[inside], x)
    return None if filled is None or copied is None else [*filled, *copied]


@lowers("flip")
def lower_flip(site: Site, outs: Any, x: np.ndarray, axis: Any = None) -> Any:
    """A copy by negative strides."""
    return _copy(outs[0], np.flip(x, axis))
