"""Convolution, its transpose, and its gradient by the weight: three operations whose derivatives
are one another.

All three are linear in each of their arrays, so an argument's cotangent is the transpose by that
argument: the rules below are the complete list.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.backends import Shape
from gpubackprop.errors import ShapeError
from gpubackprop.ops.windows import window_counts

Padding = tuple[tuple[int, int], ...]


# Shapes that fit.


def _check_image(name: str, argument: str, x: Spec, n: int) -> None:
    if len(x.shape) != n + 2:
        raise ShapeError(
            f"{name}: {argument} ({x}) must have {n} spatial ax{'is' if n == 1 else 'es'} between "
            "batch and channels, as many as there are strides"
        )


def _check_weight(name: str, weight: Spec, n: int, groups: int) -> None:
    if len(weight.shape) != n + 2:
        raise ShapeError(
            f"{name}: weight ({weight}) must have the axes (out, in / groups, *kernel) with {n} "
            f"kernel ax{'is' if n == 1 else 'es'}"
        )
    _check_groups(name, "weight", weight, weight.shape[0], groups)


def _check_groups(name: str, argument: str, x: Spec, channels: int, groups: int) -> None:
    if groups < 1 or channels % groups:
        raise ShapeError(
            f"{name}: the {channels} channels of {argument} ({x}) do not fall into groups="
            f"{groups} equal parts"
        )


def _check_taken(name: str, x: Spec, weight: Spec, groups: int) -> None:
    if x.shape[-1] != weight.shape[1] * groups:
        raise ShapeError(
            f"{name}: x ({x}) has {x.shape[-1]} channels, but weight ({weight}) in groups={groups} "
            f"takes {weight.shape[1] * groups}; images are channels last here"
        )


@functools.lru_cache(maxsize=1024)  # a network asks about the same few sizes in every step
def _counts(
    name: str, spatial: Shape, kernel: Shape, stride: Shape, padding: Padding, dilation: Shape
) -> Shape:
    """Windows on each padded spatial axis."""
    if len(padding) != len(spatial) or any(len(p) != 2 or min(p) < 0 for p in padding):
        raise ShapeError(
            f"{name}: padding must be {len(spatial)} pairs (before, after) of at least 0, one for "
            f"each spatial axis, not {padding}"
        )
    padded = tuple(s + a + b for s, (a, b) in zip(spatial, padding, strict=True))
    return window_counts(name, padded, kernel, stride, dilation)


def _check_result(name: str, dy: Spec, counts: Shape, channels: int) -> None:
    if dy.shape[1:] != (*counts, channels):
        raise ShapeError(
            f"{name}: dy ({dy}) must have {counts} windows of {channels} channels behind the batch "
            "axis, as the convolution gives them"
        )


class _Case(NamedTuple):
    """One convolution of the samples."""

    x: Shape
    outputs: int
    kernel: Shape
    stride: Shape
    padding: Padding
    dilation: Shape
    groups: int
    note: str

    @property
    def geometry(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def weight(self) -> Shape:
        return (self.outputs, self.x[-1] // self.groups, *self.kernel)

    @property
    def y(self) -> Shape:
        sizes = self.x[1:-1], self.kernel, self.stride, self.padding, self.dilation
        return (self.x[0], *_counts("conv", *sizes), self.outputs)


CASES = (
    _Case((2, 7, 3), 2, (3,), (1,), ((0, 0),), (1,), 1, "1-d"),
    _Case((2, 6, 2), 3, (2,), (3,), ((1, 2),), (2,), 1, "1-d, stride, dilation, uneven padding"),
    _Case((1, 1, 1), 1, (1,), (1,), ((0, 0),), (1,), 1, "one element"),
    _Case((2, 4, 5, 2), 3, (3, 2), (1, 2), ((1, 1), (0, 1)), (1, 1), 1, "2-d"),
    _Case((2, 3, 3, 4), 3, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1, "a 1x1 kernel"),
    _Case((1, 5, 4, 4), 6, (2, 2), (2, 1), ((0, 0), (1, 0)), (2, 1), 2, "groups"),
    _Case((2, 4, 3, 3), 3, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 3, "depthwise"),
    _Case((1, 5, 4, 2), 4, (2, 3), (2, 2), ((0, 0), (1, 1)), (1, 1), 2, "depthwise, two for each"),
    _Case((0, 4, 4, 2), 3, (2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), 1, "no image"),
    _Case((2, 3, 3, 2, 1), 2, (2, 2, 2), (1, 2, 1), ((0, 0), (1, 0), (0, 1)), (1, 1, 1), 1, "3-d"),
)


def _first_in_memory(x: np.ndarray) -> np.ndarray:
    """`x` with its channels in front in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 1)), 1, -1)


