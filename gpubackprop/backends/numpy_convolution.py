"""Kernels of ``convolution.py`` on NumPy arrays, faster than by their definition.

What each window sees is copied into the rows of a matrix (im2col: Chellapilla et al. 2006), and one
matrix product does the rest. The copy is made for a few images at a time, so that the product finds
it in the processor's cache, and always into the same memory. Kernels of one element need no copy,
and where each group has a single channel there is nothing to multiply matrices for: those run as
one multiply-add of whole images for each place in the kernel.

The fast paths are for arrays of one dtype, float32 or float64; all else runs the definition.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from gpubackprop.backends.array_backend import ArrayBackend, window_layout
from gpubackprop.backends.convolution import Padding
from gpubackprop.backends.primitives import Array, Shape

# Columns of this many bytes at a time: measured on a Xeon and on an EPYC with 1 and 2 MiB of L2 a
# core, products with half or twice of it are no faster.
COLUMNS = 4 << 20
# Of images that are multiplied and added place by place: an L2 cache holds three of these.
TERMS = 256 << 10
# Runs of fewer elements than this are copied along the image rather than along the window.
SHORT_RUN = 16
# A transposed convolution with stride 1 is a convolution too. It reads `outputs` numbers a pixel of
# the result, against `channels` for each place of dy that are added up otherwise; it is the faster
# way where it moves less than this many times as much.
AS_CONVOLUTION = 1.5


class Geometry:
    """Sizes of one convolution.

    Parameters
    ----------
    spatial, kernel, stride, padding, dilation : of the convolution.

    Attributes
    ----------
    padded : sizes of the padded image.
    out : number of windows along each axis.
    inner : where in the padded image the image is.
    """

    def __init__(
        self, spatial: Shape, kernel: Shape, stride: Shape, padding: Padding, dilation: Shape
    ) -> None:
        self.spatial, self.kernel, self.stride, self.dilation = spatial, kernel, stride, dilation
        self.padded = tuple(n + a + b for n, (a, b) in zip(spatial, padding, strict=True))
        self.inner = tuple(slice(a, a + n) for n, (a, _) in zip(spatial, padding, strict=True))
        shape, _ = window_layout(
            (1, *self.padded, 1), (0,) * (len(spatial) + 2), kernel, stride, dilation
        )
        self.out: Shape = shape[1 : 1 + len(spatial)]
        self.rows, self.places = math.prod(self.out), math.prod(kernel)

    def reads_each_pixel_once(self) -> bool:
        """Whether the columns are the image itself, but for a stride."""
        return self.places == 1 and self.padded == self.spatial

    def at(self, place: Shape) -> tuple[slice, ...]:
        """Which pixels of a padded image all windows see at one place of the kernel."""
        steps = zip(place, self.dilation, self.out, self.stride, strict=True)
        every = (slice(k * d, k * d + (o - 1) * s + 1, s) for k, d, o, s in steps)
        return (slice(None), *every)

    def every_place(self) -> Iterator[Shape]:
        """Every place of the kernel."""
        return itertools.product(*map(range, self.kernel))


class Padded:
    """Memory for a few padded images, C-contiguous."""

    def __init__(self, geometry: Geometry, images: int, channels: int, dtype: np.dtype) -> None:
        self.geometry = geometry
        self.memory = np.zeros((images, *geometry.padded, channels), dtype)

    def fill(self, x: np.ndarray) -> np.ndarray:
        """The images with zeros around them; themselves where there is nothing to do."""
        if self.geometry.padded == self.geometry.spatial and x.flags.c_contiguous:
            return x
        part = self.memory[: len(x)]
        part[(slice(None), *self.geometry.inner)] = x
        return part


class Columns:
    """The columns of a few images at a time.

    Parameters
    ----------
    geometry, x, groups : the convolution and its images.

    Attributes
    ----------
    images : how many are taken at once.
    """

    def __init__(self, geometry: Geometry, x: np.ndarray, groups: int) -> None:
        self.geometry, self.x, self.groups = geometry, x, groups
        self.channels = x.shape[-1] // groups
        width = geometry.places * self.channels
        each = geometry.rows * groups * width * x.itemsize
        self.images = min(max(1, COLUMNS // each), len(x))
        self.padded = Padded(geometry, self.images, x.shape[-1], x.dtype)
        # With few channels, neighbours in memory lie along the image: then the matrix is built
        # transposed, (kernel * C, out), which a matrix product takes as readily.
        self.along_image = groups == 1 and (
            self.channels * geometry.kernel[-1] < min(SHORT_RUN, geometry.out[-1])
        )
        self.memory = np.empty(self.images * geometry.rows * groups * width, x.dtype)

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        """(which images, their columns as (groups, images * out, kernel * C / groups))."""
        for start in range(0, len(self.x), self.images):
            block = slice(start, min(start + self.images, len(self.x)))
            yield block, self.of(self.x[block])

    def of(self, x: np.ndarray) -> np.ndarray:
        g, n = self.geometry, len(self.geometry.out)
        part = self.padded.fill(x)
        shape, strides = window_layout(part.shape, part.strides, g.kernel, g.stride, g.dilation)
        rows, width = len(x) * g.rows, g.places * self.channels
        memory = self.memory[: rows * self.groups * width]
        if self.along_image:
            seen = np.lib.stride_tricks.as_strided(part, shape, strides)
            axes = (*range(1 + n, 2 * n + 2), *range(1 + n))
            turned = seen.transpose(axes)
            np.copyto(memory.reshape(turned.shape), turned)
            return memory.reshape(1, width, rows).transpose(0, 2, 1)
        # The axis of the groups is split off the channels and moved to the front.
        shape = (self.groups, *shape[:-1], self.channels)
        strides = (self.channels * part.strides[-1], *strides)
        seen = np.lib.stride_tricks.as_strided(part, shape, strides)
        np.copyto(memory.reshape(shape), seen)
        return memory.reshape(self.groups, rows, width)


class NumPyConvolution(ArrayBackend):
    """Overrides of the kernels of ``convolution.py``."""

    def conv(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        stride: Shape,
        padding: Padding,
        dilation: Shape,
        groups: int,
    ) -> Array:
        if not _alike(x, weight, bias) or weight.shape[0] % groups:
            return super().conv(x, weight, bias, stride, padding, dilation, groups)
        g = Geometry(x.shape[1:-1], weight.shape[2:], stride, padding, dilation)
        outputs = weight.shape[0]
        if not g.rows or x.shape[-1] != groups * weight.shape[1]:
            return super().conv(x, weight, bias, stride, padding, dilation, groups)
        y = np.empty((len(x), *g.out, outputs), x.dtype)
        if groups > 1 and weight.shape[1] == 1:
            _multiply_add(g, x, weight, y)
            return y if bias is None else np.add(y, bias, y)
        if groups == 1 and g.reads_each_pixel_once():
            rows = np.ascontiguousarray(x[g.at((0,) * len(stride))]).reshape(-1, x.shape[-1])
            np.matmul(rows, weight.reshape(outputs, -1).T, out=y.reshape(-1, outputs))
            return y if bias is None else np.add(y, bias, y)
        matrix = self._matrix(weight, groups)
        for block, columns in Columns(g, x, groups):
            part = y[block]
            if groups == 1:
                np.matmul(columns[0], matrix[0], out=part.reshape(-1, outputs))
            else:
                rows = np.matmul(columns, matrix)
                part.reshape(-1, groups, outputs // groups)[...] = rows.transpose(1, 0, 2)
            if bias is not None:
                np.add(part, bias, part)
        return y

    def conv_transpose(
        self,
        dy: Array,
        weight: Array,
        spatial: Shape,
        stride: Shape,
        padding: Padding,
        dilation: Shape,
        groups: int,
    ) -> Array:
        if not _alike(dy, weight) or weight.shape[0] % groups:
            return super().conv_transpose(dy, weight, spatial, stride, padding, dilation, groups)
        g = Geometry(spatial, weight.shape[2:], stride, padding, dilation)
        outputs, channels = weight.shape[:2]
        if dy.shape[1:] != (*g.out, outputs) or not g.rows:
            return super().conv_transpose(dy, weight, spatial, stride, padding, dilation, groups)
        around = _as_convolution(g, padding)
        depthwise = groups > 1 and channels == 1
        if around is not None and not depthwise:
            moved = outputs * math.prod(spatial)
            if moved <= AS_CONVOLUTION * channels * groups * g.rows:
                flipped = _turned(weight, groups)
                return self.conv(dy, flipped, None, stride, around, dilation, groups)
        dx = np.empty((len(dy), *spatial, channels * groups), dy.dtype)
        if groups == 1 and g.reads_each_pixel_once() and g.out == spatial:
            rows = np.ascontiguousarray(dy).reshape(-1, outputs)
            np.matmul(rows, weight.reshape(outputs, -1), out=dx.reshape(-1, channels))
            return dx
        if depthwise:
            _add_back(g, dy, weight, dx)
        else:
            _scatter_products(g, dy, weight, dx, groups)
        return dx

    def conv_weight(
        self,
        x: Array,
        dy: Array,
        kernel: Shape,
        stride: Shape,
        padding: Padding,
        dilation: Shape,
        groups: int,
    ) -> Array:
        outputs, channels = dy.shape[-1], x.shape[-1] // groups
        if not _alike(x, dy) or outputs % groups or x.shape[-1] % groups:
            return super().conv_weight(x, dy, kernel, stride, padding, dilation, groups)
        g = Geometry(x.shape[1:-1], kernel, stride, padding, dilation)
        if dy.shape != (len(x), *g.out, outputs) or not g.rows:
            return super().conv_weight(x, dy, kernel, stride, padding, dilation, groups)
        dy = np.ascontiguousarray(dy)
        if groups == 1 and g.reads_each_pixel_once():
            rows = np.ascontiguousarray(x[g.at((0,) * len(kernel))]).reshape(-1, channels)
            return np.matmul(dy.reshape(-1, outputs).T, rows).reshape(outputs, channels, *kernel)
        if groups > 1 and channels == 1:
            return _correlate(g, x, dy)
        total: np.ndarray | None = None
        for block, columns in Columns(g, x, groups):
            rows = dy[block].reshape(-1, groups, outputs // groups).transpose(1, 2, 0)
            found = np.matmul(rows, columns)
            total = found if total is None else np.add(total, found, total)
        assert total is not None
        apart = total.reshape(outputs, g.places, channels).transpose(0, 2, 1)
        return np.ascontiguousarray(apart).reshape(outputs, channels, *kernel)


def _alike(x: np.ndarray, *others: np.ndarray | None) -> bool:
    """Whether `x` is an array that the fast paths are for, and the others share its dtype."""
    same = all(a is None or (a.dtype == x.dtype and a.size) for a in others)
    return same and x.dtype.char in "fd" and x.size > 0


def _as_convolution(g: Geometry, padding: Padding) -> Padding | None:
    """The padding of dy with which the transpose is a convolution; None where it is none."""
    spans = [d * (k - 1) for k, d in zip(g.kernel, g.dilation, strict=True)]
    if max(g.stride) > 1 or any(max(p) > s for p, s in zip(padding, spans, strict=True)):
        return None
    return tuple((s - a, s - b) for s, (a, b) in zip(spans, padding, strict=True))


def _turned(weight: np.ndarray, groups: int) -> np.ndarray:
    """The weight of the convolution that transposes the one with `weight` (and stride 1): kernel
    flipped, channels for outputs."""
    outputs, channels, *kernel = weight.shape
    split = weight.reshape(groups, outputs // groups, channels, *kernel)
    flipped = np.flip(split, tuple(range(3, split.ndim))).swapaxes(1, 2)
    return flipped.reshape(groups * channels, outputs // groups, *kernel)


def _scatter_products(
    g: Geometry, dy: np.ndarray, weight: np.ndarray, dx: np.ndarray, groups: int
) -> None:
    """dx[o * stride + k * dilation] += dy[o] W[k]: a product for each place k of the kernel, added
    to the pixels that the windows see there."""
    outputs, channels = weight.shape[0] // groups, weight.shape[1]
    split = weight.reshape(groups, outputs, channels, g.places)
    matrices = np.ascontiguousarray(split.transpose(0, 3, 1, 2))  # (groups, places, O, C)
    each = g.rows * g.places * channels * groups * dy.itemsize
    images = min(max(1, COLUMNS // each), len(dy))
    memory = np.empty((groups, g.places, images * g.rows, channels), dy.dtype)
    padded = np.empty((images, *g.padded, channels * groups), dy.dtype)
    places = [g.at(place) for place in g.every_place()]
    for start in range(0, len(dy), images):
        block = slice(start, min(start + images, len(dy)))
        part = np.ascontiguousarray(dy[block])
        n = len(part)
        rows = part.reshape(-1, groups, outputs).transpose(1, 0, 2)[:, None]
        terms = memory[:, :, : n * g.rows]
        np.matmul(rows, matrices, out=terms)
        total = padded[:n] if g.padded != g.spatial else dx[block]
        total[...] = 0.0
        for i in range(groups):
            own = total[..., i * channels : (i + 1) * channels]
            for k, at in enumerate(places):
                np.add(own[at], terms[i, k].reshape(n, *g.out, channels), out=own[at])
        if g.padded != g.spatial:
            dx[block] = total[(slice(None), *g.inner)]


# One channel a group: x (N, *spatial, C), weight (C * m, 1, *kernel), y (N, *out, C * m).


def _image_blocks(g: Geometry, n: int, channels: int, itemsize: int) -> Iterator[slice]:
    images = max(1, TERMS // (math.prod(g.padded) * channels * itemsize))
    return (slice(i, min(i + images, n)) for i in range(0, n, images))


def _by_channel(weight: np.ndarray, channels: int) -> np.ndarray:
    """The weight as (*kernel, C, m)."""
    split = weight.reshape(channels, -1, *weight.shape[2:])
    return np.ascontiguousarray(np.moveaxis(split, (0, 1), (-2, -1)))


def _multiply_add(g: Geometry, x: np.ndarray, weight: np.ndarray, y: np.ndarray) -> None:
    """y[o] = the sum over places k of x[o * stride + k * dilation] w[k]."""
    channels = x.shape[-1]
    w = _by_channel(weight, channels)
    blocks = list(_image_blocks(g, len(x), y.shape[-1], x.itemsize))
    padded = Padded(g, blocks[0].stop, channels, x.dtype)
    for block in blocks:
        seen = padded.fill(x[block])[..., None]
        total = y[block].reshape(-1, *g.out, channels, w.shape[-1])
        for k, place in enumerate(g.every_place()):
            if k == 0:
                np.multiply(seen[g.at(place)], w[place], out=total)
            else:
                np.add(total, seen[g.at(place)] * w[place], out=total)


def _add_back(g: Geometry, dy: np.ndarray, weight: np.ndarray, dx: np.ndarray) -> None:
    """dx[o * stride + k * dilation] += dy[o] w[k], summed over the outputs of each channel."""
    channels = dx.shape[-1]
    w = _by_channel(weight, channels)
    blocks = list(_image_blocks(g, len(dy), dy.shape[-1], dy.itemsize))
    memory = np.empty((blocks[0].stop, *g.padded, channels), dy.dtype)
    for block in blocks:
        part = np.ascontiguousarray(dy[block])
        part = part.reshape(*part.shape[:-1], channels, w.shape[-1])
        total = memory[: len(part)]
        total[...] = 0.0
        for place in g.every_place():
            term = part * w[place]
            term = term[..., 0] if term.shape[-1] == 1 else term.sum(axis=-1)
            at = g.at(place)
            np.add(total[at], term, out=total[at])
        dx[block] = total[(slice(None), *g.inner)]


def _correlate(g: Geometry, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """dw[c * m + j, 0, k] = the sum over images and windows o of x[o * stride + k * dilation, c]
    dy[o, c * m + j]."""
    channels, outputs = x.shape[-1], dy.shape[-1]
    dw = np.zeros((*g.kernel, outputs), x.dtype)
    blocks = list(_image_blocks(g, len(x), outputs, x.itemsize))
    padded = Padded(g, blocks[0].stop, channels, x.dtype)
    for block in blocks:
        seen = padded.fill(x[block])[..., None]
        part = dy[block].reshape(-1, *g.out, channels, outputs // channels)
        ones = np.ones(len(part) * g.rows, x.dtype)
        for place in g.every_place():
            dw[place] += ones @ (seen[g.at(place)] * part).reshape(-1, outputs)
    return np.moveaxis(dw, -1, 0)[:, None]
