"""Kernels of ``attention.py`` on a GPU, faster than by their definition."""

from __future__ import annotations

from gpubackprop.backends.cuda.arrays import DeviceArrays


class CudaAttention(DeviceArrays):
    """Overrides of the kernels of ``attention.py``."""
