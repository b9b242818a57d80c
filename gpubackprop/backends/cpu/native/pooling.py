"""Native max pooling of images with channels last, and what follows it backwards."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native.abi import floats, kernel, octets, share
from gpubackprop.backends.cpu.native.chains import add_columns
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers

f32 = np.float32

# Frame slots 0 to 13: N, H, W, C, kernel (2), stride (2), padding (2), dilation (2), out (2).


@kernel
def pool(frame, part, parts):
    """The largest number of each window and its place. Frame: as above, then x, y, winner."""
    h, w, c, kh, kw = frame[1], frame[2], frame[3], frame[4], frame[5]
    sh, sw, ph, pw, dh, dw = frame[6], frame[7], frame[8], frame[9], frame[10], frame[11]
    oh, ow = frame[12], frame[13]
    start, stop = share(frame[0] * oh, part, parts, 1)
    for z in range(start, stop):
        n, i = z // oh, z % oh
        image = frame[14] + 4 * n * h * w * c
        for j in range(ow):
            at = (z * ow + j) * c
            y, won = floats(frame[15] + 4 * at, c), octets(frame[16] + at, c)
            begun = False
            for a in range(kh):
                row = i * sh + a * dh - ph
                if row < 0 or row >= h:
                    continue
                for b in range(kw):
                    column = j * sw + b * dw - pw
                    if column < 0 or column >= w:
                        continue
                    x = floats(image + 4 * (row * w + column) * c, c)
                    place = np.uint8(a * kw + b)
                    if not begun:
                        begun = True
                        for k in range(c):
                            y[k] = x[k]
                            won[k] = place
                    else:
                        for k in range(c):
                            top, new = y[k], x[k]
                            more = (new > top) | ((new != new) & (top == top))
                            y[k] = new if more else top
                            won[k] = place if more else won[k]
            if not begun:
                for k in range(c):
                    y[k] = f32(-np.inf)
                    won[k] = 0


@kernel
def unpool(frame, part, parts):
    """Each number of dy at the place that won its window, and 0 elsewhere; with `pooled`, only
    where the window's largest number was above 0. Frame: as above, then dy, winner, dx, pooled (0
    for none), block sums and sums (parts, C) of dx (0 for none). Parts share the images."""
    h, w, c, kh, kw = frame[1], frame[2], frame[3], frame[4], frame[5]
    sh, sw, ph, pw, dh, dw = frame[6], frame[7], frame[8], frame[9], frame[10], frame[11]
    oh, ow = frame[12], frame[13]
    start, stop = share(frame[0], part, parts, 1)
    apart = kh == sh and kw == sw and ph == 0 and pw == 0 and dh == 1 and dw == 1
    block = floats((frame[18] + 4 * part * c) if frame[18] else frame[14], c)
    total = floats((frame[19] + 4 * part * c) if frame[18] else frame[14], c)
    if frame[18]:
        for k in range(c):
            total[k] = 0
    for n in range(start, stop):
        image = frame[16] + 4 * n * h * w * c
        if not apart or oh * kh < h or ow * kw < w:
            zeros = floats(image, h * w * c)
            for k in range(h * w * c):
                zeros[k] = 0
        if frame[18]:
            for k in range(c):
                block[k] = 0
        for i in range(oh):
            for j in range(ow):
                at = ((n * oh + i) * ow + j) * c
                dy, won = floats(frame[14] + 4 * at, c), octets(frame[15] + at, c)
                if frame[17]:
                    # dy is masked where it stands in the sums only; below, by the same test.
                    y = floats(frame[17] + 4 * at, c)
                    if frame[18]:
                        for k in range(c):
                            block[k] += dy[k] if y[k] > 0 else f32(0)
                elif frame[18]:
                    for k in range(c):
                        block[k] += dy[k]
                for a in range(kh):
                    row = i * sh + a * dh - ph
                    if row < 0 or row >= h:
                        continue
                    for b in range(kw):
                        column = j * sw + b * dw - pw
                        if column < 0 or column >= w:
                            continue
                        dx = floats(image + 4 * (row * w + column) * c, c)
                        place = np.uint8(a * kw + b)
                        if frame[17]:
                            y = floats(frame[17] + 4 * at, c)
                            if apart:
                                for k in range(c):
                                    hit = (won[k] == place) & (y[k] > 0)
                                    dx[k] = dy[k] if hit else f32(0)
                            else:
                                for k in range(c):
                                    hit = (won[k] == place) & (y[k] > 0)
                                    dx[k] += dy[k] if hit else f32(0)
                        elif apart:
                            for k in range(c):
                                dx[k] = dy[k] if won[k] == place else f32(0)
                        else:
                            for k in range(c):
                                dx[k] += dy[k] if won[k] == place else f32(0)
        if frame[18]:
            for k in range(c):
                total[k] += block[k]


def _slots(
    image: Any, out: Any, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> list[int] | None:
    """The first slots of a frame for 2-d windows; 1-d ones are of an image of one row."""
    if len(kernel) not in (1, 2) or int(np.prod(kernel)) > 255:
        return None

    def pair(values: Any, first: int) -> list[int]:
        return [first, *values] if len(kernel) == 1 else list(values)

    (n, *spatial, c), space = image, list(out[1:-1])
    sizes = [n, *pair(spatial, 1), c, *pair(kernel, 1), *pair(stride, 1), *pair(padding, 0)]
    return [*sizes, *pair(dilation, 1), *pair(space, 1)]


@lowers("max_pool")
def lower_max_pool(
    site: Site,
    outs: Any,
    x: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil: bool = False,
) -> list[Instruction] | None:
    """1-d and 2-d max pooling."""
    y, winner = outs
    if not fit(x, y) or not fit(winner, dtype=np.uint8) or not y.size:
        return None
    slots = _slots(x.shape, y.shape, kernel, stride, padding, dilation)
    if slots is None:
        return None
    return [Instruction(pool, [*slots, x, y, winner], parallel=x.size > 1 << 14)]


def _unpool(
    site: Site, dx: Any, dy: Any, winner: Any, windows: Any, pooled: Any, sums: Any
) -> list[Instruction] | None:
    present = [a for a in (dx, dy, pooled, sums) if a is not None]
    if not fit(*present) or not fit(winner, dtype=np.uint8) or not dy.size:
        return None
    slots = _slots(dx.shape, dy.shape, *windows)
    if slots is None:
        return None
    parallel = dx.size > 1 << 14 and len(dx) > 1 and site.parts > 1
    used = site.parts if parallel else 1
    tail: list[Any] = [0, 0]
    after = []
    if sums is not None:
        c = dx.shape[-1]
        total = site.scratch((used, c)) if used > 1 else sums
        tail = [site.scratch((used, c)), total]
        if used > 1:
            after.append(Instruction(add_columns, [total, used, c, sums], parallel=False))
    slots = [*slots, dy, winner, dx, 0 if pooled is None else pooled, *tail]
    return [Instruction(unpool, slots, parallel=parallel), *after]


@lowers("max_pool_backward")
def lower_max_pool_backward(
    site: Site,
    outs: Any,
    dy: Any,
    winner: Any,
    spatial: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> list[Instruction] | None:
    """Its cotangent."""
    windows = (kernel, stride, padding, dilation)
    return _unpool(site, outs[0], dy, winner, windows, None, None)


@lowers("pool_relu_backward")
def lower_pool_relu_backward(
    site: Site,
    outs: Any,
    dy: Any,
    winner: Any,
    pooled: Any,
    spatial: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> list[Instruction] | None:
    """``pool_relu_backward(dy, winner, pooled, spatial, kernel, stride, padding, dilation) -> dx``
    or ``-> (dx, dbias)``: the cotangent of ``max_pool(relu(x), ...)`` by x (N, *spatial, C), and,
    where there are two results, its sum (C,) over all axes but the channels.

    The arguments are those of ``max_pool_backward``, with `pooled`, the first result of the
    pooling, behind the winners: an element that won its window was above 0 exactly where the
    window's largest number is, so that relu's own result need not be kept.
    """
    windows = (kernel, stride, padding, dilation)
    sums = outs[1] if len(outs) > 1 else None
    return _unpool(site, outs[0], dy, winner, windows, pooled, sums)
