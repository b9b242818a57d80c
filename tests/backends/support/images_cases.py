"""Arguments for the kernels of ``backends/images.py``: what overrides are compared on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpubackprop.backends.base import Backend
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.images import pooled_sizes
from gpubackprop.testing.calls import layouts

Case = tuple[str, tuple[Any, ...], dict[str, Any]]


def fill(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal numbers, the same for the same seed."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


# Shape of x, kernel, stride, padding, dilation, ceil.
POOLINGS: tuple[tuple[Any, ...], ...] = (
    ((2, 9, 3), (3,), (2,), (1,), (1,), False),
    ((1, 1, 1), (1,), (1,), (0,), (1,), False),
    ((3, 6, 8, 5), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 7, 5, 33), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 7, 5, 3), (2, 2), (2, 2), (1, 1), (1, 1), True),
    ((2, 8, 9, 4), (3, 3), (2, 2), (1, 1), (1, 1), False),
    ((1, 8, 9, 2), (3, 2), (1, 3), (1, 1), (2, 3), True),
    ((1, 6, 7, 2), (2, 3), (3, 4), (0, 1), (1, 1), True),
    ((1, 17, 18, 2), (16, 17), (1, 1), (8, 8), (1, 1), False),
    ((2, 9, 13, 3), (4, 5), (4, 6), (1, 2), (1, 1), True),
    ((2, 10, 5, 3), (5, 5), (5, 5), (0, 0), (1, 1), False),
    ((0, 4, 4, 2), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 4, 5, 6, 2), (2, 3, 2), (2, 1, 2), (1, 1, 0), (1, 1, 1), False),
)
DIVISORS: tuple[tuple[bool, int | None], ...] = ((True, None), (False, None), (True, 7))


def cases(kernel: str) -> Iterator[Case]:
    """A note, arguments and options of each call to compare; nothing for other kernels."""
    if kernel not in ("max_pool", "max_pool_backward", "avg_pool", "avg_pool_backward"):
        return
    for seed, (shape, window, stride, padding, dilation, ceil) in enumerate(POOLINGS):
        note = f"{shape} by {window}, {stride}, {padding}, {dilation}, {ceil}"
        spatial, where = shape[1:-1], (window, stride, padding)
        out = pooled_sizes(spatial, *where, dilation, ceil)
        x, dy = fill(shape, seed), fill((shape[0], *out, shape[-1]), seed + 1)
        if kernel == "max_pool":
            for content, values in _contents(shape, seed):
                yield f"{note} {content}", (values, *where, dilation, ceil), {}
            for layout, moved in layouts(x):
                yield f"{note} {layout}", (moved, *where, dilation, ceil), {}
        elif kernel == "max_pool_backward":
            _, winner = Backend.max_pool(NumPyBackend(), x, *where, dilation, ceil)
            yield note, (dy, winner, spatial, *where, dilation), {}
            for layout, moved in layouts(dy):
                yield f"{note} {layout}", (moved, winner, spatial, *where, dilation), {}
        elif max(dilation) == 1:
            given = (dy, spatial) if kernel == "avg_pool_backward" else (x,)
            for divisor in DIVISORS:
                yield f"{note} {divisor}", (*given, *where, ceil, *divisor), {}
            for layout, moved in layouts(given[0]):
                yield f"{note} {layout}", (moved, *given[1:], *where, ceil, True, None), {}


def _contents(shape: tuple[int, ...], seed: int) -> Iterator[tuple[str, np.ndarray]]:
    x = fill(shape, seed)
    yield "usual", x
    yield "with equal elements", np.rint(x)
    yield "nothing but the lowest", np.full(shape, -np.inf)
    for lost in (np.nan, np.inf):
        x = fill(shape, seed)
        x.reshape(-1)[:: max(x.size // 5, 1)] = lost
        yield f"with {lost}", x
