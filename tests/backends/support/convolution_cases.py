"""Arguments for the kernels of ``backends/convolution.py``: what overrides are compared on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Case = tuple[str, tuple[Any, ...], dict[str, Any]]
Shape = tuple[int, ...]

# Shape of x, outputs, kernel, stride, padding, dilation, groups.
CONVOLUTIONS: dict[str, tuple[Any, ...]] = {
    "one element": ((1, 1, 1), 1, (1,), (1,), ((0, 0),), (1,), 1),
    "1-d": ((3, 9, 4), 5, (3,), (2,), ((1, 2),), (2,), 1),
    "1-d, many outputs": ((2, 9, 1), 33, (3,), (1,), ((1, 1),), (1,), 1),
    "one channel": ((3, 7, 9, 1), 4, (3, 3), (1, 1), ((0, 0), (1, 0)), (1, 1), 1),
    "two channels": ((2, 6, 20, 2), 3, (3, 3), (1, 2), ((1, 1), (2, 0)), (2, 1), 1),
    "same": ((33, 4, 5, 6), 6, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "an even kernel": ((2, 6, 5, 3), 2, (2, 4), (1, 1), ((0, 1), (1, 2)), (1, 1), 1),
    "stride": ((2, 9, 8, 3), 5, (3, 2), (2, 3), ((1, 0), (0, 0)), (1, 1), 1),
    "pixels that no window sees": ((2, 8, 8, 2), 3, (2, 2), (5, 3), ((0, 0), (0, 0)), (1, 1), 1),
    "dilation": ((2, 9, 8, 3), 4, (3, 2), (1, 1), ((2, 2), (1, 0)), (2, 3), 1),
    "more padding than kernel": ((2, 3, 3, 2), 3, (2, 2), (1, 1), ((3, 2), (0, 4)), (1, 1), 1),
    "1x1": ((4, 5, 4, 7), 6, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "1x1 with stride": ((4, 5, 4, 7), 6, (1, 1), (2, 3), ((0, 0), (0, 0)), (1, 1), 1),
    "1x1 with padding": ((2, 3, 3, 2), 3, (1, 1), (1, 1), ((1, 0), (0, 2)), (1, 1), 1),
    "groups": ((2, 5, 6, 6), 9, (2, 3), (1, 1), ((1, 0), (1, 1)), (1, 1), 3),
    "groups and stride": ((2, 7, 6, 4), 4, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 2),
    "depthwise": ((3, 6, 5, 5), 5, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 5),
    "depthwise, twice as many": ((2, 7, 8, 3), 6, (3, 2), (2, 1), ((0, 1), (0, 0)), (1, 2), 3),
    "no image": ((0, 4, 4, 2), 3, (2, 2), (1, 1), ((0, 0), (1, 1)), (1, 1), 1),
    "3-d": ((2, 4, 5, 3, 2), 3, (2, 3, 2), (1, 2, 1), ((0, 1), (1, 1), (0, 0)), (2, 1, 1), 1),
    "3-d groups": ((1, 3, 4, 5, 4), 4, (2, 2, 2), (1, 1, 1), ((1, 1),) * 3, (1, 1, 1), 2),
}


def fill(shape: Shape, seed: int) -> np.ndarray:
    """Normal numbers, the same for the same seed."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


def out(spatial: Shape, kernel: Shape, stride: Shape, padding: Any, dilation: Shape) -> Shape:
    """Windows along each axis."""
    return tuple(
        (n + a + b - d * (k - 1) - 1) // s + 1
        for n, k, s, (a, b), d in zip(spatial, kernel, stride, padding, dilation, strict=True)
    )


def cases(kernel: str) -> Iterator[Case]:
    """A note, arguments and options of each call to compare; nothing for other kernels."""
    if kernel not in ("conv", "conv_transpose", "conv_weight"):
        return
    for seed, (note, (shape, outputs, size, *rest, groups)) in enumerate(CONVOLUTIONS.items()):
        x, geometry = fill(shape, seed), (*rest, groups)
        weight = fill((outputs, shape[-1] // groups, *size), seed + 100)
        dy = fill((shape[0], *out(shape[1:-1], size, *rest), outputs), seed + 200)
        for where, move in (("", np.asarray), (" in Fortran order", np.asfortranarray)):
            if kernel == "conv":
                bias = fill((outputs,), seed + 300) if seed % 2 else None
                yield note + where, (move(x), move(weight), bias, *geometry), {}
            elif kernel == "conv_transpose":
                arguments = (move(dy), move(weight), shape[1:-1], *geometry)
                yield note + where, arguments, {}
            else:
                yield note + where, (move(x), move(dy), size, *geometry), {}
