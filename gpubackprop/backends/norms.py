"""Kernels of normalisation over a batch, over groups of channels, and by the root mean square.

Definitions, like those of ``composites.py``: a backend may override any of them.
"""

from __future__ import annotations

from gpubackprop.backends.composites import Composites


class NormKernels(Composites):
    """Kernels of normalisation."""
