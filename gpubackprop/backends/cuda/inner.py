"""The product of two vectors on a GPU.

cuBLASLt makes a matrix of one element of it, by one block of threads, and under the policy ``tf32``
in fewer bits; the norm of all gradients is such a product, millions of numbers long.
"""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.cuda import geometry
from gpubackprop.backends.cuda.arrays import DeviceArrays, cpp_float
from gpubackprop.backends.primitives import Array


class InnerProducts(DeviceArrays):
    """Products of vectors, with terms added up in float64."""

    def _inner(self, x: Array, y: Array, out: Array | None) -> Array | None:
        """x @ y for two vectors of one float dtype and length; None for others.

        Parameters
        ----------
        out : (), of their dtype, or of float32.
        """
        if not self._is_array(x) or x.ndim != 1 or y.ndim != 1 or x.shape != y.shape:
            return None
        element = self._element(x, y)
        if element is None or not x.size:
            return None
        if out is not None and (out.shape or out.dtype not in (x.dtype, np.dtype(np.float32))):
            return None
        total = self.empty((), x.dtype) if out is None else out
        shape = geometry.over_packs(x.size, x.dtype.itemsize)
        sums = self.empty((shape.grid,), np.float64)
        given = (self._packed(x), self._packed(y), sums, x.size)
        self.kernels.launch("inner_product", (element, geometry.BLOCK), shape, *given)
        template = (cpp_float(total.dtype), geometry.BLOCK)
        one = geometry.Launch(1)
        self.kernels.launch("inner_product_total", template, one, sums, shape.grid, total)
        return total
