"""The NumPy backend: the reference that gives every kernel its meaning, on a CPU.

The primitives come from NumPy. Overrides of composite kernels are in ``fused.py`` and, by
subject, ``images.py`` and the like; the parity suite holds each against its definition.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends import philox, special
from gpubackprop.backends.base import Numerics
from gpubackprop.backends.composites import HALVES, is_half
from gpubackprop.backends.cpu import shared
from gpubackprop.backends.cpu.attention import NumPyAttention
from gpubackprop.backends.cpu.convolution import NumPyConvolution
from gpubackprop.backends.cpu.fused import (
    MANY,
    ONE,
    FusedKernels,
    add_over,
    leading,
    max_over,
    min_over,
    sum_of_rows,
)
from gpubackprop.backends.cpu.images import NumPyImage
from gpubackprop.backends.cpu.norms import NumPyNorm
from gpubackprop.backends.cpu.recurrent import NumPyRecurrent
from gpubackprop.backends.cpu.updates import adam_update, square_norm
from gpubackprop.backends.primitives import Array, Axis, Shape
from gpubackprop.backends.updates import Updates

# Optimizer updates run over slices of this many elements: smaller ones would fit the L2 cache, but
# then threads that call NumPy often wait for each other.
UPDATE_BLOCK = 65536
# Fewer elements than this are not worth another thread.
UPDATE_SHARE = 1 << 17

# From this many elements on, choosing between an array and 0 by bits is faster than np.where.
MASK_FROM = 2048


def _beside(x: Any, other: Any) -> Any:
    """A Python number of the type of the array beside it. ``np.where`` does so by itself but for
    types of extensions: a bfloat16 array and 0.0 would make float64."""
    if isinstance(x, float) and getattr(other, "dtype", None) is not None and is_half(other):
        return other.dtype.type(x)
    return x


def _is_zero(x: Any) -> bool:
    """Whether `x` is the Python number 0.0 (and not -0.0, which has a bit set)."""
    return type(x) is float and x == 0.0 and math.copysign(1.0, x) > 0.0


def _maskable(condition: Any, x: Any) -> bool:
    """Whether `x` can be chosen by a mask of bits: `condition` has a boolean for each float."""
    return (
        isinstance(condition, np.ndarray)
        and isinstance(x, np.ndarray)
        and x.size >= MASK_FROM
        and x.dtype in shared.WORDS
        and condition.dtype.char == "?"
        and condition.shape == x.shape
    )


def _bytes_of(owner: np.ndarray) -> np.ndarray:
    """The memory of an array, whatever its strides, as bytes that keep it alive."""
    if owner.flags.c_contiguous:
        return owner.reshape(-1).view(np.uint8)
    low, high = np.lib.array_utils.byte_bounds(owner)
    interface = {
        "shape": (high - low,),
        "typestr": "|u1",
        "data": (low, not owner.flags.writeable),
        "version": 3,
    }
    holder = types.SimpleNamespace(__array_interface__=interface, base=owner)
    return np.asarray(holder)


def in_blocks(update: Callable[..., None]) -> Callable[..., None]:
    """`update`, an elementwise kernel over flat arrays, run over cache-sized slices of them."""

    @functools.wraps(update)
    def blocked(self: NumPyBackend, *arrays: Array | None, **options: Any) -> None:
        def work(start: int, stop: int) -> None:
            part = slice(start, stop)
            update(self, *(None if a is None else a[part] for a in arrays), **options)

        size = arrays[0].size  # type: ignore[union-attr]
        shared.in_blocks(work, size, UPDATE_BLOCK, UPDATE_SHARE)

    return blocked


class NumPyBackend(
    FusedKernels, NumPyConvolution, NumPyImage, NumPyNorm, NumPyRecurrent, NumPyAttention
):
    """Kernels on ``numpy.ndarray``."""

    def __init__(self, numerics: Numerics = "deterministic") -> None:
        super().__init__(np, "numpy", "cpu", numerics)

    def with_numerics(self, numerics: Numerics) -> NumPyBackend:
        return self if numerics == self.numerics else NumPyBackend(numerics)

    def to_numpy(self, x: Array) -> np.ndarray:
        return x

    def layout(self, x: Array) -> tuple[int, tuple[int, ...]]:
        return x.__array_interface__["data"][0], x.strides

    def extent(self, owner: Any) -> tuple[int, int]:
        return np.lib.array_utils.byte_bounds(owner)

    def view_at(self, owner: Any, offset: int, shape: Shape, strides: Shape, dtype: Any) -> Array:
        return np.ndarray(shape, dtype, _bytes_of(owner), offset, strides)

    def first_outside(
        self, x: Array, low: float, high: float
    ) -> tuple[tuple[int, ...], float] | None:
        if not x.size or (x.min() >= low and x.max() <= high):
            return None
        wrong = np.logical_not((x >= low) & (x <= high))
        at = np.unravel_index(int(wrong.argmax()), x.shape)
        return tuple(int(i) for i in at), x[at].item()

    # Primitives without the detours of NumPy's Python wrappers, which cost more than a small array.
    def sum(
        self, x: Array, axis: Axis = None, keepdims: bool = False, out: Array | None = None
    ) -> Array:
        if x.dtype.char in HALVES:
            return super().sum(x, axis, keepdims, out)
        if x.size >= MANY and out is None and x.dtype in ONE and x.flags.c_contiguous:
            lead = leading(axis)
            if 0 < lead < x.ndim:
                kept = x.shape[lead:]
                total = sum_of_rows(x.reshape(-1, math.prod(kept)))
                return total.reshape((1,) * lead + kept if keepdims else kept)
        return add_over(x, axis, None, out, keepdims)

    def max(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        return max_over(x, axis, None, None, keepdims)

    def min(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        return min_over(x, axis, None, None, keepdims)

    def matmul(self, x1: Array, x2: Array, out: Array | None = None) -> Array:
        if x1.dtype.char in HALVES and x1.dtype == x2.dtype:
            # NumPy has no BLAS for them: in float32, rounded once, a hundred times as fast.
            product = self.matmul(x1.astype(np.float32), x2.astype(np.float32))
            return product.astype(x1.dtype) if out is None else self._fill(out, product)
        if out is None and x2.ndim == 2:
            if x1.ndim == 2:
                return x1.dot(x2)
            if x1.ndim > 2 and x1.size and x1.flags.c_contiguous:
                # One product over all rows, where NumPy would make one for each batch.
                rows = x1.reshape(-1, x1.shape[-1])
                return rows.dot(x2).reshape(*x1.shape[:-1], x2.shape[1])
        return np.matmul(x1, x2, out=out)

    def einsum(self, subscripts: str, *operands: Array) -> Array:
        if all(map(is_half, operands)) and len({x.dtype for x in operands}) == 1:
            wide = [x.astype(np.float32) for x in operands]
            return super().einsum(subscripts, *wide).astype(operands[0].dtype)
        return super().einsum(subscripts, *operands)

    def where(self, condition: Array, x1: Array, x2: Array) -> Array:
        if _is_zero(x2) and _maskable(condition, x1):
            return shared.masked(condition, True, x1)
        if _is_zero(x1) and _maskable(condition, x2):
            return shared.masked(condition, False, x2)
        return np.where(condition, _beside(x1, x2), _beside(x2, x1))

    def erf(self, x: Array, out: Array | None = None) -> Array:
        result = special.erf(x)
        return result if out is None else self._fill(out, result)

    def random_bits(self, seed: int, stream: int, offset: int, n: int) -> Array:
        return philox.random_bits(seed, stream, offset, n)

    def scatter_take(self, dy: Array, indices: Array, axis: int, size: int) -> Array:
        # Sorting brings equal indices together, and one reduceat sums each group in the order of
        # appearance: several times faster than add.at for rows, and the order of every sum is
        # fixed.
        axis %= dy.ndim - indices.ndim + 1
        lead = dy.shape[:axis]
        rows = dy.reshape(lead + (indices.size,) + dy.shape[axis + indices.ndim :])
        result = np.zeros(lead + (size,) + rows.shape[axis + 1 :], dy.dtype)
        flat = indices.reshape(-1)
        if not flat.size:
            return result
        if flat.min() < -size or flat.max() >= size:
            raise IndexError(f"index out of range for an axis of length {size}")
        flat = np.where(flat < 0, flat + size, flat)
        # Short integers are sorted by their digits, in a third of the time.
        order = np.argsort(flat.astype(np.uint16) if size <= 1 << 16 else flat, kind="stable")
        ordered = flat[order]
        starts = np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1))
        before = (slice(None),) * axis
        sums = np.add.reduceat(np.take(rows, order, axis), starts, axis=axis)
        result[before + (ordered[starts],)] = sums
        return result

    sgd_update = in_blocks(Updates.sgd_update)
    adagrad_update = in_blocks(Updates.adagrad_update)
    rmsprop_update = in_blocks(Updates.rmsprop_update)
    adam_update = in_blocks(adam_update)
    square_norm = square_norm
