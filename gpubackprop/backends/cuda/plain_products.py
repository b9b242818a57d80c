"""CuPy's own matrix products, for what cuBLASLt does not serve."""

from __future__ import annotations

import math

import numpy as np

from gpubackprop.backends.cuda.arrays import DeviceArrays
from gpubackprop.backends.primitives import Array, Shape


class CupyProducts(DeviceArrays):
    """Products as CuPy makes them."""

    def _product_by_cupy(self, x1: Array, x2: Array, out: Array | None) -> Array:
        self._set_cupy_precision()
        if out is not None and self._is_array(x1) and out.dtype != x1.dtype:
            return self._fill(out, self._product_by_cupy(x1, x2, None))
        ndims = (getattr(x1, "ndim", 0), getattr(x2, "ndim", 0))
        if ndims[0] > 2 and ndims[1] == 2 and x1.flags.c_contiguous:
            # As one product of two matrices: CuPy copies transposed operands of batches.
            rows = x1.reshape(math.prod(x1.shape[:-1]), x1.shape[-1])
            shape = (*x1.shape[:-1], x2.shape[1])
            if out is None:
                return super().matmul(rows, x2).reshape(shape)
            if out.shape == shape and out.flags.c_contiguous:
                super().matmul(rows, x2, out=out.reshape(len(rows), shape[-1]))
                return out
        if max(ndims) > 2 and x1.dtype.name == x2.dtype.name == "bfloat16":
            return self._product_one_by_one(x1, x2, out)
        return super().matmul(x1, x2, out=out)

    def _product_one_by_one(self, x1: Array, x2: Array, out: Array | None) -> Array:
        """A batch of bfloat16, of which CuPy multiplies no more than one at a time."""
        shapes = result_shape(x1.shape, x2.shape)
        if shapes is None or x1.ndim < 2 or x2.ndim < 2:
            return super().matmul(x1, x2, out=out)
        shape = shapes[0]
        y = self.empty(shape, x1.dtype) if out is None else out
        lead = shape[:-2]
        x1 = self.broadcast_to(x1, (*lead, *x1.shape[-2:]))
        x2 = self.broadcast_to(x2, (*lead, *x2.shape[-2:]))
        for at in np.ndindex(*lead):
            super().matmul(x1[at], x2[at], out=y[at])
        return y

    def _set_cupy_precision(self) -> None:
        """CuPy's precision is a setting of the process, which starts as an environment variable
        says; a product here has that of its backend."""
        core = getattr(self.xp, "_core", None)
        linalg = getattr(core, "_routines_linalg", None)
        if linalg is not None:
            fast = self.precision == "tf32"
            kind = linalg.COMPUTE_TYPE_TF32 if fast else linalg.COMPUTE_TYPE_DEFAULT
            linalg.set_compute_type(np.dtype(np.float32), kind)


def result_shape(first: Shape, second: Shape) -> tuple[Shape, Shape] | None:
    """The shape of a product, and with the axes that a vector lacks; None where there is none."""
    if not first or not second:
        return None
    a = first if len(first) > 1 else (1, *first)
    b = second if len(second) > 1 else (*second, 1)
    if a[-1] != b[-2]:
        return None
    try:
        lead = np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        return None
    rows = a[-2:-1] if len(first) > 1 else ()
    columns = b[-1:] if len(second) > 1 else ()
    return (*lead, *rows, *columns), (*lead, a[-2], b[-1])