# y = conv(x, w) + b.


def _conv_forward(
    K: Any,
    x: Any,
    weight: Any,
    bias: Any,
    *,
    stride: Shape,
    padding: Padding,
    dilation: Shape,
    groups: int,
) -> Any:
    return K.conv(x, weight, bias, stride, padding, dilation, groups)


def _conv_backward(
    K: Any,
    call: Any,
    dy: Any,
    x: Any,
    weight: Any,
    *,
    stride: Shape,
    padding: Padding,
    dilation: Shape,
    groups: int,
) -> Any:
    dx = dw = db = None
    if call.needs[0]:
        spatial = call.shapes[0][1:-1]
        dx = K.conv_transpose(dy, weight, spatial, stride, padding, dilation, groups)
    if call.needs[1]:
        dw = K.conv_weight(x, dy, call.shapes[1][2:], stride, padding, dilation, groups)
    if call.needs[2]:
        # The sum over images and windows, as a product with ones: a BLAS is several times faster
        # than a reduction where rows are as short as channels are few.
        rows = K.reshape(dy, (math.prod(dy.shape[:-1]), dy.shape[-1]))
        db = K.matmul(K.ones((rows.shape[0],), dy.dtype), rows)
    return dx, dw, db


def _conv_infer(
    x: Spec,
    weight: Spec,
    bias: Spec | None,
    *,
    stride: Shape,
    padding: Padding,
    dilation: Shape,
    groups: int,
) -> Spec:
    _check_image("conv", "x", x, len(stride))
    _check_weight("conv", weight, len(stride), groups)
    _check_taken("conv", x, weight, groups)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"conv: bias must have shape ({weight.shape[0]},), not {bias}")
    counts = _counts("conv", x.shape[1:-1], weight.shape[2:], stride, padding, dilation)
    dtypes = [s.dtype for s in (x, weight, bias) if s is not None]
    return Spec((x.shape[0], *counts, weight.shape[0]), np.result_type(*dtypes))


def _conv_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for i, case in enumerate(CASES):
        x, weight = rng.standard_normal(case.x), rng.standard_normal(case.weight)
        bias = rng.standard_normal(case.outputs) if i % 2 == 0 else None
        yield Sample((x, weight, bias), case.geometry, note=case.note)
    case = CASES[3]
    x, weight = rng.standard_normal(case.x), rng.standard_normal(case.weight)
    note = "channels first in memory"
    yield Sample((_first_in_memory(x), weight, None), case.geometry, note=note)


CONV = Operation(
    "conv",
    _conv_forward,
    _conv_backward,
    _conv_infer,
    _conv_samples,
    saves=("x", "weight"),
    strict=True,
).register()


# The transpose by x.


def _transpose_forward(
    K: Any,
    dy: Any,
    weight: Any,
    *,
    spatial: Shape,
    stride: Shape,
    padding: Padding,
    dilation: Shape,
    groups: int,
) -> Any:
    return K.conv_transpose(dy, weight, spatial, stride, padding, dilation, groups)


def _transpose_backward(
    K: Any,
    call: Any,
    dz: Any,
    dy: Any,
    weight: Any,
    *,
    spatial: Shape,
    stride: Shape,
    padding: Padding,
    dilation: Shape,
    groups: int,
) -> Any:
    d_dy = dw = None
    if call.needs[0]:
        d_dy = K.conv(dz, weight, None, stride, padding, dilation, groups)
    if call.needs[1]:
        dw = K.conv_weight(dz, dy, call.shapes[1][2:], stride, padding, dilation, groups)
    return d_dy, dw


