"""Arguments for the kernels of ``backends/norms.py``: what overrides are compared on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Case = tuple[str, tuple[Any, ...], dict[str, Any]]


def fill(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal numbers, the same for the same seed."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


SHAPES = ((5, 3), (1, 1), (0, 3), (3, 2, 5), (2, 3, 2, 4), (16, 9, 6), (7, 4, 5, 2, 2))


def images() -> Iterator[tuple[str, np.ndarray]]:
    """Arrays (N, *spatial, C) in several orders in memory, and a word on each."""
    for seed, shape in enumerate(SHAPES):
        yield f"{shape}", fill(shape, seed)
    moved = fill((3, 4, 5, 2), 20).transpose(0, 2, 3, 1)
    yield f"{moved.shape} channels first in memory", moved
    yield "(2, 3, 4) strided", fill((2, 3, 8), 23)[..., ::2]
    yield "(4, 3, 2) reversed axes", fill((2, 3, 4), 24).T


def affine(x: np.ndarray) -> Iterator[tuple[str, Any, Any]]:
    """Scales and shifts for the channels of x, and a word on each; of all kinds for a few x."""
    channels = x.shape[-1]
    weight, bias = fill((channels,), 30) + 1.0, fill((channels,), 31)
    yield "", weight, bias
    yield " no shift", weight, None
    if x.ndim < 4:
        yield " plain", None, None
        yield " no scale", None, bias


def cases(kernel: str) -> Iterator[Case]:
    """A note, arguments and options of each call to compare; nothing for other kernels."""
    if kernel.startswith("rms_norm"):
        yield from root_mean_squares(kernel)
    elif knows(kernel):
        yield from of_images(kernel)


def knows(kernel: str) -> bool:
    """Whether it is one of the kernels on images (N, *spatial, C)."""
    return kernel.startswith(("batch_norm", "group_norm", "scale_shift"))


def of_images(kernel: str) -> Iterator[Case]:
    """Calls of the kernels on images, and of their derivatives."""
    for about, x in images():
        channels = x.shape[-1]
        dy = fill(x.shape, 40)
        over = tuple(range(x.ndim - 1))
        mean, rstd = (
            (x.mean(axis=over), 1.0 / np.sqrt(x.var(axis=over) + 0.1))
            if x.size
            else (np.zeros(channels), np.ones(channels))
        )
        for more, weight, bias in affine(x):
            if kernel == "batch_norm":
                yield about + more, (x, weight, bias, 1e-3), {}
            elif kernel == "batch_norm_backward" and bias is None:
                yield about + more, (dy, x, weight, mean, rstd), {}
                dmean, dvar = fill((channels,), 41), fill((channels,), 42)
                yield about + more + " moments", (dy, x, weight, mean, rstd, dmean, dvar), {}
            elif kernel == "scale_shift" and weight is not None:
                yield about + more, (x, weight, bias), {}
        if kernel == "batch_norm" and x.size > 1:
            yield f"{about} about 1000", (x + 1000.0, fill((channels,), 43), None, 1e-3), {}
        if kernel == "batch_norm_backward":
            moved = np.asfortranarray(dy)
            yield f"{about} cotangent elsewhere", (moved, x, None, mean, rstd), {}
        for groups in (1, 2, channels):
            if kernel.startswith("group_norm") and not channels % groups:
                yield from by_groups(kernel, f"{about} groups {groups}", dy, x, groups)


def by_groups(
    kernel: str, about: str, dy: np.ndarray, x: np.ndarray, groups: int
) -> Iterator[Case]:
    """Calls of ``group_norm`` and of its derivative."""
    if kernel == "group_norm":
        for more, weight, bias in affine(x):
            yield about + more, (x, weight, bias, groups, 1e-3), {}
        if x.size > 1:
            yield (
                f"{about} about 1000",
                (x + 1000.0, fill(x.shape[-1:], 43), None, groups, 1e-3),
                {},
            )
        return
    n, size = x.shape[0], x.shape[-1] // groups
    places = max(x.size // (n * x.shape[-1]), 1) if n else 1
    parts = x.reshape(n, places, groups, size)
    mean = parts.mean(axis=(1, 3))
    rstd = 1.0 / np.sqrt(parts.var(axis=(1, 3)) + 0.1)
    for more, weight, bias in affine(x):
        if bias is None:
            yield about + more, (dy, x, weight, mean, rstd, groups), {}


def root_mean_squares(kernel: str) -> Iterator[Case]:
    """Calls of ``rms_norm`` and of its derivative."""
    for seed, shape in enumerate(((3, 5), (1, 1), (0, 3), (2, 1, 130), (2, 3, 4))):
        x, dy = fill(shape, seed), fill(shape, seed + 50)
        for axes in range(1, len(shape)):
            over = tuple(range(-axes, 0))
            weight = fill(shape[len(shape) - axes :], seed + 60)
            rstd = 1.0 / np.sqrt((x**2).mean(axis=over, keepdims=True) + 1e-3)
            for w in (weight, None):
                note = f"{shape} {axes} weight={w is not None}"
                if kernel == "rms_norm":
                    yield note, (x, w, axes, 1e-3), {}
                    yield f"{note} about 1000", (x + 1000.0, w, axes, 1e-3), {}
                else:
                    yield note, (dy, x, w, rstd, axes), {}
    x, dy = fill((5, 3), 70).T, fill((5, 3), 71).T
    weight, rstd = fill((5,), 72), np.ones((3, 1))
    if kernel == "rms_norm":
        yield "transposed", (x, weight, 1, 1e-3), {}
    else:
        yield "transposed", (dy, x, weight, rstd, 1), {}
