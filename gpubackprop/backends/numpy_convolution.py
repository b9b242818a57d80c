"""Kernels of ``convolution.py`` on NumPy arrays, faster than by their definition."""

from __future__ import annotations

from gpubackprop.backends.array_backend import ArrayBackend


class NumPyConvolution(ArrayBackend):
    """Overrides of the kernels of ``convolution.py``."""
