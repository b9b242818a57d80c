"""Sizes of a convolution, and where in memory its windows and their numbers are.

A convolution along one axis is one of images of one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.array_backend import windows_along
from gpubackprop.backends.convolution import Padding
from gpubackprop.backends.cpu.native.lowering import Site
from gpubackprop.backends.cpu.native.vectors import whole

Shape = tuple[int, ...]

SERIAL = 100_000
"""Multiply-adds that are left to one thread."""
ROWS = 128
"""Pixels that a block has at least: short sums and few rows waste time at their ends."""
COLUMNS = 1 << 17
"""Numbers of the windows of a block that are copied, if these are enough for PRODUCT."""
PRODUCT = 512
"""Pixels of a block that is copied at least: the BLAS goes through the whole weight for each
block."""


class Sizes(NamedTuple):
    """The sizes of a convolution without groups along two axes."""

    n: int
    h: int
    w: int
    c: int
    o: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    framed: tuple[int, int]
    out: tuple[int, int]

    @property
    def pixels(self) -> int:
        """Pixels of a result's image."""
        return self.out[0] * self.out[1]

    @property
    def places(self) -> int:
        """Places of the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def width(self) -> int:
        """Numbers in a window."""
        return self.places * self.c

    @property
    def work(self) -> int:
        """Multiply-adds."""
        return self.n * self.pixels * self.width * self.o

    @property
    def parallel(self) -> bool:
        """Whether several threads shall work."""
        return self.n > 1 and self.work > SERIAL

    @property
    def pads(self) -> bool:
        """Whether windows look outside of the image."""
        return self.framed != (self.h, self.w)

    @property
    def each(self) -> int:
        """Images of a block."""
        return min(self.n, -(-ROWS // self.pixels))

    def window_offsets(self, pitch: int) -> np.ndarray:
        """Where the windows of a block begin in its framed images of `pitch` channels; bytes."""
        (sh, sw), (h, w) = self.stride, self.framed
        i, y, x = np.ogrid[: self.each, : self.out[0], : self.out[1]]
        return byte_offsets((i * h * w + y * sh * w + x * sw) * pitch)

    def place_offsets(self, pitch: int) -> np.ndarray:
        """Where the places of the kernel are in a window; bytes."""
        i, j = np.ogrid[: self.kernel[0], : self.kernel[1]]
        return byte_offsets((i * self.dilation[0] * self.framed[1] + j * self.dilation[1]) * pitch)

    def number_offsets(self) -> np.ndarray:
        """Where the numbers of a window are; bytes."""
        return (self.place_offsets(self.c)[:, None] + 4 * np.arange(self.c)).reshape(-1)

    def slots(self, site: Site, row: Any, memory: bool) -> list[Any]:
        """The first slots of a frame for ``convolution_kernels``."""
        sizes = [self.n, self.each, self.h, self.w, self.c, *self.framed, *self.before]
        sizes += [self.pixels, self.o, whole(self.o), self.width]
        frame: Any = 0
        if memory and self.pads:
            frame = site.scratch((site.parts, self.each, *self.framed, self.c))
        return [*sizes, self.window_offsets(self.c), self.number_offsets(), row, frame]

    @property
    def block(self) -> int:
        """Images of a block whose windows are copied."""
        images = max(COLUMNS // (self.pixels * self.width), -(-PRODUCT // self.pixels))
        return min(images, self.n)

    def column_slots(self, weight: Any) -> list[Any]:
        """The first slots of a frame for ``column_kernels``."""
        pairs = (self.kernel, self.stride, self.dilation, self.before, self.out)
        flat = [k for pair in pairs for k in pair]
        return [self.n, self.h, self.w, self.c, self.o, *flat, self.block, weight]

    def columns(self, site: Site) -> np.ndarray:
        """Memory for windows."""
        return site.scratch((site.parts, self.block, self.pixels, self.width))


def byte_offsets(offsets: np.ndarray) -> np.ndarray:
    """Offsets in numbers as a row of offsets in bytes."""
    return np.ascontiguousarray(offsets, np.int64).reshape(-1) * 4


def sizes_of(
    image: Shape,
    outputs: int,
    kernel: Shape,
    stride: Shape,
    padding: Padding,
    dilation: Shape,
    groups: int,
) -> Sizes | None:
    """Sizes of a convolution of images (N, *spatial, C); None where it is not served."""
    if groups != 1 or len(image) not in (3, 4) or len(kernel) != len(image) - 2:
        return None
    one = len(kernel) == 1

    def pair(values: Sequence[Any], first: Any) -> Any:
        return (first, *values) if one else tuple(values)

    h, w = pair(image[1:-1], 1)
    edges = pair(padding, (0, 0))
    framed = (h + sum(edges[0]), w + sum(edges[1]))
    steps = (pair(kernel, 1), pair(stride, 1), pair(dilation, 1))
    try:
        out = windows_along(framed, *steps)
    except ValueError:
        return None
    s = Sizes(
        image[0],
        h,
        w,
        image[-1],
        outputs,
        *steps,
        (edges[0][0], edges[1][0]),
        framed,
        (out[0], out[1]),
    )
    negative = any(e < 0 for edge in edges for e in edge)
    return None if negative or s.work <= 0 else s
