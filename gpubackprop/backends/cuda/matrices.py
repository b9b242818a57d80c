"""How cuBLASLt sees arrays: products of rows as products of columns, without a copy.

The library stores matrices by columns. A matrix in rows is its transpose in columns, and
``y = x1 x2`` is ``y^T = x2^T x1^T``: the library's A is x2, its B is x1, and nothing moves. A
transposed operand is the same memory under the library's own transpose. Everything here is
arithmetic on shapes and strides, in elements.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.primitives import Shape

TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # CUDA_R_32F, 64F, 16F, 16BF
"""The dtypes that the library multiplies here."""

# CUBLAS_COMPUTE_32F_PEDANTIC, 32F_FAST_TF32, 64F_PEDANTIC, 32F. Only the pedantic types are beyond
# the reach of NVIDIA_TF32_OVERRIDE and CUBLAS_EMULATE_SINGLE_PRECISION: a product's precision is
# what the run says. Halves have no such switch.
PEDANTIC, TF32, DOUBLE, SINGLE = 69, 77, 71, 68
COMPUTE = {
    ("float32", "float32"): PEDANTIC,
    ("float32", "tf32"): TF32,
    ("float64", "float32"): DOUBLE,
    ("float64", "tf32"): DOUBLE,
    ("float16", "float32"): SINGLE,
    ("float16", "tf32"): SINGLE,
    ("bfloat16", "float32"): SINGLE,
    ("bfloat16", "tf32"): SINGLE,
}
"""How numbers of a dtype are multiplied and added up under each ``precision`` of a backend."""

EPILOGUES = {
    (False, ""): 1,  # CUBLASLT_EPILOGUE_DEFAULT
    (False, "relu"): 2,
    (True, ""): 4,  # BIAS
    (True, "relu"): 6,
    (False, "gelu_tanh"): 32,
    (True, "gelu_tanh"): 36,
    (False, "relu_kept"): 130,  # RELU_AUX: a bit for each result that is above 0
    (True, "relu_kept"): 134,
    (False, "gelu_tanh_kept"): 160,  # GELU_AUX: what the function is applied to
    (True, "gelu_tanh_kept"): 164,
    (False, "relu_backward"): 136,  # DRELU
    (True, "relu_backward"): 152,  # DRELU_BGRAD
    (False, "gelu_tanh_backward"): 192,  # DGELU
    (True, "gelu_tanh_backward"): 208,  # DGELU_BGRAD
    (True, "row_sums"): 512,  # BGRADB: the sums of the library's B, which is the first operand
}
"""What is done to a product before it is written: whether there is a bias (which the epilogues of
derivatives write: sums over the rows of the result, or of an operand), and a function.