def _transpose_infer(
    dy: Spec,
    weight: Spec,
    *,
    spatial: Shape,
    stride: Shape,
    padding: Padding,
    dilation: Shape,
    groups: int,
) -> Spec:
    name = "conv_transpose"
    _check_image(name, "dy", dy, len(stride))
    _check_weight(name, weight, len(stride), groups)
    if len(spatial) != len(stride):
        raise ShapeError(f"{name}: spatial must be {len(stride)} sizes, not {spatial}")
    counts = _counts(name, spatial, weight.shape[2:], stride, padding, dilation)
    _check_result(name, dy, counts, weight.shape[0])
    dtype = np.result_type(dy.dtype, weight.dtype)
    return Spec((dy.shape[0], *spatial, weight.shape[1] * groups), dtype)


def _transpose_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for case in CASES:
        dy, weight = rng.standard_normal(case.y), rng.standard_normal(case.weight)
        yield Sample((dy, weight), {"spatial": case.x[1:-1], **case.geometry}, note=case.note)


CONV_TRANSPOSE = Operation(
    "conv_transpose",
    _transpose_forward,
    _transpose_backward,
    _transpose_infer,
    _transpose_samples,
    saves=("dy", "weight"),
    strict=True,
).register()


# The transpose by the weight.


def _weight_forward(
    K: Any,
    x: Any,
    dy: Any,
    *,
    kernel: Shape,
    stride: Shape,
    padding: Padding,
    dilation: Shape,
    groups: int,
) -> Any:
    return K.conv_weight(x, dy, kernel, stride, padding, dilation, groups)


def _weight_backward(
    K: Any,
    call: Any,
    dw: Any,
    x: Any,
    dy: Any,
    *,
    kernel: Shape,
    stride: Shape,
    padding: Padding,
    dilation: Shape,
    groups: int,
) -> Any:
    dx = d_dy = None
    if call.needs[0]:
        spatial = call.shapes[0][1:-1]
        dx = K.conv_transpose(dy, dw, spatial, stride, padding, dilation, groups)
    if call.needs[1]:
        d_dy = K.conv(x, dw, None, stride, padding, dilation, groups)
    return dx, d_dy


def _weight_infer(
    x: Spec,
    dy: Spec,
    *,
    kernel: Shape,
    stride: Shape,
    padding: Padding,
    dilation: Shape,
    groups: int,
) -> Spec:
    name = "conv_weight"
    _check_image(name, "x", x, len(stride))
    _check_image(name, "dy", dy, len(stride))
    if x.shape[0] != dy.shape[0]:
        raise ShapeError(f"{name}: x ({x}) and dy ({dy}) must have as many images")
    _check_groups(name, "x", x, x.shape[-1], groups)
    _check_groups(name, "dy", dy, dy.shape[-1], groups)
    counts = _counts(name, x.shape[1:-1], kernel, stride, padding, dilation)
    _check_result(name, dy, counts, dy.shape[-1])
    dtype = np.result_type(x.dtype, dy.dtype)
    return Spec((dy.shape[-1], x.shape[-1] // groups, *kernel), dtype)


def _weight_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for case in CASES:
        x, dy = rng.standard_normal(case.x), rng.standard_normal(case.y)
        yield Sample((x, dy), {"kernel": case.kernel, **case.geometry}, note=case.note)
    case = CASES[3]
    x, dy = rng.standard_normal(case.x), rng.standard_normal(case.y)
    note = "channels first in memory"
    params = {"kernel": case.kernel, **case.geometry}
    yield Sample((_first_in_memory(x), _first_in_memory(dy)), params, note=note)


CONV_WEIGHT = Operation(
    "conv_weight",
    _weight_forward,
    _weight_backward,
    _weight_infer,
    _weight_samples,
    saves=("x", "dy"),
    strict=True,
).register()
