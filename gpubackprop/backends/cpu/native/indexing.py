"""Native lookups: rows by number, and the sums that are their gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native.abi import floats, kernel, longs, raise_status, share
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers

SERIAL = 1 << 13


@kernel
def take_rows(frame, part, parts):
    """y[i] = x[index[i]]. Frame: x, index, y, rows of x, row length, how many, status."""
    size, n = frame[3], frame[4]
    start, stop = share(frame[5], part, parts, 1)
    index = longs(frame[1], frame[5])
    for i in range(start, stop):
        k = index[i]
        k = k + size if k < 0 else k
        if k < 0 or k >= size:
            raise_status(frame[6], 1)
            continue
        x, y = floats(frame[0] + 4 * k * n, n), floats(frame[2] + 4 * i * n, n)
        for j in range(n):
            y[j] = x[j]


@kernel
def add_rows_at(frame, part, parts):
    """dx[index[i]] += dy[i] into zeros; parts share the columns, so that the sums of each row are
    taken in the order of the indices.

    Frame: dy, index, dx, rows of dx, row length, how many, status.
    """
    size, n = frame[3], frame[4]
    left, right = share(n, part, parts, 16)
    index = longs(frame[1], frame[5])
    width = right - left
    if width <= 0:
        return
    for k in range(size):
        x = floats(frame[2] + 4 * (k * n + left), width)
        for j in range(width):
            x[j] = 0
    for i in range(frame[5]):
        k = index[i]
        k = k + size if k < 0 else k
        if k < 0 or k >= size:
            raise_status(frame[6], 1)
            continue
        x, y = (
            floats(frame[2] + 4 * (k * n + left), width),
            floats(frame[0] + 4 * (i * n + left), width),
        )
        for j in range(width):
            x[j] += y[j]


@lowers("take")
def lower_take(
    site: Site, outs: Any, x: np.ndarray, indices: np.ndarray, axis: int = 0
) -> list[Instruction] | None:
    """Rows of a table by number."""
    if axis % max(x.ndim, 1) or x.ndim < 1 or not fit(x, outs[0]):
        return None
    if not fit(indices, dtype=np.int64) or not outs[0].size:
        return None
    n = math.prod(x.shape[1:])
    slots = [x, indices, outs[0], len(x), n, indices.size, site.status]
    return [Instruction(take_rows, slots, parallel=outs[0].size > SERIAL)]


@lowers("scatter_take")
def lower_scatter_take(
    site: Site, outs: Any, dy: np.ndarray, indices: np.ndarray, axis: int, size: int
) -> list[Instruction] | None:
    """The gradient of a lookup."""
    dx = outs[0]
    if axis % dx.ndim or not fit(indices, dtype=np.int64) or not dx.size:
        return None
    if dy.dtype != np.float32 or not fit(dx):
        return None
    before = []
    if not dy.flags.c_contiguous:
        from gpubackprop.backends.cpu.native.reductions import copy_instruction

        spread = site.scratch(dy.shape)
        made = copy_instruction(spread, dy)
        if made is None:
            return None
        before, dy = [made], spread
    n = math.prod(dx.shape[1:])
    slots = [dy, indices, dx, size, n, indices.size, site.status]
    return [*before, Instruction(add_rows_at, slots, parallel=dy.size > SERIAL and n >= 32)]
