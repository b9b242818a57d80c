"""Kernels of pooling over windows of images with channels last.

Fourteen slots of a frame tell the windows: H, W, C, kernel (2), stride (2), padding (2),
dilation (2), out (2), and whether windows are two by two pixels that lie apart and inside of the
image. ``pool_lines`` takes where they begin, so that a convolution can pool what it has just made;
for the kernels here they are slots 1 to 14, behind the number of images.
"""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.cpu.native.abi import floats, inline, kernel, octets, share
from gpubackprop.backends.cpu.native.spans import add_row, clear

f32 = np.float32
LOWEST = f32(-np.inf)


@inline
def pool_lines(frame, at, image, pitch, y, winner, start, stop):
    """Lines start to stop of an image's largest numbers and their places in the windows.

    image : address of H * W rows of C numbers, `pitch` numbers from one to the next.
    y, winner : addresses of (out, C) float32 and uint8.
    """
    h, w, c, kh, kw = frame[at], frame[at + 1], frame[at + 2], frame[at + 3], frame[at + 4]
    sh, sw, ph, pw = frame[at + 5], frame[at + 6], frame[at + 7], frame[at + 8]
    dh, dw, ow = frame[at + 9], frame[at + 10], frame[at + 12]
    for i in range(start, stop):
        for j in range(ow):
            place = (i * ow + j) * c
            top, won = floats(y + 4 * place, c), octets(winner + place, c)
            if frame[at + 13]:
                corner = image + 8 * (i * w + j) * pitch
                x0, x1 = floats(corner, c), floats(corner + 4 * pitch, c)
                below = corner + 4 * w * pitch
                x2, x3 = floats(below, c), floats(below + 4 * pitch, c)
                for k in range(c):
                    best, number = x0[k], 0
                    # What is no number (unlike itself) is the largest, the first of several.
                    more = (x1[k] > best) | ((x1[k] != x1[k]) & (best == best))
                    best, number = x1[k] if more else best, 1 if more else number
                    more = (x2[k] > best) | ((x2[k] != x2[k]) & (best == best))
                    best, number = x2[k] if more else best, 2 if more else number
                    more = (x3[k] > best) | ((x3[k] != x3[k]) & (best == best))
                    best, number = x3[k] if more else best, 3 if more else number
                    top[k], won[k] = best, np.uint8(number)
                continue
            begun = False
            for a in range(kh):
                row = i * sh + a * dh - ph
                if row < 0 or row >= h:
                    continue
                for b in range(kw):
                    column = j * sw + b * dw - pw
                    if column < 0 or column >= w:
                        continue
                    x = floats(image + 4 * (row * w + column) * pitch, c)
                    seat = np.uint8(a * kw + b)
                    if begun:
                        for k in range(c):
                            best, new = top[k], x[k]
                            more = (new > best) | ((new != new) & (best == best))
                            top[k] = new if more else best
                            won[k] = seat if more else won[k]
                    else:
                        begun = True
                        for k in range(c):
                            top[k] = x[k]
                            won[k] = seat
            if not begun:
                for k in range(c):
                    top[k] = LOWEST
                    won[k] = 0


@kernel
def max_pool(frame, part, parts):
    """The largest number of each window and its place. Frame: as above, then x, y, winner. Parts
    share the lines of all results."""
    h, w, c, oh, ow = frame[1], frame[2], frame[3], frame[12], frame[13]
    start, stop = share(frame[0] * oh, part, parts, 1)
    line = start
    while line < stop:
        n = line // oh
        end = min((n + 1) * oh, stop)
        at = n * oh * ow * c
        pool_lines(
            frame, 1, frame[15] + 4 * n * h * w * c, c, frame[16] + 4 * at, frame[17] + at,
            line - n * oh, end - n * oh,
        )  # fmt: skip
        line = end


@inline
def clear_uncovered(image, h, w, row_size, pitch, covered_h, covered_w):
    """Zeros in the lines from `covered_h` on, and in every line from `covered_w` on."""
    for i in range(h):
        first = covered_w if i < covered_h else 0
        clear((w - first) * pitch, image + 4 * (i * row_size + first * pitch))


