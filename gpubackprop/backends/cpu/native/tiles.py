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

import platform
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpubackprop.backends.cpu.native.abi import FAST

_FEATURES = llvm.get_host_cpu_features()
LANES = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx") else 4
"""Numbers in a vector of this machine."""
WIDEST = 4 if LANES == 16 or platform.machine() in ("aarch64", "arm64") else 2
"""Vectors of the widest tile. Its sums, a row of the matrix and a factor fill the registers, which
are 32 of AVX-512 and NEON, 16 of older ones."""
_ROWS = {4: 6, 2: 6, 1: 8}


def whole(n: int) -> int:
    """`n` rounded up to whole vectors."""
    return -(-n // LANES) * LANES


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
            _emit(builder, rows, vectors, *args)
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 13), build

    return tile


def _emit(
    builder: Any,
    rows: int,
    vectors: int,
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
) -> None:
    i64, i32, real = ir.IntType(64), ir.IntType(32), ir.FloatType()
    vector = ir.VectorType(real, LANES)
    spread = ir.Constant(ir.VectorType(i32, LANES), [0] * LANES)
    undefined = ir.Constant(vector, ir.Undefined)
    zeros = ir.Constant(vector, [0.0] * LANES)
    kind = ir.FunctionType(vector, [vector] * 3)
    name = f"llvm.fmuladd.v{LANES}f32"
    fma = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)

    def number(k: int) -> Any:
        return ir.Constant(i64, k)

    def load(address: Any, of: Any, plus: int = 0) -> Any:
        place = builder.add(address, number(plus)) if plus else address
        return builder.load(builder.inttoptr(place, of.as_pointer()), align=8 if of is i64 else 4)

    def vectors_at(address: Any) -> list[Any]:
        return [load(address, vector, 4 * LANES * v) for v in range(vectors)]

    last = builder.sub(n, number(1))
    sources, targets = [], []
    for r in range(rows):
        row = builder.add(i, number(r))
        row = builder.select(builder.icmp_signed("<", row, n), row, last)
        at = builder.mul(row, number(8))
        sources.append(builder.add(a, load(builder.add(starts, at), i64)))
        targets.append(builder.add(out, load(builder.add(ends, at), i64)))

    from_out, from_first = builder.append_basic_block("out"), builder.append_basic_block("first")
    loop, done = builder.append_basic_block("places"), builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("!=", beta, number(0)), from_out, from_first)
    builder.position_at_end(from_out)
    old = [x for target in targets for x in vectors_at(target)]
    builder.branch(loop)
    builder.position_at_end(from_first)
    new = vectors_at(first) * rows
    builder.branch(loop)

    builder.position_at_end(loop)
    k, at_b = builder.phi(i64), builder.phi(i64)
    sums = [builder.phi(vector) for _ in range(rows * vectors)]
    for block, begin in ((from_out, old), (from_first, new)):
        k.add_incoming(number(0), block)
        at_b.add_incoming(b, block)
        for phi, value in zip(sums, begin, strict=True):
            phi.add_incoming(value, block)
    offset = load(builder.add(places, builder.mul(k, number(8))), i64)
    factors = vectors_at(at_b)
    found = []
    for r, source in enumerate(sources):
        alone = load(builder.add(source, offset), real)
        one = builder.insert_element(undefined, alone, ir.Constant(i32, 0))
        many = builder.shuffle_vector(one, undefined, spread)
        for v in range(vectors):
            found.append(builder.call(fma, [many, factors[v], sums[r * vectors + v]]))
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
    cut = [builder.select(builder.fcmp_ordered("<", x, zeros), zeros, x) for x in found]
    builder.branch(join)
    builder.position_at_end(join)
    results = []
    for kept, positive in zip(found, cut, strict=True):
        phi = builder.phi(vector)
        phi.add_incoming(kept, done)
        phi.add_incoming(positive, above)
        results.append(phi)
    for r, target in enumerate(targets):
        for v in range(vectors):
            place = builder.add(target, number(4 * LANES * v))
            pointer = builder.inttoptr(place, vector.as_pointer())
            builder.store(results[r * vectors + v], pointer, align=4)


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
