"""Kernels around a matrix product, by their definitions (see ``composites.py``)."""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.primitives import Array, Primitives


class Products(Primitives):
    """Products with what comes before and after them."""

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """``x @ weight.T + bias`` with x (..., in), weight (out, in), bias (out,)."""
        y = self.matmul(x, self.transpose(weight))
        return y if bias is None else self.add(y, bias)

    def wide_matmul(self, x1: Array, x2: Array, out: Array | None = None) -> Array:
        """``x1 @ x2``, in float32 where the operands are of half precision: sums are not rounded to
        it."""
        if x1.dtype.itemsize == x2.dtype.itemsize == 2:
            x1, x2 = self.astype(x1, np.float32), self.astype(x2, np.float32)
        return self.matmul(x1, x2) if out is None else self.matmul(x1, x2, out=out)

    def addmm(self, y: Array, x1: Array, x2: Array, out: Array | None = None) -> Array:
        """``y + x1 @ x2`` with y of the product's shape and dtype, or float32 where the operands
        are of half precision; `out` may be `y`, never an operand of the product. How a product
        joins a sum that is there already."""
        product = self.matmul(x1, x2) if y.dtype == x1.dtype else self.wide_matmul(x1, x2)
        return self.add(y, product) if out is None else self.add(y, product, out=out)
