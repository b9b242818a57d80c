"""Kernels of convolutions of images with channels last, by tiles (``tiles.py``).

Every part takes a few images at a time: those are framed in zeros where the convolution pads, so
that no window looks outside of one, and all their pixels are the rows of one product.

Frame slots 0 to 16, of all kernels: images, images of a block, H, W, C, framed H and W, place of
the image in its frame (2), pixels of a result's image, O, O in whole vectors, numbers in a window,
then tables of byte offsets: the windows of a block in its framed images, the numbers of a window;
a row of O numbers for sums to begin with; and memory for framed images (a block for each part), or
0 where images are not framed.
"""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.cpu.native.abi import floats, inline, kernel, longs, share
from gpubackprop.backends.cpu.native.pooling_kernels import (
    pool_lines,
    unpool_image,
)
from gpubackprop.backends.cpu.native.spans import add_row, clear, copy_row, copy_rows
from gpubackprop.backends.cpu.native.tiles import tiles

FLUSH = 8
"""Sums over so many blocks are added up by themselves before they join the total: short sums keep
their digits."""


@inline
def framed(frame, part):
    """Where a part frames its images, with zeros there; 0 where there is no need."""
    if not frame[16]:
        return frame[16]
    n = frame[1] * frame[5] * frame[6] * frame[4]
    clear(n, frame[16] + 4 * part * n)
    return frame[16] + 4 * part * n


@inline
def images_of(frame, x, memory, first, count):
    """The address of framed images."""
    h, w, c = frame[2], frame[3], frame[4]
    if not memory:
        return x + 4 * first * h * w * c
    for i in range(count):
        corner = ((i * frame[5] + frame[7]) * frame[6] + frame[8]) * c
        image = x + 4 * (first + i) * h * w * c
        copy_rows(h, w * c, image, 4 * w * c, memory + 4 * corner, 4 * frame[6] * c)
    return memory


@kernel
def pack(frame, part, parts):
    """A weight as a matrix of whole vectors, zeros behind each row. Frame: rows, columns, pitch,
    weight, byte offsets of the rows, bytes from one column to the next, matrix."""
    columns, pitch, step = frame[1], frame[2], frame[5]
    offsets = longs(frame[4], frame[0])
    start, stop = share(frame[0], part, parts, 1)
    for i in range(start, stop):
        row = floats(frame[6] + 4 * i * pitch, pitch)
        source = frame[3] + offsets[i]
        for j in range(columns):
            row[j] = floats(source + j * step, 1)[0]
        for j in range(columns, pitch):
            row[j] = 0


@kernel
def pack_row(frame, part, parts):
    """A row of numbers and zeros behind it. Frame: numbers (0 for zeros), how many, pitch, row."""
    clear(frame[2], frame[3])
    if frame[0]:
        copy_row(frame[1], frame[0], frame[3])


@kernel
def convolve(frame, part, parts):
    """y = conv(x, weight) + bias; with flags max(y, 0) of that, and the largest of each window of
    that. Frame: as above (the row is the bias), then x, packed weight, y, memory for results whose
    channels are not whole vectors or that are pooled (a block for each part), byte offsets of the
    rows of results, relu flag, winners (0 for no pooling), and the slots of ``pool_lines``."""
    each, pixels, o, pitch = frame[1], frame[9], frame[10], frame[11]
    start, stop = share(frame[0], part, parts, 1)
    memory = framed(frame, part)
    own = frame[20] + 4 * part * each * pixels * pitch
    for first in range(start, stop, each):
        count = min(each, stop - first)
        images = images_of(frame, frame[17], memory, first, count)
        y = frame[19] + 4 * first * pixels * o
        out = own if frame[20] else y
        tiles(
            pitch, count * pixels, frame[13], frame[21], images, out, frame[18], frame[14],
            frame[12], 0, frame[15], frame[22],
        )  # fmt: skip
        if frame[23]:
            size = frame[35] * frame[36]
            for i in range(count):
                at = (first + i) * size * o
                image = own + 4 * i * pixels * pitch
                pool_lines(
                    frame, 24, image, pitch, frame[19] + 4 * at, frame[23] + at, 0, frame[35]
                )
        elif frame[20]:
            copy_rows(count * pixels, o, own, 4 * pitch, y, 4 * o)


