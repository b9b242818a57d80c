"""What the windows of a convolution see, laid out in memory for matrix products.

im2col (Chellapilla et al. 2006) copies the whole window of each result: for a 3 x 3 kernel nine
times the image. Here the columns hold the window along all spatial axes but the first, a third of
that. The product for row k of the kernel then takes the rows of the columns from the k-th on, which
lie behind one another in memory.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np

from gpubackprop.backends.array_backend import seen_at, window_layout, windows_along
from gpubackprop.backends.convolution import Padding
from gpubackprop.backends.primitives import Shape

# Bytes of columns at a time. Measured on an EPYC and a Xeon with 1 and 2 MiB of L2 a core.
COLUMNS = 2 << 20
# Windows with fewer neighbouring numbers than this are copied along the image instead.
SHORT_RUN = 8


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
    rows, places : number of windows in an image, and of elements in a kernel.
    """

    def __init__(
        self, spatial: Shape, kernel: Shape, stride: Shape, padding: Padding, dilation: Shape
    ) -> None:
        self.spatial, self.kernel, self.stride, self.dilation = spatial, kernel, stride, dilation
        self.padding = padding
        self.padded = tuple(n + a + b for n, (a, b) in zip(spatial, padding, strict=True))
        self.inner = tuple(slice(a, a + n) for n, (a, _) in zip(spatial, padding, strict=True))
        self.out: Shape = windows_along(self.padded, kernel, stride, dilation)
        self.rows, self.places = math.prod(self.out), math.prod(kernel)

    def reads_each_pixel_once(self) -> bool:
        """Whether the columns are the image itself, but for a stride."""
        return self.places == 1 and self.padded == self.spatial

    @functools.cached_property
    def with_an_axis(self) -> Geometry:
        """The same with a further spatial axis in front, of one pixel."""
        one = (1,)
        return Geometry(
            one + self.spatial,
            one + self.kernel,
            one + self.stride,
            ((0, 0), *self.padding),
            one + self.dilation,
        )

    def at(self, place: Shape) -> tuple[slice, ...]:
        """Which pixels of a padded image all windows see at one place of the kernel."""
        return seen_at(place, self.out, self.stride, self.dilation)

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
    geometry : of the convolution.
    channels, groups, dtype : of its images.
    most : how many images there are at most.

    Attributes
    ----------
    geometry : that of the convolution, perhaps with an axis of one pixel in front.
    images : how many are taken at once.
    kernel_rows : number of products to add up: elements of the kernel along the first axis.
    width : numbers in a row of the columns of one group.
    """

    def __init__(
        self, geometry: Geometry, channels: int, groups: int, dtype: np.dtype, most: int
    ) -> None:
        # With few channels, neighbours in memory lie along the image rather than in the window. The
        # matrix is then built transposed, (kernel * C, out), which a product takes as readily.
        run = channels // groups * geometry.kernel[-1]
        self.along_image = groups == 1 and run < min(SHORT_RUN, geometry.out[-1])
        g = geometry.with_an_axis if self.along_image or len(geometry.out) == 1 else geometry
        self.geometry, self.groups, self.channels = g, groups, channels // groups
        self.kernel_rows = g.kernel[0]
        self.width = math.prod(g.kernel[1:]) * self.channels
        self.along = math.prod(g.out[1:])  # windows in a row of the image
        # Rows that a stride apart follow each other are kept together: one set for each remainder.
        s, d = g.stride[0], g.dilation[0]
        self.remainders = sorted({k * d % s for k in range(self.kernel_rows)})
        self.height = -(-g.padded[0] // s)
        each = len(self.remainders) * groups * self.height * self.along * self.width
        self.images = min(max(1, COLUMNS // (each * dtype.itemsize)), most)
        self.memory = np.empty(self.images * each, dtype)
        self.filled: np.ndarray | None = None
        self.padded = Padded(g, self.images, channels, dtype)

    def fill(self, x: np.ndarray) -> None:
        """Lay out images (N, *spatial, C), at most as many as `images`."""
        g = self.geometry
        n, inner = len(x), len(g.out) - 1
        part = self.padded.fill(x.reshape(n, *g.spatial, -1))
        sets, groups = len(self.remainders), self.groups
        full = (sets, groups, n, self.height, self.along, self.width)
        self.filled = self.memory[: math.prod(full)].reshape(full)
        for i, remainder in enumerate(self.remainders):
            rows = part[:, remainder :: g.stride[0]]
            # Windows over the inner axes only.
            kernel, stride, dilation = ((1, *a[1:]) for a in (g.kernel, g.stride, g.dilation))
            shape, strides = window_layout(rows.shape, rows.strides, kernel, stride, dilation)
            if self.along_image:
                seen = np.lib.stride_tricks.as_strided(rows, shape, strides)
                axes = (*range(2 + inner, 4 + 2 * inner), *range(2 + inner))
                turned = seen.transpose(axes)
                np.copyto(self.filled.reshape(turned.shape), turned)
                continue
            # The axis of the groups is split off the channels and moved to the front.
            split = (groups, *shape[:-1], self.channels)
            strides = (self.channels * rows.strides[-1], *strides)
            seen = np.lib.stride_tricks.as_strided(rows, split, strides)
            np.copyto(self.filled[i, :, :, : rows.shape[1]].reshape(split), seen)

    def at(self, k: int) -> np.ndarray:
        """(groups, images, out, width): what the windows see at row k of the kernel."""
        assert self.filled is not None
        _, groups, n, height, along, width = self.filled.shape
        if self.along_image:
            return self.filled.reshape(1, width, n, along).transpose(0, 2, 3, 1)
        steps, remainder = divmod(k * self.geometry.dilation[0], self.geometry.stride[0])
        rows = self.filled[self.remainders.index(remainder)]
        first = steps * along
        last = first + self.geometry.out[0] * along
        return rows.reshape(groups, n, height * along, width)[:, :, first:last]

    def matrices(self, weight: np.ndarray) -> np.ndarray:
        """The weight (O, C / groups, *kernel) as (kernel rows, groups, width, O / groups)."""
        outputs, channels = weight.shape[:2]
        places = self.width // self.channels
        split = weight.reshape(self.groups, -1, channels, self.kernel_rows, places)
        apart = split.transpose(3, 0, 4, 2, 1)
        shape = (self.kernel_rows, self.groups, self.width, outputs // self.groups)
        return np.ascontiguousarray(apart).reshape(shape)

    def weight(self, matrices: np.ndarray, kernel: Shape) -> np.ndarray:
        """The inverse of ``matrices``."""
        places, per_group = self.width // self.channels, matrices.shape[-1]
        split = matrices.reshape(self.kernel_rows, self.groups, places, self.channels, per_group)
        apart = np.ascontiguousarray(split.transpose(1, 4, 3, 0, 2))
        return apart.reshape(self.groups * per_group, self.channels, *kernel)
