"""Reductions: operations that combine the elements along axes, and running sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.backends import Axis, Shape
from gpubackprop.backends.composites import normalize_axes
from gpubackprop.errors import ShapeError
from gpubackprop.ops.define import check_axis, reduced_shape, result_dtype

CASES: tuple[tuple[Shape, Axis], ...] = (
    ((3, 5), None),
    ((3, 5), 0),
    ((3, 5), -1),
    ((2, 3, 4), (0, 2)),
    ((2, 3, 4), (-1, 0)),
    ((2, 3, 4), 1),
    ((1,), None),
    ((7, 1), 1),
    ((), None),
    ((0, 3), 1),
)
"""Shapes and axes of the samples; none of them reduces nothing to something."""


def spread(K: Any, value: Any, shape: Shape, axis: Axis, keepdims: bool) -> Any:
    """A reduction's result or cotangent with the reduced axes at size one."""
    if keepdims or (axis is None and not value.shape):
        return value
    return K.reshape(value, reduced_shape(shape, normalize_axes(axis, len(shape)), True))


def reduction(
    kernel: str,
    backward: Callable[..., Any] | None,
    saves: tuple[str, ...] = (),
    *,
    draw: Callable[[np.random.Generator, Shape], np.ndarray] = lambda rng, shape: (
        rng.standard_normal(shape)
    ),
    empty: bool = True,
    order: int = 2,
) -> Operation:
    """Register a reduction over ``axis`` (an axis, several, or None for all) with ``keepdims``.

    Parameters
    ----------
    kernel : kernel and operation name.
    backward, saves, order : as in :class:`Operation`.
    draw : makes the inputs of the samples.
    empty : whether nothing can be reduced (the sum of nothing is 0; its largest element is an
        error).
    """

    def forward(K: Any, x: Any, *, axis: Axis = None, keepdims: bool = False) -> Any:
        return getattr(K, kernel)(x, axis=axis, keepdims=keepdims)

    def infer(x: Spec, *, axis: Axis = None, keepdims: bool = False) -> Spec:
        axes = check_axis(kernel, axis, x)
        shape = reduced_shape(x.shape, axes, keepdims)
        if not empty and 0 in x.shape and 0 not in shape:
            raise ShapeError(f"{kernel}: no elements to choose from along axis {axis} of x ({x})")
        return Spec(shape, result_dtype(kernel, [x]))

    def samples(rng: np.random.Generator) -> Iterable[Sample]:
        for i, (shape, axis) in enumerate(CASES):
            yield Sample((draw(rng, shape),), {"axis": axis, "keepdims": i % 2 == 1})
        yield Sample((draw(rng, (3, 5)),), {"axis": 0, "keepdims": True})
        yield Sample((draw(rng, (5, 3)).T,), {"axis": -1}, note="not contiguous")
        if empty and kernel != "mean":  # the mean of nothing is NaN
            yield Sample((draw(rng, (0, 3)),), {"axis": 0}, note="nothing to reduce")

    return Operation(kernel, forward, backward, infer, samples, saves=saves, order=order).register()


