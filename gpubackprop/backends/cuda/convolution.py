"""Kernels of ``convolution.py`` on a GPU: what the windows see as the rows of a matrix, and one
matrix product.

The columns of a few images at a time, so that their buffer stays within ``COLUMNS`` bytes however
large the batch is. Groups are the batch of one product, which reads and writes them where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from gpubackprop.backends.array_backend import windows_along
from gpubackprop.backends.convolution import Padding
from gpubackprop.backends.cuda import geometry
from gpubackprop.backends.cuda.products import CudaProducts
from gpubackprop.backends.primitives import Array, Shape

AXES = 3  # spatial axes of the kernels
COLUMNS = 256 << 20  # bytes of the buffer


class Windows(NamedTuple):
    """Sizes of one convolution.

    Attributes
    ----------
    channels, groups : of its images.
    out : number of windows along each axis.
    rows : number of windows in an image.
    width : numbers that a window sees of one group.
    axes : lengths, windows, kernel, stride, padding before, dilation of three axes, as the kernels
        take them.
    plain : whether the columns are the image itself.
    """

    channels: int
    groups: int
    out: Shape
    rows: int
    width: int
    axes: tuple[int, ...]
    plain: bool


def windows_of(
    spatial: Shape,
    weight: Shape,
    stride: Shape,
    padding: Padding,
    dilation: Shape,
    groups: int,
) -> Windows | None:
    """Sizes of a convolution with a weight of that shape; None where the kernels have no version
    for it."""
    n, kernel = len(spatial), weight[2:]
    if not 1 <= n <= AXES or len(kernel) != n or groups < 1 or weight[0] % groups:
        return None
    padded = tuple(s + a + b for s, (a, b) in zip(spatial, padding, strict=True))
    out = windows_along(padded, kernel, stride, dilation)
    if not math.prod((*out, *weight)):
        return None
    before = tuple(a for a, _ in padding)
    # Of a missing axis all sizes are 1 and the padding is 0.
    numbers = zip((1, 1, 1, 1, 0, 1), (spatial, out, kernel, stride, before, dilation), strict=True)
    return Windows(
        weight[1] * groups,
        groups,
        out,
        math.prod(out),
        math.prod(kernel) * weight[1],
        tuple(k for fill, axis in numbers for k in (*(fill,) * (AXES - n), *axis)),
        groups == 1 and math.prod(kernel) == 1 and out == spatial == padded,
    )


class CudaConvolution(CudaProducts):
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
        w = windows_of(x.shape[1:-1], weight.shape, stride, padding, dilation, groups)
        if w is None or self._element(x, weight, bias) is None or not self._takes(w, x):
            return super().conv(x, weight, bias, stride, padding, dilation, groups)
        outputs = weight.shape[0]
        x, matrix = self._packed(x), self._packed(self._matrix(weight, groups))
        y = self.empty((x.shape[0], *w.out, outputs), x.dtype)
        for block in self._blocks(w, x):
            columns, part = self._seen(w, x[block]), y[block]
            if groups == 1:
                rows = part.reshape(-1, outputs)
                self._product_and_bias(columns[0], matrix[0], bias, out=rows)
            else:
                split = part.reshape(-1, groups, outputs // groups)
                self.matmul(columns, matrix, out=self.transpose(split, (1, 0, 2)))
        return y if bias is None or groups == 1 else self.add(y, bias, out=y)

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
        w = windows_of(spatial, weight.shape, stride, padding, dilation, groups)
        outputs = weight.shape[0]
        fits = w is not None and dy.shape[1:] == (*w.out, outputs) and dy.size
        if w is None or not fits or self._element(dy, weight) is None:
            return super().conv_transpose(dy, weight, spatial, stride, padding, dilation, groups)
        per_group = outputs // groups
        split = weight.reshape(groups, per_group, weight.shape[1], -1)
        apart = self._packed(self.transpose(split, (0, 1, 3, 2)))
        matrix = apart.reshape(groups, per_group, w.width)
        dx = self.empty((dy.shape[0], *spatial, w.channels), dy.dtype)
        dy = self._packed(dy)
        for block in self._blocks(w, dy):
            part, cotangent = dx[block], dy[block].reshape(-1, groups, per_group)
            target = part.reshape(1, -1, w.width) if w.plain else None
            columns = self.matmul(self.transpose(cotangent, (1, 0, 2)), matrix, out=target)
            if not w.plain:
                self._launch("col2im", w, columns, part, part)
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
        shape = (outputs, channels, *kernel)
        w = windows_of(x.shape[1:-1], shape, stride, padding, dilation, groups)
        fits = w is not None and self._takes(w, x) and dy.shape == (len(x), *w.out, outputs)
        if w is None or not fits or self._element(x, dy) is None:
            return super().conv_weight(x, dy, kernel, stride, padding, dilation, groups)
        x, dy = self._packed(x), self._packed(dy)
        total: Array = None
        for block in self._blocks(w, x):
            columns = self._seen(w, x[block])
            split = dy[block].reshape(-1, groups, outputs // groups)
            cotangent = self.transpose(split, (1, 2, 0))
            if total is None:
                total = self.matmul(cotangent, columns)
            else:
                total = self.addmm(total, cotangent, columns, out=total)
        apart = self.transpose(total.reshape(outputs, -1, channels), (0, 2, 1))
        return self._packed(apart).reshape(shape)

    def _takes(self, w: Windows, x: Array) -> bool:
        return x.size > 0 and x.shape[-1] == w.channels

    def _blocks(self, w: Windows, images: Array) -> Iterator[slice]:
        """Runs of images whose columns fit in the buffer."""
        n, each = images.shape[0], w.rows * w.groups * w.width * images.dtype.itemsize
        step = n if w.plain else max(1, COLUMNS // each)
        return (slice(i, min(i + step, n)) for i in range(0, n, step))

    def _seen(self, w: Windows, x: Array) -> Array:
        """The columns of images without gaps, (groups, images * rows, width)."""
        shape = (w.groups, x.shape[0] * w.rows, w.width)
        if w.plain:
            return x.reshape(shape)
        columns = self.empty(shape, x.dtype)
        self._launch("im2col", w, x, columns, x)
        return columns

    def _launch(self, kernel: str, w: Windows, given: Array, result: Array, images: Array) -> None:
        numbers = (images.shape[0], w.channels, w.groups, *w.axes)
        template, launch = self._columns_making(w, given, result)
        self.kernels.launch(kernel, template, launch, given, result, *numbers)

    def _columns_making(
        self, w: Windows, given: Array, result: Array
    ) -> tuple[tuple[str | None, str, str], geometry.Launch]:
        """The kernels' template arguments, and the launch: 16 bytes of a group's channels for each
        thread where they are whole pieces of 16, and numbers of 32 bits where none is larger."""
        lanes = geometry.lanes_of(w.channels // w.groups, result.dtype.itemsize)
        launch = geometry.over(result.size // lanes)
        largest = max(given.size, result.size, 4 * max(w.axes)) + launch.grid * launch.block
        unsigned = "u32" if largest < 2**31 else "u64"
        return (self._element(result), unsigned, str(int(lanes > 1))), launch
