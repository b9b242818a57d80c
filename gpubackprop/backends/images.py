"""Kernels of images: convolutions and pooling, on any number of spatial axes, channels last.

Definitions, like those of ``composites.py``: a backend may override any of them.
"""

from __future__ import annotations

from gpubackprop.backends.composites import Composites


class ImageKernels(Composites):
    """Kernels of images: convolutions and pooling, on any number of spatial axes, channels last."""
