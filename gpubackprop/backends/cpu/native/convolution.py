"""Native convolutions of images with channels last: which calls the kernels of
``convolution_kernels.py`` and ``column_kernels.py`` serve."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.convolution import Padding
from gpubackprop.backends.cpu.native import column_kernels as columns
from gpubackprop.backends.cpu.native import convolution_kernels as kernels
from gpubackprop.backends.cpu.native.chains import add_columns
from gpubackprop.backends.cpu.native.convolution_sizes import Shape, Sizes, byte_offsets, sizes_of
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers
from gpubackprop.backends.cpu.native.order import in_order
from gpubackprop.backends.cpu.native.pooling import (
    lower_max_pool,
    lower_pool_relu_backward,
    window_slots,
)
from gpubackprop.backends.cpu.native.tiles import WIDEST
from gpubackprop.backends.cpu.native.vectors import LANES, whole

Outs = tuple[np.ndarray, ...]
Instructions = list[Instruction] | None

CACHED = 3 << 18
"""Bytes of a weight that a core keeps near: wider ones are read too often by tiles, and are left to
the BLAS, with copies of all windows."""


def _pair_strides(weight: np.ndarray) -> tuple[int, int, int, int]:
    """Strides of a weight by output, channel, and kernel (2)."""
    s = weight.strides
    return (s[0], s[1], 0, s[2]) if weight.ndim == 3 else (s[0], s[1], s[2], s[3])


def _window_strides(s: Sizes, weight: np.ndarray) -> np.ndarray:
    """Where the numbers of a window, (kernel, C), are in a weight; bytes."""
    _, channel, row, column = _pair_strides(weight)
    i, j, c = np.ogrid[: s.kernel[0], : s.kernel[1], : s.c]
    return np.ascontiguousarray(i * row + j * column + c * channel, np.int64).reshape(-1)


def _packed(site: Site, s: Sizes, weight: np.ndarray, pitch: int) -> tuple[Any, Instruction]:
    """A weight as (kernel, C, O) with `pitch` numbers in a row, and what packs it."""
    packed = site.scratch((s.width, pitch))
    offsets = _window_strides(s, weight)
    slots = [s.width, s.o, pitch, weight, offsets, weight.strides[0], packed]
    return packed, Instruction(kernels.pack, slots, parallel=packed.size > 4096)


def _packed_back(site: Site, s: Sizes, weight: np.ndarray, pitch: int) -> tuple[Any, Instruction]:
    """A weight as (kernel, O, C) with `pitch` numbers in a row, and what packs it."""
    packed = site.scratch((s.places * s.o, pitch))
    output, channel, row, column = _pair_strides(weight)
    i, j, o = np.ogrid[: s.kernel[0], : s.kernel[1], : s.o]
    offsets = np.ascontiguousarray(i * row + j * column + o * output, np.int64).reshape(-1)
    slots = [len(offsets), s.c, pitch, weight, offsets, channel, packed]
    return packed, Instruction(kernels.pack, slots, parallel=packed.size > 4096)


def _convolve(
    site: Site, outs: Outs, x: np.ndarray, weight: Any, bias: Any, options: Any, relu: bool,
    pooling: list[Any] | None = None,
) -> Instructions:  # fmt: skip
    """conv, with what is to follow it in the same pass."""
    y = outs[0]
    before, x0 = in_order(site, x)
    s = sizes_of(x.shape, weight.shape[0], weight.shape[2:], *options)
    if s is None or x0 is None or weight.dtype != np.float32 or not fit(y):
        return None
    if bias is not None and not fit(bias):
        return None
    pitch = whole(s.o)
    if s.width * min(pitch, WIDEST * LANES) * 4 > CACHED:
        return (
            None if pooling is not None else _by_columns(site, s, before, x0, weight, bias, y, relu)
        )
    packed, first = _packed(site, s, weight, pitch)
    row = site.scratch(pitch)
    plus = Instruction(
        kernels.pack_row, [0 if bias is None else bias, s.o, pitch, row], parallel=False, wait=False
    )
    direct = pooling is None and pitch == s.o
    memory = 0 if direct else site.scratch((site.parts, s.each, s.pixels, pitch))
    rows = byte_offsets(np.arange(s.each * s.pixels) * pitch)
    slots = [*s.slots(site, row, True), x0, packed, y, memory, rows, relu]
    slots += [0] if pooling is None else [outs[1], *pooling]
    return [*before, first, plus, Instruction(kernels.convolve, slots, parallel=s.parallel)]


def _by_columns(
    site: Site, s: Sizes, before: Any, x: Any, weight: Any, bias: Any, y: Any, relu: bool
) -> Instructions:
    packed, first = _packed(site, s, weight, s.o)
    slots = [*s.column_slots(packed), x, 0 if bias is None else bias, y, s.columns(site), relu]
    return [*before, first, Instruction(columns.convolve, slots, parallel=s.parallel)]


@lowers("conv")
def lower_conv(
    site: Site, outs: Outs, x: Any, weight: Any, bias: Any, *options: Any
) -> Instructions:
    """Convolutions without groups along one or two axes."""
    return _convolve(site, outs, x, weight, bias, options, False)


@lowers("conv_relu")
def lower_conv_relu(
    site: Site, outs: Outs, x: Any, weight: Any, bias: Any, *options: Any
) -> Instructions:
    """``conv_relu(x, weight, bias, stride, padding, dilation, groups) -> y``: max(conv(...), 0),
    the arguments being those of ``conv``; y (N, *out, O) in C order."""
    return _convolve(site, outs, x, weight, bias, options, True)


@lowers("conv_relu_pool")
def lower_conv_relu_pool(
    site: Site,
    outs: Outs,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Shape,
    padding: Padding,
    dilation: Shape,
    groups: int,
    pool_kernel: Shape,
    pool_stride: Shape,
    pool_padding: Shape,
    pool_dilation: Shape,
    ceil: bool = False,
) -> Instructions:
    """``conv_relu_pool(x, weight, bias, stride, padding, dilation, groups, pool_kernel,
    pool_stride, pool_padding, pool_dilation, ceil) -> (y, winner)``: the two results of
    ``max_pool(max(conv(x, weight, bias, stride, padding, dilation, groups), 0), pool_kernel,
    pool_stride, pool_padding, pool_dilation, ceil)``, both in C order, winner in uint8. What is
    between is not kept."""
    options = (stride, padding, dilation, groups)
    y, winner = outs
    s = sizes_of(x.shape, weight.shape[0], weight.shape[2:], *options)
    if s is None or not y.size or not fit(winner, dtype=np.uint8):
        return None
    between = (s.n, *s.out[2 - len(pool_kernel) :], s.o)
    windows = (pool_kernel, pool_stride, pool_padding, pool_dilation)
    pooling = window_slots(between, y.shape, *windows)
    if pooling is None:
        return None
    made = _convolve(site, outs, x, weight, bias, options, True, pooling)
    if made is not None:
        return made
    result = site.scratch(between)
    first = _convolve(site, (result,), x, weight, bias, options, True)
    then = lower_max_pool(site, outs, result, *windows, ceil)
    return None if first is None or then is None else [*first, *then]


@lowers("conv_transpose")
def lower_conv_transpose(
    site: Site, outs: Outs, dy: Any, weight: Any, spatial: Shape, *options: Any
) -> Instructions:
    """The cotangent of a convolution's image."""
    dx = outs[0]
    before, dy0 = in_order(site, dy)
    s = sizes_of(dx.shape, weight.shape[0], weight.shape[2:], *options)
    if s is None or dy0 is None or not fit(dx) or weight.dtype != np.float32:
        return None
    if s.n * s.pixels * s.o != dy.size:
        return None
    pitch = whole(s.c)
    if s.o * s.places * pitch * 4 > 4 * CACHED or 2 * s.c < LANES:
        packed, first = _packed(site, s, weight, s.o)
        slots = [*s.column_slots(packed), dy0, dx, s.columns(site)]
        return [*before, first, Instruction(columns.convolve_back, slots, parallel=s.parallel)]
    packed, first = _packed_back(site, s, weight, pitch)
    memory: Any = 0
    if s.pads or pitch != s.c:
        memory = site.scratch((site.parts, s.each, *s.framed, pitch))
    slots = [*s.slots(site, 0, False), dy0, packed, dx, memory, pitch]
    slots += [byte_offsets(np.arange(s.each * s.pixels) * s.o), s.window_offsets(pitch)]
    slots += [byte_offsets(np.arange(s.o)), s.place_offsets(pitch), s.places]
    return [*before, first, Instruction(kernels.convolve_back, slots, parallel=s.parallel)]


