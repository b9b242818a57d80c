"""What the parts of the CUDA backend share: the arrays that its kernels take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.cuda import sources
from gpubackprop.backends.cuda.kernels import Kernels
from gpubackprop.backends.offers import taken
from gpubackprop.backends.philox import check_seed
from gpubackprop.backends.primitives import Array, DType, Shape

_OFFSET = 0xFFFFFFFFFFFFFFFF


@functools.cache
def cpp_float(dtype: np.dtype) -> str | None:
    """The C++ type of a float dtype that the kernels know."""
    return sources.FLOATS.get(dtype.name)


def threshold_of(p: float) -> int:
    """A word below this number means true, with probability `p` < 1."""
    return min(round(p * 2**32), 2**32 - 1)


def order_of(x: Array) -> list[int]:
    """The first three axes of `x` as they follow each other in memory."""
    return sorted(range(3), key=lambda axis: -abs(x.strides[axis]))


class DeviceArrays(ArrayBackend):
    """Primitives over CuPy, and the kernels of the ``.cu`` files."""

    kernels: Kernels

    def empty(self, shape: Shape, dtype: DType) -> Array:
        found = self._wanted(shape, dtype, lambda x: bool(x.flags.c_contiguous))
        return self.xp.empty(shape, dtype) if found is None else found

    def _wanted(self, shape: Shape, dtype: DType, lies: Callable[[Array], bool]) -> Array | None:
        """What is on offer for a result (``offers.py``) and lies as it can be written; None where
        nothing is."""

        def fits(x: Array) -> bool:
            return self._is_array(x) and (x.shape, x.dtype) == (shape, dtype) and lies(x)

        return taken(fits)

    def _is_array(self, x: Any) -> bool:
        return isinstance(x, self.array_type)

    def _element(self, x: Array, *others: Array | None) -> str | None:
        """The C++ type of the elements where all arrays have one that the kernels know, else
        None."""
        if not self._is_array(x):
            return None
        for other in others:
            if other is not None and not (self._is_array(other) and other.dtype == x.dtype):
                return None
        return cpp_float(x.dtype)

    def _packed(self, x: Array) -> Array:
        """`x` without gaps, in C order."""
        return x if x.flags.c_contiguous else self.xp.ascontiguousarray(x)

    def _laid_out_as(self, x: Array, shape: Shape) -> Array:
        """An array of `x`'s dtype whose last axis has no gaps: where the result is wanted, or new,
        with batches, heads and rows that follow each other in memory as those of `x`."""

        def lies(out: Array) -> bool:
            return bool(out.strides[-1] == out.itemsize or shape[-1] == 1)

        found = self._wanted(shape, x.dtype, lies)
        return self._in_order(x, shape) if found is None else found

    def _in_order(self, x: Array, shape: Shape) -> Array:
        """A new array whose first three axes follow each other in memory as those of `x`."""
        order = order_of(x)
        made = self.xp.empty(tuple(shape[axis] for axis in (*order, 3)), x.dtype)
        return made.transpose(*(order.index(axis) for axis in range(3)), 3)

    def _all_packed(self, *arrays: Array | None) -> list[Array | None]:
        return [None if a is None else self._packed(a) for a in arrays]

    def _place(self, seed: int, stream: int, offset: Any) -> tuple[Any, ...]:
        """The last arguments of the kernels that draw. An offset on the device (uint64) survives
        the capture into a graph."""
        seed = check_seed(seed)
        if self._is_array(offset):
            return seed, stream, offset, 0
        return seed, stream, None, int(offset) & _OFFSET
