"""The primitives over an array namespace that follows NumPy: shared by the NumPy and the CUDA
backend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import EllipsisType, ModuleType
from typing import Any

import numpy as np

from gpubackprop.backends.base import Backend, Numerics
from gpubackprop.backends.composites import is_half, normalize_axes
from gpubackprop.backends.primitives import Array, Axis, DType, Primitives, Shape


class ArrayBackend(Backend):
    """Primitives spelled with the functions of ``xp``.

    Elementwise kernels are the namespace's own functions, bound as attributes: calling one costs no
    Python frame.

    Parameters
    ----------
    xp : the array namespace (``numpy`` or ``cupy``).
    name, device : see :class:`Backend`.
    numerics : see :class:`Backend`.
    """

    def __init__(
        self, xp: ModuleType, name: str, device: str, numerics: Numerics = "deterministic"
    ) -> None:
        self.xp = xp
        self.name = name
        self.device = device
        self.numerics = numerics
        self.array_type = xp.ndarray
        for kernel in Primitives.__annotations__:
            setattr(self, kernel, getattr(xp, kernel))

    def owner(self, x: Array) -> object:
        found, x = x, getattr(x, "base", None)
        while x is not None:  # what is no array may stand between two, as for strided views
            if isinstance(x, self.array_type):
                found = x
            x = getattr(x, "base", None)
        return found

    def overlap(self, x: Array, y: Array) -> bool:
        return self.xp.may_share_memory(x, y)

    def where(self, condition: Array, x1: Array, x2: Array) -> Array:
        return self.xp.where(condition, x1, x2)

    def clip(self, x: Array, low: Array, high: Array, out: Array | None = None) -> Array:
        return self.xp.clip(x, low, high, out=out)

    def sum(
        self, x: Array, axis: Axis = None, keepdims: bool = False, out: Array | None = None
    ) -> Array:
        if is_half(x):
            total = self.xp.sum(x, axis=axis, dtype=np.float32, keepdims=keepdims)
            return self.astype(total, x.dtype) if out is None else self._fill(out, total)
        return x.sum(axis=axis, out=out, keepdims=keepdims)

    def _fill(self, out: Array, value: Array) -> Array:
        out[...] = value
        return out

    def prod(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        return self.xp.prod(x, axis=axis, keepdims=keepdims)

    def max(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        return x.max(axis=axis, keepdims=keepdims)

    def min(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        return x.min(axis=axis, keepdims=keepdims)

    def any(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        return self.xp.any(x, axis=axis, keepdims=keepdims)

    def all(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        return self.xp.all(x, axis=axis, keepdims=keepdims)

    def argmax(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        return self.astype(self.xp.argmax(x, axis=axis, keepdims=keepdims), np.int64)

    def argmin(self, x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        return self.astype(self.xp.argmin(x, axis=axis, keepdims=keepdims), np.int64)

    def cumsum(self, x: Array, axis: int) -> Array:
        return self.xp.cumsum(x, axis=axis, dtype=x.dtype if x.dtype.kind == "f" else None)

    def reshape(self, x: Array, shape: Shape) -> Array:
        return x.reshape(shape)

    def transpose(self, x: Array, axes: Sequence[int] | None = None) -> Array:
        return x.transpose(axes) if axes is not None else x.T

    def broadcast_to(self, x: Array, shape: Shape) -> Array:
        return self.xp.broadcast_to(x, shape)

    def concatenate(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        return self.xp.concatenate(arrays, axis=axis)

    def pad(self, x: Array, pad_width: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
        shape = tuple(n + a + b for n, (a, b) in zip(x.shape, pad_width, strict=True))
        result = self.full(shape, value, x.dtype)
        result[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, pad_width, strict=True))] = x
        return result

    def flip(self, x: Array, axis: Axis = None) -> Array:
        return self.xp.flip(x, axis=axis)

    def getitem(self, x: Array, key: Any) -> Array:
        return x[key]

    def scatter_getitem(self, dy: Array, key: Any, shape: Shape) -> Array:
        if is_basic_key(key) or getattr(key, "dtype", None) == np.bool_:
            result = self.zeros(shape, dy.dtype)
            result[key] = dy  # no element can be named twice
            return result
        axis = sole_index_axis(key)
        if axis is not None:  # whole slices by number: no need to number each element
            indices = key[axis] if isinstance(key, tuple) else key
            return self.scatter_take(dy, indices, axis, shape[axis])
        size = math.prod(shape)
        positions = self.arange(0, size, 1, np.int64).reshape(shape)[key].reshape(-1)
        flat = self.scatter_take(self.xp.broadcast_to(dy, dy.shape).reshape(-1), positions, 0, size)
        return flat.reshape(shape)

    def take(self, x: Array, indices: Array, axis: int = 0) -> Array:
        return self.xp.take(x, indices, axis=axis)

    def take_along_axis(self, x: Array, indices: Array, axis: int) -> Array:
        return self.xp.take_along_axis(x, indices, axis)

    def scatter_along_axis(self, dy: Array, indices: Array, axis: int, size: int) -> Array:
        (axis,) = normalize_axes(axis, dy.ndim)
        shape = dy.shape[:axis] + (size,) + dy.shape[axis + 1 :]
        total = int(np.prod(shape))
        positions = self.arange(0, total, 1, np.int64).reshape(shape)
        flat = self.take_along_axis(positions, indices, axis).reshape(-1)
        return self.scatter_take(dy.reshape(-1), flat, 0, total).reshape(shape)

    def windows(self, x: Array, kernel: Shape, stride: Shape, dilation: Shape) -> Array:
        shape, strides = window_layout(x.shape, x.strides, kernel, stride, dilation)
        return self.xp.lib.stride_tricks.as_strided(x, shape, strides)

    def scatter_windows(self, dy: Array, spatial: Shape, stride: Shape, dilation: Shape) -> Array:
        n = len(spatial)
        out, kernel = dy.shape[1 : 1 + n], dy.shape[1 + n : -1]
        x = self.zeros((dy.shape[0], *spatial, dy.shape[-1]), dy.dtype)
        every = (slice(None),) * (1 + n)
        # One sum for each place in the window: no element of x is named twice in one of them.
        for place in itertools.product(*map(range, kernel)):
            part = x[seen_at(place, out, stride, dilation)]
            self.add(part, dy[(*every, *place)], out=part)
        return x

    def matmul(self, x1: Array, x2: Array, out: Array | None = None) -> Array:
        return self.xp.matmul(x1, x2) if out is None else self.xp.matmul(x1, x2, out=out)

    def einsum(self, subscripts: str, *operands: Array) -> Array:
        # Optimised, two operands go through matrix products: several times faster than the plain
        # loop from 64 x 64 on.
        return self.xp.einsum(subscripts, *operands, optimize=len(operands) > 1)

    def asarray(self, data: Any, dtype: DType = None) -> Array:
        return self.xp.asarray(data, dtype=dtype)

    def empty(self, shape: Shape, dtype: DType) -> Array:
        return self.xp.empty(shape, dtype)

    def zeros(self, shape: Shape, dtype: DType) -> Array:
        return self.xp.zeros(shape, dtype)

    def ones(self, shape: Shape, dtype: DType) -> Array:
        return self.xp.ones(shape, dtype)

    def full(self, shape: Shape, value: Any, dtype: DType) -> Array:
        return self.xp.full(shape, value, dtype)

    def arange(self, start: float, stop: float, step: float, dtype: DType) -> Array:
        return self.xp.arange(start, stop, step, dtype=dtype)

    def astype(self, x: Array, dtype: DType) -> Array:
        return x.astype(dtype, copy=False)

    def copy(self, x: Array) -> Array:
        return x.copy()

    def copyto(self, target: Array, source: Array) -> None:
        target[...] = source


def windows_along(spatial: Shape, kernel: Shape, stride: Shape, dilation: Shape) -> Shape:
    """How many whole windows fit along each spatial axis."""
    if min((*kernel, *stride, *dilation), default=1) < 1:
        raise ValueError("kernel, stride and dilation must be at least 1")
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    return tuple(
        (size - span) // s + 1 if size >= span else 0
        for size, span, s in zip(spatial, spans, stride, strict=True)
    )


def seen_at(place: Shape, out: Shape, stride: Shape, dilation: Shape) -> tuple[slice, ...]:
    """Which elements of a (N, *spatial, C) array `out` windows see at one place in them."""
    return (
        slice(None),
        *(
            slice(k * d, k * d + (o - 1) * s + 1 if o else k * d, s)
            for k, d, o, s in zip(place, dilation, out, stride, strict=True)
        ),
    )


def window_layout(
    shape: Shape, strides: Shape, kernel: Shape, stride: Shape, dilation: Shape
) -> tuple[Shape, Shape]:
    """Shape and strides of the view that ``windows`` gives of an array of `shape` and `strides`."""
    n = len(kernel)
    if len(shape) != n + 2 or len(stride) != n or len(dilation) != n:
        raise ValueError(f"windows of {n} axes do not fit an array (N, *spatial, C) of {shape}")
    out = windows_along(shape[1:-1], kernel, stride, dilation)
    moves = strides[1:-1]
    return (
        (shape[0], *out, *kernel, shape[-1]),
        (
            strides[0],
            *(m * s for m, s in zip(moves, stride, strict=True)),
            *(m * d for m, d in zip(moves, dilation, strict=True)),
            strides[-1],
        ),
    )


def is_basic_key(key: Any) -> bool:
    """Whether indexing with `key` can only select each element once and yields a view (no index
    arrays)."""
    entries = key if isinstance(key, tuple) else (key,)
    return all(
        k is None
        or isinstance(k, (slice, EllipsisType, int, np.integer))
        and not isinstance(k, bool)
        for k in entries
    )


def sole_index_axis(key: Any) -> int | None:
    """The axis of a key's integer array where the rest are whole axes; None for other keys."""
    entries = key if isinstance(key, tuple) else (key,)
    axes = [i for i, k in enumerate(entries) if not (isinstance(k, slice) and k == slice(None))]
    if len(axes) != 1:
        return None
    kind = getattr(getattr(entries[axes[0]], "dtype", None), "kind", None)
    return axes[0] if kind in ("i", "u") else None
