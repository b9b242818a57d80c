"""Kernels that multiply matrices, through cuBLASLt.

What a product needs to know of its arrays (shapes, strides, dtypes, alignments) is worked out once
for each combination, together with the library's algorithm; a further product is a look-up and one
call. Where cuBLASLt is not there or refuses, CuPy's product serves. That one cannot be captured
into a graph: a step that holds such a product is launched call by call, and other steps are not.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.cuda import contraction, matrices
from gpubackprop.backends.cuda.graphs import capturing
from gpubackprop.backends.cuda.inner import InnerProducts
from gpubackprop.backends.cuda.lt import CublasLt, LtError, Plan, RefusedError
from gpubackprop.backends.cuda.matrices import Copies, View
from gpubackprop.backends.cuda.plain_products import CupyProducts, result_shape
from gpubackprop.backends.primitives import Array, Shape, c_strides

MOST_SIGNATURES = 16384
_ALIGNED = tuple(matrices.alignment(i) for i in range(256))


class _Ready(NamedTuple):
    """What is known of a product before its addresses are.

    Attributes
    ----------
    shape, dtype : of the result.
    how : ``"plan"``, or what else is to be done: ``"plain"`` (CuPy's product), ``"now"`` (the same,
        this time), ``"empty"`` (there is nothing to add up), ``"cast"`` (the operands to the
        result's dtype) or ``"copy"``.
    plan : the library's.
    swapped : whether its operands are exchanged.
    offsets : in bytes, of the operands and the result of each call.
    copies : what must be copied first.
    """

    shape: Shape = ()
    dtype: Any = None
    how: str = "plain"
    plan: Plan | None = None
    swapped: bool = False
    offsets: tuple[tuple[int, int, int], ...] = ()
    copies: Copies = Copies(False, False, False)


class CudaProducts(CupyProducts, InnerProducts):
    """Overrides of the kernels that are products.

    Notes
    -----
    float32 operands are multiplied as ``precision`` says when the product is made: as they are, or
    rounded to 10 bits (TF32), which is several times as fast. float16 and bfloat16 are multiplied
    as they are and added up in float32.
    """

    adds_products = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._signatures: dict[Any, _Ready] = {}
        self._library: CublasLt | None = None
        self._library_problem: str | None = None
        self._library_later = False  # it is asked again in spite of the problem
        self._passing = 0  # refusals for the moment, so far
        self._refusals: dict[Any, str] = {}  # by shapes and dtypes, why a product is CuPy's

    def matmul(self, x1: Array, x2: Array, out: Array | None = None) -> Array:
        y = self._inner(x1, x2, out) if x1.ndim == 1 else None
        if y is None:
            y = self._product(x1, x2, out)
        if y is not None:
            return y
        try:
            return self._product_by_cupy(x1, x2, out)
        except NotImplementedError as error:  # CuPy asks no cuBLAS while a graph is captured
            raise LtError(self._product_uncaptured(x1, x2, error)) from error

    def addmm(self, y: Array, x1: Array, x2: Array, out: Array | None = None) -> Array:
        if self._is_array(y):
            target = self.empty(y.shape, y.dtype) if out is None else out
            alike = y is target or (
                (y.shape, y.strides, y.dtype) == (target.shape, target.strides, target.dtype)
                and _ALIGNED[y.data.ptr & 255] >= _ALIGNED[target.data.ptr & 255]
            )
            if not alike:
                self.copyto(target, y)
            start = y if alike and y is not target else None
            if self._product(x1, x2, target, beta=1.0, start=start) is not None:
                return target
        return super().addmm(y, x1, x2, out)

    def wide_matmul(self, x1: Array, x2: Array, out: Array | None = None) -> Array:
        shapes = result_shape(x1.shape, x2.shape)
        if shapes is None or not x1.dtype.itemsize == x2.dtype.itemsize == 2:
            return super().wide_matmul(x1, x2, out)
        y = self.empty(shapes[0], np.float32) if out is None else out
        return super().wide_matmul(x1, x2, y) if self._product(x1, x2, y) is None else y

    def linear(
        self, x: Array, weight: Array, bias: Array | None = None, out: Array | None = None
    ) -> Array:
        return self._product_and_bias(x, weight.T, bias, out)

    def einsum(self, subscripts: str, *operands: Array) -> Array:
        if len(operands) == 2 and self._product_library() is not None:
            y = contraction.as_product(self, subscripts, *operands)
            if y is not None:
                return y
        return super().einsum(subscripts, *operands)

    # One product.
    def _product_and_bias(
        self, x: Array, matrix: Array, bias: Array | None, out: Array | None = None
    ) -> Array:
        """x @ matrix + bias, with a bias of the result's dtype in the same kernel."""
        if bias is None:
            return self.matmul(x, matrix, out)
        y = self._product(x, matrix, out, bias)
        if y is not None:
            return y
        y = self.matmul(x, matrix, out)
        if out is not None or bias.dtype == y.dtype:
            return self.add(y, bias, out=y)
        return self.add(y, bias)

    def _product(
        self,
        x1: Array,
        x2: Array,
        out: Array | None = None,
        bias: Array | None = None,
        activation: str = "",
        alpha: float = 1.0,
        beta: float = 0.0,
        copied: bool = False,
        start: Array | None = None,
        auxiliary: Array | None = None,
    ) -> Array | None:
        """``activation(alpha * x1 @ x2 + beta * start + bias)``; None where another way must serve.

        Parameters
        ----------
        x1, x2, out : as for ``matmul``. `out` may have gaps, and be float32 where the operands are
            of half precision; it must not overlap the operands.
        bias : (n,), of the result's dtype, without gaps. The functions of derivatives write it:
            sums over the rows of the result, or ``"row_sums"`` (m,) those of `x1`.
        activation : the function of a key of ``matrices.EPILOGUES``.
        copied : whether the operands have been copied, so that they lie as well as they can.
        start : laid out and aligned as `out`, which it is by default.
        auxiliary : for the functions in ``matrices.AUXILIARY``, without gaps: for gelu as the
            result, for relu uint8 with a row of bits for each row of the result.
        """
        lt = self._library or self._product_library()
        if lt is None or not (self._is_array(x1) and self._is_array(x2)):
            return None
        a, b = x1.data.ptr, x2.data.ptr
        key = (
            *(x1.shape, x1.strides, x1.dtype, _ALIGNED[a & 255]),
            *(x2.shape, x2.strides, x2.dtype, _ALIGNED[b & 255]),
            *(self.precision, activation, copied),
            *(
                None if x is None else (x.shape, x.strides, x.dtype, _ALIGNED[x.data.ptr & 255])
                for x in (out, bias, auxiliary)
            ),
        )
        ready = self._signatures.get(key)
        if ready is None:
            if len(self._signatures) >= MOST_SIGNATURES:
                self._signatures.clear()
            ready = self._product_ready(lt, x1, x2, out, bias, activation, copied, auxiliary)
            if ready.how != "now":
                self._signatures[key] = ready
        options = (bias, activation, alpha, beta)
        if ready.plan is None:
            return self._product_other(ready, x1, x2, out, options, start, auxiliary)
        y = self.empty(ready.shape, ready.dtype) if out is None else out
        d, beside = y.data.ptr, [0 if x is None else x.data.ptr for x in (bias, auxiliary)]
        c = d if start is None else start.data.ptr
        if out is None and d & 255:  # CuPy's pool never does that; another allocator may
            return self._product(x1, x2, y, *options, copied, start, auxiliary)
        if ready.swapped:
            a, b = b, a
        try:
            for i, j, k in ready.offsets:
                # The library's A is the second operand (see matrices.py).
                ready.plan.run(lt, b + j, a + i, d + k, alpha, beta, beside[0], c + k, beside[1])
        except RefusedError as error:
            self._signatures[key] = self._product_refused(error, x1, x2, bias, activation)
            return None
        return y

    def _product_other(
        self,
        ready: _Ready,
        x1: Array,
        x2: Array,
        out: Array | None,
        options: tuple[Array | None, str, float, float],
        start: Array | None,
        auxiliary: Array | None,
    ) -> Array | None:
        """A product that is not one call of the library."""
        if ready.how in ("plain", "now"):
            return None
        if start is not None:
            self.copyto(out, start)
        beta = options[3]
        if ready.how == "cast":
            x1, x2 = self.astype(x1, ready.dtype), self.astype(x2, ready.dtype)
            return self._product(x1, x2, out, *options, auxiliary=auxiliary)
        y = self.empty(ready.shape, ready.dtype) if out is None else out
        if ready.how == "empty":
            if y.size and beta != 1.0:
                self.copyto(y, self.multiply(y, beta) if beta else 0)
            return y
        first, second, result = ready.copies
        apart = result and not y.flags.c_contiguous
        target = y if not apart else self.copy(y) if beta else self.empty(y.shape, y.dtype)
        x1, x2 = self._packed(x1) if first else x1, self._packed(x2) if second else x2
        if self._product(x1, x2, target, *options, copied=True, auxiliary=auxiliary) is None:
            return None
        if apart:
            self.copyto(y, target)
        return y

    def _product_ready(
        self,
        lt: CublasLt,
        x1: Array,
        x2: Array,
        out: Array | None,
        bias: Array | None,
        activation: str,
        copied: bool,
        auxiliary: Array | None,
    ) -> _Ready:
        """How to make a product of arrays like these."""
        shapes = result_shape(x1.shape, x2.shape)
        names = x1.dtype.name, x2.dtype.name
        if shapes is None or not set(names) <= matrices.TYPES.keys():
            return _Ready()
        shape, whole = shapes
        half = names[0] == names[1] in ("float16", "bfloat16")
        dtype = x1.dtype if names[0] == names[1] else _common(x1.dtype, x2.dtype)
        if out is not None and out.dtype != dtype and half and out.dtype == np.float32:
            dtype = out.dtype
        elif dtype is None or (out is not None and out.dtype != dtype):
            return _Ready()
        if out is not None and out.shape != shape:
            return _Ready()
        along = whole[-2:-1] if activation == "row_sums" else whole[-1:]
        if bias is not None and (
            bias.shape != along or bias.dtype != dtype or not bias.flags.c_contiguous
        ):
            return _Ready()
        step = matrices.auxiliary_step(auxiliary, activation, whole, np.dtype(dtype))
        if step is None:
            return _Ready()
        if not math.prod(shape) or not x1.shape[-1]:
            plain = bias is not None or activation
            return _Ready(shape, dtype, "plain" if plain else "empty")
        if names[0] != names[1]:
            return _Ready(shape, dtype, "cast")
        views = [_view(x) for x in (x1, x2)]
        strides = c_strides(shape) if out is None else _elements(out)
        if views[0] is None or views[1] is None or strides is None:
            return _Ready()
        first, second = matrices.as_matrices(views[0], views[1])
        result = View(whole, matrices.with_axes(strides, x1.ndim == 1, x2.ndim == 1))
        work = matrices.arrange(first, second, result, copied)
        if isinstance(work, Copies):
            helps = any(work) and not (copied and (work.first or work.second))
            if copied and out is not None and out.flags.c_contiguous:
                helps = False
            return _Ready(shape, dtype, "copy" if helps else "plain", copies=work)
        if work.swapped and (bias is not None or step):  # the library adds it along the other axis
            return _Ready()
        single = work.batch == len(work.offsets) == 1
        if not single and (step or activation == "row_sums" or activation.endswith("_backward")):
            return _Ready()  # each product would write its own sums
        sizes = (x1.itemsize, x2.itemsize, np.dtype(dtype).itemsize)
        if work.swapped:
            sizes = (sizes[1], sizes[0], sizes[2])
        offsets = tuple((i * sizes[0], j * sizes[1], k * sizes[2]) for i, j, k in work.offsets)
        problem = work.problem(
            names[0],
            np.dtype(dtype).name,
            matrices.COMPUTE[names[0], self.precision],
            matrices.EPILOGUES[bias is not None, activation],
            self._product_schemes(sizes[2]),
            self._product_alignment(x1, x2, out, (bias, auxiliary), work.swapped, offsets),
            step,
        )
        try:
            plan = lt.plan(problem)
        except RefusedError as error:
            return self._product_refused(error, x1, x2, bias, activation)
        return _Ready(shape, dtype, "plan", plan, work.swapped, offsets)

    def _product_schemes(self, itemsize: int) -> int:
        """How long sums may be split. In the result only where the run asks for speed alone, and
        where that rounds no partial sum to half precision."""
        fast = self.numerics == "native" and itemsize >= 4
        return matrices.APART | (matrices.IN_PLACE if fast else 0)

    @staticmethod
    def _product_alignment(
        x1: Array,
        x2: Array,
        out: Array | None,
        beside: tuple[Array | None, ...],
        swapped: bool,
        offsets: tuple[tuple[int, int, int], ...],
    ) -> tuple[int, int, int]:
        """Alignments of the operands, as they are after an exchange, and of the result."""
        a, b = (x2, x1) if swapped else (x1, x2)
        bits = [0 if x is None else int(x.data.ptr) for x in (a, b, out)]
        for x in beside:
            bits[2] |= 0 if x is None else int(x.data.ptr)
        for at in offsets:
            bits = [x | o for x, o in zip(bits, at, strict=True)]
        first, second, result = map(matrices.alignment, bits)
        return first, second, result

    # Without the library.
    def _product_library(self) -> CublasLt | None:
        """cuBLASLt on this GPU; None, with a warning at the first time, where it cannot be used.

        What keeps it from starting while the caller captures a graph may be the capture: it is
        tried again."""
        if self._library is None and (self._library_problem is None or self._library_later):
            try:
                self._library = CublasLt(self.xp)
                self._library_problem, self._library_later = None, False
            except LtError as error:
                self._library_problem, self._library_later = str(error), capturing(self.xp)
                if not self._library_later:
                    _warn(
                        f"{error}; matrix products on {self.device} are CuPy's, without CUDA graphs"
                    )
        return self._library

    def _product_refused(
        self, error: RefusedError, x1: Array, x2: Array, bias: Array | None, activation: str
    ) -> _Ready:
        """A product that the library will not be asked for again, if that is of no use."""
        self._passing += not error.final
        if bias is None and not activation:  # else the product without them comes next
            self._refusals[_described(x1, x2)] = str(error)
            _warn(f"{error}; this product on {self.device} is CuPy's, without CUDA graphs")
        return _Ready(how="plain" if error.final else "now")

    def _product_uncaptured(self, x1: Array, x2: Array, error: Exception) -> str:
        """Why a product keeps its step from being one launch."""
        (shape1, name1), (shape2, name2) = described = _described(x1, x2)
        why = self._library_problem or self._refusals.get(described, str(error))
        return (
            f"the product of {name1} {shape1} and {name2} {shape2} is CuPy's, which no graph can "
            f"hold: {why}"
        )


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)


def _described(*arrays: Array) -> tuple[tuple[Shape, str], ...]:
    return tuple((x.shape, x.dtype.name) for x in arrays)


def _common(first: np.dtype, second: np.dtype) -> np.dtype | None:
    try:
        return np.result_type(first, second)
    except TypeError:  # float16 and bfloat16 have none
        return None


def _elements(x: Array) -> Shape | None:
    """Strides in elements, where they are whole."""
    size = x.itemsize
    if any(s % size for s in x.strides):
        return None
    return tuple(s // size for s in x.strides)


def _view(x: Array) -> View | None:
    strides = _elements(x)
    return None if strides is None else View(x.shape, strides)
