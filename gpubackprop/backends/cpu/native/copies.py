"""Native copies between any two layouts, and arrays of one value."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native import chains  # noqa: F401 (its copyto is kept below)
from gpubackprop.backends.cpu.native.abi import (
    inline,
    kernel,
    longs,
    octets,
    share,
    words,
)
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import TABLE, Site, lowers

SERIAL = 1 << 13
"""Elements that are left to one thread."""
MOST_AXES = 5
TILE = 8
"""Rows and columns of a block that is transposed within a core's cache: as many lines as it can
keep where all have the same place in it, at strides that are powers of two."""


@inline
def place(frame, z):
    """Where the block of outer index `z` begins, in bytes from the target and from the source."""
    t, s = np.int64(0), np.int64(0)
    for k in range(2, -1, -1):
        n = frame[4 + k]
        if n > 1:
            i = z % n
            z = z // n
            t += i * frame[8 + k]
            s += i * frame[12 + k]
    return t + z * frame[7], s + z * frame[11]


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
    count = last - first
    for z in range(start, stop):
        t, s = place(frame, z)
        t += frame[0] + first * target_step
        s += frame[1] + first * source_step
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


@kernel
def transposed_copy(frame, part, parts):
    """target[..., i, j] = source[..., i, j] of 4-byte elements, for a target whose `j` are
    neighbours and a source whose `i` are: in square blocks, so that no line of memory is fetched
    more than once.

    Frame: as ``strided_copy``, the innermost axis being `j`; then length and target stride of `i`.
    """
    outer = frame[3] * frame[4] * frame[5] * frame[6]
    columns, source_step = frame[15], frame[17]
    rows, target_step = frame[18], frame[19]
    bands = (rows + TILE - 1) // TILE
    start, stop = share(outer * bands, part, parts, 1)
    for z in range(start, stop):
        t, s = place(frame, z // bands)
        top = z % bands * TILE
        height = min(TILE, rows - top)
        t += frame[0] + top * target_step
        s += frame[1] + top * 4
        for left in range(0, columns, TILE):
            width = min(TILE, columns - left)
            if height == TILE and width == TILE:
                for i in range(TILE):
                    to = words(t + i * target_step + 4 * left, TILE)
                    for j in range(TILE):
                        to[j] = words(s + (left + j) * source_step + 4 * i, 1)[0]
            else:
                for i in range(height):
                    to = words(t + i * target_step + 4 * left, width)
                    for j in range(width):
                        to[j] = words(s + (left + j) * source_step + 4 * i, 1)[0]


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
    across = None
    if target.itemsize == 4 and inner[0] > 3 and inner[1] == 4 and inner[2] != 4:
        across = next((a for a in outer if a[2] == 4 and a[0] > 3), None)
    if across is not None:
        outer.remove(across)
    outer = [[1, 0, 0]] * (4 - len(outer)) + outer
    slots = [target, source, target.dtype.itemsize]
    for k in range(3):
        slots += [a[k] for a in outer]
    many = target.size > SERIAL
    if across is not None:
        return Instruction(transposed_copy, [*slots, *inner, *across[:2]], parallel=many)
    return Instruction(strided_copy, [*slots, *inner], parallel=many)


def copy_all(target: np.ndarray, source: Any) -> list[Instruction] | None:
    if not target.size:
        return []
    made = copy_instruction(target, source)
    return None if made is None else [made]


_chain_copyto = TABLE["copyto"].lower  # of chains.py


@lowers("copy")
def lower_copy(site: Site, outs: Any, x: np.ndarray) -> list[Instruction] | None:
    """A copy, from any layout to any other."""
    return copy_all(outs[0], x)


@lowers("copyto")
def lower_copyto(site: Site, outs: Any, target: np.ndarray, source: Any) -> Any:
    """A copy over an array; numbers and other dtypes go through a chain."""
    if isinstance(source, np.ndarray) and source.dtype == target.dtype:
        return copy_all(target, source)
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
    copied = copy_all(out[inside], x)
    return None if filled is None or copied is None else [*filled, *copied]


@lowers("flip")
def lower_flip(site: Site, outs: Any, x: np.ndarray, axis: Any = None) -> Any:
    """A copy by negative strides."""
    return copy_all(outs[0], np.flip(x, axis))