@lowers("conv_weight")
def lower_conv_weight(
    site: Site, outs: Outs, x: Any, dy: Any, kernel: Shape, *options: Any
) -> Instructions:
    """The cotangent of a convolution's weight. Its sums are divided among the parts, and so depend
    on how many there are."""
    s = sizes_of(x.shape, outs[0].shape[0], kernel, *options)
    if s is None or s.n * s.pixels * s.o != dy.size:
        return None
    return _weigh(site, s, outs[0], x, dy, None)


@lowers("pool_relu_conv_weight")
def lower_pool_relu_conv_weight(
    site: Site,
    outs: Outs,
    x: Any,
    dy: Any,
    winner: Any,
    pooled: Any,
    spatial: Shape,
    pool_kernel: Shape,
    pool_stride: Shape,
    pool_padding: Shape,
    pool_dilation: Shape,
    kernel: Shape,
    *options: Any,
) -> Instructions:
    """``pool_relu_conv_weight(x, dy, winner, pooled, spatial, pool_kernel, pool_stride,
    pool_padding, pool_dilation, kernel, stride, padding, dilation, groups) -> (dw, dbias)``: with
    ``dz, dbias = pool_relu_backward(dy, winner, pooled, spatial, pool_kernel, pool_stride,
    pool_padding, pool_dilation)``, dw is ``conv_weight(x, dz, kernel, stride, padding, dilation,
    groups)``. For a first layer, where nothing else needs dz, which is not kept."""
    dw, dbias = outs
    s = sizes_of(x.shape, dw.shape[0], kernel, *options)
    if s is None or tuple(spatial) != s.out[2 - len(spatial) :] or not fit(pooled, dbias):
        return None
    if not fit(winner, dtype=np.uint8) or not dy.size:
        return None
    windows = (pool_kernel, pool_stride, pool_padding, pool_dilation)
    pooling = window_slots((s.n, *spatial, s.o), dy.shape, *windows)
    if pooling is None:
        return None
    used = site.parts if s.parallel else 1
    sums = site.scratch((used, s.o))
    slots = [winner, *pooling, pooled, site.scratch((used, s.o)), sums]
    made = _weigh(site, s, dw, x, dy, slots)
    if made is not None:
        end = Instruction(add_columns, [sums, used, s.o, dbias], parallel=False, wait=False)
        return [*made, end]
    dz = site.scratch((s.n, *spatial, s.o))
    back = (dy, winner, pooled, spatial, *windows)
    first = lower_pool_relu_backward(site, (dz, dbias), *back)
    then = _weigh(site, s, dw, x, dz, None)
    return None if first is None or then is None else [*first, *then]


