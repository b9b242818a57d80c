"""The CUDA backend over CuPy."""

from gpubackprop.backends.cuda.backend import CUDABackend

__all__ = ["CUDABackend"]
