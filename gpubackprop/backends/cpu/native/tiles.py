"""Products of a few rows that lie anywhere with a matrix, held in registers.

A *tile* is a few rows of a result, a few vectors wide. Each of its numbers is a sum over `depth`
places: the number at that place of the row's own run of numbers, times the matrix's row for that
place. Where the rows and the places begin is read from tables of byte offsets, so a convolution
needs no copy of its windows: a row is a pixel's window, and the table holds where in a window its
numbers lie. The BLAS would copy the windows, and the BLAS's own copy of that is as much work again
where the matrix has few columns.

The loop is written as LLVM instructions, since a tile lives from every sum staying in a register.
"""

from __future__ import annotations

from typing import Any

import numba
from numba import types
from numba.extending import intrinsic

from gpubackprop.backends.cpu.native.abi import FAST
from gpubackprop.backends.cpu.native.vectors import (
    I64,
    LANES,
    REGISTERS,
    VECTOR,
    ZEROS,
    add_products,
    load,
    load_vectors,
    number,
    store_vectors,
)

WIDEST = 4 if REGISTERS == 32 else 2
"""Vectors of the widest tile. Its sums, a row of the matrix and a factor fill the registers."""
_ROWS = {4: 6, 2: 6, 1: 8}


def _tile(vectors: int) -> Any:
    """``tile(i, n, starts, ends, a, out, b, step, places, depth, beta, first, relu)``: rows i to
    i + _ROWS[vectors] of n. For those past the end the last one is done again, with the same
    result.

    Row r has its run of numbers at ``a + starts[r]`` and its sums at ``out + ends[r]``; place k has
    its number at ``places[k]`` in the run, and its row of the matrix at ``b + k * step``. Sums
    begin with what is at `out` (`beta` 1) or with the vectors at `first` (`beta` 0), and with
    `relu` those below 0 become 0. Everything is an address, a number of bytes or a count.
    """
    rows = _ROWS[vectors]

    @intrinsic
    def tile(
        typingctx: Any,
        i: Any,
        n: Any,
        starts: Any,
        ends: Any,
        a: Any,
        out: Any,
        b: Any,
        step: Any,
        places: Any,
        depth: Any,
        beta: Any,
        first: Any,
        relu: Any,
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _emit(builder, rows, vectors, args)
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 13), build

    return tile


def _emit(builder: Any, rows: int, vectors: int, args: Any) -> None:
    i, n, starts, ends, a, out, b, step, places, depth, beta, first, relu = args
    last = builder.sub(n, number(1))
    sources, targets = [], []
    for r in range(rows):
        row = builder.add(i, number(r))
        row = builder.select(builder.icmp_signed("<", row, n), row, last)
        at = builder.mul(row, number(8))
        sources.append(builder.add(a, load(builder, builder.add(starts, at), I64)))
        targets.append(builder.add(out, load(builder, builder.add(ends, at), I64)))

    from_out, from_first = builder.append_basic_block("out"), builder.append_basic_block("first")
    loop, done = builder.append_basic_block("places"), builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("!=", beta, number(0)), from_out, from_first)
    builder.position_at_end(from_out)
    old = [x for target in targets for x in load_vectors(builder, target, vectors)]
    builder.branch(loop)
    builder.position_at_end(from_first)
    new = load_vectors(builder, first, vectors) * rows
    builder.branch(loop)

    builder.position_at_end(loop)
    k, at_b = builder.phi(I64), builder.phi(I64)
    sums = [builder.phi(VECTOR) for _ in range(rows * vectors)]
    for block, begin in ((from_out, old), (from_first, new)):
        k.add_incoming(number(0), block)
        at_b.add_incoming(b, block)
        for phi, value in zip(sums, begin, strict=True):
            phi.add_incoming(value, block)
    offset = load(builder, builder.add(places, builder.mul(k, number(8))), I64)
    factors = load_vectors(builder, at_b, vectors)
    found = add_products(builder, [builder.add(s, offset) for s in sources], factors, sums)
    more = builder.add(k, number(1))
    k.add_incoming(more, loop)
    at_b.add_incoming(builder.add(at_b, step), loop)
    for phi, value in zip(sums, found, strict=True):
        phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", more, depth), loop, done)

    builder.position_at_end(done)
    above, join = builder.append_basic_block("above"), builder.append_basic_block("join")
    builder.cbranch(builder.icmp_signed("!=", relu, number(0)), above, join)
    builder.position_at_end(above)
    # Ordered: NaN is not below 0, and stays.
    cut = [builder.select(builder.fcmp_ordered("<", x, ZEROS), ZEROS, x) for x in found]
    builder.branch(join)
    builder.position_at_end(join)
    results = []
    for kept, positive in zip(found, cut, strict=True):
        phi = builder.phi(VECTOR)
        phi.add_incoming(kept, done)
        phi.add_incoming(positive, above)
        results.append(phi)
    for r, target in enumerate(targets):
        store_vectors(builder, results[r * vectors : (r + 1) * vectors], target)


# Functions that are compiled to the cache may name such pieces only as globals.
_tile4, _tile2, _tile1 = _tile(4), _tile(2), _tile(1)
_ROWS4, _ROWS2, _ROWS1 = _ROWS[4], _ROWS[2], _ROWS[1]


@numba.njit(**FAST)
def tiles(columns, n, starts, ends, a, out, b, places, depth, beta, first, relu):
    """All rows of a product whose result and matrix are `columns` wide, which is a multiple of
    LANES and the distance of the matrix's rows; otherwise as in ``_tile``. `first` has `columns`
    numbers."""
    step = 4 * columns
    left = columns // LANES
    at = 0
    while left > 0:
        if left >= 4 and WIDEST == 4:
            for i in range(0, n, _ROWS4):
                _tile4(
                    i, n, starts, ends, a, out + at, b + at, step, places, depth, beta, first + at,
                    relu,
                )  # fmt: skip
            at += 16 * LANES
            left -= 4
        elif left >= 2:
            for i in range(0, n, _ROWS2):
                _tile2(
                    i, n, starts, ends, a, out + at, b + at, step, places, depth, beta, first + at,
                    relu,
                )  # fmt: skip
            at += 8 * LANES
            left -= 2
        else:
            for i in range(0, n, _ROWS1):
                _tile1(
                    i, n, starts, ends, a, out + at, b + at, step, places, depth, beta, first + at,
                    relu,
                )  # fmt: skip
            at += 4 * LANES
            left -= 1