def _weigh(
    site: Site, s: Sizes, dw: np.ndarray, x: Any, dy: Any, pooling: list[Any] | None
) -> Instructions:
    """conv_weight, perhaps of what pooling lets through of dy."""
    before, x0 = in_order(site, x)
    more, dy0 = in_order(site, dy)
    if x0 is None or dy0 is None or dw.dtype != np.float32:
        return None
    pitch, used = whole(s.o), site.parts if s.parallel else 1
    made: Instruction
    if s.width * pitch * 4 > 2 * CACHED:
        if pooling is not None:
            return None
        pitch = s.o
        totals = site.scratch((used, s.width, pitch))
        slots = [*s.column_slots(0), x0, dy0, s.columns(site), totals]
        made = Instruction(columns.weigh, slots, parallel=s.parallel)
    else:
        sums = site.scratch((used, s.width, pitch))
        totals = site.scratch((used, s.width, pitch))
        row = site.scratch(pitch)
        zeros = [0, s.o, pitch, row]
        more = [*more, Instruction(kernels.pack_row, zeros, parallel=False, wait=False)]
        memory: Any = 0
        if pitch != s.o or pooling is not None:
            memory = site.scratch((used, s.each, s.pixels, pitch))
        slots = [*s.slots(site, row, True), x0, dy0, memory, sums, totals]
        slots += [byte_offsets(np.arange(s.width) * pitch), *([0] if pooling is None else pooling)]
        made = Instruction(kernels.weigh, slots, parallel=s.parallel)
    end = [totals, used, s.width, s.o, pitch, dw, dw.strides[0], _window_strides(s, dw)]
    last = Instruction(kernels.add_weights, end, parallel=totals.size > 4096)
    return [*before, *more, made, last]
