"""Kernels of ``convolution.py`` on NumPy arrays, faster than by their definition.

The images are shared among threads, and each thread takes a few at a time, so that they stay in its
core's cache: it lays out what the windows see (``windows.py``) and multiplies by the weight,
in products that are small enough for the BLAS not to divide them again. Kernels of one element need
no layout, and groups of one channel no products (``depthwise.py``).

The fast paths are for arrays of one dtype, float32 or float64; all else runs the definition.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.composites import HALVES
from gpubackprop.backends.convolution import Padding
from gpubackprop.backends.cpu import depthwise
from gpubackprop.backends.cpu.shared import result
from gpubackprop.backends.cpu.threads import in_parts, threads
from gpubackprop.backends.cpu.windows import COLUMNS, Columns, Geometry
from gpubackprop.backends.primitives import Array, Shape

# Multiplications in one product. From 262,144 on, OpenBLAS divides a product among threads of its
# own, and those of this module would wait for each other.
PRODUCT = 250_000
# The weight's gradient is a sum of products, so that small ones cost more. Where OpenBLAS has
# kernels for small matrices (AVX-512), it does not divide products below a million either.
SUMMED_PRODUCT = 1_000_000
# Fewer multiplications than this are not worth another thread (about 50 us to start its work).
SHARE = 4_000_000
# With stride 1 a transposed convolution is a convolution of dy, which reads `outputs` numbers for
# each pixel of the result. Otherwise `channels` numbers for each window are added up. The former is
# the faster way up to about this ratio of the two numbers.
AS_CONVOLUTION = 2.2


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
        g = _geometry(x, weight.shape, stride, padding, dilation, groups)
        if g is None or not _alike(x, weight, bias):
            if _half(x, weight, bias):
                return _by_single(self.conv, (x, weight, bias), stride, padding, dilation, groups)
            return super().conv(x, weight, bias, stride, padding, dilation, groups)
        outputs, channels = weight.shape[0], x.shape[-1]
        y = result((len(x), *g.out, outputs), x.dtype)
        row = None if bias is None else np.tile(bias, g.out[-1])
        if groups == 1 and g.reads_each_pixel_once():
            rows = np.ascontiguousarray(x[g.at((0,) * len(stride))]).reshape(-1, channels)
            np.matmul(rows, weight.reshape(outputs, -1).T, out=y.reshape(-1, outputs))
            _add_to_rows(y, row)
            return y
        if groups == channels > 1:
            w = depthwise.by_place(g, weight, channels)

            def multiply(start: int, stop: int) -> None:
                depthwise.multiply_add(g, x, w, y, start, stop)
                _add_to_rows(y[start:stop], row)

            in_parts(multiply, len(x), _parts(g, x, outputs))
            return y

        def convolve(start: int, stop: int) -> None:
            columns = Columns(g, channels, groups, x.dtype, stop - start)
            matrices = columns.matrices(weight)
            term: np.ndarray | None = None
            for block in _blocks(start, stop, columns.images):
                columns.fill(x[block])
                n = block.stop - block.start
                apart = y[block].reshape(n, g.rows, groups, -1).transpose(2, 0, 1, 3)
                total = apart if groups == 1 else np.empty(apart.shape, y.dtype)
                for k in range(columns.kernel_rows):
                    if k == 0:
                        _multiply(columns.at(k), matrices[k], total)
                        continue
                    if term is None or term.shape != total.shape:
                        term = np.empty(total.shape, y.dtype)
                    _multiply(columns.at(k), matrices[k], term)
                    np.add(total, term, total)
                if groups > 1:
                    apart[...] = total
                _add_to_rows(y[block], row)

        in_parts(convolve, len(x), _parts(g, x, outputs // groups))
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
        outputs, channels = weight.shape[0], weight.shape[1] * groups
        shape = (len(dy), *spatial, channels)
        g = _geometry(np.empty((0, *shape[1:])), weight.shape, stride, padding, dilation, groups)
        if g is None or not _alike(dy, weight) or dy.shape[1:] != (*g.out, outputs):
            if _half(dy, weight):
                given = (dy, weight)
                return _by_single(
                    self.conv_transpose, given, spatial, stride, padding, dilation, groups
                )
            return super().conv_transpose(dy, weight, spatial, stride, padding, dilation, groups)
        around = _as_convolution(g)
        one_each = groups == channels > 1
        ratio = outputs * math.prod(spatial) / (channels * g.rows)
        several = one_each and outputs > channels
        if around is not None and not several and ratio <= AS_CONVOLUTION:
            return self.conv(dy, _turned(weight, groups), None, stride, around, dilation, groups)
        dx = result(shape, dy.dtype)
        if one_each:
            w = depthwise.by_place(g, weight, channels)

            def multiply(start: int, stop: int) -> None:
                depthwise.add_back(g, dy, w, dx, start, stop)

            in_parts(multiply, len(dy), _parts(g, dy, 1))
        else:

            def scatter(start: int, stop: int) -> None:
                _scatter_products(g, dy, weight, dx, groups, start, stop)

            in_parts(scatter, len(dy), _parts(g, dy, channels // groups))
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
        outputs, channels = dy.shape[-1], x.shape[-1]
        shape = (outputs, channels // groups, *kernel)
        g = _geometry(x, shape, stride, padding, dilation, groups)
        if g is None or not _alike(x, dy) or dy.shape != (len(x), *g.out, outputs):
            if _half(x, dy):
                given = (x, dy)
                return _by_single(
                    self.conv_weight, given, kernel, stride, padding, dilation, groups
                )
            return super().conv_weight(x, dy, kernel, stride, padding, dilation, groups)
        dy = np.ascontiguousarray(dy)
        if groups == 1 and g.reads_each_pixel_once():
            rows = np.ascontiguousarray(x[g.at((0,) * len(kernel))]).reshape(-1, channels)
            return np.matmul(dy.reshape(-1, outputs).T, rows).reshape(shape)
        if groups == channels > 1:

            def correlate(start: int, stop: int) -> np.ndarray:
                return depthwise.correlate(g, x, dy, start, stop)

            found = in_parts(correlate, len(x), _parts(g, x, outputs))
            return np.ascontiguousarray(_total(found).T).reshape(shape)

        def gather(start: int, stop: int) -> np.ndarray:
            columns = Columns(g, channels, groups, x.dtype, stop - start)
            dims = (columns.kernel_rows, groups, columns.width, outputs // groups)
            total = np.zeros(dims, x.dtype)
            for block in _blocks(start, stop, columns.images):
                columns.fill(x[block])
                n = block.stop - block.start
                cotangent = dy[block].reshape(n, g.rows, groups, -1).transpose(2, 0, 1, 3)
                for k in range(columns.kernel_rows):
                    _multiply_transposed(columns.at(k), cotangent, total[k])
            return total

        parts = in_parts(gather, len(x), _parts(g, x, outputs // groups))
        return Columns(g, channels, groups, x.dtype, 1).weight(_total(parts), kernel)


def _half(*given: np.ndarray | None) -> bool:
    """Whether arrays are of one dtype of half precision."""
    arrays = [a for a in given if a is not None]
    return all(a.dtype.char in HALVES and a.dtype == arrays[0].dtype for a in arrays)


def _by_single(kernel: Callable[..., Array], given: tuple[Array | None, ...], *rest: Any) -> Array:
    """A kernel on float32 copies of arrays of half precision, rounded once."""
    wide = [None if a is None else a.astype(np.float32) for a in given]
    return kernel(*wide, *rest).astype(given[0].dtype)  # type: ignore[union-attr]


def _geometry(
    x: np.ndarray, weight: Shape, stride: Shape, padding: Padding, dilation: Shape, groups: int
) -> Geometry | None:
    """Sizes of a convolution of x with a weight of that shape; None where they do not fit."""
    if x.ndim != len(weight) or groups < 1 or weight[0] % groups:
        return None
    if x.shape[-1] != weight[1] * groups:
        return None
    g = _sizes(x.shape[1:-1], weight[2:], stride, padding, dilation)
    return g if g.rows else None


# A network asks for the same few in every step.
_sizes = functools.lru_cache(maxsize=1024)(Geometry)


def _alike(x: np.ndarray, *others: np.ndarray | None) -> bool:
    """Whether `x` is an array that the fast paths are for, and the others share its dtype."""
    same = all(a is None or (a.dtype == x.dtype and a.size) for a in others)
    return same and x.dtype.char in "fd" and x.size > 0


def _parts(g: Geometry, x: np.ndarray, each: int) -> int:
    """How many threads to share images among whose every window takes `each` multiplications for
    each number that it sees."""
    work = len(x) * g.rows * g.places * x.shape[-1] * each
    return min(threads(), 1 + work // SHARE)


def _blocks(start: int, stop: int, images: int) -> Iterator[slice]:
    return (slice(i, min(i + images, stop)) for i in range(start, stop, images))


def _total(parts: list[np.ndarray]) -> np.ndarray:
    """The sum of arrays, in the first of them."""
    for part in parts[1:]:
        np.add(parts[0], part, parts[0])
    return parts[0]


def _add_to_rows(y: np.ndarray, row: np.ndarray | None) -> None:
    """Add the bias, repeated along the last spatial axis: a long loop is a quick one."""
    if row is not None:
        rows = y.reshape(-1, row.size)
        np.add(rows, row, rows)


def _pieces(rows: int, columns: int, product: int) -> Iterator[tuple[slice, int]]:
    """Divide the rows of a matrix: runs of them, and into how many equal parts each, so that rows *
    columns is at most `product`."""
    most = max(1, product // columns)
    parts = -(-rows // most)
    each = -(-rows // parts)
    whole = rows // each
    yield slice(0, whole * each), whole
    if whole * each < rows:
        yield slice(whole * each, rows), 1


def _split(x: np.ndarray, part: slice, n: int) -> np.ndarray:
    """(groups, images, rows, columns) as (groups, images, n, rows, columns) of a run of rows."""
    cut = x[:, :, part]
    return cut.reshape(*cut.shape[:2], n, cut.shape[2] // n, cut.shape[3])


def _multiply(columns: np.ndarray, matrices: np.ndarray, out: np.ndarray) -> None:
    """columns (groups, images, rows, width) times matrices (groups, width, O)."""
    for part, n in _pieces(columns.shape[2], columns.shape[3] * matrices.shape[2], PRODUCT):
        a, y = _split(columns, part, n), _split(out, part, n)
        np.matmul(a, matrices[:, None, None], out=y)


def _multiply_transposed(columns: np.ndarray, dy: np.ndarray, total: np.ndarray) -> None:
    """Add to total (groups, width, O) the product of columns (groups, images, rows, width),
    transposed, and dy (groups, images, rows, O)."""
    for part, n in _pieces(columns.shape[2], columns.shape[3] * dy.shape[3], SUMMED_PRODUCT):
        a, b = _split(columns, part, n), _split(dy, part, n)
        np.add(total, np.matmul(a.swapaxes(3, 4), b).sum(axis=(1, 2)), total)


def _as_convolution(g: Geometry) -> Padding | None:
    """The padding of dy with which the transpose is a convolution; None where it is none."""
    spans = [d * (k - 1) for k, d in zip(g.kernel, g.dilation, strict=True)]
    if max(g.stride) > 1 or any(max(p) > s for p, s in zip(g.padding, spans, strict=True)):
        return None
    return tuple((s - a, s - b) for s, (a, b) in zip(spans, g.padding, strict=True))


def _turned(weight: np.ndarray, groups: int) -> np.ndarray:
    """The weight of the convolution that transposes the one with `weight` (and stride 1): kernel
    flipped, channels for outputs."""
    outputs, channels, *kernel = weight.shape
    split = weight.reshape(groups, outputs // groups, channels, *kernel)
    flipped = np.flip(split, tuple(range(3, split.ndim))).swapaxes(1, 2)
    return flipped.reshape(groups * channels, outputs // groups, *kernel)


def _scatter_products(
    g: Geometry,
    dy: np.ndarray,
    weight: np.ndarray,
    dx: np.ndarray,
    groups: int,
    start: int,
    stop: int,
) -> None:
    """dx[o * stride + k * dilation] += dy[o] W[k]: a product for each place k of the kernel, added
    to the pixels that the windows see there."""
    outputs, channels = weight.shape[0] // groups, weight.shape[1]
    split = weight.reshape(groups, outputs, channels, g.places)
    matrices = np.ascontiguousarray(split.transpose(3, 0, 1, 2))  # (places, groups, O, C)
    each = math.prod(g.padded) * channels * groups * dy.itemsize
    images = min(max(1, COLUMNS // (2 * each)), stop - start)
    memory = np.empty((groups, images, g.rows, channels), dy.dtype)
    padded = np.empty((images, *g.padded, channels * groups), dy.dtype)
    for block in _blocks(start, stop, images):
        n = block.stop - block.start
        rows = np.ascontiguousarray(dy[block]).reshape(n, g.rows, groups, outputs)
        total, term = padded[:n], memory[:, :n]
        total[...] = 0.0
        for k, place in enumerate(g.every_place()):
            _multiply(rows.transpose(2, 0, 1, 3), matrices[k], term)
            at = g.at(place)
            for i in range(groups):
                own = total[..., i * channels : (i + 1) * channels][at]
                np.add(own, term[i].reshape(n, *g.out, channels), out=own)
        dx[block] = total[(slice(None), *g.inner)]
