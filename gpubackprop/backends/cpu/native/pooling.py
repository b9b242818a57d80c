"""Native pooling of images with channels last: which calls the kernels of ``pooling_kernels.py``
serve. Windows of one axis are those of images of one line."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native import pooling_kernels as kernels
from gpubackprop.backends.cpu.native.chains import add_columns
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers
from gpubackprop.backends.cpu.native.order import in_order, out_in_order

Outs = tuple[np.ndarray, ...]
Shape = tuple[int, ...]
Instructions = list[Instruction] | None

SERIAL = 1 << 14
"""Numbers of an image that are left to one thread."""


def window_slots(
    image: Shape, out: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape
) -> list[Any] | None:
    """The slots that tell the windows; None where there are more than two axes, or more places in a
    window than a byte numbers.

    Parameters
    ----------
    image, out : (N, *spatial, C) before and after.
    """
    if len(kernel) not in (1, 2) or math.prod(kernel) > np.iinfo(np.uint8).max:
        return None

    def pair(values: Shape, first: int) -> list[int]:
        return [first, *values] if len(kernel) == 1 else list(values)

    spatial, space = pair(image[1:-1], 1), pair(out[1:-1], 1)
    sizes, steps = pair(kernel, 1), pair(stride, 1)
    around, apart = pair(padding, 0), pair(dilation, 1)
    inside = all(2 * o <= n for o, n in zip(space, spatial, strict=True))
    pairs = sizes == steps == [2, 2] and around == [0, 0] and apart == [1, 1] and inside
    return [*spatial, image[-1], *sizes, *steps, *around, *apart, *space, pairs]


def _alike(x: np.ndarray, y: np.ndarray) -> bool:
    return len(x) == len(y) and x.shape[-1] == y.shape[-1] and y.size > 0 and x.size > 0


@lowers("max_pool")
def lower_max_pool(
    site: Site,
    outs: Outs,
    x: np.ndarray,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    ceil: bool = False,
) -> Instructions:
    """The largest number of each window, and its place."""
    before, source = in_order(site, x)
    y, after = out_in_order(site, outs[0])
    winner, last = out_in_order(site, outs[1], np.uint8)
    if source is None or y is None or winner is None or not _alike(x, y):
        return None
    slots = window_slots(x.shape, y.shape, kernel, stride, padding, dilation)
    if slots is None:
        return None
    frame = [len(x), *slots, source, y, winner]
    made = Instruction(kernels.max_pool, frame, parallel=x.size > SERIAL)
    return [*before, made, *after, *last]


def _unpool(
    site: Site,
    outs: Outs,
    dy: np.ndarray,
    winner: np.ndarray,
    pooled: np.ndarray | None,
    windows: tuple[Shape, Shape, Shape, Shape],
) -> Instructions:
    sums = outs[1:]
    before, given = in_order(site, dy)
    dx, last = out_in_order(site, outs[0])
    if given is None or dx is None or not _alike(dx, dy):
        return None
    if not fit(*sums) or not fit(winner, dtype=np.uint8):
        return None
    if pooled is not None and not fit(pooled):
        return None
    slots = window_slots(dx.shape, dy.shape, *windows)
    if slots is None:
        return None
    parallel = dx.size > SERIAL and len(dx) > 1
    used = site.parts if parallel else 1
    c = dx.shape[-1]
    memory: list[Any] = [0, 0]
    after = []
    if sums:
        memory = [site.scratch((used, c)), site.scratch((used, c))]
        after.append(Instruction(add_columns, [memory[1], used, c, sums[0]], parallel=False))
    frame = [len(dx), *slots, given, winner, dx, 0 if pooled is None else pooled, *memory]
    return [*before, Instruction(kernels.max_unpool, frame, parallel=parallel), *after, *last]


@lowers("max_pool_backward")
def lower_max_pool_backward(
    site: Site,
    outs: Outs,
    dy: np.ndarray,
    winner: np.ndarray,
    spatial: Shape,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
) -> Instructions:
    """Each number of dy at the place that won its window."""
    return _unpool(site, outs, dy, winner, None, (kernel, stride, padding, dilation))


@lowers("pool_relu_backward")
def lower_pool_relu_backward(
    site: Site,
    outs: Outs,
    dy: np.ndarray,
    winner: np.ndarray,
    pooled: np.ndarray,
    spatial: Shape,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
) -> Instructions:
    """``pool_relu_backward(dy, winner, pooled, spatial, kernel, stride, padding, dilation) -> dx``
    or ``-> (dx, dbias)``: the cotangent of ``max_pool(relu(x), ...)`` by x (N, *spatial, C), and,
    where there are two results, its sum (C,) over all axes but the channels.

    The arguments are those of ``max_pool_backward``, with `pooled`, the first result of the
    pooling, behind the winners: an element that won its window was above 0 exactly where the
    window's largest number is, so that relu's own result need not be kept.
    """
    return _unpool(site, outs, dy, winner, pooled, (kernel, stride, padding, dilation))


@lowers("avg_pool")
def lower_avg_pool(
    site: Site,
    outs: Outs,
    x: np.ndarray,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    ceil: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Instructions:
    """The mean of each window."""
    before, source = in_order(site, x)
    y, after = out_in_order(site, outs[0])
    if source is None or y is None or not _alike(x, y) or divisor_override == 0:
        return None
    slots = window_slots(x.shape, y.shape, kernel, stride, padding, (1,) * len(kernel))
    if slots is None:
        return None
    frame = [len(x), *slots, source, y, count_include_pad, divisor_override or 0]
    return [*before, Instruction(kernels.average_pool, frame, parallel=x.size > SERIAL), *after]


@lowers("avg_pool_backward")
def lower_avg_pool_backward(
    site: Site,
    outs: Outs,
    dy: np.ndarray,
    spatial: Shape,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    ceil: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Instructions:
    """Each number of dy, divided, at every pixel of its window."""
    before, given = in_order(site, dy)
    dx, after = out_in_order(site, outs[0])
    if given is None or dx is None or not _alike(dx, dy) or divisor_override == 0:
        return None
    slots = window_slots(dx.shape, dy.shape, kernel, stride, padding, (1,) * len(kernel))
    if slots is None:
        return None
    frame = [len(dx), *slots, given, dx, count_include_pad, divisor_override or 0]
    parallel = dx.size > SERIAL and len(dx) > 1
    return [*before, Instruction(kernels.average_unpool, frame, parallel=parallel), *after]
