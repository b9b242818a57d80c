"""The primitive kernels: what every backend must be able to do to arrays.

This file is the first half of the kernel contract (``composites.py`` is the second). A *primitive*
has no definition in terms of other kernels; a backend supplies it. Rules that hold for all of them:

* Names, argument order, broadcasting and result dtypes are NumPy 2's. A Python number is a weak
  operand: it never widens a dtype.
* Arrays are those of the backend (``numpy.ndarray`` or ``cupy.ndarray``); no kernel accepts arrays
  of two devices.
* No kernel writes to its inputs. ``out=`` names an array of the result's shape and dtype that is
  written and returned. The ``*_update`` kernels and ``copyto`` are the exceptions and say so.
* A kernel that returns a view (reshape, transpose, broadcast_to, basic getitem) returns it
  read-only by convention: callers copy before they write.
* Under ``numerics="deterministic"`` the same call on the same device returns the same bits.
* Shapes or dtypes that do not fit raise ``ValueError`` or ``TypeError``; the operation above turns
  these into words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Array = Any
"""An array of the backend at hand: ``numpy.ndarray``, ``cupy.ndarray``, or a stand-in that another
interpreter passes through."""
Shape = tuple[int, ...]
Axis = int | tuple[int, ...] | None
DType = Any


def c_strides(shape: Shape, itemsize: int = 1) -> Shape:
    """Strides of an array in C order without gaps: in elements, or in bytes where it is told how
    many an element has."""
    found, step = [], itemsize
    for n in reversed(shape):
        found.append(step)
        step *= max(n, 1)
    return tuple(reversed(found))


class Unary(Protocol):
    """Elementwise kernel of one argument."""

    def __call__(self, x: Array, /, out: Array | None = None) -> Array: ...


class Binary(Protocol):
    """Elementwise kernel of two arguments that broadcast."""

    def __call__(self, x1: Array, x2: Array, /, out: Array | None = None) -> Array: ...


class Primitives:
    """Kernels that each backend supplies."""

    # Elementwise, one argument. Integers and booleans become floats where the function is
    # real-valued.
    negative: Unary
    absolute: Unary
    sign: Unary  # -1, 0, 1; NaN stays NaN
    square: Unary
    sqrt: Unary
    reciprocal: Unary
    exp: Unary
    expm1: Unary
    log: Unary
    log1p: Unary
    sin: Unary
    cos: Unary
    tan: Unary
    arcsin: Unary
    arccos: Unary
    arctan: Unary
    sinh: Unary
    cosh: Unary
    tanh: Unary
    arcsinh: Unary
    arccosh: Unary
    arctanh: Unary
    floor: Unary
    ceil: Unary
    rint: Unary  # round half to even
    isfinite: Unary
    isnan: Unary
    logical_not: Unary

    # Elementwise, two arguments.
    add: Binary
    subtract: Binary
    multiply: Binary
    divide: Binary
    power: Binary
    maximum: Binary  # NaN wins
    minimum: Binary  # NaN wins
    arctan2: Binary
    equal: Binary
    not_equal: Binary
    less: Binary
    less_equal: Binary
    greater: Binary
    greater_equal: Binary
    logical_and: Binary
    logical_or: Binary

    def erf(self, x: Array, out: Array | None = None) -> Array:
        """Error function, 2/sqrt(pi) times the integral of exp(-t**2) from 0 to x (Abramowitz &
        Stegun 7.1.1); error of a few ulp."""
        raise NotImplementedError

    def where(self, condition: Array, x1: Array, x2: Array) -> Array:
        """``x1`` where the condition holds, else ``x2``; the three broadcast."""
        raise NotImplementedError

    def clip(self, x: Array, low: Array, high: Array, out: Array | None = None) -> Array:
        """``minimum(maximum(x, low), high)``; a bound of ``None`` is absent; NaN stays NaN."""
        raise NotImplementedError

    # Reductions. `axis` None reduces everything; negative axes count from the end.
    def sum(
        self, x: Array, axis: Axis = None, keepdims: bool = False, out: Array | None = None
    ) -> Array:
        """Sum; an empty sum is 0. half precision accumulates in float32."""
        raise NotImplementedError

    def prod(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        """Product; an empty product is 1."""
        raise NotImplementedError

    def max(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        """Largest element, NaN if there is one; an empty maximum is an error."""
        raise NotImplementedError

    def min(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        """Smallest element, NaN if there is one; an empty minimum is an error."""
        raise NotImplementedError

    def any(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        """Whether some element is true."""
        raise NotImplementedError

    def all(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        """Whether every element is true."""
        raise NotImplementedError

    def argmax(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        """int64 index of the first largest element (into the flattened array when `axis` is
        None)."""
        raise NotImplementedError

    def argmin(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        """int64 index of the first smallest element."""
        raise NotImplementedError

    def cumsum(self, x: Array, axis: int) -> Array:
        """Running sum along one axis."""
        raise NotImplementedError

    # Shape. Views where the layout allows.
    def reshape(self, x: Array, shape: Shape) -> Array:
        """The elements in C order under another shape; one entry may be -1."""
        raise NotImplementedError

    def transpose(self, x: Array, axes: Sequence[int] | None = None) -> Array:
        """Axes permuted (reversed when `axes` is None); always a view."""
        raise NotImplementedError

    def broadcast_to(self, x: Array, shape: Shape) -> Array:
        """A view of `x` with size-one and missing leading axes repeated."""
        raise NotImplementedError

    def concatenate(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        """Arrays joined along an existing axis."""
        raise NotImplementedError

    def pad(self, x: Array, pad_width: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
        """`value` added before and after each axis; widths are not negative."""
        raise NotImplementedError

    def flip(self, x: Array, axis: Axis = None) -> Array:
        """Order of the elements reversed along the axes."""
        raise NotImplementedError

    def getitem(self, x: Array, key: Any) -> Array:
        """``x[key]``: integers, slices, ellipsis, newaxis, integer arrays, one boolean mask (which
        waits for the device)."""
        raise NotImplementedError

    def scatter_getitem(self, dy: Array, key: Any, shape: Shape) -> Array:
        """Zeros of `shape` with `dy` added at ``[key]``: the transpose of ``getitem``. An element
        named twice gets both."""
        raise NotImplementedError

    def take(self, x: Array, indices: Array, axis: int = 0) -> Array:
        """Slices of `x` along `axis`, ``shape = x.shape[:axis] + indices.shape +
        x.shape[axis+1:]``."""
        raise NotImplementedError

    def scatter_take(self, dy: Array, indices: Array, axis: int, size: int) -> Array:
        """The transpose of ``take``: slices of `dy` added into zeros whose `axis` has length
        `size`; order of the sums fixed."""
        raise NotImplementedError

    def take_along_axis(self, x: Array, indices: Array, axis: int) -> Array:
        """``x[..., indices[..., i, ...], ...]`` along one axis; `indices` has as many axes as
        `x`."""
        raise NotImplementedError

    def scatter_along_axis(self, dy: Array, indices: Array, axis: int, size: int) -> Array:
        """The transpose of ``take_along_axis``: `dy` added into zeros whose `axis` has length
        `size`."""
        raise NotImplementedError

    # Windows over the spatial axes of a channels-last array.
    def windows(self, x: Array, kernel: Shape, stride: Shape, dilation: Shape) -> Array:
        """Every window of a (N, *spatial, C) array as a view, (N, *out, *kernel, C).

        Element k of a window at position o of a spatial axis is element ``o * stride + k *
        dilation``; only whole windows count: ``out = (n - dilation * (kernel - 1) - 1) // stride +
        1`` (Dumoulin & Visin 2016, relationship 15).
        """
        raise NotImplementedError

    def scatter_windows(self, dy: Array, spatial: Shape, stride: Shape, dilation: Shape) -> Array:
        """The transpose of ``windows``: `dy` (N, *out, *kernel, C) added into zeros (N, *spatial,
        C); order of the sums fixed."""
        raise NotImplementedError

    # Products.
    def matmul(self, x1: Array, x2: Array, out: Array | None = None) -> Array:
        """Matrix product of the last two axes, leading axes broadcast; a 1-d operand is a row or a
        column as in NumPy. Half precision accumulates in float32 and is rounded once."""
        raise NotImplementedError

    def einsum(self, subscripts: str, *operands: Array) -> Array:
        """Einstein summation with explicit output (``"ij,jk->ik"``)."""
        raise NotImplementedError

    # Making and moving.
    def asarray(self, data: Any, dtype: DType = None) -> Array:
        """An array on this device from anything NumPy can read or an array of this device; copies
        only where it must."""
        raise NotImplementedError

    def to_numpy(self, x: Array) -> np.ndarray:
        """A NumPy array of the same values; waits for the device. Not a copy when the array already
        lives on the host."""
        raise NotImplementedError

    def empty(self, shape: Shape, dtype: DType) -> Array:
        """Array with undefined contents."""
        raise NotImplementedError

    def zeros(self, shape: Shape, dtype: DType) -> Array:
        """Array of zeros."""
        raise NotImplementedError

    def ones(self, shape: Shape, dtype: DType) -> Array:
        """Array of ones."""
        raise NotImplementedError

    def full(self, shape: Shape, value: Any, dtype: DType) -> Array:
        """Array of one value."""
        raise NotImplementedError

    def arange(self, start: float, stop: float, step: float, dtype: DType) -> Array:
        """start, start + step, ... before stop."""
        raise NotImplementedError

    def astype(self, x: Array, dtype: DType) -> Array:
        """`x` with another dtype; `x` itself when it has that dtype already."""
        raise NotImplementedError

    def copy(self, x: Array) -> Array:
        """A C-contiguous copy."""
        raise NotImplementedError

    def copyto(self, target: Array, source: Array) -> None:
        """Write `source` (broadcast, cast) over `target`. Overwrites `target`."""
        raise NotImplementedError

    def random_bits(self, seed: int, stream: int, offset: int, n: int) -> Array:
        """`n` uint32 words of Philox4x32-10 (Salmon et al. 2011): word i is lane ``i % 4`` of
        counter ``(offset + i // 4, stream)`` under key `seed`. A pure function of its arguments,
        with the same bits on every backend."""
        raise NotImplementedError
