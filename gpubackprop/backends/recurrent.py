"""Kernels of recurrent networks: a whole sequence in one call.

Definitions, like those of ``composites.py``: a backend may override any of them.
"""

from __future__ import annotations

from gpubackprop.backends.composites import Composites


class RecurrentKernels(Composites):
    """Kernels of recurrent networks: a whole sequence in one call."""
