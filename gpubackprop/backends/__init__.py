"""Layer 1: array kernels on every device, and the contract that they keep."""

from gpubackprop.backends.base import Backend, Numerics, kernel_names
from gpubackprop.backends.device import Choice, backend_of, canonical, choose, get_backend
from gpubackprop.backends.dtypes import as_dtype
from gpubackprop.backends.primitives import Array, Axis, DType, Shape

__all__ = [
    "Array",
    "Axis",
    "Backend",
    "Choice",
    "DType",
    "Numerics",
    "Shape",
    "as_dtype",
    "backend_of",
    "canonical",
    "choose",
    "get_backend",
    "kernel_names",
]
