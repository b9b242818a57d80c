"""Kernels of attention: scaled dot products of queries and keys, and rotary positions.

Definitions, like those of ``composites.py``: a backend may override any of them.
"""

from __future__ import annotations

from gpubackprop.backends.composites import Composites


class AttentionKernels(Composites):
    """Kernels of attention: scaled dot products of queries and keys, and rotary positions."""
