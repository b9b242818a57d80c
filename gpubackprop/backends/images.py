"""Kernels of images: pooling over windows of any number of spatial axes, channels last.

What they have in common. Images are (N, *spatial, C). `kernel`, `stride`, `padding` and `dilation`
are a number for each spatial axis; `padding` adds places before and after. Window o of an axis has
the elements ``o * stride + k * dilation - padding``. Only whole windows count, or, with `ceil`,
also a last one that runs over the end, as long as it begins inside the image or the padding before
it.

Definitions, like those of ``composites.py``: a backend may override any of them.
"""

from __future__ import annotations

import math

import numpy as np

from gpubackprop.backends.composites import Composites
from gpubackprop.backends.primitives import Array, DType, Shape

Widths = tuple[tuple[int, int], ...]


def pooled_sizes(
    spatial: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape, ceil: bool
) -> Shape:
    """How many windows there are along each axis (none: 0)."""
    counts = []
    for n, k, s, p, d in zip(spatial, kernel, stride, padding, dilation, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        count = (room + (s - 1 if ceil else 0)) // s + 1
        if ceil and (count - 1) * s >= n + p:
            count -= 1
        counts.append(max(count, 0))
    return tuple(counts)


def places_around(
    spatial: Shape, out: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape
) -> Widths:
    """How many places the windows need before and after the elements of each axis."""
    return tuple(
        (p, max((o - 1) * s + d * (k - 1) + 1 - n - p, 0))
        for n, o, k, s, p, d in zip(spatial, out, kernel, stride, padding, dilation, strict=True)
    )


def winner_dtype(kernel: Shape) -> np.dtype:
    """The dtype of ``max_pool``'s second result: a byte where a byte will do."""
    return np.dtype(np.uint8 if math.prod(kernel) <= np.iinfo(np.uint8).max else np.int32)


def lowest(dtype: np.dtype) -> float:
    """A number that no element is below."""
    return -math.inf if dtype.kind in "fV" else int(np.iinfo(dtype).min)


class ImageKernels(Composites):
    """Kernels of images: pooling, on any number of spatial axes, channels last."""

    def max_pool(
        self,
        x: Array,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        dilation: Shape,
        ceil: bool = False,
    ) -> tuple[Array, Array]:
        """The largest element of each window of each channel, and its place in the window
        (Goodfellow et al. 2016, section 9.3).

        Returns
        -------
        y : (N, *out, C); NaN where the window has one. Padding is below every element; a window of
            nothing else, which only a dilation can make, gives -inf.
        winner : the places, counted in C order over the window, as ``winner_dtype(kernel)``. Among
            equal elements, and among NaNs, the first one is the largest.
        """
        n = len(kernel)
        spatial = tuple(x.shape[1:-1])
        out = pooled_sizes(spatial, kernel, stride, padding, dilation, ceil)
        widths = places_around(spatial, out, kernel, stride, padding, dilation)
        seen = self._windows_as_rows(x, kernel, stride, dilation, widths, lowest(x.dtype))
        winner = self.argmax(seen, axis=1 + n, keepdims=True)
        if any(map(any, widths)):
            # Where all that a window sees is as low as the padding, the first element wins.
            here = self.ones((1, *spatial, 1), np.bool_)
            inside = self._windows_as_rows(here, kernel, stride, dilation, widths, False)
            first = self.argmax(inside, axis=1 + n, keepdims=True)
            winner = self.where(self.take_along_axis(inside, winner, 1 + n), winner, first)
        y = self.take_along_axis(seen, winner, 1 + n)
        shape = (x.shape[0], *out, x.shape[-1])
        return (
            self.reshape(y, shape),
            self.astype(self.reshape(winner, shape), winner_dtype(kernel)),
        )

    def max_pool_backward(
        self,
        dy: Array,
        winner: Array,
        spatial: Shape,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        dilation: Shape,
    ) -> Array:
        """Each element of `dy` (N, *out, C) at the element that won its window, added up in an
        image (N, *spatial, C)."""
        shape = (*dy.shape[:-1], 1, dy.shape[-1])
        numbers = self.reshape(self.arange(0, math.prod(kernel), 1, winner.dtype), (-1, 1))
        won = self.equal(self.reshape(winner, shape), numbers)
        rows = self.where(won, self.reshape(dy, shape), 0.0)
        return self._rows_to_image(rows, spatial, kernel, stride, padding, dilation)

    def avg_pool(
        self,
        x: Array,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        ceil: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Array:
        """The sum of each window of each channel, divided by a number of elements.

        The number is `divisor_override`, or else how many places of the window lie in the image
        and, with `count_include_pad`, in its padding of zeros; what `ceil` adds beyond that never
        counts.

        Returns
        -------
        Array
            (N, *out, C).
        """
        n = len(kernel)
        spatial, ones = tuple(x.shape[1:-1]), (1,) * n
        out = pooled_sizes(spatial, kernel, stride, padding, ones, ceil)
        widths = places_around(spatial, out, kernel, stride, padding, ones)
        total = self.sum(self._windows_as_rows(x, kernel, stride, ones, widths, 0.0), axis=1 + n)
        options = (kernel, stride, padding, count_include_pad, divisor_override)
        return self.divide(total, self._divisors(spatial, out, *options, x.dtype))

    def avg_pool_backward(
        self,
        dy: Array,
        spatial: Shape,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        ceil: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Array:
        """The transpose of ``avg_pool``: `dy` (N, *out, C), divided alike, added to every element
        of its window in an image (N, *spatial, C)."""
        out, channels = tuple(dy.shape[1:-1]), dy.shape[-1]
        options = (kernel, stride, padding, count_include_pad, divisor_override)
        share = self.divide(dy, self._divisors(spatial, out, *options, dy.dtype))
        rows = self.broadcast_to(
            self.reshape(share, (dy.shape[0], *out, 1, channels)),
            (dy.shape[0], *out, math.prod(kernel), channels),
        )
        ones = (1,) * len(kernel)
        return self._rows_to_image(rows, spatial, kernel, stride, padding, ones)

    def _windows_as_rows(
        self,
        x: Array,
        kernel: Shape,
        stride: Shape,
        dilation: Shape,
        widths: Widths,
        value: float,
    ) -> Array:
        """The windows of x (N, *spatial, C) within `value`, each with its places along one axis:
        (N, *out, places, C)."""
        if any(map(any, widths)):
            x = self.pad(x, ((0, 0), *widths, (0, 0)), value)
        seen = self.windows(x, kernel, stride, dilation)
        out = seen.shape[1 : 1 + len(kernel)]
        return self.reshape(seen, (x.shape[0], *out, math.prod(kernel), x.shape[-1]))

    def _rows_to_image(
        self,
        rows: Array,
        spatial: Shape,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        dilation: Shape,
    ) -> Array:
        """The transpose of the above."""
        out = tuple(rows.shape[1:-2])
        widths = places_around(spatial, out, kernel, stride, padding, dilation)
        padded = tuple(n + a + b for n, (a, b) in zip(spatial, widths, strict=True))
        seen = self.reshape(rows, (rows.shape[0], *out, *kernel, rows.shape[-1]))
        x = self.scatter_windows(seen, padded, stride, dilation)
        if padded == tuple(spatial):
            return x
        inner = [slice(a, a + n) for n, (a, _) in zip(spatial, widths, strict=True)]
        return self.getitem(x, (slice(None), *inner))

    def _divisors(
        self,
        spatial: Shape,
        out: Shape,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        count_include_pad: bool,
        divisor_override: int | None,
        dtype: DType,
    ) -> Array | int:
        """What ``avg_pool`` divides by: a number, or an array (1, *out, 1) of numbers."""
        if divisor_override is not None:
            return divisor_override
        product: Array | int = 1
        for axis, (n, o, k, s, p) in enumerate(
            zip(spatial, out, kernel, stride, padding, strict=True)
        ):
            low, high = (-p, n + p) if count_include_pad else (0, n)
            if -p >= low and (o - 1) * s - p + k <= high:
                product = self.multiply(product, k) if hasattr(product, "shape") else product * k
                continue
            start = self.arange(-p, o * s - p, s, np.int64)
            end = self.minimum(self.add(start, k), high)
            count = self.subtract(end, self.maximum(start, low))
            shape = [1] * (len(spatial) + 2)
            shape[axis + 1] = o
            product = self.multiply(self.reshape(count, tuple(shape)), product)
        if isinstance(product, int):
            return product
        return self.astype(product, dtype if np.dtype(dtype).kind in "fV" else np.float64)
