"""Native sums, and copies between any two layouts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends.composites import normalize_axes
from gpubackprop.backends.cpu.native.abi import kernel, longs, octets, share, words
from gpubackprop.backends.cpu.native.chains import Chain, Operand, Result, Step, lower_chain
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.layouts import FLAT, Table
from gpubackprop.backends.cpu.native.lowering import TABLE, Site, lowers

COPY = (Step("copy", (Operand("input", 0),)),)
SERIAL = 1 << 13
MOST_AXES = 5


def how_summed(shape: tuple[int, ...], axis: Any) -> tuple[str, int, int] | None:
    """How a sum over axes of a C-contiguous array is one over a table: ``(how, rows, columns)``;
    None where it is neither over the first axes nor over the last."""
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


def _lower_sum(site: Site, out: np.ndarray, x: np.ndarray, axis: Any) -> Any:
    if not x.flags.c_contiguous or not out.flags.c_contiguous:
        return None
    found = how_summed(x.shape, axis)
    if found is None:
        return None
    how, rows, columns = found
    chain = Chain(Table(rows, columns, (FLAT,)), COPY, (Result(0, how),))
    return lower_chain(site, (out,), (x,), chain)


@lowers("sum")
def lower_sum(
    site: Site,
    outs: tuple[np.ndarray, ...],
    x: np.ndarray,
    axis: Any = None,
    keepdims: bool = False,
) -> list[Instruction] | None:
    """Sums over the first axes, over the last, or over all."""
    return _lower_sum(site, outs[0], x, axis)


@lowers("sum_to")
def lower_sum_to(
    site: Site, outs: tuple[np.ndarray, ...], x: np.ndarray, shape: tuple[int, ...]
) -> list[Instruction] | None:
    """Sums over what was broadcast."""
    lead = x.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        i + lead for i, n in enumerate(shape) if n == 1 and x.shape[i + lead] != 1
    )
    return _lower_sum(site, outs[0], x, axes)


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
