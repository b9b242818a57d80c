"""Products of a few rows with a matrix that is used again and again.

The BLAS rearranges its operands at each call, which for a product of few rows is as much work as
the product itself. Where one matrix meets many small operands, as the weight of a recurrent layer
does at each step, it is rearranged once: into *panels* of two vectors of columns, each panel's rows
one after the other, so that the product reads it from the first number to the last.
``packing.py`` rearranges matrices.

For B of (depth, columns), `columns` a multiple of LANES, the panel of the columns from c on begins
at element ``c * depth``. If the number of vectors is odd, the last panel is one vector wide.
"""

from __future__ import annotations

from typing import Any

import numba
from numba import types
from numba.extending import intrinsic

from gpubackprop.backends.cpu.native.abi import FAST, inline
from gpubackprop.backends.cpu.native.vectors import (
    I64,
    LANES,
    REGISTERS,
    VECTOR,
    ZEROS,
    add_products,
    load_vectors,
    number,
    store_vectors,
)

# Sums of a tile, two vectors of the matrix and a factor fill the registers of the processor.
TALL = 8 if REGISTERS == 32 else 6
"""Rows of the tallest tile."""
_LOW = TALL // 2
WIDE = 2 * LANES
"""Columns of a panel."""


def _tile(rows: int, vectors: int) -> Any:
    """``tile(left, depth, a, step_a, step_k, panel, first, step_first, out, step_out)``: `rows`
    rows of a product, `vectors` vectors wide. Where fewer than `rows` are left, the last one is
    done again, with the same result. Sums begin with the rows at `first`, with 0 where that is 0.
    Everything is an address, a number of bytes or a count; `depth` is at least 1."""

    @intrinsic
    def tile(
        typingctx: Any,
        left: Any,
        depth: Any,
        a: Any,
        step_a: Any,
        step_k: Any,
        panel: Any,
        first: Any,
        step_first: Any,
        out: Any,
        step_out: Any,
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _emit(builder, rows, vectors, args)
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 10), build

    return tile


def _emit(builder: Any, rows: int, vectors: int, args: Any) -> None:
    left, depth, a, step_a, step_k, panel, first, step_first, out, step_out = args
    last = builder.sub(left, number(1))
    sources, begins, targets = [], [], []
    for r in range(rows):
        row = builder.select(builder.icmp_signed("<", number(r), left), number(r), last)
        sources.append(builder.add(a, builder.mul(row, step_a)))
        begins.append(builder.add(first, builder.mul(row, step_first)))
        targets.append(builder.add(out, builder.mul(row, step_out)))
    entry = builder.block
    given = builder.append_basic_block("given")
    loop, done = builder.append_basic_block("depth"), builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("==", first, number(0)), loop, given)

    builder.position_at_end(given)
    begun = [x for begin in begins for x in load_vectors(builder, begin, vectors)]
    builder.branch(loop)

    builder.position_at_end(loop)
    k, place, offset = builder.phi(I64), builder.phi(I64), builder.phi(I64)
    sums = [builder.phi(VECTOR) for _ in range(rows * vectors)]
    factors = load_vectors(builder, place, vectors)
    found = add_products(builder, [builder.add(s, offset) for s in sources], factors, sums)
    more = builder.add(k, number(1))
    after = builder.add(place, number(4 * LANES * vectors))
    for phi, none, some, then in (
        (k, number(0), number(0), more),
        (place, panel, panel, after),
        (offset, number(0), number(0), builder.add(offset, step_k)),
        *((s, ZEROS, b, f) for s, b, f in zip(sums, begun, found, strict=True)),
    ):
        phi.add_incoming(none, entry)
        phi.add_incoming(some, given)
        phi.add_incoming(then, loop)
    builder.cbranch(builder.icmp_signed("<", more, depth), loop, done)

    builder.position_at_end(done)
    for r, target in enumerate(targets):
        store_vectors(builder, found[r * vectors : (r + 1) * vectors], target)


# Functions that are compiled to the cache may name such pieces only as globals.
_tall, _low, _one = _tile(TALL, 2), _tile(_LOW, 2), _tile(1, 2)
_narrow = _tile(TALL, 1)


@numba.njit(**FAST)
def multiply_panels(
    rows, columns, depth, a, step_a, step_k, strip, panels, first, step_first, out, step_out
):
    """C = first + A B for A (rows, depth) and the panels of B (depth, columns), whole vectors.

    The number of A in row i and column k lies at
    ``a + i // TALL * strip + i % TALL * step_a + k * step_k``; the rows of `first` (0 for none: C =
    A B) and of C lie `step_first` and `step_out` apart. All are addresses and bytes.
    """
    for c in range(0, columns, WIDE):
        panel, to, begin = panels + 4 * c * depth, out + 4 * c, first
        if first:
            begin += 4 * c
        for i in range(0, rows, TALL):
            left, source, target = rows - i, a + i // TALL * strip, to + i * step_out
            if columns - c < WIDE:
                _narrow(
                    left, depth, source, step_a, step_k, panel, begin, step_first, target, step_out
                )
            elif left > _LOW:
                _tall(
                    left, depth, source, step_a, step_k, panel, begin, step_first, target, step_out
                )
            elif left > 1:
                _low(
                    left, depth, source, step_a, step_k, panel, begin, step_first, target, step_out
                )
            else:
                _one(
                    left, depth, source, step_a, step_k, panel, begin, step_first, target, step_out
                )
            if first:
                begin += TALL * step_first


@inline
def multiply_rows(rows, columns, depth, a, step_a, panels, out, step_out):
    """C = A B where the numbers of a row of A lie one after the other."""
    multiply_panels(rows, columns, depth, a, step_a, 4, TALL * step_a, panels, 0, 0, out, step_out)
