"""Kernels of ``images.py`` on a GPU, faster than by their definition."""

from __future__ import annotations

from gpubackprop.backends.cuda.arrays import DeviceArrays


class CudaImage(DeviceArrays):
    """Overrides of the kernels of ``images.py``."""
