"""Kernels of convolutions of images with channels last, by copies of their windows.

For weights that do not stay in a core's cache. Every part takes a block of images at a time, small
enough that the copies of all its windows (the *columns*, im2col; Chellapilla et al. 2006) stay
there, and leaves the product to the BLAS.

Frame slots 0 to 16, of all kernels: images, H, W, C, O, kernel (2), stride (2), dilation (2), place
of the image in its padding (2), out (2), images of a block, packed weight (kernel, C, O).
"""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.cpu.native.abi import floats, inline, kernel, share
from gpubackprop.backends.cpu.native.blas import sgemm
from gpubackprop.backends.cpu.native.spans import add_row, clear, copy_row

f32 = np.float32


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
                target = row + 4 * i * span
                if at < 0 or at >= h:
                    clear(span, target)
                elif dw == 1 and left >= 0 and left + kw <= w:
                    copy_row(span, image + 4 * (at * w + left) * c, target)
                else:
                    for j in range(kw):
                        across = left + j * dw
                        if across < 0 or across >= w:
                            clear(c, target + 4 * j * c)
                        else:
                            copy_row(c, image + 4 * (at * w + across) * c, target + 4 * j * c)


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
                source = row + 4 * i * span
                if dw == 1 and left >= 0 and left + kw <= w:
                    add_row(span, source, image + 4 * (at * w + left) * c)
                else:
                    for j in range(kw):
                        across = left + j * dw
                        if across >= 0 and across < w:
                            add_row(c, source + 4 * j * c, image + 4 * (at * w + across) * c)


@kernel
def convolve(frame, part, parts):
    """y = conv(x, weight) + bias, and max(y, 0) with the flag. Frame: as above, then x, bias (0 for
    none), y, columns (a block for each part), flag."""
    n, c, o, each = frame[0], frame[3], frame[4], frame[15]
    pixels, width = frame[13] * frame[14], frame[5] * frame[6] * c
    start, stop = share(n, part, parts, 1)
    columns = frame[20] + 4 * part * each * pixels * width
    bias = floats(frame[18] if frame[18] else frame[16], o)
    for first in range(start, stop, each):
        count = min(each, stop - first)
        for i in range(count):
            image = frame[17] + 4 * (first + i) * frame[1] * frame[2] * c
            fill_columns(frame, image, columns + 4 * i * pixels * width)
        y = frame[19] + 4 * first * pixels * o
        sgemm(0, 0, count * pixels, o, width, columns, width, frame[16], o, 0.0, y, o)
        if frame[18] or frame[21]:
            for r in range(count * pixels):
                row = floats(y + 4 * r * o, o)
                if frame[18] and frame[21]:
                    for j in range(o):
                        v = row[j] + bias[j]
                        row[j] = f32(0) if v < 0 else v
                elif frame[18]:
                    add_row(o, frame[18], y + 4 * r * o)
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
    columns = frame[19] + 4 * part * each * pixels * width
    for first in range(start, stop, each):
        count = min(each, stop - first)
        dy = frame[17] + 4 * first * pixels * o
        sgemm(0, 1, count * pixels, width, o, dy, o, frame[16], o, 0.0, columns, width)
        for i in range(count):
            image = frame[18] + 4 * (first + i) * size
            clear(size, image)
            add_columns_to(frame, image, columns + 4 * i * pixels * width)


@kernel
def weigh(frame, part, parts):
    """Each part's sum of the weight's gradient over its images. Frame: as above, then x, dy,
    columns, sums (parts, kernel, C, O)."""
    n, c, o, each = frame[0], frame[3], frame[4], frame[15]
    pixels, width = frame[13] * frame[14], frame[5] * frame[6] * c
    start, stop = share(n, part, parts, 1)
    columns = frame[19] + 4 * part * each * pixels * width
    sums = frame[20] + 4 * part * width * o
    clear(width * o, sums)
    for first in range(start, stop, each):
        count = min(each, stop - first)
        for i in range(count):
            image = frame[17] + 4 * (first + i) * frame[1] * frame[2] * c
            fill_columns(frame, image, columns + 4 * i * pixels * width)
        dy = frame[18] + 4 * first * pixels * o
        sgemm(1, 0, width, o, count * pixels, columns, width, dy, o, 1.0, sums, o)
