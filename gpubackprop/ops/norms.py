"""Normalisation over a batch and over groups of channels.

Arrays are channels last, (N, *spatial, C).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.backends import Shape
from gpubackprop.errors import ShapeError
from gpubackprop.ops.define import result_dtype
from gpubackprop.ops.layer_norms import check_affine, narrow

# Over the batch.


def _batch_norm_forward(K: Any, x: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    y, mean, var, rstd = K.batch_norm(x, weight, bias, eps)
    return (y, mean, var), mean, rstd


def _batch_norm_backward(
    K: Any,
    call: Any,
    cotangents: Any,
    x: Any,
    weight: Any,
    mean: Any,
    rstd: Any,
    *,
    eps: float = 1e-5,
) -> Any:
    dy, dmean, dvar = cotangents
    if dy is None:  # only the moments were used
        dy = K.zeros(x.shape, x.dtype)
    return K.batch_norm_backward(dy, x, weight, mean, rstd, dmean, dvar)


def _batch_norm_infer(
    x: Spec, weight: Spec | None, bias: Spec | None, *, eps: float = 1e-5
) -> tuple[Spec, Spec, Spec]:
    if len(x.shape) < 2:
        raise ShapeError(
            f"batch_norm: x ({x}) must have a batch axis in front and the channels last"
        )
    channels = x.shape[-1:]
    dtype = check_affine("batch_norm", x, channels, "the channels of", weight=weight, bias=bias)
    moments = Spec(channels, np.result_type(result_dtype("sqrt", [x]), np.float32))
    return Spec(x.shape, dtype), moments, moments


def _affine(rng: np.random.Generator, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    return rng.uniform(0.5, 1.5, shape), rng.standard_normal(shape)


def _batch_norm_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape in ((5, 3), (3, 2, 3, 2), (7, 1), (2, 3, 4)):
        x = rng.standard_normal(shape)
        yield Sample((x, *_affine(rng, shape[-1:])), {"eps": 1e-2})
    weight, bias = _affine(rng, (3,))
    x = rng.standard_normal((4, 2, 3))
    yield Sample((x, None, None), {"eps": 1e-1}, note="no scale, no shift")
    yield Sample((x, weight, None), {"eps": 1e-2}, note="no shift")
    yield Sample((x, None, bias), {"eps": 1e-2}, note="no scale")
    moved = rng.standard_normal((2, 3, 2, 2)).transpose(0, 2, 3, 1)
    yield Sample((moved, weight, bias), {"eps": 1e-2}, note="channels first in memory")
    yield Sample((np.full((1, 1), 2.0), np.ones(1), np.ones(1)), {"eps": 1e-1}, note="one element")
    empty = np.zeros((0, 2, 3))
    yield Sample((empty, weight, bias), differentiable=False, note="a batch of nothing")


BATCH_NORM = Operation(
    "batch_norm",
    _batch_norm_forward,
    _batch_norm_backward,
    _batch_norm_infer,
    _batch_norm_samples,
    saves=("x", "weight", "mean", "rstd"),
    extras=("mean", "rstd"),
    constant_extras=False,
    outputs="given",
).register()


# By fixed moments.


def _scale_shift_forward(K: Any, x: Any, scale: Any, shift: Any) -> Any:
    return K.scale_shift(x, scale, shift)


def _scale_shift_backward(K: Any, call: Any, dy: Any, x: Any, scale: Any) -> Any:
    dx, dscale, dshift = call.needs
    over = tuple(range(dy.ndim - 1))
    slope = K.scale_shift(dy, scale, None) if dx else None
    if (dscale or dshift) and dy.dtype.itemsize < scale.dtype.itemsize:
        dy = K.astype(dy, scale.dtype)  # sums over a batch can be beyond float16
    return (
        slope,
        K.sum(K.multiply(dy, x), axis=over) if dscale else None,
        K.sum(dy, axis=over) if dshift else None,
    )


def _scale_shift_infer(x: Spec, scale: Spec, shift: Spec | None) -> Spec:
    if not x.shape:
        raise ShapeError(f"scale_shift: x ({x}) must have the channels as its last axis")
    for name, s in (("scale", scale), ("shift", shift)):
        if s is not None and s.shape != x.shape[-1:]:
            raise ShapeError(
                f"scale_shift: {name} ({s}) must have the shape {x.shape[-1:]} of the channels of "
                f"x ({x})"
            )
    dtype = np.result_type(*[s.dtype for s in (x, scale, shift) if s is not None])
    return Spec(x.shape, narrow(x, dtype))


def _scale_shift_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape in ((5, 3), (2, 3, 2, 2), (1, 1), (0, 2, 3), (4,)):
        scale, shift = _affine(rng, shape[-1:])
        x = rng.standard_normal(shape)
        yield Sample((x, scale, shift))
    yield Sample((rng.standard_normal((3, 2, 4)), *_affine(rng, (4,))[:1], None), note="no shift")
    moved = rng.standard_normal((2, 3, 2, 2)).transpose(0, 2, 3, 1)
    yield Sample((moved, *_affine(rng, (3,))), note="channels first in memory")


SCALE_SHIFT = Operation(
    "scale_shift",
    _scale_shift_forward,
    _scale_shift_backward,
    _scale_shift_infer,
    _scale_shift_samples,
    saves=("x", "scale"),
    strict=True,
).register()


# Over groups of channels.


def _group_norm_forward(
    K: Any, x: Any, weight: Any, bias: Any, *, groups: int, eps: float = 1e-5
) -> Any:
    return K.group_norm(x, weight, bias, groups, eps)


def _group_norm_backward(
    K: Any,
    call: Any,
    dy: Any,
    x: Any,
    weight: Any,
    mean: Any,
    rstd: Any,
    *,
    groups: int,
    eps: float = 1e-5,
) -> Any:
    return K.group_norm_backward(dy, x, weight, mean, rstd, groups)


def _group_norm_infer(
    x: Spec, weight: Spec | None, bias: Spec | None, *, groups: int, eps: float = 1e-5
) -> Spec:
    if len(x.shape) < 2:
        raise ShapeError(
            f"group_norm: x ({x}) must have a batch axis in front and the channels last"
        )
    channels = x.shape[-1]
    if groups < 1 or channels % groups:
        raise ShapeError(
            f"group_norm: the {channels} channels of x ({x}) cannot be split into {groups} groups "
            "of one size"
        )
    wanted = (channels,)
    dtype = check_affine("group_norm", x, wanted, "the channels of", weight=weight, bias=bias)
    return Spec(x.shape, dtype)


def _group_norm_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, groups in (((3, 4), 2), ((2, 3, 6), 3), ((2, 2, 3, 4), 1), ((2, 5, 3), 3)):
        x = rng.standard_normal(shape)
        params = {"groups": groups, "eps": 1e-2}
        yield Sample((x, *_affine(rng, shape[-1:])), params)
    weight, bias = _affine(rng, (4,))
    x = rng.standard_normal((2, 3, 4))
    yield Sample((x, None, None), {"groups": 2, "eps": 1e-1}, note="no scale, no shift")
    yield Sample((x, weight, None), {"groups": 4, "eps": 1e-2}, note="no shift")
    yield Sample((x, None, bias), {"groups": 2, "eps": 1e-2}, note="no scale")
    moved = rng.standard_normal((2, 4, 2, 3)).transpose(0, 2, 3, 1)
    yield Sample((moved, weight, bias), {"groups": 2, "eps": 1e-2}, note="channels first in memory")
    one = np.full((1, 1, 1), 2.0)
    yield Sample((one, np.ones(1), np.ones(1)), {"groups": 1, "eps": 1e-1}, note="one element")
    yield Sample((np.zeros((0, 2, 4)), weight, bias), {"groups": 2}, note="a batch of nothing")


GROUP_NORM = Operation(
    "group_norm",
    _group_norm_forward,
    _group_norm_backward,
    _group_norm_infer,
    _group_norm_samples,
    saves=("x", "weight", "mean", "rstd"),
    extras=("mean", "rstd"),
    constant_extras=False,
).register()