@inline
def unpool_image(frame, at, image, pitch, dy, winner, pooled, sums):
    """Each number of dy at the place that won its window, and 0 elsewhere.

    image : address of H * W rows of C numbers, `pitch` numbers from one to the next.
    dy, winner : addresses of (out, C) float32 and uint8.
    pooled : address of the largest number of each window, where only those above 0 pass dy on; 0
        for all.
    sums : address of C float32, to which what was passed on is added; 0 for none.
    """
    h, w, c, kh, kw = frame[at], frame[at + 1], frame[at + 2], frame[at + 3], frame[at + 4]
    sh, sw, ph, pw = frame[at + 5], frame[at + 6], frame[at + 7], frame[at + 8]
    dh, dw, oh, ow = frame[at + 9], frame[at + 10], frame[at + 11], frame[at + 12]
    pairs, masked, summed = frame[at + 13] != 0, pooled != 0, sums != 0
    clear_uncovered(image, h, w, w * pitch, pitch, 2 * oh if pairs else 0, 2 * ow)
    some = floats(sums if summed else image, c)
    for z in range(oh * ow):
        i, j = z // ow, z % ow
        place = z * c
        given, won = floats(dy + 4 * place, c), octets(winner + place, c)
        best = floats((pooled if masked else dy) + 4 * place, c)
        if pairs:
            corner = image + 8 * (i * w + j) * pitch
            x0, x1 = floats(corner, c), floats(corner + 4 * pitch, c)
            below = corner + 4 * w * pitch
            x2, x3 = floats(below, c), floats(below + 4 * pitch, c)
            if masked and summed:
                for k in range(c):
                    g = given[k] if best[k] > 0 else f32(0)
                    seat = won[k]
                    some[k] += g
                    x0[k] = g if seat == 0 else f32(0)
                    x1[k] = g if seat == 1 else f32(0)
                    x2[k] = g if seat == 2 else f32(0)
                    x3[k] = g if seat == 3 else f32(0)
                continue
            for k in range(c):
                g = given[k] if (not masked) | (best[k] > 0) else f32(0)
                seat = won[k]
                x0[k] = g if seat == 0 else f32(0)
                x1[k] = g if seat == 1 else f32(0)
                x2[k] = g if seat == 2 else f32(0)
                x3[k] = g if seat == 3 else f32(0)
        else:
            for a in range(kh):
                row = i * sh + a * dh - ph
                if row < 0 or row >= h:
                    continue
                for b in range(kw):
                    column = j * sw + b * dw - pw
                    if column < 0 or column >= w:
                        continue
                    x = floats(image + 4 * (row * w + column) * pitch, c)
                    seat = np.uint8(a * kw + b)
                    for k in range(c):
                        hit = (won[k] == seat) & ((not masked) | (best[k] > 0))
                        x[k] += given[k] if hit else f32(0)
        if summed:
            for k in range(c):
                some[k] += given[k] if (not masked) | (best[k] > 0) else f32(0)


@kernel
def max_unpool(frame, part, parts):
    """``unpool_image`` for every image. Frame: as above, then dy, winner, dx; the largest number of
    each window, or 0; sums (parts, C) over an image and over all images, or 0. Parts share the
    images."""
    h, w, c, size = frame[1], frame[2], frame[3], frame[12] * frame[13]
    start, stop = share(frame[0], part, parts, 1)
    some = frame[19] + 4 * part * c if frame[19] else frame[19]
    total = frame[20] + 4 * part * c
    if frame[19]:
        clear(c, total)
    for n in range(start, stop):
        at = n * size * c
        best = frame[18] + 4 * at if frame[18] else frame[18]
        if frame[19]:
            clear(c, some)
        image = frame[17] + 4 * n * h * w * c
        unpool_image(frame, 1, image, c, frame[15] + 4 * at, frame[16] + at, best, some)
        if frame[19]:
            add_row(c, some, total)


@inline
def counted(place, size, kernel_size, stride, padding, include):
    """How many places of a window an average counts along one axis."""
    low, high = (-padding, size + padding) if include else (0 * padding, size)
    begin = place * stride - padding
    return min(begin + kernel_size, high) - max(begin, low)


@kernel
def average_pool(frame, part, parts):
    """The mean of each window. Frame: as above, then x, y, whether padding counts, and what to
    divide by instead (0 for none). Parts share the lines of all results."""
    h, w, c, kh, kw = frame[1], frame[2], frame[3], frame[4], frame[5]
    sh, sw, ph, pw = frame[6], frame[7], frame[8], frame[9]
    oh, ow = frame[12], frame[13]
    start, stop = share(frame[0] * oh, part, parts, 1)
    for z in range(start, stop):
        n, i = z // oh, z % oh
        for j in range(ow):
            y = floats(frame[16] + 4 * (z * ow + j) * c, c)
            for k in range(c):
                y[k] = 0
            for row in range(max(i * sh - ph, 0), min(i * sh - ph + kh, h)):
                for column in range(max(j * sw - pw, 0), min(j * sw - pw + kw, w)):
                    x = floats(frame[15] + 4 * ((n * h + row) * w + column) * c, c)
                    for k in range(c):
                        y[k] += x[k]
            number = frame[18]
            if not number:
                number = counted(i, h, kh, sh, ph, frame[17])
                number *= counted(j, w, kw, sw, pw, frame[17])
            by = f32(number)
            for k in range(c):
                y[k] /= by


@kernel
def average_unpool(frame, part, parts):
    """Each number of dy, divided as by ``average_pool``, added to every pixel of its window. Frame:
    as above, then dy, dx, and as there. Parts share the images."""
    h, w, c, kh, kw = frame[1], frame[2], frame[3], frame[4], frame[5]
    sh, sw, ph, pw = frame[6], frame[7], frame[8], frame[9]
    oh, ow = frame[12], frame[13]
    start, stop = share(frame[0], part, parts, 1)
    for n in range(start, stop):
        image = frame[16] + 4 * n * h * w * c
        clear_uncovered(image, h, w, w * c, c, 0, 0)
        for z in range(oh * ow):
            i, j = z // ow, z % ow
            dy = floats(frame[15] + 4 * (n * oh * ow + z) * c, c)
            number = frame[18]
            if not number:
                number = counted(i, h, kh, sh, ph, frame[17])
                number *= counted(j, w, kw, sw, pw, frame[17])
            by = f32(number)
            for row in range(max(i * sh - ph, 0), min(i * sh - ph + kh, h)):
                for column in range(max(j * sw - pw, 0), min(j * sw - pw + kw, w)):
                    x = floats(image + 4 * (row * w + column) * c, c)
                    for k in range(c):
                        x[k] += dy[k] / by