@kernel
def convolve_back(frame, part, parts):
    """dx = conv_transpose(dy, weight): each pixel of dy times the weight at one place of the kernel
    is added to a framed image, place by place.

    Frame: as above (without the tables and the row), then dy, packed weight (kernel, O, C in whole
    vectors), dx, framed images of dx with channels in whole vectors (a block for each part; 0 to
    write to dx itself), C in whole vectors, then tables of byte offsets: pixels of dy, where they
    begin in dx, the numbers of a pixel, the places of the kernel; and how many these are.
    """
    each, pixels, o, pitch = frame[1], frame[9], frame[10], frame[21]
    h, w, c = frame[2], frame[3], frame[4]
    places = longs(frame[25], frame[26])
    start, stop = share(frame[0], part, parts, 1)
    size = frame[5] * frame[6] * pitch
    own = frame[20] + 4 * part * each * size
    for first in range(start, stop, each):
        count = min(each, stop - first)
        out = own if frame[20] else frame[19] + 4 * first * size
        clear(count * size, out)
        dy = frame[17] + 4 * first * pixels * o
        for k in range(places.size):
            tiles(
                pitch, count * pixels, frame[22], frame[23], dy, out + places[k],
                frame[18] + 4 * k * o * pitch, frame[24], o, 1, frame[18], 0,
            )  # fmt: skip
        if not frame[20]:
            continue
        for i in range(count):
            corner = own + 4 * ((i * frame[5] + frame[7]) * frame[6] + frame[8]) * pitch
            image = frame[19] + 4 * (first + i) * h * w * c
            for j in range(h):
                line, row = corner + 4 * j * frame[6] * pitch, image + 4 * j * w * c
                if pitch == c:
                    copy_row(w * c, line, row)
                else:
                    copy_rows(w, c, line, 4 * pitch, row, 4 * c)


@kernel
def weigh(frame, part, parts):
    """Each part's sum of the weight's gradient over its images.

    Frame: as above (the row is zeros), then x, dy, memory for dy with channels in whole vectors (a
    block for each part; 0 where they are), memory for sums (parts, window, O in whole vectors),
    totals alike, byte offsets of the rows of sums, and winners, where dy is that of what was cut at
    0 and pooled (0 otherwise). Then follow the slots of ``unpool_image``, the largest number of
    each window, and sums of dy (parts, O) over an image and over all images.
    """
    each, pixels, o, pitch = frame[1], frame[9], frame[10], frame[11]
    width = frame[12]
    start, stop = share(frame[0], part, parts, 1)
    memory = framed(frame, part)
    sums, total = frame[20] + 4 * part * width * pitch, frame[21] + 4 * part * width * pitch
    clear(width * pitch, total)
    own = frame[19] + 4 * part * each * pixels * pitch
    blocks = 0
    size, some, all_of = np.int64(0), np.int64(0), np.int64(0)
    if frame[23]:
        size = frame[35] * frame[36] * o
        some, all_of = frame[39] + 4 * part * o, frame[40] + 4 * part * o
        clear(o, all_of)
    for first in range(start, stop, each):
        count = min(each, stop - first)
        images = images_of(frame, frame[17], memory, first, count)
        dy = frame[18] + 4 * first * pixels * o
        if frame[23]:
            clear(o, some)
            for i in range(count):
                at = (first + i) * size
                unpool_image(
                    frame, 24, own + 4 * i * pixels * pitch, pitch, frame[18] + 4 * at,
                    frame[23] + at, frame[38] + 4 * at, some,
                )  # fmt: skip
            add_row(o, some, all_of)
            dy = own
        elif frame[19]:
            copy_rows(count * pixels, o, dy, 4 * o, own, 4 * pitch)
            dy = own
        tiles(
            pitch, width, frame[14], frame[22], images, sums, dy, frame[13], count * pixels,
            1 if blocks else 0, frame[15], 0,
        )  # fmt: skip
        blocks += 1
        if blocks == FLUSH or first + each >= stop:
            add_row(width * pitch, sums, total)
            blocks = 0


@kernel
def add_weights(frame, part, parts):
    """dw[o, ...] = the sum of the parts' totals, in their order. Frame: totals, how many, numbers
    in a window, O, pitch, dw, bytes from one output to the next, byte offsets of a window's numbers
    in dw."""
    width, pitch = frame[2], frame[4]
    offsets = longs(frame[7], width)
    start, stop = share(frame[3], part, parts, 16)
    for t in range(width):
        row = floats(frame[0] + 4 * t * pitch, pitch)[start:stop]
        for p in range(1, frame[1]):
            more = floats(frame[0] + 4 * (p * width + t) * pitch, pitch)[start:stop]
            for j in range(row.size):
                row[j] += more[j]
        target = frame[5] + offsets[t] + start * frame[6]
        for j in range(row.size):
            floats(target + j * frame[6], 1)[0] = row[j]
