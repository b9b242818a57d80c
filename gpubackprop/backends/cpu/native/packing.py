"""Parts of a matrix, copied to where a tile reads them one after the other.

A *panel* holds some columns: for each row of the matrix their numbers in that row. A *strip* holds
some rows: for each column of the matrix their numbers in it. Whichever way the matrix lies, a panel
or strip is either a copy of short runs or a transposition; the latter is done in registers, for
reading a matrix against its order costs several times as much as the product saves by it.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpubackprop.backends.cpu.native.abi import FAST, floats
from gpubackprop.backends.cpu.native.panels import TALL, WIDE
from gpubackprop.backends.cpu.native.tiles import LANES


@intrinsic
def _transpose(typingctx: Any, source: Any, step: Any, target: Any, pitch: Any) -> Any:
    """Write the transpose of a square of LANES by LANES numbers; rows lie `step` bytes apart at
    `source`, `pitch` at `target`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, apart, out, between = args
        i64, i32 = ir.IntType(64), ir.IntType(32)
        vector = ir.VectorType(ir.FloatType(), LANES)

        def at(base: Any, bytes_: Any, i: int) -> Any:
            place = builder.add(base, builder.mul(bytes_, ir.Constant(i64, i)))
            return builder.inttoptr(place, vector.as_pointer())

        rows = [builder.load(at(a, apart, i), align=4) for i in range(LANES)]
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
                    chosen = ir.Constant(ir.VectorType(i32, LANES), mask)
                    rows[k] = builder.shuffle_vector(x, y, chosen)
            size *= 2
        for i, row in enumerate(rows):
            builder.store(row, at(out, between, i), align=4)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4), build


def _run(count: int) -> Any:
    """``run(source, target)``: copy `count` numbers. As a loop it would first compare addresses."""

    @intrinsic
    def run(typingctx: Any, source: Any, target: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = ir.VectorType(ir.FloatType(), count).as_pointer()
            found = builder.load(builder.inttoptr(args[0], pointer), align=4)
            builder.store(found, builder.inttoptr(args[1], pointer), align=4)
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
def transpose_panels(depth, columns, source, step, panels):
    """Panels of a matrix that is stored as its transpose: `columns` (whole vectors) stored rows,
    `step` bytes apart, of `depth` numbers."""
    for c in range(0, columns, WIDE):
        _transpose_panel(
            depth, min(WIDE, columns - c), source + c * step, step, panels + 4 * c * depth
        )


@numba.njit(**FAST)
def _transpose_panel(depth, wide, source, step, panel):
    squares = depth // LANES * LANES
    for j in range(0, wide, LANES):
        for k in range(0, squares, LANES):
            _transpose(source + j * step + 4 * k, step, panel + 4 * (k * wide + j), 4 * wide)
    for j in range(wide):
        row = floats(source + j * step, depth)
        for k in range(squares, depth):
            floats(panel + 4 * (k * wide + j), 1)[0] = row[k]


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


@numba.njit(**FAST)
def copy_rows(rows, depth, source, step, target):
    """The first `depth` numbers of rows that begin `step` bytes apart, without the gaps."""
    for i in range(rows):
        a, b = floats(source + i * step, depth), floats(target + 4 * i * depth, depth)
        for j in range(depth):
            b[j] = a[j]
