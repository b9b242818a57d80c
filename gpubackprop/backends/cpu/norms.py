"""Kernels of ``norms.py`` on NumPy arrays, faster than by their definition.

NumPy is slow where an axis that it loops over innermost is short, and a batch of images with the
channels last has few channels. So neighbouring places are taken together: (R, C) as (R / k, k * C),
and a number for each channel as k copies of them. Images that lie in memory with the channels first
are taken as they lie. All passes run over blocks that stay in a core's cache, shared among threads;
the sums of blocks, and of neighbouring places, are short ones of their own, which also keeps their
digits, and are added up in the order of the blocks, whatever the number of threads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.cpu import rows
from gpubackprop.backends.cpu.fused import add_over, all_like
from gpubackprop.backends.cpu.threads import in_parts, threads
from gpubackprop.backends.primitives import Array

# Elements of a block. Ones that fit the L2 cache would be smaller, but then threads that call NumPy
# often wait for each other.
BLOCK = 1 << 18
# Elements of a row of places that are taken together, at most. From 8192 on, the size of NumPy's
# own buffers, a broadcast operand costs no more than an array of full size.
WIDE = 16384
# The same where rows are added up.
NARROW = 1024
# With fewer rows a sample, the copies of its numbers and the sums of its rows would grow too large.
ROWS = 16
# Fewer elements than this are not worth another thread, which starts its work three times.
SHARE = 1 << 19
# Where means are no more than this many standard deviations from zero, x need not be centred before
# it is scaled: two bits are lost at most.
NEAR = 4.0

R = TypeVar("R")


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

        def work(block: Any, place: Any, _: np.ndarray) -> None:
            part = np.multiply(source[block], by[place], target[block])
            if plus is not None:
                np.add(part, plus[place], part)

        channels.share(work, x.dtype)
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
        self, x: Array, weight: Array | None, axes: int, eps: float, dtype: Any = None
    ) -> tuple[Array, Array]:
        fit = dtype is None and all_like(x, weight) and rows.of_features(x, axes, weight)
        if not fit or not x.size:
            return super().rms_norm(x, weight, axes, eps, dtype)
        y, _, rstd = rows.normalised(x, weight, None, axes, eps, False)
        return y, rstd

    def rms_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, rstd: Array, axes: int
    ) -> tuple[Array, Array]:
        fit = all_like(x, dy, weight) and rows.of_features(x, axes, weight)
        if not fit or not x.size or dy.shape != x.shape:
            return super().rms_norm_backward(dy, x, weight, rstd, axes)
        dx, dweight = rows.cotangents(dy, x, weight, None, rstd, axes)
        return dx, dweight


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

    def share(self, work: Callable[[Any, Any, np.ndarray], R], dtype: np.dtype) -> list[R]:
        """``work(block, place, scratch)`` for every block, at the same time; the results in the
        order of the blocks. `scratch` has the block's shape, and belongs to the thread."""
        blocks = list(self.blocks())
        inner = self.lengths[2]

        def several(first: int, last: int) -> list[R]:
            memory = np.empty(max(BLOCK, inner), dtype)
            results = []
            for block, place in blocks[first:last]:
                shape = [len(range(n)[cut]) for n, cut in zip(self.lengths, block, strict=False)]
                scratch = memory[: math.prod(shape) * inner].reshape(*shape, inner)
                results.append(work(block, place, scratch))
            return results

        parts = min(threads(), math.prod(self.lengths) // SHARE)
        return [r for part in in_parts(several, len(blocks), parts) for r in part]

    def total(self, pieces: list[tuple[Any, np.ndarray]], dtype: np.dtype) -> np.ndarray:
        """Sums of blocks, each with the place of its channels, added up: see ``totals``."""
        sums = self.zeros(dtype)
        for place, piece in pieces:
            sums[place] += piece
        return self.totals(sums)

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

    def add(block: Any, place: Any, _: np.ndarray) -> tuple[Any, np.ndarray]:
        return place, channels.sums(source[block])

    mean = channels.means(channels.total(channels.share(add, x.dtype), x.dtype))
    centre = channels.spread(channels.each(mean), x.dtype)

    def square(block: Any, place: Any, scratch: np.ndarray) -> tuple[Any, np.ndarray]:
        deviation = np.subtract(source[block], centre[place], scratch)
        return place, channels.products(deviation, deviation)

    var = channels.means(channels.total(channels.share(square, x.dtype), x.dtype))
    rstd = 1.0 / np.sqrt(var + eps)
    near = _near(mean, rstd)
    scale = channels.each(rstd) if weight is None else channels.each(rstd) * weight
    shift = bias
    if near:
        shift = channels.each(mean) * -scale + (0.0 if bias is None else bias)
    by = channels.spread(scale, x.dtype)
    plus = None if shift is None else channels.spread(shift, x.dtype)

    def write(block: Any, place: Any, _: np.ndarray) -> None:
        part = source[block]
        if not near:
            part = np.subtract(part, centre[place], target[block])
        part = np.multiply(part, by[place], target[block])
        if plus is not None:
            np.add(part, plus[place], part)

    channels.share(write, x.dtype)
    return y, mean, var, rstd


def _near(mean: np.ndarray, rstd: np.ndarray) -> bool:
    """Whether all means are near zero, for their standard deviations."""
    return bool(np.abs(mean * rstd).max() <= NEAR)


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
    near = _near(mean, rstd)
    middle = channels.each(mean)
    centre = None if near else channels.spread(middle, x.dtype)

    def add(block: Any, place: Any, scratch: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
        part, out = source[block], given[block]
        if centre is not None:
            part = np.subtract(part, centre[place], scratch)
        return place, channels.sums(out), channels.products(part, out)

    pieces = channels.share(add, x.dtype)
    offset = channels.total([(place, sums) for place, sums, _ in pieces], x.dtype)
    slope = channels.total([(place, products) for place, _, products in pieces], x.dtype)
    if near:
        slope = slope - middle * offset
    r = channels.each(rstd).astype(np.float64)
    slope = slope * r
    dweight, dbias = add_over(slope, 0).astype(x.dtype), add_over(offset, 0).astype(x.dtype)
    if weight is not None:
        offset, slope = offset * weight, slope * weight
    along = channels.each(channels.means(slope)) * r * -r
    plus = channels.each(channels.means(offset)) * -r
    if dvar is not None:
        along = along + dvar * (2.0 / channels.count)
    if dmean is not None:
        plus = plus + dmean / channels.count
    if near:
        plus = plus - middle * along
    by = channels.spread(r if weight is None else r * weight, x.dtype)
    along, plus = channels.spread(along, x.dtype), channels.spread(plus, x.dtype)

    def write(block: Any, place: Any, scratch: np.ndarray) -> None:
        part = source[block]
        if centre is not None:
            part = np.subtract(part, centre[place], target[block])
        part = np.multiply(part, along[place], target[block])
        np.add(part, plus[place], part)
        np.add(part, np.multiply(given[block], by[place], scratch), part)

    channels.share(write, x.dtype)
    return dx, dweight, dbias


def _fit(x: np.ndarray, *others: Any) -> bool:
    """Whether the fast passes are for these arrays."""
    return all_like(x, *others) and x.ndim > 1 and x.size > 0
