"""Native matrix products: each thread multiplies its part with the BLAS by itself."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.cpu.native.abi import doubles, floats, inline, kernel, share
from gpubackprop.backends.cpu.native.blas import sgemm
from gpubackprop.backends.cpu.native.blocked import (
    add_bias,
    blocked_product,
    blocks_serve,
    room,
    tiling,
)
from gpubackprop.backends.cpu.native.chains import add_columns
from gpubackprop.backends.cpu.native.copies import copy_instruction
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, lowers, spacing

SERIAL = 150_000
"""Multiply-adds of a product that is left to one thread."""
READ = 8
"""What it costs to take an element of an operand into place, in multiply-adds."""
LINES = 1 << 15
"""Elements of a matrix from which on several threads share its product with a vector."""
WIDEST = 4096
"""Columns of a matrix whose sums a core keeps near while it reads the rows."""


@inline
def grid(m, n, parts):
    """How many parts stand side by side, the rest above one another, in a (m, n) result: such that
    the largest tile is smallest, and reads least of the operands."""
    return tiling(m, n, parts, 16, 16, READ, READ)


@kernel
def product(frame, part, parts):
    """C = op(A) op(B), plus a row of biases where there is one, for matrices in rows.

    Frame: trans_a, trans_b, m, n, k, A, lda, B, ldb, C, ldc, bias (0 for none), beta (0 or 1).
    Each part computes one tile of C, all of about one size (see ``grid``).
    """
    trans_a, trans_b = frame[0], frame[1]
    m, n, k = frame[2], frame[3], frame[4]
    a, lda, b, ldb, c, ldc = frame[5], frame[6], frame[7], frame[8], frame[9], frame[10]
    bias, beta = frame[11], frame[12]
    across = grid(m, n, parts)
    top, bottom = share(m, part // across, parts // across, 16)
    left, right = share(n, part % across, across, 16)
    rows, columns = bottom - top, right - left
    if rows <= 0 or columns <= 0:
        return
    a += 4 * top * (1 if trans_a else lda)
    b += 4 * left * (ldb if trans_b else 1)
    c += 4 * (top * ldc + left)
    sgemm(trans_a, trans_b, rows, columns, k, a, lda, b, ldb, beta, c, ldc)
    if bias:
        add_bias(rows, columns, bias + 4 * left, c, 4 * ldc)


@kernel
def batched_product(frame, part, parts):
    """C[i, j] = op(A[i, j]) op(B[i, j]) for i < outer, j < inner; parts share the matrices.

    Frame: trans_a, trans_b, m, n, k, A, lda, step_i, step_j, B, ldb, step_i, step_j, C, ldc,
    step_i, step_j, outer, inner; steps in bytes.
    """
    trans_a, trans_b = frame[0], frame[1]
    m, n, k = frame[2], frame[3], frame[4]
    inner = frame[18]
    start, stop = share(frame[17] * inner, part, parts, 1)
    for z in range(start, stop):
        i, j = z // inner, z % inner
        sgemm(
            trans_a, trans_b, m, n, k,
            frame[5] + i * frame[7] + j * frame[8], frame[6],
            frame[9] + i * frame[11] + j * frame[12], frame[10],
            0.0, frame[13] + i * frame[15] + j * frame[16], frame[14],
        )  # fmt: skip


@kernel
def inner_product(frame, part, parts):
    """Each part's share of sum(x * y), in float64 over blocks of 4,096.

    Frame: x, y, n, sums (parts,) float64. The blocks are the same for any number of parts; the
    order in which their sums are added is not.
    """
    n = frame[2]
    blocks = (n + 4095) // 4096
    first, last = blocks * part // parts, blocks * (part + 1) // parts
    total = 0.0
    for block in range(first, last):
        start = block * 4096
        count = min(4096, n - start)
        x, y = floats(frame[0] + 4 * start, count), floats(frame[1] + 4 * start, count)
        some = np.float32(0)
        for i in range(count):
            some += x[i] * y[i]
        total += some
    doubles(frame[3], parts)[part] = total


@kernel
def add_sums(frame, part, parts):
    """The float32 sum of float64 numbers. Frame: numbers, how many, result."""
    sums = doubles(frame[0], frame[1])
    total = 0.0
    for i in range(sums.size):
        total += sums[i]
    floats(frame[2], 1)[0] = total


@kernel
def row_times_matrix(frame, part, parts):
    """Each part's share of y[j] = sum over i of x[i] * A[i, j], in blocks of 32 rows.

    Frame: x, A, lda, rows, columns, blocks and sums (parts, columns) of the parts. The order of
    the sums depends on the number of parts.
    """
    lda, n = frame[2], frame[4]
    first, last = share(frame[3], part, parts, 32)
    x = floats(frame[0], frame[3])
    block, total = floats(frame[5] + 4 * part * n, n), floats(frame[6] + 4 * part * n, n)
    for j in range(n):
        total[j] = 0
        block[j] = 0
    for start in range(first, last, 32):
        stop = min(start + 32, last)
        i = start
        while i + 4 <= stop:
            at = frame[1] + 4 * i * lda
            a, b = floats(at, n), floats(at + 4 * lda, n)
            c, d = floats(at + 8 * lda, n), floats(at + 12 * lda, n)
            p, q, r, s = x[i], x[i + 1], x[i + 2], x[i + 3]
            for j in range(n):
                block[j] += (p * a[j] + q * b[j]) + (r * c[j] + s * d[j])
            i += 4
        while i < stop:
            a, p = floats(frame[1] + 4 * i * lda, n), x[i]
            for j in range(n):
                block[j] += p * a[j]
            i += 1
        for j in range(n):
            total[j] += block[j]
            block[j] = 0


@kernel
def matrix_times_column(frame, part, parts):
    """y[i] = sum over j of A[i, j] * x[j], in blocks of 4,096; parts share the rows.

    Frame: x, A, lda, rows, columns, y.
    """
    lda, n = frame[2], frame[4]
    first, last = share(frame[3], part, parts, 16)
    y = floats(frame[5], frame[3])
    for i in range(first, last):
        total = 0.0
        for start in range(0, n, 4096):
            count = min(4096, n - start)
            row = floats(frame[1] + 4 * (i * lda + start), count)
            x = floats(frame[0] + 4 * start, count)
            some = np.float32(0)
            for j in range(count):
                some += row[j] * x[j]
            total += some
        y[i] = np.float32(total)


class Matrix(NamedTuple):
    """How the BLAS sees a matrix: whether it is stored as its transpose, and the distance of two
    stored rows in elements."""

    transposed: int
    ld: int


def matrix(x: np.ndarray) -> Matrix | None:
    """A float32 matrix (the last two axes) as the BLAS sees it; None where it cannot."""
    (m, n), (s, t) = x.shape[-2:], x.strides[-2:]
    if (t == 4 or n == 1) and (m == 1 or (s % 4 == 0 and s >= 4 * n)):
        return Matrix(0, max(s // 4 if m > 1 else n, n, 1))
    if (s == 4 or m == 1) and (n == 1 or (t % 4 == 0 and t >= 4 * m)):
        return Matrix(1, max(t // 4 if n > 1 else m, m, 1))
    return None


def rows_of(x: np.ndarray) -> np.ndarray | None:
    """An array as a matrix of its last axis, without a copy; None where its axes do not lie one
    after the other."""
    if x.ndim == 2:
        return x
    step = spacing(x.shape[:-1], x.strides[:-1], x.shape[-1] * x.itemsize)
    if step is None:
        return None
    shape = math.prod(x.shape[:-1]), x.shape[-1]
    return np.lib.stride_tricks.as_strided(x, shape, (step, x.strides[-1]))


def in_rows(site: Site, x: np.ndarray) -> tuple[list[Instruction], np.ndarray | None]:
    """An array as a matrix of its last axis; where its axes do not lie one after the other, or the
    BLAS cannot read them, it is copied first."""
    rows = rows_of(x)
    if rows is not None and matrix(rows) is not None:
        return [], rows
    spread = site.scratch(x.shape)
    made = copy_instruction(spread, x)
    return ([], None) if made is None else ([made], spread.reshape(-1, x.shape[-1]))


def multiply(
    site: Site,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    bias: np.ndarray | None = None,
    beta: int = 0,
) -> Instruction | None:
    """The instruction for ``c = a @ b (+ bias) (+ beta c)`` on float32 matrices."""
    left, right, out = matrix(a), matrix(b), matrix(c)
    if left is None or right is None or out is None:
        return None
    if out.transposed:  # the BLAS writes rows
        return None if bias is not None else multiply(site, b.T, a.T, c.T, None, beta)
    (m, k), n = a.shape, b.shape[1]
    if not m * n * k:
        return None
    slots = [left.transposed, right.transposed, m, n, k, a, left.ld, b, right.ld, c, out.ld]
    slots += [0 if bias is None else bias, beta]
    if blocks_serve(m, n, k, left.transposed, right.transposed):
        size = room(left.transposed, n)
        slots += [site.scratch((site.parts, size // 4)), size]
        return Instruction(blocked_product, slots, parallel=m * n * k > SERIAL)
    return Instruction(product, slots, parallel=m * n * k > SERIAL)


def _single(*arrays: np.ndarray) -> bool:
    return all(x.dtype == np.float32 for x in arrays)


@lowers("linear")
def lower_linear(
    site: Site, outs: tuple[np.ndarray, ...], x: np.ndarray, weight: np.ndarray, bias: Any = None
) -> list[Instruction] | None:
    """x @ weight.T + bias: biases are added to the rows that a thread has just computed."""
    y = outs[0]
    if not _single(x, weight, y) or not x.shape:
        return None
    if bias is not None and not (_single(bias) and bias.flags.c_contiguous):
        return None
    c = rows_of(y)
    if c is None or x.ndim < 2:
        return None
    before, a = in_rows(site, x)
    more, w = in_rows(site, weight)
    made = None if a is None or w is None else multiply(site, a, w.T, c, bias)
    return None if made is None else [*before, *more, made]


@lowers("addmm")
def lower_addmm(
    site: Site, outs: tuple[np.ndarray, ...], y: np.ndarray, x1: np.ndarray, x2: np.ndarray
) -> list[Instruction] | None:
    """A product of matrices that joins the sum in whose place it is written."""
    out = outs[0]
    if not _single(x1, x2, y, out) or x1.ndim < 2 or x2.ndim != 2:
        return None
    if (out.ctypes.data, out.strides) != (y.ctypes.data, y.strides):
        return None
    c = rows_of(out)
    if c is None or matrix(c) is None:
        return None
    before, a = in_rows(site, x1)
    more, b = in_rows(site, x2)
    made = None if a is None or b is None else multiply(site, a, b, c, None, 1)
    return None if made is None else [*before, *more, made]


@lowers("matmul")
def lower_matmul(
    site: Site, outs: tuple[np.ndarray, ...], x1: np.ndarray, x2: np.ndarray
) -> list[Instruction] | None:
    """Products of matrices, of stacks of them, and of vectors."""
    y = outs[0]
    if not _single(x1, x2, y) or not x1.size or not x2.size:
        return None
    if x1.ndim == x2.ndim == 1:
        if not (x1.flags.c_contiguous and x2.flags.c_contiguous):
            return None
        many = x1.size > 32768
        sums = site.scratch((site.parts if many else 1,), np.float64)
        return [
            Instruction(inner_product, [x1, x2, x1.size, sums], parallel=many),
            Instruction(add_sums, [sums, sums.size, y], parallel=False),
        ]
    if x1.ndim == 1 and x2.ndim == 2 or x1.ndim == 2 and x2.ndim == 1:
        done = _vector(site, y, x1, x2)
        if done is not None:
            return done
    if x1.ndim == 1:
        x1, y = x1[None, :], y[..., None, :]
    if x2.ndim == 1:
        x2, y = x2[:, None], y[..., None]
    if x2.ndim == 2:
        c = rows_of(y)
        if c is not None:
            before, a = in_rows(site, x1)
            more, b = in_rows(site, x2)
            made = None if a is None or b is None else multiply(site, a, b, c)
            return None if made is None else [*before, *more, made]
    return _batched(x1, x2, y)


def _vector(site: Site, y: np.ndarray, x1: np.ndarray, x2: np.ndarray) -> list[Instruction] | None:
    """A row times a matrix or a matrix times a column: limited by reading the matrix once."""
    vector, a = (x1, x2) if x1.ndim == 1 else (x2, x1)
    seen = matrix(a)
    if seen is None or not (vector.flags.c_contiguous and y.flags.c_contiguous):
        return None
    stored = a.T if seen.transposed else a
    many = a.size > LINES
    slots = [vector, a, seen.ld, *stored.shape]
    if (x1.ndim == 1) == bool(seen.transposed):
        return [Instruction(matrix_times_column, [*slots, y], parallel=many)]
    parts = site.parts if many else 1
    rows, columns = stored.shape
    if columns > WIDEST or rows < 64 * parts:
        return None
    sums = site.scratch((2, parts, columns))
    made = Instruction(row_times_matrix, [*slots, sums[0], sums[1]], parallel=many)
    return [made, Instruction(add_columns, [sums[1], parts, columns, y], parallel=False)]


def _batched(x1: np.ndarray, x2: np.ndarray, y: np.ndarray) -> list[Instruction] | None:
    lead = y.shape[:-2]
    if len(lead) > 2:
        return None
    a = np.broadcast_to(x1, (*lead, *x1.shape[-2:]))
    b = np.broadcast_to(x2, (*lead, *x2.shape[-2:]))
    left, right, out = matrix(x1), matrix(x2), matrix(y)
    if left is None or right is None or out is None or out.transposed:
        return None

    def steps(x: np.ndarray) -> list[int]:
        return [0] * (2 - len(lead)) + list(x.strides[: len(lead)])

    m, n, k = a.shape[-2], b.shape[-1], a.shape[-1]
    count = int(np.prod(lead))
    slots = [left.transposed, right.transposed, m, n, k, a, left.ld, *steps(a)]
    slots += [b, right.ld, *steps(b), y, out.ld, *steps(y)]
    slots += [lead[0] if len(lead) == 2 else 1, lead[-1] if lead else 1]
    return [Instruction(batched_product, slots, parallel=count * m * n * k > SERIAL)]
