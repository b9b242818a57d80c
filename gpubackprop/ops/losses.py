"""Pointwise costs: the loss of each element against its target, and their sum, in one node of the
graph.

Each loss is a row of a table like that of ``elementwise.py``: the loss of an element, then the
cotangents of ``x`` and of the ``target``. The operation gives ``scale`` times the sum over all
elements, or, with ``reduce=False``, ``scale`` times each loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.errors import DTypeError, ShapeError
from gpubackprop.ops.define import ODD_SHAPES, draw

Rule = Callable[..., Any]
Range = tuple[float, float]

LOG_FLOOR = -100.0
SLOPE_FLOOR = 1e-12


def check_same_shape(name: str, x: Any, target: Any) -> None:
    """Raise ShapeError where two shapes differ, even if they would broadcast."""
    if x.shape == target.shape:
        return
    message = (
        f"{name}: input ({Spec.of(x)}) and target ({Spec.of(target)}) must have the same shape"
    )
    try:
        joined = np.broadcast_shapes(x.shape, target.shape)
    except ValueError:
        raise ShapeError(message) from None
    equal = math.prod(x.shape) == math.prod(target.shape)
    mend = f"reshape the target to {x.shape}" if equal else "repeat or index one of them first"
    raise ShapeError(
        f"{message}; they would broadcast to {joined}, which is seldom what is meant: {mend}"
    )


def pointwise(
    name: str,
    loss: Rule,
    *cotangents: Rule,
    x_range: Range = (-2.0, 2.0),
    target_range: Range = (-2.0, 2.0),
    kinks: Callable[..., Any] | None = None,
    options: Iterable[dict[str, Any]] = ({},),
) -> Operation:
    """Register a row of the table.

    Parameters
    ----------
    name : the operation's name: that of PyTorch's function.
    loss : ``loss(K, x, target, **options)``, the loss of each element.
    cotangents : ``rule(K, dy, x, target, **options)``, the cotangents of x and of the target; dy
        may be a single element.
    x_range, target_range : ranges of the samples.
    kinks : ``kinks(difference, **options)``, how far x - target is from a point without a
        derivative.
    options : the options of the samples.
    """

    def forward(
        K: Any, x: Any, target: Any, *, scale: float = 1.0, reduce: bool = True, **options: Any
    ) -> Any:
        if x.shape != target.shape:
            raise ValueError("the shapes differ")  # `infer` has the words
        value = loss(K, x, target, **options)
        if reduce:
            value = K.sum(value)
        return value if scale == 1.0 else K.multiply(value, scale)

    def backward(
        K: Any,
        call: Any,
        dy: Any,
        x: Any,
        target: Any,
        *,
        scale: float = 1.0,
        reduce: bool = True,
        **options: Any,
    ) -> Any:
        if scale != 1.0:
            dy = K.multiply(dy, scale)
        return [
            None if edge is None else rule(K, dy, x, target, **options)
            for edge, rule in zip(call.edges, cotangents, strict=True)
        ]

    def infer(
        x: Spec, target: Spec, *, scale: float = 1.0, reduce: bool = True, **options: Any
    ) -> Spec:
        check_same_shape(name, x, target)
        dtype = np.result_type(x.dtype, target.dtype)
        if dtype.kind not in "fV":  # extension types such as bfloat16 report kind "V"
            raise DTypeError(f"{name}: input ({x}) must be real numbers; use a float dtype")
        return Spec(() if reduce else x.shape, dtype)

    def samples(rng: np.random.Generator) -> Iterable[Sample]:
        for option in options:
            for i, shape in enumerate(ODD_SHAPES):
                x, target = draw(rng, shape, *x_range), draw(rng, shape, *target_range)
                if kinks is not None:
                    x = np.where(np.abs(kinks(x - target, **option)) < 0.05, x + 0.11, x)
                yield Sample((x, target), {"reduce": i % 2 == 0, "scale": 1 / (1 + i), **option})

    return Operation(name, forward, backward, infer, samples, saves=("x", "target")).register()


MSE_LOSS = pointwise(
    "mse_loss",
    lambda K, x, t: K.square(K.subtract(x, t)),
    lambda K, dy, x, t: K.multiply(K.subtract(x, t), K.multiply(dy, 2.0)),
    lambda K, dy, x, t: K.multiply(K.subtract(t, x), K.multiply(dy, 2.0)),
)
L1_LOSS = pointwise(
    "l1_loss",
    lambda K, x, t: K.absolute(K.subtract(x, t)),
    lambda K, dy, x, t: K.multiply(K.sign(K.subtract(x, t)), dy),
    lambda K, dy, x, t: K.multiply(K.sign(K.subtract(t, x)), dy),
    kinks=lambda d: d,
)


def _huber(K: Any, x: Any, target: Any, *, delta: float = 1.0) -> Any:
    # With q = min(|d|, delta), q |d| - q**2 / 2 is d**2 / 2 within delta and the line delta (|d| -
    # delta / 2) outside (Huber 1964), without choosing between the two.
    distance = K.absolute(K.subtract(x, target))
    inner = K.minimum(distance, delta)
    return K.multiply(inner, K.subtract(distance, K.multiply(inner, 0.5)))


def _huber_cotangent(K: Any, dy: Any, x: Any, target: Any, *, delta: float = 1.0) -> Any:
    return K.multiply(K.clip(K.subtract(x, target), -delta, delta), dy)


HUBER_LOSS = pointwise(
    "huber_loss",
    _huber,
    _huber_cotangent,
    lambda K, dy, x, t, delta=1.0: _huber_cotangent(K, dy, t, x, delta=delta),
    kinks=lambda d, delta: np.minimum(np.abs(d - delta), np.abs(d + delta)),
    options=({"delta": 1.0}, {"delta": 0.4}),
)


def _cross_entropy_of_probability(K: Any, x: Any, target: Any) -> Any:
    # -(t log x + (1 - t) log(1 - x)), the logarithms held above LOG_FLOOR, as PyTorch does, so that
    # a loss stays finite.
    yes = K.maximum(K.log(x), LOG_FLOOR)
    no = K.maximum(K.log1p(K.negative(x)), LOG_FLOOR)
    return K.negative(K.add(no, K.multiply(target, K.subtract(yes, no))))


def _probability_cotangent(K: Any, dy: Any, x: Any, target: Any) -> Any:
    # (x - t) / (x (1 - x)), the divisor held above SLOPE_FLOOR for the same reason.
    spread = K.maximum(K.multiply(x, K.subtract(1.0, x)), SLOPE_FLOOR)
    return K.multiply(K.divide(K.subtract(x, target), spread), dy)


def _target_cotangent(K: Any, dy: Any, x: Any, target: Any) -> Any:
    no = K.maximum(K.log1p(K.negative(x)), LOG_FLOOR)
    return K.multiply(K.subtract(no, K.maximum(K.log(x), LOG_FLOOR)), dy)


BINARY_CROSS_ENTROPY = pointwise(
    "binary_cross_entropy",
    _cross_entropy_of_probability,
    _probability_cotangent,
    _target_cotangent,
    x_range=(0.05, 0.95),
    target_range=(0.0, 1.0),
)

# With x = log(p / (1 - p)), -(t log p + (1 - t) log(1 - p)) = softplus(x) - t x: nothing overflows
# and no digits are lost.
BINARY_CROSS_ENTROPY_WITH_LOGITS = pointwise(
    "binary_cross_entropy_with_logits",
    lambda K, x, t: K.subtract(K.softplus(x), K.multiply(x, t)),
    lambda K, dy, x, t: K.multiply(K.subtract(K.sigmoid(x), t), dy),
    lambda K, dy, x, t: K.multiply(K.negative(x), dy),
    x_range=(-4.0, 4.0),
    target_range=(0.0, 1.0),
)