def distinct(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Values at least 0.1 apart, so that no step of a gradient check changes the largest."""
    n = math.prod(shape)
    return (0.3 * (rng.permutation(n) - n / 2) + rng.uniform(-0.1, 0.1, n)).reshape(shape)


# Sums.


def _sum_backward(K: Any, call: Any, dy: Any, *, axis: Axis = None, keepdims: bool = False) -> Any:
    shape = call.shapes[0]
    return (K.broadcast_to(spread(K, dy, shape, axis, keepdims), shape),)


SUM = reduction("sum", _sum_backward)


def _mean_backward(K: Any, call: Any, dy: Any, *, axis: Axis = None, keepdims: bool = False) -> Any:
    shape = call.shapes[0]
    share = K.divide(spread(K, dy, shape, axis, keepdims), max(K.count(shape, axis), 1))
    return (K.broadcast_to(share, shape),)


def _var_forward(
    K: Any, x: Any, *, axis: Axis = None, keepdims: bool = False, ddof: int = 0
) -> Any:
    return K.var(x, axis=axis, keepdims=keepdims, ddof=ddof)


def _var_backward(
    K: Any,
    call: Any,
    dy: Any,
    x: Any,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    ddof: int = 0,
) -> Any:
    # d/dx_i of sum_j (x_j - m)^2 / (n - ddof) is 2 (x_i - m) / (n - ddof): the part that goes
    # through m is 2 sum_j (x_j - m) = 0.
    weight = K.divide(
        K.multiply(spread(K, dy, x.shape, axis, keepdims), 2.0),
        max(K.count(x.shape, axis) - ddof, 0),
    )
    return (K.multiply(K.subtract(x, K.mean(x, axis=axis, keepdims=True)), weight),)


def _var_infer(x: Spec, *, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Spec:
    return Spec(
        reduced_shape(x.shape, check_axis("var", axis, x), keepdims), result_dtype("var", [x])
    )


def _var_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for i, (shape, axis) in enumerate(CASES):
        yield Sample((rng.standard_normal(shape),), {"axis": axis, "keepdims": i % 2 == 1})
    for shape, axis in (((3, 5), None), ((3, 5), 0), ((2, 3, 4), (0, 2))):
        yield Sample((rng.standard_normal(shape),), {"axis": axis, "ddof": 1})
    yield Sample((rng.standard_normal((3, 5)) + 1e4,), {"axis": 1}, note="a large mean")


MEAN = reduction("mean", _mean_backward)
VAR = Operation(
    "var", _var_forward, _var_backward, _var_infer, _var_samples, saves=("x",)
).register()


def _logsumexp_backward(
    K: Any,
    call: Any,
    dy: Any,
    x: Any,
    out: Any,
    *,
    axis: Axis = None,
    keepdims: bool = False,
) -> Any:
    # The slope is softmax(x) = exp(x - logsumexp(x)). A row of -inf alone has no slope to speak of;
    # 0 keeps NaN out.
    top = spread(K, K.where(K.isfinite(out), out, 0.0), x.shape, axis, keepdims)
    weight = K.exp(K.subtract(x, top))
    return (K.multiply(spread(K, dy, x.shape, axis, keepdims), weight),)


LOGSUMEXP = reduction("logsumexp", _logsumexp_backward, ("x", "out"), empty=False)


# Products.


def product_of_others(K: Any, x: Any) -> Any:
    """For each element, the product of the others along the last axis.

    There is no division, so that zeros do no harm.
    Pairs are multiplied, the products of the other pairs found by the same rule, and each element
    gets its partner times those: a tree of depth log2(n) and about 3 n multiplications. Being made
    of products only, it can be differentiated to any order.
    """
    *lead, n = x.shape
    if n == 0:
        return x
    if n == 1:
        return K.ones(x.shape, x.dtype)
    if n % 2:
        x = K.pad(x, ((0, 0),) * len(lead) + ((0, 1),), 1.0)
    half = (n + 1) // 2
    pairs = K.reshape(x, (*lead, half, 2))
    products = K.multiply(K.getitem(pairs, (..., 0)), K.getitem(pairs, (..., 1)))
    above = K.reshape(product_of_others(K, products), (*lead, half, 1))
    others = K.reshape(K.multiply(K.flip(pairs, axis=-1), above), (*lead, 2 * half))
    return K.getitem(others, (..., slice(0, n))) if n % 2 else others


def _prod_backward(
    K: Any, call: Any, dy: Any, x: Any, *, axis: Axis = None, keepdims: bool = False
) -> Any:
    # The slope by one factor is the product of the others.
    axes = normalize_axes(axis, x.ndim)
    order = (*[a for a in range(x.ndim) if a not in axes], *axes)
    moved = K.transpose(x, order)
    kept = moved.shape[: x.ndim - len(axes)]
    others = product_of_others(K, K.reshape(moved, (*kept, K.count(x.shape, axis))))
    back = tuple(order.index(a) for a in range(x.ndim))
    slope = K.transpose(K.reshape(others, moved.shape), back)
    return (K.multiply(spread(K, dy, x.shape, axis, keepdims), slope),)


PROD = reduction(
    "prod", _prod_backward, ("x",), draw=lambda rng, shape: rng.uniform(0.5, 1.5, shape)
)


# Largest and smallest.


def _extreme_backward(
    K: Any,
    call: Any,
    dy: Any,
    x: Any,
    out: Any,
    *,
    axis: Axis = None,
    keepdims: bool = False,
) -> Any:
    # Elements that tie share the cotangent equally (as in PyTorch's amax): the mean of the one-
    # sided slopes.
    chosen = K.equal(x, spread(K, out, x.shape, axis, keepdims))
    winners = K.sum(chosen, axis=axis, keepdims=True)
    winners = K.astype(K.maximum(winners, 1), dy.dtype)  # none, where the result is NaN
    share = K.divide(spread(K, dy, x.shape, axis, keepdims), winners)
    return (K.where(chosen, share, 0.0),)


MAX = reduction("max", _extreme_backward, ("x", "out"), draw=distinct, empty=False)
MIN = reduction("min", _extreme_backward, ("x", "out"), draw=distinct, empty=False)


def _booleans(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return np.asarray(rng.uniform(size=shape) < 0.6)


ANY = reduction("any", None, draw=_booleans)
ALL = reduction("all", None, draw=_booleans)


def _index_of(kernel: str) -> Operation:
    """Register ``argmax`` or ``argmin``."""

    def forward(K: Any, x: Any, *, axis: int | None = None, keepdims: bool = False) -> Any:
        return getattr(K, kernel)(x, axis=axis, keepdims=keepdims)

    def infer(x: Spec, *, axis: int | None = None, keepdims: bool = False) -> Spec:
        axes = check_axis(kernel, axis, x)
        if not math.prod(x.shape[a] for a in axes):
            raise ShapeError(f"{kernel}: no elements to choose from along axis {axis} of x ({x})")
        return Spec(reduced_shape(x.shape, axes, keepdims), np.dtype(np.int64))

    def samples(rng: np.random.Generator) -> Iterable[Sample]:
        for i, (shape, axis) in enumerate(CASES):
            if not isinstance(axis, tuple):
                yield Sample(
                    (distinct(rng, shape),),
                    {"axis": axis, "keepdims": i % 2 == 1},
                    differentiable=False,
                )
        ties = rng.integers(0, 3, (4, 7)).astype(np.float64)
        yield Sample((ties,), {"axis": 1}, differentiable=False, note="the first of several")

    return Operation(kernel, forward, None, infer, samples).register()


ARGMAX = _index_of("argmax")
ARGMIN = _index_of("argmin")


# Running sums.


def _cumsum_forward(K: Any, x: Any, *, axis: int) -> Any:
    return K.cumsum(x, axis=axis)


def _cumsum_backward(K: Any, call: Any, dy: Any, *, axis: int) -> Any:
    # Element i enters the sums i, i + 1, ...: its cotangent is the running sum of dy from the far
    # end.
    return (K.flip(K.cumsum(K.flip(dy, axis=axis), axis=axis), axis=axis),)


def _cumsum_infer(x: Spec, *, axis: int) -> Spec:
    if not x.shape:
        raise ShapeError("cumsum: x has no axes")
    check_axis("cumsum", axis, x)
    return Spec(x.shape, np.dtype(np.cumsum(np.ones(1, x.dtype), axis=0).dtype))


def _cumsum_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, axis in (
        ((3, 5), 0),
        ((3, 5), -1),
        ((1,), 0),
        ((0, 3), 0),
        ((0, 3), 1),
        ((2, 3, 4), 1),
    ):
        yield Sample((rng.standard_normal(shape),), {"axis": axis})


CUMSUM = Operation(
    "cumsum", _cumsum_forward, _cumsum_backward, _cumsum_infer, _cumsum_samples
).register()
