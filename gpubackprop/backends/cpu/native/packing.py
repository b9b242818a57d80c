"""Parts of a matrix, copied to where a tile reads them one after the other.

A *panel* holds some columns: for each row of the matrix their numbers in that row. A *strip* holds
some rows: for each column of the matrix their numbers in it. Whichever way the matrix lies, a panel
or strip is either a copy of short runs or a transposition; the latter is done in registers, for
reading a matrix against its order costs several times as much as the product saves by it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpubackprop.backends.cpu.native.abi import FAST, floats, kernel, share
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site
from gpubackprop.backends.cpu.native.panels import TALL, WIDE
from gpubackprop.backends.cpu.native.vectors import (
    LANES,
    REAL,
    VECTOR,
    load,
    number,
    pointer,
    store_vectors,
    whole,
)


@intrinsic
def _transpose(typingctx: Any, source: Any, step: Any, target: Any, pitch: Any) -> Any:
    """Write the transpose of a square of LANES by LANES numbers; rows lie `step` bytes apart at
    `source`, `pitch` at `target`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, apart, out, between = args
        places = [builder.add(a, builder.mul(apart, number(i))) for i in range(LANES)]
        rows = [load(builder, place, VECTOR) for place in places]
        # Swap the two off-diagonal quarters of ever larger squares: numbers whose row and column
        # differ in the bit `size`.
        size = 1
        while size < LANES:
            for i in range(LANES):
                if i & size:
                    continue
                low = [j if not j & size else LANES + j - size for j in range(LANES)]
                high = [j + size if not j & size else LANES + j for j in range(LANES)]
                x, y = rows[i], rows[i + size]
                for k, mask in ((i, low), (i + size, high)):
                    chosen = ir.Constant(ir.VectorType(ir.IntType(32), LANES), mask)
                    rows[k] = builder.shuffle_vector(x, y, chosen)
            size *= 2
        for i, row in enumerate(rows):
            store_vectors(builder, [row], builder.add(out, builder.mul(between, number(i))))
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4), build


def _run(count: int) -> Any:
    """``run(source, target)``: copy `count` numbers. As a loop it would first compare addresses."""

    @intrinsic
    def run(typingctx: Any, source: Any, target: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            of = ir.VectorType(REAL, count)
            builder.store(load(builder, args[0], of), pointer(builder, args[1], of), align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), build

    return run


_run_wide, _run_narrow, _run_tall = _run(WIDE), _run(LANES), _run(TALL)


@numba.njit(**FAST)
def copy_panels(depth, columns, source, step, panels):
    """Panels of a matrix in rows: `columns` (whole vectors) of `depth` rows that begin `step` bytes
    apart. All are taken from a row at once, since far apart rows lie on different pages."""
    many = columns // WIDE
    for k in range(depth):
        row, place = source + k * step, panels + 4 * WIDE * k
        for _ in range(many):
            _run_wide(row, place)
            row += 4 * WIDE
            place += 4 * WIDE * depth
    if columns > many * WIDE:
        source += 4 * WIDE * many
        panels += 4 * WIDE * many * depth
        for k in range(depth):
            _run_narrow(source + k * step, panels + 4 * LANES * k)


@numba.njit(**FAST)
def pack_lanes(depth, columns, source, step_k, step_c, target, pitch):
    """LANES columns of a panel: of a matrix the first `columns` at `source`, zeros for what is
    missing. The matrix's numbers lie `step_k` bytes apart within a column and `step_c` within a
    row, the panel's rows `pitch`."""
    k = 0
    if columns >= LANES and step_k == 4:
        while k + LANES <= depth:
            _transpose(source + 4 * k, step_c, target + k * pitch, pitch)
            k += LANES
    elif columns >= LANES and step_c == 4:
        while k < depth:
            _run_narrow(source + k * step_k, target + k * pitch)
            k += 1
    there = max(0, min(columns, LANES))
    while k < depth:
        row = floats(target + k * pitch, LANES)
        for j in range(there):
            row[j] = floats(source + k * step_k + j * step_c, 1)[0]
        for j in range(there, LANES):
            row[j] = 0
        k += 1


@numba.njit(**FAST)
def transpose_panels(depth, columns, source, step, panels):
    """Panels of a matrix that is stored as its transpose: `columns` (whole vectors) stored rows,
    `step` bytes apart, of `depth` numbers."""
    for c in range(0, columns, WIDE):
        wide = min(WIDE, columns - c)
        for j in range(0, wide, LANES):
            target = panels + 4 * (c * depth + j)
            pack_lanes(depth, LANES, source + (c + j) * step, 4, step, target, 4 * wide)


@kernel
def pack_panels(frame, part, parts):
    """Panels of B for a matrix of blocks of columns, each block filled up to whole vectors:
    B[k, g * padded + j] = source[k, g * size + j].

    Frame: source, its distances of two rows and of two columns in bytes, depth, blocks, size,
    padded, panels.
    """
    step_k, step_c = frame[1], frame[2]
    depth, size, padded = frame[3], frame[5], frame[6]
    columns = frame[4] * padded
    start, stop = share(columns, part, parts, WIDE)
    for c in range(start, stop, LANES):
        block, j = c // padded, c % padded
        panel = c // WIDE * WIDE
        source = frame[0] + (block * size + j) * step_c
        target = frame[7] + 4 * (panel * depth + c - panel)
        pack_lanes(depth, size - j, source, step_k, step_c, target, 4 * min(WIDE, columns - panel))


def packed(site: Site, source: np.ndarray, blocks: int) -> tuple[Instruction, np.ndarray]:
    """The instruction that writes the panels of a float32 matrix (depth, blocks * size), and the
    memory for them. Each block's columns are filled up to whole vectors."""
    depth, size = source.shape[0], source.shape[1] // blocks
    padded = whole(size)
    panels = site.scratch((depth * blocks * padded,))
    slots = [source, *source.strides, depth, blocks, size, padded, panels]
    return Instruction(pack_panels, slots, parallel=source.size > 1 << 15), panels


@numba.njit(**FAST)
def copy_strips(rows, depth, source, step, strips):
    """The strips of a matrix that is stored as its transpose: TALL columns of `depth` stored rows,
    `step` bytes apart. Of the last strip only the rows that there are."""
    pair = 4 * depth * TALL  # two strips at a time: they share the lines of the cache
    whole = rows // (2 * TALL) * (2 * TALL)
    for i in range(0, whole, 2 * TALL):
        for k in range(depth):
            place = source + k * step + 4 * i
            _run_tall(place, strips + 4 * k * TALL)
            _run_tall(place + 4 * TALL, strips + pair + 4 * k * TALL)
        strips += 2 * pair
    for i in range(whole, rows):
        place = strips + (i - whole) // TALL * pair + 4 * (i % TALL)
        for k in range(depth):
            floats(place + 4 * k * TALL, 1)[0] = floats(source + k * step + 4 * i, 1)[0]
