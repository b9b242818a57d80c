"""Cross-entropy of logits with class indices: softmax, logarithm, choice of the class and reduction
in one node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.backends.composites import is_half
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.ops.define import result_dtype
from gpubackprop.suggest import unknown

REDUCTIONS = ("mean", "sum", "none")


def _labels(K: Any, target: Any) -> Any:
    """The target in a dtype that holds every class and the ignored index."""
    return (
        target
        if target.dtype.itemsize >= 4 and target.dtype.kind == "i"
        else K.astype(target, "int64")
    )


def _forward(
    K: Any,
    x: Any,
    target: Any,
    weight: Any,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Any:
    fits = x.ndim == 2 and target.shape == x.shape[:1] and target.dtype.kind in "iu"
    fits = fits and (weight is None or weight.shape == x.shape[1:])
    if not (fits and reduction in REDUCTIONS and 0.0 <= label_smoothing <= 1.0):
        raise ValueError("an argument does not fit")  # `infer` has the words
    target = _labels(K, target)
    if is_half(weight):
        weight = K.astype(weight, "float32")
    loss, *spread = K.softmax_cross_entropy(x, target, weight, ignore_index, label_smoothing)
    if reduction == "none":
        return loss, *spread, None
    if reduction == "sum":
        return K.sum(loss), *spread, None
    count = K.astype(total_weight(K, target, weight, ignore_index), spread[1].dtype)
    return K.divide(K.sum(loss), count), *spread, count


def total_weight(K: Any, target: Any, weight: Any, ignore_index: int) -> Any:
    """The sum of the weights of the rows' classes, ignored rows left out: what the mean divides
    by."""
    kept = K.not_equal(target, ignore_index)
    if weight is None:
        return K.sum(kept)
    return K.sum(K.where(kept, K.take(weight, K.where(kept, target, 0)), 0.0))


def _backward(
    K: Any,
    call: Any,
    dy: Any,
    x: Any,
    target: Any,
    weight: Any,
    out: Any,
    top: Any,
    total: Any,
    count: Any,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Any:
    target = _labels(K, target)
    if count is not None:
        dy = K.divide(dy, count)
    rows = dy if reduction == "none" else K.broadcast_to(dy, target.shape)
    dx = dw = None
    if call.needs[0]:
        dx = K.softmax_cross_entropy_backward(
            rows, x, top, total, target, weight, ignore_index, label_smoothing
        )
    if call.needs[2]:
        # A class's weight multiplies its part of every row's loss, and (in the mean) is counted
        # once for each of its rows.
        logp = K.log_softmax(K.astype(x, total.dtype), axis=1)
        classes, dtype = logp.shape[1], logp.dtype
        share = K.smoothed_targets(target, classes, dtype, None, ignore_index, label_smoothing)
        part = K.multiply(share, K.where(K.equal(share, 0), 0.0, logp))
        if count is not None:
            hits = K.smoothed_targets(target, classes, dtype, None, ignore_index, 0.0)
            part = K.add(part, K.multiply(hits, out))
        dw = K.negative(K.sum(K.multiply(K.reshape(rows, (rows.shape[0], 1)), part), axis=0))
    return dx, None, dw


def _infer(
    x: Spec,
    target: Spec,
    weight: Spec | None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Spec:
    name = "cross_entropy"
    if reduction not in REDUCTIONS:
        raise ConfigError(f"{name}: {unknown('reduction', reduction, REDUCTIONS)}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ConfigError(f"{name}: label_smoothing must be between 0 and 1, not {label_smoothing}")
    if len(x.shape) != 2 or not x.shape[1]:
        raise ShapeError(f"{name}: input ({x}) must have shape (N, C) with at least one class")
    if target.dtype.kind not in "iu":
        raise DTypeError(
            f"{name}: target ({target}) must be integers, the class index of each row of "
            f"input ({x}); floats are taken as probabilities and need the shape of input"
        )
    if target.shape != x.shape[:1]:
        if target.shape == (x.shape[0], 1):
            mend = f"reshape it to ({x.shape[0]},)"
        elif target.shape == x.shape:
            mend = (
                "turn one-hot rows into indices with argmax(axis=1), "
                "or into probabilities with a float dtype"
            )
        else:
            mend = f"one index for each of the {x.shape[0]} rows"
        raise ShapeError(
            f"{name}: target ({target}) must have shape ({x.shape[0]},) for input ({x}): {mend}"
        )
    if weight is not None and weight.shape != x.shape[1:]:
        raise ShapeError(
            f"{name}: weight ({weight}) must have shape ({x.shape[1]},), one for each class of "
            f"input ({x})"
        )
    # The cost of half logits is float32: in bfloat16 it would be right to 1 in 256.
    dtype = np.dtype("float32") if is_half(x) else result_dtype("log_softmax", [x])
    if weight is not None:
        dtype = np.result_type(dtype, weight.dtype)
    return Spec(target.shape if reduction == "none" else (), dtype)


def _samples(rng: np.random.Generator) -> Iterable[Sample]:
    for n, classes in ((5, 3), (1, 1), (3, 10), (7, 2)):
        x, target = 3 * rng.standard_normal((n, classes)), rng.integers(0, classes, n)
        weight = rng.uniform(0.5, 1.5, classes)
        for reduction in REDUCTIONS:
            yield Sample((x, target, None), {"reduction": reduction})
            yield Sample((x, target, weight), {"reduction": reduction, "label_smoothing": 0.1})
        if n > 1:
            yield Sample((x, np.append(target[1:], -100), weight), {}, note="an ignored row")
    x, target = rng.standard_normal((4, 3)), np.array([2, 1, 0, 2])
    yield Sample(
        (x, target, None), {"ignore_index": 2, "label_smoothing": 0.3}, note="a class ignored"
    )
    yield Sample((x, target.astype(np.uint8), None), {"reduction": "none"}, note="small labels")
    yield Sample((x + 2000.0, target, None), {}, note="exp overflows")
    yield Sample((np.asfortranarray(x), target, None), {}, note="not contiguous")
    yield Sample(
        (np.zeros((0, 3)), np.zeros(0, np.int64), None), {"reduction": "none"}, note="no rows"
    )


SOFTMAX_CROSS_ENTROPY = Operation(
    "softmax_cross_entropy",
    _forward,
    _backward,
    _infer,
    _samples,
    saves=("x", "target", "weight", "out", "top", "total", "count"),
    extras=("top", "total", "count"),
    constant_extras=False,
).register()
