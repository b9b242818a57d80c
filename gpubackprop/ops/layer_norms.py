"""Normalisation of each sample over its last axes: to mean 0 and variance 1, or by the root mean
square; then a learnt scale and shift."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.backends import Shape
from gpubackprop.errors import ShapeError
from gpubackprop.ops.define import result_dtype


def check_affine(name: str, x: Spec, wanted: Shape, of: str, **given: Spec | None) -> np.dtype:
    """The dtype of a normalised and scaled result.

    Raises
    ------
    ShapeError
        If a scale or a shift has not the shape `wanted`, that `of` x.
    """
    for argument, s in given.items():
        if s is not None and s.shape != wanted:
            raise ShapeError(
                f"{name}: {argument} ({s}) must have the shape {wanted} of {of} x ({x})"
            )
    dtypes = [s.dtype for s in given.values() if s is not None]
    return narrow(x, np.result_type(result_dtype("sqrt", [x]), *dtypes))


def narrow(x: Spec, dtype: np.dtype) -> np.dtype:
    """The dtype of a normalised result: that of x where x is of half precision, whatever what it is
    scaled and shifted by is."""
    return x.dtype if x.dtype.kind in "fV" and x.dtype.itemsize < 4 else dtype


def _over_last_axes(name: str, x: Spec, axes: int, **given: Spec | None) -> Spec:
    """What comes of normalisation over the last axes, then a scale and a shift."""
    if not 1 <= axes <= len(x.shape):
        raise ShapeError(
            f"{name}: cannot normalise over the last {axes} axes of x ({x}); it has {len(x.shape)}"
        )
    normalized = x.shape[len(x.shape) - axes :]
    dtype = check_affine(name, x, normalized, "the normalised axes of", **given)
    if 0 in normalized:
        raise ShapeError(f"{name}: the normalised axes of x ({x}) have no elements")
    return Spec(x.shape, dtype)


# To mean 0 and variance 1.


def _layer_norm_forward(
    K: Any, x: Any, weight: Any, bias: Any, *, axes: int = 1, eps: float = 1e-5
) -> Any:
    return K.layer_norm(x, weight, bias, axes, eps)


def _layer_norm_backward(
    K: Any,
    call: Any,
    dy: Any,
    x: Any,
    weight: Any,
    mean: Any,
    rstd: Any,
    *,
    axes: int = 1,
    eps: float = 1e-5,
) -> Any:
    return K.layer_norm_backward(dy, x, weight, mean, rstd, axes)


def _layer_norm_infer(
    x: Spec, weight: Spec | None, bias: Spec | None, *, axes: int = 1, eps: float = 1e-5
) -> Spec:
    return _over_last_axes("layer_norm", x, axes, weight=weight, bias=bias)


CASES: tuple[tuple[Shape, int], ...] = (
    ((3, 5), 1),
    ((2, 3, 4), 1),
    ((2, 3, 4), 2),
    ((7,), 1),
    ((1, 6), 1),
    ((0, 3), 1),
)


def _layer_norm_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, axes in CASES:
        normalized = shape[len(shape) - axes :]
        x = rng.standard_normal(shape)
        weight, bias = rng.uniform(0.5, 1.5, normalized), rng.standard_normal(normalized)
        yield Sample((x, weight, bias), {"axes": axes, "eps": 1e-5})
        yield Sample((x, None, None), {"axes": axes, "eps": 1e-2}, note="no scale, no shift")
    yield Sample((np.full((1, 1), 2.0), np.ones(1), np.ones(1)), {"axes": 1}, note="one element")
    x, weight = rng.standard_normal((5, 3)).T, rng.uniform(0.5, 1.5, 5)
    yield Sample((x, weight, None), {"axes": 1, "eps": 1e-3}, note="not contiguous, no shift")
    yield Sample((x, None, rng.standard_normal(5)), {"axes": 1}, note="no scale")


LAYER_NORM = Operation(
    "layer_norm",
    _layer_norm_forward,
    _layer_norm_backward,
    _layer_norm_infer,
    _layer_norm_samples,
    saves=("x", "weight", "mean", "rstd"),
    extras=("mean", "rstd"),
    constant_extras=False,
).register()


# By the root mean square.


def _rms_norm_forward(K: Any, x: Any, weight: Any, *, axes: int = 1, eps: float = 1e-6) -> Any:
    return K.rms_norm(x, weight, axes, eps)


def _rms_norm_backward(
    K: Any,
    call: Any,
    dy: Any,
    x: Any,
    weight: Any,
    rstd: Any,
    *,
    axes: int = 1,
    eps: float = 1e-6,
) -> Any:
    return K.rms_norm_backward(dy, x, weight, rstd, axes)


def _rms_norm_infer(x: Spec, weight: Spec | None, *, axes: int = 1, eps: float = 1e-6) -> Spec:
    return _over_last_axes("rms_norm", x, axes, weight=weight)


def _rms_norm_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, axes in (((3, 5), 1), ((2, 3, 4), 2), ((7,), 1), ((1, 6), 1), ((0, 3), 1)):
        weight = rng.uniform(0.5, 1.5, shape[len(shape) - axes :])
        yield Sample((rng.standard_normal(shape), weight), {"axes": axes, "eps": 1e-3})
    yield Sample((rng.standard_normal((2, 3, 4)), None), {"axes": 1, "eps": 1e-2}, note="no scale")
    yield Sample((np.full((1, 1), 2.0), np.ones(1)), {"axes": 1}, note="one element")
    x, weight = rng.standard_normal((5, 3)).T, rng.uniform(0.5, 1.5, 5)
    yield Sample((x, weight), {"axes": 1, "eps": 1e-3}, note="not contiguous")


RMS_NORM = Operation(
    "rms_norm",
    _rms_norm_forward,
    _rms_norm_backward,
    _rms_norm_infer,
    _rms_norm_samples,
    saves=("x", "weight", "rstd"),
    extras=("rstd",),
    constant_extras=False,
).register()
