"""Arguments for the kernels of ``backends/attention.py``: what overrides are compared on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Case = tuple[str, tuple[Any, ...], dict[str, Any]]


def fill(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal numbers, the same for the same seed."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


def cases(kernel: str) -> Iterator[Case]:
    """A note, arguments and options of each call to compare; nothing for other kernels."""
    yield from ()
