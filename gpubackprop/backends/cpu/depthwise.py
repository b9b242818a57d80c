"""Convolutions whose groups have one channel each, on NumPy arrays.

There is no matrix to multiply by: each place of the kernel is one multiply-add of whole images,
and ``np.einsum`` takes all places in a single pass over the result. x is (N, *spatial, C), the
weight (C * m, 1, *kernel), y (N, *out, C * m).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gpubackprop.backends.array_backend import window_layout
from gpubackprop.backends.cpu.windows import Geometry, Padded

# Bytes of images at a time: a core's L2 cache holds three of these.
TERMS = 256 << 10


def blocks(g: Geometry, start: int, stop: int, channels: int, itemsize: int) -> Iterator[slice]:
    """Runs of images that fit in a cache."""
    images = max(1, TERMS // (math.prod(g.padded) * channels * itemsize))
    return (slice(i, min(i + images, stop)) for i in range(start, stop, images))


def by_place(g: Geometry, weight: np.ndarray, channels: int) -> np.ndarray:
    """The weight as (places, last axis of y, C, m): repeated along an axis, so that the loops that
    multiply by it are long."""
    split = weight.reshape(channels, -1, g.places)
    apart = split.transpose(2, 0, 1)[:, None]
    return np.repeat(apart, g.out[-1], axis=1)


def windows(g: Geometry, x: np.ndarray, run: bool) -> np.ndarray:
    """What the windows see of padded images: (N, *out, *kernel, C).

    With `run` the last axis of `out` stands with the channels, which it lies beside in memory, so
    that loops over both are long: (N, *out[:-1], *kernel, out[-1] * C).
    """
    n = len(g.kernel)
    shape, strides = window_layout(x.shape, x.strides, g.kernel, g.stride, g.dilation)
    if run:
        shape = (*shape[:n], *shape[n + 1 : -1], shape[n] * shape[-1])
        strides = (*strides[:n], *strides[n + 1 :])
    return np.lib.stride_tricks.as_strided(x, shape, strides, writeable=False)


def multiply_add(
    g: Geometry, x: np.ndarray, w: np.ndarray, y: np.ndarray, start: int, stop: int
) -> None:
    """y[o] = the sum over places k of x[o * stride + k * dilation] w[k]."""
    n, channels, many = len(g.kernel), *w.shape[-2:]
    run = many == 1 and g.stride[-1] == 1
    # Labels of the axes: images and windows, places of the kernel, channels, their outputs.
    lead = list(range(n if run else n + 1))
    kernel = [n + 1 + i for i in range(n)]
    last = [2 * n + 1] if run else [2 * n + 1, 2 * n + 2]
    by = w.reshape(*g.kernel, -1) if run else w[:, 0].reshape(*g.kernel, channels, many)
    padded: Padded | None = None
    for block in blocks(g, start, stop, y.shape[-1], x.itemsize):
        if padded is None:
            padded = Padded(g, block.stop - block.start, channels, x.dtype)
        seen = windows(g, padded.fill(x[block]), run)
        part = y[block]
        total = part.reshape(*seen.shape[: len(lead)], *by.shape[n:])
        np.einsum(seen, lead + kernel + last[:1], by, kernel + last, lead + last, out=total)


def add_back(
    g: Geometry, dy: np.ndarray, w: np.ndarray, dx: np.ndarray, start: int, stop: int
) -> None:
    """dx[o * stride + k * dilation] += dy[o] w[k], summed over the outputs of each channel."""
    channels, many = w.shape[-2:]
    memory: np.ndarray | None = None
    for block in blocks(g, start, stop, dy.shape[-1], dy.itemsize):
        if memory is None:
            memory = np.empty((block.stop - block.start, *g.padded, channels), dy.dtype)
            term = np.empty((block.stop - block.start, *g.out, channels), dy.dtype)
        cotangent = np.ascontiguousarray(dy[block]).reshape(-1, *g.out, channels, many)
        total = memory[: len(cotangent)]
        total[...] = 0.0
        for k, place in enumerate(g.every_place()):
            part = term[: len(cotangent)]
            if many == 1:
                np.multiply(cotangent[..., 0], w[k, ..., 0], out=part)
            else:
                np.einsum("...abc,abc->...ab", cotangent, w[k], out=part)
            at = g.at(place)
            np.add(total[at], part, out=total[at])
        dx[block] = total[(slice(None), *g.inner)]


def correlate(g: Geometry, x: np.ndarray, dy: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The weight's cotangent as (places, C * m): the sum over images and windows o of x[o * stride
    + k * dilation] dy[o]."""
    channels, outputs = x.shape[-1], dy.shape[-1]
    dw = np.zeros((g.places, outputs), x.dtype)
    padded: Padded | None = None
    for block in blocks(g, start, stop, outputs, x.itemsize):
        if padded is None:
            shape = (block.stop - block.start, *g.out, channels, outputs // channels)
            padded = Padded(g, shape[0], channels, x.dtype)
            term, ones = np.empty(shape, x.dtype), np.ones(shape[0] * g.rows, x.dtype)
        seen = padded.fill(x[block])[..., None]
        cotangent = dy[block].reshape(-1, *g.out, channels, outputs // channels)
        for k, place in enumerate(g.every_place()):
            part = np.multiply(seen[g.at(place)], cotangent, out=term[: len(cotangent)])
            rows = part.reshape(-1, outputs)
            dw[k] += ones[: len(rows)] @ rows
    return dw