Notes
-----
Read in cublasLt.h of CUDA 13 (``cublasLtEpilogue_t``). GELU is the one with tanh.
"""

AUXILIARY = {
    **dict.fromkeys(("relu_kept", "relu_backward"), 128),
    **dict.fromkeys(("gelu_tanh_kept", "gelu_tanh_backward"), 8),
}
"""Functions with one more matrix, written on the way forth and read on the way back, and what the
distance of two of its columns must be a multiple of: bits of relu's mask, elements of gelu's."""

# CUBLASLT_REDUCTION_SCHEME_INPLACE, COMPUTE_TYPE: the parts of a long sum are added up in the
# result, or kept apart in the workspace in full precision and added up in a fixed order.
IN_PLACE, APART = 1, 2

LOOPS = 8
"""Batches that are no arithmetic sequence of addresses are this many products at most, or copied
first."""
_ALIGNMENTS = (256, 16, 8, 4, 2)
_MEANING = {number: key for key, number in EPILOGUES.items()}


class Stored(NamedTuple):
    """A matrix as it lies in memory, by columns.

    Attributes
    ----------
    rows, columns : of what is stored.
    ld : distance of two columns, in elements.
    step : distance of two matrices of a batch, in elements; 0 for one that all share.
    """

    rows: int
    columns: int
    ld: int
    step: int = 0


class Problem(NamedTuple):
    """``D = act(alpha * op(A) op(B) + beta * C + bias)``, apart from where the matrices lie.

    Attributes
    ----------
    dtype, result : names of the dtypes of A and B, and of D (with the bias and GELU's auxiliary).
    compute : a value of :data:`COMPUTE`.
    transpose_a, transpose_b : whether op is the transpose.
    a, b, d : the matrices as they are stored; C as D is.
    batch : how many of each.
    epilogue : a value of :data:`EPILOGUES`.
    schemes : mask of the ways in which a long sum may be split.
    alignment : bytes that the addresses of A, B, and D (with C, the bias and the auxiliary) are
        multiples of.
    auxiliary : distance of two columns of the auxiliary matrix, in its elements (bits for relu); 0
        where there is none.
    """

    dtype: str
    result: str
    compute: int
    transpose_a: bool
    transpose_b: bool
    a: Stored
    b: Stored
    d: Stored
    batch: int
    epilogue: int
    schemes: int
    alignment: tuple[int, int, int]
    auxiliary: int = 0

    @property
    def biased(self) -> bool:
        """Whether the epilogue reads or writes a bias."""
        return _MEANING[self.epilogue][0]

    def __str__(self) -> str:
        """In the caller's terms: matrices in rows, so the library's B comes first."""
        m, n = self.d.columns, self.d.rows
        k = self.b.columns if self.transpose_b else self.b.rows
        biased, activation = _MEANING[self.epilogue]
        after = [word for word in ("bias" if biased else "", activation) if word]
        return (
            f"the product of {self.dtype} ({m}, {k}) and ({k}, {n}) into {self.result} ({m}, {n})"
            f"{' with ' + ' and '.join(after) if after else ''} (batch {self.batch}, compute type "
            f"{self.compute}, {'transposed ' if self.transpose_b else ''}ld {self.b.ld} and "
            f"{'transposed ' if self.transpose_a else ''}ld {self.a.ld} into ld {self.d.ld}, "
            f"alignment {self.alignment})"
        )


class View(NamedTuple):
    """An array's shape and its strides in elements."""

    shape: Shape
    strides: Shape


class Work(NamedTuple):
    """Products of matrices in rows.

    Attributes
    ----------
    m, n, k : of each: (m, k) times (k, n).
    swapped : whether the operands are exchanged, which gives the transpose of the result.
    transposed_1, transposed_2 : whether an operand is stored as its transpose.
    ld : distances of two stored rows of the operands and the result, in elements.
    batch : how many products one call makes.
    steps : distances of two of their matrices.
    offsets : where the matrices of each call begin, in elements from the arrays' first.
    """

    m: int
    n: int
    k: int
    swapped: bool
    transposed_1: bool
    transposed_2: bool
    ld: tuple[int, int, int]
    batch: int
    steps: tuple[int, int, int]
    offsets: tuple[tuple[int, int, int], ...]

    def problem(
        self,
        dtype: str,
        result: str,
        compute: int,
        epilogue: int,
        schemes: int,
        aligned: tuple[int, int, int],
        auxiliary: int = 0,
    ) -> Problem:
        """As the library wants it; `aligned` are the alignments of the operands and the result."""
        m, n, k = self.m, self.n, self.k
        (ld1, ld2, ld), (step1, step2, step) = self.ld, self.steps
        a = Stored(*((k, n) if self.transposed_2 else (n, k)), ld2, step2)
        b = Stored(*((m, k) if self.transposed_1 else (k, m)), ld1, step1)
        return Problem(
            dtype,
            result,
            compute,
            self.transposed_2,
            self.transposed_1,
            a,
            b,
            Stored(n, m, ld, step),
            self.batch,
            epilogue,
            schemes,
            (aligned[1], aligned[0], aligned[2]),
            auxiliary,
        )


class Copies(NamedTuple):
    """What must lie without gaps before there can be a product: an operand, the result."""

    first: bool
    second: bool
    result: bool


def alignment(address: int) -> int:
    """The largest alignment that the library tells apart of which an address is a multiple."""
    return next((a for a in _ALIGNMENTS if not address % a), 1)


def matrix(shape: Shape, strides: Shape) -> tuple[bool, int] | None:
    """Whether a matrix (the last two axes) is stored as its transpose, and the distance of two
    stored rows; None where it is neither."""
    (m, n), (s, t) = shape[-2:], strides[-2:]
    if (t == 1 or n == 1) and (m == 1 or s >= n):
        return False, max(s if m > 1 else n, n, 1)
    if (s == 1 or m == 1) and (n == 1 or t >= m):
        return True, max(t if n > 1 else m, m, 1)
    return None


def as_matrices(x1: View, x2: View) -> tuple[View, View]:
    """A vector as a row (the first) or a column (the second)."""
    if len(x1.shape) == 1:
        x1 = View((1, *x1.shape), (0, *x1.strides))
    if len(x2.shape) == 1:
        x2 = View((*x2.shape, 1), (*x2.strides, 0))
    return x1, x2


def with_axes(strides: Shape, row: bool, column: bool) -> Shape:
    """Strides of a product with the axes that a vector lacks."""
    if column:
        strides = (*strides, 0)
    return (*strides[:-1], 0, strides[-1]) if row else strides


def _over(view: View, lead: Shape) -> tuple[int, ...]:
    """Strides of the leading axes when these are repeated to `lead`."""
    missing = len(lead) - (len(view.shape) - 2)
    own = zip(view.shape[:-2], view.strides[:-2], strict=True)
    return (0,) * missing + tuple(0 if n == 1 else s for n, s in own)


def arrange(x1: View, x2: View, y: View, copied: bool = False) -> Work | Copies:
    """The products that make ``y = x1 x2``, or what must be copied first.

    Parameters
    ----------
    x1, x2, y : (..., m, k), (..., k, n) and (..., m, n), none empty; the leading axes of the
        operands broadcast to those of the result.
    copied : whether the operands lie without gaps, so that another copy would not help.
    """
    m, k, n = x1.shape[-2], x1.shape[-1], x2.shape[-1]
    rows, through = [x1.strides[-2], y.strides[-2]], [x1.strides[-1], y.strides[-1]]
    lead = y.shape[:-2]
    steps = zip(_over(x1, lead), _over(x2, lead), y.strides[:-2], strict=True)
    axes = [(size, step) for size, step in zip(lead, steps, strict=True) if size != 1]
    # The rows of a batch that share their second operand are the rows of one matrix.
    while axes and not axes[-1][1][1]:
        size, (s1, _, s) = axes[-1]
        if m > 1 and (s1, s) != (m * rows[0], m * rows[1]):
            break
        if m == 1:
            rows = [s1, s]
        m *= size
        axes.pop()
    merged: list[tuple[int, tuple[int, int, int]]] = []
    for size, step in axes:
        if merged and merged[-1][1] == (size * step[0], size * step[1], size * step[2]):
            merged[-1] = (merged[-1][0] * size, step)
        else:
            merged.append((size, step))
    first = matrix((m, k), (rows[0], through[0]))
    second = matrix((k, n), x2.strides[-2:])
    result = matrix((m, n), (rows[1], through[1]))
    most = max(merged, key=lambda axis: axis[0], default=(1, (0, 0, 0)))
    loops = [axis for axis in merged if axis is not most]
    spread = not copied and math.prod(size for size, _ in loops) > LOOPS
    back = [any(step[i] < (i == 2) for _, step in merged) for i in range(3)]
    if first is None or second is None or result is None or spread or any(back):
        lies_badly = zip((first, second, result), back, strict=True)
        return Copies(*(found is None or spread or backwards for found, backwards in lies_badly))
    offsets = [(0, 0, 0)]
    for size, (s1, s2, s) in loops:
        offsets = [(a + i * s1, b + i * s2, c + i * s) for a, b, c in offsets for i in range(size)]
    batch, (s1, s2, s) = most
    if not result[0]:
        ld = (first[1], second[1], result[1])
        return Work(m, n, k, False, first[0], second[0], ld, batch, (s1, s2, s), tuple(offsets))
    ld = (second[1], first[1], result[1])
    turned = tuple((b, a, c) for a, b, c in offsets)
    return Work(n, m, k, True, not second[0], not first[0], ld, batch, (s2, s1, s), turned)


def auxiliary_step(
    auxiliary: Any | None, activation: str, shape: Shape, dtype: np.dtype
) -> int | None:
    """Distance of two rows of what a function keeps, in its elements; 0 where it keeps nothing,
    None where the array does not fit."""
    unit = AUXILIARY.get(activation)
    if auxiliary is None or unit is None:
        return 0 if auxiliary is None and unit is None else None
    rows, n = math.prod(shape[:-1]), shape[-1]
    bits = activation.startswith("relu")
    kind, step = (np.uint8, -(-n // unit) * unit) if bits else (dtype, n)
    fits = auxiliary.dtype == kind and auxiliary.flags.c_contiguous and not step % unit
    return step if fits and auxiliary.size == rows * (step // 8 if bits else step) else None
