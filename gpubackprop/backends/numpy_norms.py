"""Kernels of ``norms.py`` on NumPy arrays, faster than by their definition.

NumPy is slow where an axis that it loops over innermost is short, and a batch of images with the
channels last has few channels. So neighbouring places are taken together: (R, C) as (R / k, k * C),
and a number for each channel as k copies of them. Images that lie in memory with the channels first
are taken as they lie. All passes run over blocks that stay in a core's cache; the sums of
blocks, and of neighbouring places, are short ones of their own, which also keeps their digits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.numpy_fused import add_over, all_like
from gpubackprop.backends.primitives import Array

# Elements of a block: a few float32 arrays of this size stay in a core's L2 cache.
BLOCK = 65536
# Elements of a row of places that are taken together, at most. From 8192 on, the size of NumPy's
# own buffers, a broadcast operand costs no more than an array of full size.
WIDE = 16384
# The same where rows are added up.
NARROW = 1024
# With fewer rows a sample, the copies of its numbers and the sums of its rows would grow too large.
ROWS = 16


class NumPyNorm(ArrayBackend):
    """Overrides of the kernels of ``norms.py``."""

    def batch_norm(
        self, x: Array, weight: Array | None, bias: Array | None, eps: float
    ) -> tuple[Array, Array, Array, Array]:
        if not _fit(x, weight, bias):
            return super().batch_norm(x, weight, bias, eps)
        y, *moments = _normalised(Channels(x), x, weight, bias, eps)
        mean, var, rstd = (m[0].astype(x.dtype) for m in moments)
        return y, mean, var, rstd

    def batch_norm_backward(
        self,
        dy: Array,
        x: Array,
        weight: Array | None,
        mean: Array,
        rstd: Array,
        dmean: Array | None = None,
        dvar: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        if not _fit(x, dy, weight) or dy.shape != x.shape:
            return super().batch_norm_backward(dy, x, weight, mean, rstd, dmean, dvar)
        return _cotangents(Channels(x), dy, x, weight, mean[None], rstd[None], dmean, dvar)

    def scale_shift(self, x: Array, scale: Array, shift: Array | None = None) -> Array:
        if not _fit(x, scale, shift):
            return super().scale_shift(x, scale, shift)
        channels = Channels(x)
        y = channels.empty(x)
        source, target = channels.view(x), channels.view(y)
        by = channels.spread(scale, x.dtype)
        plus = None if shift is None else channels.spread(shift, x.dtype)
        for block, place in channels.blocks():
            part = np.multiply(source[block], by[place], target[block])
            if plus is not None:
                np.add(part, plus[place], part)
        return y

    def group_norm(
        self, x: Array, weight: Array | None, bias: Array | None, groups: int, eps: float
    ) -> tuple[Array, Array, Array]:
        if not _fit(x, weight, bias):
            return super().group_norm(x, weight, bias, groups, eps)
        y, mean, _, rstd = _normalised(Channels(x, groups), x, weight, bias, eps)
        return y, mean.astype(x.dtype), rstd.astype(x.dtype)

    def group_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, groups: int
    ) -> tuple[Array, Array, Array]:
        if not _fit(x, dy, weight) or dy.shape != x.shape:
            return super().group_norm_backward(dy, x, weight, mean, rstd, groups)
        return _cotangents(Channels(x, groups), dy, x, weight, mean, rstd)

    def rms_norm(
        self, x: Array, weight: Array | None, axes: int, eps: float
    ) -> tuple[Array, Array]:
        if not all_like(x, weight) or not x.size:
            return super().rms_norm(x, weight, axes, eps)
        rows, kept = _rows(x, axes)
        rstd = np.einsum("ij,ij->i", rows, rows)[:, None]
        np.divide(rstd, rows.shape[1], rstd)
        np.add(rstd, eps, rstd)
        np.sqrt(rstd, rstd)
        np.reciprocal(rstd, rstd)
        y = np.multiply(rows, rstd)
        if weight is not None:
            np.multiply(y, weight.reshape(-1), y)
        return y.reshape(x.shape), rstd.reshape(kept)

    def rms_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, rstd: Array, axes: int
    ) -> tuple[Array, Array]:
        if not all_like(x, dy, weight) or not x.size or dy.shape != x.shape:
            return super().rms_norm_backward(dy, x, weight, rstd, axes)
        rows, _ = _rows(x, axes)
        out, scale = dy.reshape(rows.shape), rstd.reshape(-1, 1)
        xhat = np.multiply(rows, scale)
        dweight = np.einsum("ij,ij->j", out, xhat)
        g = out if weight is None else np.multiply(out, weight.reshape(-1))
        slope = np.einsum("ij,ij->i", g, xhat)[:, None]
        np.divide(slope, rows.shape[1], slope)
        np.multiply(xhat, slope, xhat)
        dx = np.subtract(g, xhat, xhat)
        np.multiply(dx, scale, dx)
        return dx.reshape(x.shape), dweight.reshape(x.shape[x.ndim - axes :])


class Channels:
    """How to pass over arrays (N, *spatial, C) that lie in memory as a given one does.

    Parameters
    ----------
    x : the array. Where it lies neither with the channels last nor with them first, without gaps,
        arrays are copied to the channels-last order.
    groups : how many groups of channels each sample is normalised in; None where each channel is
        normalised over the whole batch.

    Attributes
    ----------
    lengths : shape of a view: (samples, R / k, k * C) with the channels last, (N, C, places) with
        them first. The batch is one long sample where its memory allows and `groups` is None.
    count : number of values that each mean is over.
    """

    def __init__(self, x: np.ndarray, groups: int | None = None) -> None:
        samples, places, channels = x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1]
        self.channels = channels
        self.apart = groups is not None
        self.groups = channels if groups is None else groups
        self.count = x.size // (self.groups * (samples if self.apart else 1))
        self.first = not x.flags.c_contiguous and _moved(x).flags.c_contiguous
        if self.first:
            self.lengths = (samples, channels, places)
            return
        if not self.apart:
            samples, places = 1, samples * places
        self.copies = divisor(places, min(WIDE // channels, places // ROWS))
        self.lengths = (samples, places // self.copies, self.copies * channels)
        self.strip = channels * divisor(self.copies, NARROW // channels)

    def empty(self, x: np.ndarray) -> np.ndarray:
        """An array like x, to be written through its view."""
        return np.empty_like(x) if self.first else np.empty(x.shape, x.dtype)

    def view(self, x: np.ndarray) -> np.ndarray:
        """An array of the shape of x, to pass over; a copy where it lies otherwise in memory."""
        return (_moved(x) if self.first else x).reshape(self.lengths)

    def blocks(self) -> Iterator[tuple[Any, Any]]:
        """Places of the blocks of a view, and the places of their channels in what ``spread`` and
        ``zeros`` give."""
        samples, inner, outer = self.lengths
        several = max(BLOCK // (inner * outer), 1)
        part = inner if inner * outer <= BLOCK else max(BLOCK // outer, 1)
        for i in range(0, samples, several):
            for j in range(0, inner, part):
                block = (slice(i, i + several), slice(j, j + part))
                yield block, block if self.first else block[:1]

    def spread(self, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """(C,) or (samples, C) numbers, so that they stand beside the elements of a view."""
        samples, inner, outer = self.lengths
        values = values.astype(dtype)
        if self.first:
            return np.broadcast_to(values[..., None], (samples, inner, 1))
        tiled = np.tile(values, self.copies).reshape(-1, 1, outer)
        return np.broadcast_to(tiled, (samples, 1, outer))

    def zeros(self, dtype: np.dtype) -> np.ndarray:
        """Where the sums of blocks are added up."""
        samples, channels, _ = self.lengths
        return np.zeros((samples, channels if self.first else self.strip), dtype)

    def sums(self, part: np.ndarray) -> np.ndarray:
        """Sums over the places of a block."""
        return add_over(part, 2) if self.first else add_over(self._strips(part), 1)

    def products(self, part: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Sums of the products of two blocks."""
        if self.first:
            return np.einsum("abc,abc->ab", part, other)
        return np.einsum("abc,abc->ac", self._strips(part), self._strips(other))

    def _strips(self, part: np.ndarray) -> np.ndarray:
        return part.reshape(len(part), -1, self.strip)

    def totals(self, sums: np.ndarray) -> np.ndarray:
        """(samples, C) sums over the places, or (1, C) over the places of the whole batch, in
        double precision."""
        sums = sums.astype(np.float64)
        if not self.first:
            sums = add_over(sums.reshape(len(sums), -1, self.channels), 1)
        return sums if self.apart else add_over(sums, 0, None, None, True)

    def means(self, totals: np.ndarray) -> np.ndarray:
        """(samples, groups) means over the values of a group."""
        return add_over(totals.reshape(len(totals), self.groups, -1), 2) / self.count

    def each(self, values: np.ndarray) -> np.ndarray:
        """(samples, groups) numbers as (samples, C)."""
        return np.repeat(values, self.channels // self.groups, axis=1)


def _moved(x: np.ndarray) -> np.ndarray:
    """The view (N, C, *spatial)."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


@functools.lru_cache(maxsize=1024)
def divisor(n: int, most: int) -> int:
    """The largest divisor of `n` that is at most `most`, or 1."""
    k = max(min(n, most), 1)
    while n % k:
        k -= 1
    return k


def _normalised(
    channels: Channels,
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """y in the dtype of x; mean, var and rstd (samples, groups) in double precision."""
    y = channels.empty(x)
    source, target = channels.view(x), channels.view(y)
    sums, squares = channels.zeros(x.dtype), channels.zeros(x.dtype)
    for block, place in channels.blocks():
        sums[place] += channels.sums(source[block])
    mean = channels.means(channels.totals(sums))
    centre = channels.spread(channels.each(mean), x.dtype)
    for block, place in channels.blocks():
        deviation = np.subtract(source[block], centre[place], target[block])
        squares[place] += channels.products(deviation, deviation)
    var = channels.means(channels.totals(squares))
    rstd = 1.0 / np.sqrt(var + eps)
    scale = channels.each(rstd)
    by = channels.spread(scale if weight is None else scale * weight, x.dtype)
    plus = None if bias is None else channels.spread(bias, x.dtype)
    for block, place in channels.blocks():
        part = np.multiply(target[block], by[place], target[block])
        if plus is not None:
            np.add(part, plus[place], part)
    return y, mean, var, rstd


def _cotangents(
    channels: Channels,
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    dmean: np.ndarray | None = None,
    dvar: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cotangents of x, weight and bias, from mean and rstd (samples, groups).

    Once dy and dy * (x - mean) are summed over the places, all that is left are numbers of the
    channels: dx = dy * by + (x - mean) * along + plus.
    """
    dx = channels.empty(x)
    source, given, target = channels.view(x), channels.view(dy), channels.view(dx)
    centre = channels.spread(channels.each(mean), x.dtype)
    sums, products = channels.zeros(x.dtype), channels.zeros(x.dtype)
    scratch = np.empty(max(BLOCK, channels.lengths[2]), x.dtype)
    for block, place in channels.blocks():
        part, out = source[block], given[block]
        deviation = np.subtract(part, centre[place], scratch[: part.size].reshape(part.shape))
        sums[place] += channels.sums(out)
        products[place] += channels.products(deviation, out)
    r = channels.each(rstd).astype(np.float64)
    offset, slope = channels.totals(sums), channels.totals(products) * r
    dweight, dbias = add_over(slope, 0).astype(x.dtype), add_over(offset, 0).astype(x.dtype)
    if weight is not None:
        offset, slope = offset * weight, slope * weight
    along = channels.each(channels.means(slope)) * r * -r
    plus = channels.each(channels.means(offset)) * -r
    if dvar is not None:
        along = along + dvar * (2.0 / channels.count)
    if dmean is not None:
        plus = plus + dmean / channels.count
    by = channels.spread(r if weight is None else r * weight, x.dtype)
    along, plus = channels.spread(along, x.dtype), channels.spread(plus, x.dtype)
    for block, place in channels.blocks():
        part = np.subtract(source[block], centre[place], target[block])
        np.multiply(part, along[place], part)
        np.add(part, plus[place], part)
        out = np.multiply(given[block], by[place], scratch[: part.size].reshape(part.shape))
        np.add(part, out, part)
    return dx, dweight, dbias


def _fit(x: np.ndarray, *others: Any) -> bool:
    """Whether the fast passes are for these arrays."""
    return all_like(x, *others) and x.ndim > 1 and x.size > 0


def _rows(x: np.ndarray, axes: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """x as (rows, values of the last `axes` axes), and its shape with those axes at size one."""
    lead = x.shape[: x.ndim - axes]
    return x.reshape(math.prod(lead), -1), lead + (1,) * axes
