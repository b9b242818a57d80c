"""Activations with a parameter or an axis; those of the argument alone are rows of
``elementwise.py``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.backends import Shape
from gpubackprop.errors import ShapeError
from gpubackprop.ops.define import ODD_SHAPES, check_axis, draw, result_dtype

# Leaky rectifier.


def _leaky_relu_forward(K: Any, x: Any, *, negative_slope: float = 0.01) -> Any:
    return K.leaky_relu(x, negative_slope)


def _leaky_relu_backward(
    K: Any, call: Any, dy: Any, x: Any, *, negative_slope: float = 0.01
) -> Any:
    return (K.leaky_relu_backward(dy, x, negative_slope),)


def _leaky_relu_infer(x: Spec, *, negative_slope: float = 0.01) -> Spec:
    return Spec(x.shape, result_dtype("leaky_relu", [x]))


def _leaky_relu_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for i, shape in enumerate(ODD_SHAPES):
        x = draw(rng, shape, -2.0, 2.0, (0.0,))
        yield Sample((x,), {"negative_slope": (0.01, 0.2, 0.0, 1.5, -0.5)[i]})


LEAKY_RELU = Operation(
    "leaky_relu",
    _leaky_relu_forward,
    _leaky_relu_backward,
    _leaky_relu_infer,
    _leaky_relu_samples,
    saves=("x",),
).register()


# Exponential linear unit.


def _elu_forward(K: Any, x: Any, *, alpha: float = 1.0) -> Any:
    return K.elu(x, alpha)


def _elu_backward(K: Any, call: Any, dy: Any, x: Any, *, alpha: float = 1.0) -> Any:
    return (K.elu_backward(dy, x, alpha),)


def _elu_infer(x: Spec, *, alpha: float = 1.0) -> Spec:
    return Spec(x.shape, result_dtype("elu", [x]))


def _elu_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for i, shape in enumerate(ODD_SHAPES):
        x = draw(rng, shape, -2.0, 2.0, (0.0,))
        yield Sample((x,), {"alpha": (1.0, 0.5, 2.0, 0.0, 1.5)[i]})
    large = np.array([-800.0, -30.0, 30.0, 800.0])
    yield Sample((large,), {"alpha": 1.0}, note="arguments whose exponential overflows")


ELU = Operation(
    "elu", _elu_forward, _elu_backward, _elu_infer, _elu_samples, saves=("x",)
).register()


# Softmax and its logarithm, along one axis.

AXIS_CASES: tuple[tuple[Shape, int], ...] = (
    ((3, 5), -1),
    ((3, 5), 0),
    ((2, 3, 4), 1),
    ((5,), 0),
    ((1,), -1),
    ((7, 1), 1),
    ((0, 3), 1),
    ((3, 0, 2), -1),
)


def _axis_spec(name: str, x: Spec, axis: int) -> Spec:
    """Shape rule of an operation that normalises along one axis."""
    if not isinstance(axis, int):
        raise ShapeError(f"{name}: axis must be one integer, not {axis!r}")
    if not x.shape:
        raise ShapeError(f"{name}: x ({x}) has no axes to normalise along")
    (along,) = check_axis(name, axis, x)
    if not x.shape[along]:
        raise ShapeError(f"{name}: axis {axis} of x ({x}) has no elements")
    return Spec(x.shape, result_dtype(name, [x]))


def _axis_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, axis in AXIS_CASES:
        yield Sample((rng.standard_normal(shape),), {"axis": axis})
    yield Sample((rng.standard_normal((5, 3)).T,), {"axis": -1}, note="not contiguous")
    yield Sample((rng.standard_normal((3, 5)) + 2000.0,), {"axis": 1}, note="exp overflows")


def _softmax_forward(K: Any, x: Any, *, axis: int = -1) -> Any:
    return K.softmax(x, axis)


def _softmax_backward(K: Any, call: Any, dy: Any, out: Any, *, axis: int = -1) -> Any:
    return (K.softmax_backward(dy, out, axis),)


def _softmax_infer(x: Spec, *, axis: int = -1) -> Spec:
    return _axis_spec("softmax", x, axis)


SOFTMAX = Operation(
    "softmax", _softmax_forward, _softmax_backward, _softmax_infer, _axis_samples, saves=("out",)
).register()


def _log_softmax_forward(K: Any, x: Any, *, axis: int = -1) -> Any:
    return K.log_softmax(x, axis)


def _log_softmax_backward(K: Any, call: Any, dy: Any, out: Any, *, axis: int = -1) -> Any:
    return (K.log_softmax_backward(dy, out, axis),)


def _log_softmax_infer(x: Spec, *, axis: int = -1) -> Spec:
    return _axis_spec("log_softmax", x, axis)


LOG_SOFTMAX = Operation(
    "log_softmax",
    _log_softmax_forward,
    _log_softmax_backward,
    _log_softmax_infer,
    _axis_samples,
    saves=("out",),
).register()
