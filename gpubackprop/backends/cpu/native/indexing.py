"""Native lookups by number, parts of arrays, and the sums that are their gradients.

An array is seen as (outer, size, inner) around the axis that is looked up. Negative numbers count
from the end; one that is out of range ends the program.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.backends.array_backend import is_basic_key, sole_index_axis
from gpubackprop.backends.cpu.native.abi import (
    floats,
    inline,
    kernel,
    longs,
    raise_status,
    share,
    words,
)
from gpubackprop.backends.cpu.native.copies import copy_instruction
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers
from gpubackprop.backends.cpu.native.order import in_order

SERIAL = 1 << 13
"""Elements that are left to one thread."""
OUTER, COLUMNS, ROWS = 0, 1, 2
"""What parts of a scatter share: the outer axis, the inner one, or the axis that is looked up."""

Array = np.ndarray
Instructions = Sequence[Instruction] | None


@inline
def place(number, size, status):
    """Where on an axis a number is; -1 if nowhere."""
    k = number + size if number < 0 else number
    if k < 0 or k >= size:
        raise_status(status, 1)
        return np.int64(-1)
    return k


@kernel
def take(frame, part, parts):
    """y[o, i] = x[o, index[i]].

    Frame: x, index, y, outer, size, inner (in words of 32 bits), numbers, status.
    """
    size, n, count = frame[4], frame[5], frame[6]
    start, stop = share(frame[3] * count, part, parts, 1)
    index = longs(frame[1], count)
    for z in range(start, stop):
        o = z // count
        k = place(index[z - o * count], size, frame[7])
        if k < 0:
            continue
        x, y = words(frame[0] + 4 * (o * size + k) * n, n), words(frame[2] + 4 * z * n, n)
        for j in range(n):
            y[j] = x[j]


@kernel
def scatter_take(frame, part, parts):
    """dx[o, index[i]] += dy[o, i] into zeros, in the order of i for each element.

    Frame: dy, index, dx, outer, size, inner, numbers, status, what parts share; then where in dy
    number i is: i // step * first + i % step * second bytes from its beginning, for each outer
    place the bytes of dy that it has.
    """
    outer, size, n, count = frame[3], frame[4], frame[5], frame[6]
    step, first, second, whole = frame[9], frame[10], frame[11], frame[12]
    begin, end = np.int64(0), outer
    left, right = np.int64(0), n
    low, high = np.int64(0), size
    if frame[8] == OUTER:
        begin, end = share(outer, part, parts, 1)
    elif frame[8] == COLUMNS:
        left, right = share(n, part, parts, 16)
    else:
        low, high = share(size, part, parts, 1)
    width = right - left
    if width <= 0:
        return
    index = longs(frame[1], count)
    for o in range(begin, end):
        for k in range(low, high):
            row = floats(frame[2] + 4 * ((o * size + k) * n + left), width)
            for j in range(width):
                row[j] = 0
        for i in range(count):
            k = place(index[i], size, frame[7])
            if k < low or k >= high:
                continue
            row = floats(frame[2] + 4 * ((o * size + k) * n + left), width)
            at = frame[0] + o * whole + i // step * first + i % step * second
            more = floats(at + 4 * left, width)
            for j in range(width):
                row[j] += more[j]


@kernel
def take_along(frame, part, parts):
    """y[o, i, j] = x[o, index[o, i, j], j], or with `scatter` dx[o, index[o, i, j], j] +=
    dy[o, i, j] into zeros.

    Frame: x or dx, index, y or dy, outer, size, inner, numbers, status, scatter.
    """
    size, n, count = frame[4], frame[5], frame[6]
    start, stop = share(frame[3], part, parts, 1)
    for o in range(start, stop):
        x = floats(frame[0] + 4 * o * size * n, size * n)
        index = longs(frame[1] + 8 * o * count * n, count * n)
        y = floats(frame[2] + 4 * o * count * n, count * n)
        if frame[8]:
            for k in range(x.size):
                x[k] = 0
        for i in range(count):
            for j in range(n):
                k = place(index[i * n + j], size, frame[7])
                if k < 0:
                    continue
                if frame[8]:
                    x[k * n + j] += y[i * n + j]
                else:
                    y[i * n + j] = x[k * n + j]


@kernel
def clear(frame, part, parts):
    """Zeros. Frame: array, length in words of 32 bits."""
    start, stop = share(frame[1], part, parts, 64)
    row = words(frame[0], frame[1])[start:stop]
    for i in range(row.size):
        row[i] = 0


def _numbers(indices: Any) -> bool:
    return isinstance(indices, np.ndarray) and fit(indices, dtype=np.int64) and indices.size > 0


@lowers("take")
def lower_take(site: Site, outs: Any, x: Array, indices: Array, axis: int = 0) -> Instructions:
    """Slices by number, of any dtype whose slices are whole words."""
    y = outs[0]
    if not x.ndim or not y.size or not _numbers(indices) or not fit(y, dtype=x.dtype):
        return None
    axis %= x.ndim
    inner = math.prod(x.shape[axis + 1 :]) * x.itemsize
    before, source = in_order(site, x, x.dtype)  # type: ignore[arg-type]
    if inner % 4 or source is None:
        return None
    outer = math.prod(x.shape[:axis])
    slots = [source, indices, y, outer, x.shape[axis], inner // 4, indices.size, site.status]
    return [*before, Instruction(take, slots, parallel=y.size > SERIAL)]


@lowers("scatter_take")
def lower_scatter_take(
    site: Site, outs: Any, dy: Array, indices: Array, axis: int, size: int
) -> Instructions:
    """The gradient of a lookup."""
    dx = outs[0]
    if not _numbers(indices) or dy.dtype != np.float32 or not dy.size or not fit(dx):
        return None
    axis %= dx.ndim
    outer, inner = math.prod(dx.shape[:axis]), math.prod(dx.shape[axis + 1 :])
    before: list[Instruction] = []
    row = 4 * inner
    steps = [indices.size, 0, row, row * indices.size]
    if not dy.flags.c_contiguous:
        if axis == 0 and indices.ndim == 2 and dy[0, 0].flags.c_contiguous:
            steps = [indices.shape[1], dy.strides[0], dy.strides[1], 0]
        else:
            before, copy = in_order(site, dy)
            if copy is None:
                return None
            dy = copy
    # A table that is much longer than the list of numbers is mostly cleared: in long stretches.
    wide = inner >= 16 * site.parts and size <= 4 * indices.size
    how = COLUMNS if wide else OUTER if outer >= site.parts else ROWS
    slots = [dy, indices, dx, outer, size, inner, indices.size, site.status, how, *steps]
    return [*before, Instruction(scatter_take, slots, parallel=dy.size + dx.size > SERIAL)]


def _along(
    site: Site, x: Array, indices: Array, y: Array, axis: int, scatter: bool
) -> Instructions:
    """`x` is what is looked up, or the gradient that is made."""
    axis %= max(x.ndim, 1)
    lead, rest = slice(0, axis), slice(axis + 1, None)
    if not _numbers(indices) or not x.size or not fit(x, y) or indices.ndim != x.ndim:
        return None
    if any(indices.shape[s] != x.shape[s] for s in (lead, rest)):
        return None
    outer, inner = math.prod(x.shape[lead]), math.prod(x.shape[rest])
    size, count = x.shape[axis], indices.shape[axis]
    slots = [x, indices, y, outer, size, inner, count, site.status, scatter]
    return [Instruction(take_along, slots, parallel=x.size + y.size > SERIAL and outer > 1)]


@lowers("take_along_axis")
def lower_take_along_axis(
    site: Site, outs: Any, x: Array, indices: Array, axis: int
) -> Instructions:
    """A number for each row along an axis."""
    return _along(site, x, indices, outs[0], axis, False)


@lowers("scatter_along_axis")
def lower_scatter_along_axis(
    site: Site, outs: Any, dy: Array, indices: Array, axis: int, size: int
) -> Instructions:
    """The gradient of ``take_along_axis``."""
    return _along(site, outs[0], indices, dy, axis, True)


@lowers("getitem")
def lower_getitem(site: Site, outs: Any, x: Array, key: Any) -> Instructions:
    """Whole slices by number along one axis; a view where the key makes one."""
    if not outs[0].size:
        return []
    if is_basic_key(key):
        made = copy_instruction(outs[0], _part(x, key))
        return None if made is None else [made]
    axis = sole_index_axis(key)
    if axis is None:
        return None
    return lower_take(site, outs, x, key[axis] if isinstance(key, tuple) else key, axis)


@lowers("scatter_getitem")
def lower_scatter_getitem(
    site: Site, outs: Any, dy: Array, key: Any, shape: tuple[int, ...]
) -> Instructions:
    """The gradient of a part of an array."""
    dx = outs[0]
    if not is_basic_key(key):
        axis = sole_index_axis(key)
        if axis is None:
            return None
        indices = key[axis] if isinstance(key, tuple) else key
        return lower_scatter_take(site, outs, dy, indices, axis, shape[axis])
    if not dx.flags.c_contiguous or dx.nbytes % 4 or dx.dtype != dy.dtype or not dy.size:
        return None
    part = _part(dx, key)
    copied = copy_instruction(part, dy)
    if copied is None:
        return None
    zeros = Instruction(clear, [dx, dx.nbytes // 4], parallel=dx.size > 2 * SERIAL)
    return [copied] if part.size == dx.size else [zeros, copied]


def _part(x: Array, key: Any) -> Array:
    """``x[key]`` as a view, also of a single element."""
    part = x[key]
    if isinstance(part, np.ndarray):
        return part
    return x[(*key, ...) if isinstance(key, tuple) else (key, ...)]
