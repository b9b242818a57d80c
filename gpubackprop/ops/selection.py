"""Operations that choose by value: where, clip."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.ops.define import (
    BROADCAST_SHAPES,
    ODD_SHAPES,
    broadcast_shapes,
    draw,
    result_dtype,
)


def _where_forward(K: Any, condition: Any, x1: Any, x2: Any) -> Any:
    return K.where(condition, x1, x2)


def _where_backward(K: Any, call: Any, dy: Any, condition: Any) -> Any:
    _, first, second = call.needs
    return (
        None,
        K.where(condition, dy, 0.0) if first else None,
        K.where(condition, 0.0, dy) if second else None,
    )


def _where_infer(condition: Any, x1: Any, x2: Any) -> Spec:
    dtype = np.result_type(*[np.empty(1, s.dtype) if isinstance(s, Spec) else s for s in (x1, x2)])
    return Spec(broadcast_shapes("where", (condition, x1, x2)), dtype)


def _where_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for s1, s2 in BROADCAST_SHAPES:
        condition = rng.uniform(size=np.broadcast_shapes(s1, s2)) < 0.5
        yield Sample((condition, rng.standard_normal(s1), rng.standard_normal(s2)))
    row = rng.uniform(size=(5,)) < 0.5
    yield Sample(
        (row, rng.standard_normal((3, 1)), rng.standard_normal((3, 5))),
        note="a broadcast condition",
    )
    yield Sample((row, rng.standard_normal((5,)), 0.0), note="a Python number")
    yield Sample((row, -1.5, rng.standard_normal((5,))), note="a Python number")


WHERE = Operation(
    "where",
    _where_forward,
    _where_backward,
    _where_infer,
    _where_samples,
    saves=("condition",),
    broadcasts=True,
).register()


def _clip_forward(K: Any, x: Any, *, low: float | None = None, high: float | None = None) -> Any:
    return K.clip(x, low, high)


def _clip_backward(
    K: Any, call: Any, dy: Any, x: Any, *, low: float | None = None, high: float | None = None
) -> Any:
    # The slope is 1 within the bounds, and on them (as in PyTorch), else 0.
    if low is not None:
        dy = K.where(K.greater_equal(x, low), dy, 0.0)
    if high is not None:
        dy = K.where(K.less_equal(x, high), dy, 0.0)
    return (dy,)


def _clip_infer(x: Spec, *, low: float | None = None, high: float | None = None) -> Spec:
    return Spec(x.shape, result_dtype("clip", [x, low, high]))


def _clip_samples(rng: np.random.Generator) -> Iterable[Sample]:
    bounds: tuple[tuple[float | None, float | None], ...] = (
        (-0.5, 0.75),
        (None, 0.5),
        (-0.25, None),
    )
    for shape in ODD_SHAPES:
        for low, high in bounds:
            x = draw(rng, shape, -2.0, 2.0, tuple(b for b in (low, high) if b is not None))
            yield Sample((x,), {"low": low, "high": high})


CLIP = Operation(
    "clip", _clip_forward, _clip_backward, _clip_infer, _clip_samples, saves=("x",)
).register()
