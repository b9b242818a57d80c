"""Native convolutions of images with channels last.

Images are dealt to the threads in blocks whose columns (every window of every pixel, written out)
stay in a core's cache; each block is one product by the BLAS. Where a window holds few numbers, such
as a first layer's, the products are too thin for that, and each pixel's window is multiplied
directly. The weight is packed as (kernel rows, kernel columns, channels, outputs) first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.array_backend import windows_along
from gpubackprop.backends.cpu.native.abi import floats, inline, kernel, share
from gpubackprop.backends.cpu.native.blas import sgemm
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers
from gpubackprop.backends.cpu.native.pooling import lower_max_pool
from gpubackprop.backends.cpu.native.reductions import copy_instruction

f32 = np.float32
COLUMNS = 1 << 17
"""Elements of the columns of a block: half a megabyte."""
THIN = 32
"""Windows of up to so many numbers are multiplied directly."""

# Frame slots 0 to 17: N, H, W, C, O, kernel (2), stride (2), dilation (2), before (2), out (2),
# images of a block, weight, thin; then the arrays of each kernel.


@inline
def fill_columns(frame, image, columns):
    """Every window of an image at an address, one row for each pixel of the result."""
    h, w, c, kh, kw = frame[1], frame[2], frame[3], frame[5], frame[6]
    sh, sw, dh, dw = frame[7], frame[8], frame[9], frame[10]
    ph, pw, oh, ow = frame[11], frame[12], frame[13], frame[14]
    width = kh * kw * c
    span = kw * c
    for y in range(oh):
        for x in range(ow):
            row = columns + 4 * (y * ow + x) * width
            left = x * sw - pw
            for i in range(kh):
                at = y * sh + i * dh - ph
                target = floats(row + 4 * i * span, span)
                if at < 0 or at >= h:
                    for k in range(span):
                        target[k] = 0
                elif dw == 1 and left >= 0 and left + kw <= w:
                    source = floats(image + 4 * (at * w + left) * c, span)
                    for k in range(span):
                        target[k] = source[k]
                else:
                    for j in range(kw):
                        across = left + j * dw
                        some = target[j * c : (j + 1) * c]
                        if across < 0 or across >= w:
                            for k in range(c):
                                some[k] = 0
                        else:
                            source = floats(image + 4 * (at * w + across) * c, c)
                            for k in range(c):
                                some[k] = source[k]


@inline
def add_columns_to(frame, image, columns):
    """The transpose of ``fill_columns``: each window added where it was read."""
    h, w, c, kh, kw = frame[1], frame[2], frame[3], frame[5], frame[6]
    sh, sw, dh, dw = frame[7], frame[8], frame[9], frame[10]
    ph, pw, oh, ow = frame[11], frame[12], frame[13], frame[14]
    width = kh * kw * c
    span = kw * c
    for y in range(oh):
        for x in range(ow):
            row = columns + 4 * (y * ow + x) * width
            left = x * sw - pw
            for i in range(kh):
                at = y * sh + i * dh - ph
                if at < 0 or at >= h:
                    continue
                source = floats(row + 4 * i * span, span)
                if dw == 1 and left >= 0 and left + kw <= w:
                    target = floats(image + 4 * (at * w + left) * c, span)
                    for k in range(span):
                        target[k] += source[k]
                else:
                    for j in range(kw):
                        across = left + j * dw
                        if across >= 0 and across < w:
                            target = floats(image + 4 * (at * w + across) * c, c)
                            some = source[j * c : (j + 1) * c]
                            for k in range(c):
                                target[k] += some[k]


@kernel
def convolve(frame, part, parts):
    """y = conv(x, weight) + bias, and max(y, 0) with the flag. Frame: as above, then x, bias (0 for
    none), y, columns (a block for each part), flag."""
    n, c, o, each = frame[0], frame[3], frame[4], frame[15]
    pixels, width = frame[13] * frame[14], frame[5] * frame[6] * c
    start, stop = share(n, part, parts, 1)
    columns = frame[21] + 4 * part * each * pixels * width
    bias = floats(frame[19] if frame[19] else frame[16], o)
    for first in range(start, stop, each):
        count = min(each, stop - first)
        for i in range(count):
            image = frame[18] + 4 * (first + i) * frame[1] * frame[2] * c
            fill_columns(frame, image, columns + 4 * i * pixels * width)
        y = frame[20] + 4 * first * pixels * o
        if frame[17]:
            weight = frame[16]
            for r in range(count * pixels):
                row, seen = floats(y + 4 * r * o, o), floats(columns + 4 * r * width, width)
                for j in range(o):
                    row[j] = 0
                for t in range(width):
                    a, taps = seen[t], floats(weight + 4 * t * o, o)
                    for j in range(o):
                        row[j] += a * taps[j]
        else:
            sgemm(0, 0, count * pixels, o, width, columns, width, frame[16], o, 0.0, y, o)
        if frame[19] or frame[22]:
            for r in range(count * pixels):
                row = floats(y + 4 * r * o, o)
                if frame[19] and frame[22]:
                    for j in range(o):
                        v = row[j] + bias[j]
                        row[j] = f32(0) if v < 0 else v
                elif frame[19]:
                    for j in range(o):
                        row[j] += bias[j]
                else:
                    for j in range(o):
                        row[j] = f32(0) if row[j] < 0 else row[j]


@kernel
def convolve_back(frame, part, parts):
    """dx = conv_transpose(dy, weight). Frame: as above, then dy, dx, columns."""
    n, c, o, each = frame[0], frame[3], frame[4], frame[15]
    pixels, width = frame[13] * frame[14], frame[5] * frame[6] * c
    size = frame[1] * frame[2] * c
    start, stop = share(n, part, parts, 1)
    columns = frame[20] + 4 * part * each * pixels * width
    for first in range(start, stop, each):
        count = min(each, stop - first)
        dy = frame[18] + 4 * first * pixels * o
        sgemm(0, 1, count * pixels, width, o, dy, o, frame[16], o, 0.0, columns, width)
        for i in range(count):
            image = frame[19] + 4 * (first + i) * size
            zeros = floats(image, size)
            for k in range(size):
                zeros[k] = 0
            add_columns_to(frame, image, columns + 4 * i * pixels * width)


@kernel
def weigh(frame, part, parts):
    """Each part's sum of the weight's gradient over its images. Frame: as above, then x, dy,
    columns, sums (parts, kernel, C, O)."""
    n, c, o, each = frame[0], frame[3], frame[4], frame[15]
    pixels, width = frame[13] * frame[14], frame[5] * frame[6] * c
    start, stop = share(n, part, parts, 1)
    columns = frame[20] + 4 * part * each * pixels * width
    sums = frame[21] + 4 * part * width * o
    total = floats(sums, width * o)
    for k in range(width * o):
        total[k] = 0
    for first in range(start, stop, each):
        count = min(each, stop - first)
        for i in range(count):
            image = frame[18] + 4 * (first + i) * frame[1] * frame[2] * c
            fill_columns(frame, image, columns + 4 * i * pixels * width)
        dy = frame[19] + 4 * first * pixels * o
        if frame[17]:
            for r in range(count * pixels):
                row, seen = floats(dy + 4 * r * o, o), floats(columns + 4 * r * width, width)
                for t in range(width):
                    a, taps = seen[t], floats(sums + 4 * t * o, o)
                    for j in range(o):
                        taps[j] += a * row[j]
        else:
            sgemm(1, 0, width, o, count * pixels, columns, width, dy, o, 1.0, sums, o)


@kernel
def add_weights(frame, part, parts):
    """dw[o, c, i, j] = the sum of the parts. Frame: sums, count, O, C, kernel (2), dw, its strides
    (4, bytes)."""
    o, c, kh, kw = frame[2], frame[3], frame[4], frame[5]
    width = kh * kw * c
    for p in range(1, frame[1]):
        a, b = floats(frame[0], width * o), floats(frame[0] + 4 * p * width * o, width * o)
        for k in range(width * o):
            a[k] += b[k]
    for i in range(kh):
        for j in range(kw):
            for u in range(c):
                row = floats(frame[0] + 4 * ((i * kw + j) * c + u) * o, o)
                at = frame[6] + u * frame[8] + i * frame[9] + j * frame[10]
                for t in range(o):
                    floats(at + t * frame[7], 1)[0] = row[t]


class Sizes(NamedTuple):
    """The sizes that a convolution's frame begins with."""

    n: int
    h: int
    w: int
    c: int
    o: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    out: tuple[int, int]

    @property
    def pixels(self) -> int:
        """Pixels of a result's image."""
        return self.out[0] * self.out[1]

    @property
    def width(self) -> int:
        """Numbers in a window."""
        return self.kernel[0] * self.kernel[1] * self.c

    @property
    def each(self) -> int:
        """Images of a block."""
        return max(1, min(COLUMNS // max(self.pixels * self.width, 1), self.n))

    def slots(self, weight: Any) -> list[Any]:
        """The first slots of a frame."""
        pairs = (self.kernel, self.stride, self.dilation, self.before, self.out)
        flat = [k for pair in pairs for k in pair]
        return [self.n, self.h, self.w, self.c, self.o, *flat, self.each, weight, self.thin]

    @property
    def thin(self) -> bool:
        """Whether windows are multiplied directly."""
        return self.width <= THIN


def _sizes(
    shape: Any, kernel: Any, outputs: int, stride: Any, padding: Any, dilation: Any, groups: int
) -> Sizes | None:
    """Of a 1-d or 2-d convolution without groups; a 1-d one is an image of one row."""
    if groups != 1 or len(shape) not in (3, 4):
        return None
    n, *spatial, c = shape
    one = len(spatial) == 1

    def pair(values: Any, first: Any) -> Any:
        return (first, *values) if one else tuple(values)

    (h, w), (kh, kw) = pair(spatial, 1), pair(kernel, 1)
    (sh, sw), (dh, dw) = pair(stride, 1), pair(dilation, 1)
    (top, bottom), (left, right) = pair(padding, (0, 0))
    padded = (h + top + bottom, w + left + right)
    try:
        out = windows_along(padded, (kh, kw), (sh, sw), (dh, dw))
    except ValueError:
        return None
    if not (n * c * outputs * out[0] * out[1] * kh * kw):
        return None
    return Sizes(n, h, w, c, outputs, (kh, kw), (sh, sw), (dh, dw), (top, left), (out[0], out[1]))


def _packed(site: Site, weight: np.ndarray) -> tuple[np.ndarray, Instruction] | None:
    """The weight as (kernel, C, O), and the instruction that packs it."""
    spatial = tuple(range(2, weight.ndim))
    turned = weight.transpose(*spatial, 1, 0)
    packed = site.scratch(turned.shape)
    made = copy_instruction(packed, turned)
    return None if made is None else (packed, made)


def _work(s: Sizes) -> bool:
    """Whether a convolution is worth several threads."""
    return s.n > 1 and s.n * s.pixels * s.width * s.o > 100_000


def lower_conv_with(
    site: Site, outs: Any, x: Any, weight: Any, bias: Any, options: Any, relu: bool
) -> list[Instruction] | None:
    """Convolution, bias and, if asked for, max(y, 0)."""
    present = [a for a in (x, bias, outs[0]) if a is not None]
    if not fit(*present) or weight.dtype != np.float32:
        return None
    s = _sizes(x.shape, weight.shape[2:], weight.shape[0], *options)
    packed = None if s is None else _packed(site, weight)
    if s is None or packed is None:
        return None
    columns = site.scratch((site.parts, s.each, s.pixels, s.width))
    slots = [*s.slots(packed[0]), x, 0 if bias is None else bias, outs[0], columns, relu]
    return [packed[1], Instruction(convolve, slots, parallel=_work(s))]


@lowers("conv")
def lower_conv(
    site: Site, outs: Any, x: Any, weight: Any, bias: Any, *options: Any
) -> list[Instruction] | None:
    """1-d and 2-d convolutions without groups."""
    return lower_conv_with(site, outs, x, weight, bias, options, False)


@lowers("conv_relu")
def lower_conv_relu(
    site: Site, outs: Any, x: Any, weight: Any, bias: Any, *options: Any
) -> list[Instruction] | None:
    """``conv_relu(x, weight, bias, stride, padding, dilation, groups) -> y``: max(conv(...), 0),
    the arguments being those of ``conv``; y (N, *out, O) in C order."""
    return lower_conv_with(site, outs, x, weight, bias, options, True)


@lowers("conv_relu_pool")
def lower_conv_relu_pool(
    site: Site,
    outs: Any,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    pool_kernel: Any,
    pool_stride: Any,
    pool_padding: Any,
    pool_dilation: Any,
    ceil: bool = False,
) -> list[Instruction] | None:
    """``conv_relu_pool(x, weight, bias, stride, padding, dilation, groups, pool_kernel,
    pool_stride, pool_padding, pool_dilation, ceil) -> (y, winner)``: the two results of
    ``max_pool(max(conv(x, weight, bias, stride, padding, dilation, groups), 0), pool_kernel,
    pool_stride, pool_padding, pool_dilation, ceil)``, both in C order, winner in uint8. What is
    between is not kept."""
    options = (stride, padding, dilation, groups)
    s = _sizes(x.shape, weight.shape[2:], weight.shape[0], *options)
    if s is None:
        return None
    between = site.scratch((s.n, *s.out[2 - len(pool_kernel) :], s.o))
    first = lower_conv_with(site, (between,), x, weight, bias, options, True)
    pooled = (pool_kernel, pool_stride, pool_padding, pool_dilation, ceil)
    then = lower_max_pool(site, outs, between, *pooled)
    return None if first is None or then is None else [*first, *then]


@lowers("conv_transpose")
def lower_conv_transpose(
    site: Site, outs: Any, dy: Any, weight: Any, spatial: Any, *options: Any
) -> list[Instruction] | None:
    """The cotangent of a convolution's image."""
    if not fit(dy, outs[0]) or weight.dtype != np.float32:
        return None
    s = _sizes(outs[0].shape, weight.shape[2:], weight.shape[0], *options)
    packed = None if s is None else _packed(site, weight)
    if s is None or packed is None or s.pixels * s.n * s.o != dy.size:
        return None
    columns = site.scratch((site.parts, s.each, s.pixels, s.width))
    slots = [*s.slots(packed[0]), dy, outs[0], columns]
    return [packed[1], Instruction(convolve_back, slots, parallel=_work(s))]


@lowers("conv_weight")
def lower_conv_weight(
    site: Site, outs: Any, x: Any, dy: Any, kernel: Any, *options: Any
) -> list[Instruction] | None:
    """The cotangent of a convolution's weight; its sums are divided among the parts."""
    dw = outs[0]
    if not fit(x, dy) or dw.dtype != np.float32:
        return None
    s = _sizes(x.shape, kernel, dw.shape[0], *options)
    if s is None or s.pixels * s.n * s.o != dy.size:
        return None
    parallel = _work(s) and site.parts > 1
    used = site.parts if parallel else 1
    columns = site.scratch((site.parts, s.each, s.pixels, s.width))
    sums = site.scratch((used, s.width, s.o))
    strides = dw.strides if dw.ndim == 4 else (*dw.strides[:2], 0, dw.strides[2])
    made = [*s.slots(0), x, dy, columns, sums]
    end = [sums, used, s.o, s.c, *s.kernel, dw, *strides]
    return [
        Instruction(weigh, made, parallel=parallel),
        Instruction(add_weights, end, parallel=False),
    ]
