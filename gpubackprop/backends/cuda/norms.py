"""Kernels of ``norms.py`` on a GPU, faster than by their definition."""

from __future__ import annotations

from gpubackprop.backends.cuda.arrays import DeviceArrays


class CudaNorm(DeviceArrays):
    """Overrides of the kernels of ``norms.py``."""
