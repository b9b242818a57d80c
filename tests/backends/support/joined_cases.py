"""Arguments for the kernels of ``backends/joined.py``: what overrides are compared on.

Without the mask of a relu, which only the backend that wrote it can read: test_cuda_joined.py and
test_cuda_products_gpu.py have that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Case = tuple[str, tuple[Any, ...], dict[str, Any]]

# Leading axes, what is summed over, and columns.
SIZES = (((5,), 3, 8), ((1,), 1, 1), ((2, 3), 4, 16), ((0,), 3, 2), ((70,), 33, 130))


def fill(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal numbers, the same for the same seed."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


def cases(kernel: str) -> Iterator[Case]:
    """A note, arguments and options of each call to compare; nothing for other kernels."""
    for seed, (lead, k, n) in enumerate(SIZES):
        x = fill((*lead, k), seed)
        if kernel == "linear_activation":
            w, b = fill((n, k), seed + 1), fill((n,), seed + 2)
            for bias in (b, None):
                yield f"{lead} relu", (x, w, bias, "relu"), {}
                for keep in (False, True):
                    yield f"{lead} gelu {keep}", (x, w, bias, "gelu_tanh", keep), {}
        elif kernel == "matmul_activation_backward":
            w, value = fill((k, n), seed + 1), fill((*lead, n), seed + 2)
            for activation in ("relu", "gelu_tanh"):
                for summed in (False, True):
                    yield f"{lead} {activation}", (x, w, value, None, activation, summed), {}
        elif kernel == "matmul_row_sums" and len(lead) == 1:
            dy = fill((*lead, n), seed + 1)
            yield f"{lead}", (np.ascontiguousarray(dy.T), x), {}
            yield f"{lead} transposed", (dy.T, x), {}
