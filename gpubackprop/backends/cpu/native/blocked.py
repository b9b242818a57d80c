"""Products of matrices in blocks that stay in the cache, with sums held in registers.

On the products of a training step, of a few hundred rows and columns, OpenBLAS reaches 70 % to 88 %
of what a processor with AVX-512 can do, these tiles 85 % to 97 %: rows that lie as they are wanted
are read where they are, and a bias is where the sums begin instead of a pass of its own. Goto and
van de Geijn, "Anatomy of high-performance matrix multiplication" (2008), describe the order of the
loops.
"""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.cpu.native import blas
from gpubackprop.backends.cpu.native.abi import inline, kernel, share
from gpubackprop.backends.cpu.native.blas import sgemm
from gpubackprop.backends.cpu.native.packing import (
    copy_panels,
    copy_strips,
    transpose_panels,
)
from gpubackprop.backends.cpu.native.panels import TALL, WIDE, multiply_panels
from gpubackprop.backends.cpu.native.spans import add_row, copy_rows
from gpubackprop.backends.cpu.native.vectors import LANES

DEEP = 256
"""Terms of a sum that are added before the sums are put down."""
BROAD = 4 * WIDE
"""Columns whose panels a core keeps near."""
HIGH = 512
"""Rows whose strips a core keeps near."""
MANY = 512
"""Columns for which it pays to take rows of A together that lie far apart in memory."""
SMALL = 1 << 18
"""Multiply-adds from which on it pays to rearrange operands."""
LARGE = 1 << 22
"""Numbers of B, in rows, up to which its pages are at hand."""
PACK = 8
"""What it costs to take a number into a panel or a strip, in multiply-adds."""


@inline
def tiling(m, n, parts, high, wide, row, column):
    """How many parts stand side by side, the rest above one another, in a (m, n) result of tiles of
    (high, wide): such that the slowest part is soonest done. A part's row costs `row` multiply-adds
    for each term of the sums, and its column `column`, beside the product."""
    best, least = np.int64(1), np.int64(1) << 62
    for across in range(1, parts + 1):
        if parts % across:
            continue
        down = parts // across
        rows = min(m, ((m + high - 1) // high + down - 1) // down * high)
        columns = min(n, ((n + wide - 1) // wide + across - 1) // across * wide)
        cost = rows * columns + row * rows + column * columns
        if cost < least:
            best, least = across, cost
    return best


@inline
def add_bias(rows, columns, bias, c, step):
    """Add a row of numbers to each of `rows` rows, `step` bytes apart."""
    for i in range(rows):
        add_row(columns, bias, c + i * step)


@kernel
def blocked_product(frame, part, parts):
    """C = op(A) op(B), plus a row of biases where there is one, for matrices in rows.

    Frame: as that of ``product``, and memory for each part, the bytes of it. The order of a sum
    does not depend on the number of parts, but for the last columns that fill no vector.
    """
    trans_a, trans_b = frame[0], frame[1]
    m, n, k = frame[2], frame[3], frame[4]
    lda, ldb, ldc = 4 * frame[6], 4 * frame[8], 4 * frame[10]
    across = tiling(m, n, parts, TALL, WIDE, PACK if trans_a else 1, PACK)
    top, bottom = share(m, part // across, parts // across, TALL)
    left, right = share(n, part % across, across, WIDE)
    rows, columns = bottom - top, right - left
    if rows <= 0 or columns <= 0:
        return
    a = frame[5] + top * (4 if trans_a else lda)
    b = frame[7] + left * (ldb if trans_b else 4)
    c = frame[9] + top * ldc + 4 * left
    bias = frame[11] + 4 * left if frame[11] else 0
    panels = frame[13] + part * frame[14]
    strips = panels + 4 * DEEP * BROAD
    narrow = columns % LANES
    columns -= narrow
    for i in range(0, rows, HIGH):
        high = min(HIGH, rows - i)
        for t in range(0, k, DEEP):
            depth = min(DEEP, k - t)
            if trans_a:
                copy_strips(high, depth, a + t * lda + 4 * i, lda, strips)
                near, step_a, step_k, strip = strips, 4, 4 * TALL, 4 * TALL * depth
            elif columns >= MANY:
                copy_rows(high, depth, a + i * lda + 4 * t, lda, strips, 4 * depth)
                near, step_a, step_k, strip = strips, 4 * depth, 4, 4 * TALL * depth
            else:
                near, step_a, step_k, strip = a + i * lda + 4 * t, lda, 4, TALL * lda
            for j in range(0, columns, BROAD):
                broad = min(BROAD, columns - j)
                if trans_b:
                    transpose_panels(depth, broad, b + j * ldb + 4 * t, ldb, panels)
                else:
                    copy_panels(depth, broad, b + t * ldb + 4 * j, ldb, panels)
                to = c + i * ldc + 4 * j
                first, step_first = to, ldc
                if t == 0 and frame[12] == 0:
                    first, step_first = bias + 4 * j if bias else 0, 0
                multiply_panels(
                    high, broad, depth, near, step_a, step_k, strip,
                    panels, first, step_first, to, ldc,
                )  # fmt: skip
    if narrow:
        b += columns * (ldb if trans_b else 4)
        c += 4 * columns
        sgemm(trans_a, trans_b, rows, narrow, k, a, frame[6], b, frame[8], frame[12], c, frame[10])
        if bias:
            add_bias(rows, narrow, bias + 4 * columns, c, ldc)


def blocks_serve(m: int, n: int, k: int, trans_a: int, trans_b: int) -> bool:
    """Whether blocks are faster than the BLAS, as far as that was measured: on processors with
    AVX-512, unless somebody has chosen a library."""
    if LANES != 16 or blas.wanted() != "auto" or n < WIDE or m * n * k < SMALL:
        return False
    if trans_a or trans_b:
        return m >= 2 * TALL
    return m >= 4 * TALL and n * k <= LARGE


def room(transposed: int, n: int) -> int:
    """Bytes of memory that a part needs."""
    return 4 * DEEP * (BROAD + (HIGH if transposed or n >= MANY else 0))
