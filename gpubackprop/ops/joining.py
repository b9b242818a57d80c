"""Operations that join arrays along an axis, and that cut one."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.errors import ShapeError
from gpubackprop.ops.define import check_axis


def _concatenate_forward(K: Any, *arrays: Any, axis: int = 0) -> Any:
    return K.concatenate(arrays, axis=axis)


def _along(ndim: int, axis: int, start: int, stop: int) -> tuple[slice, ...]:
    """The key of a range of one axis."""
    before = axis % ndim
    return (*[slice(None)] * before, slice(start, stop))


def _concatenate_backward(K: Any, call: Any, dy: Any, *, axis: int = 0) -> Any:
    stops = list(accumulate(shape[axis] for shape in call.shapes))
    return [
        K.getitem(dy, _along(dy.ndim, axis, start, stop)) if needed else None
        for needed, start, stop in zip(call.needs, [0, *stops], stops, strict=False)
    ]


def _concatenate_infer(*arrays: Spec, axis: int = 0) -> Spec:
    first = arrays[0]
    if not first.shape:
        raise ShapeError("concatenate: arrays without axes cannot be joined; use stack")
    (along,) = check_axis("concatenate", axis, first)
    for i, x in enumerate(arrays):
        same = len(x.shape) == len(first.shape)
        if not same or any(
            n != m for a, (n, m) in enumerate(zip(x.shape, first.shape, strict=True)) if a != along
        ):
            raise ShapeError(
                f"concatenate: array {i} ({x}) and array 0 ({first}) may differ in size only "
                f"along axis {axis}"
            )
    total = sum(x.shape[along] for x in arrays)
    shape = (*first.shape[:along], total, *first.shape[along + 1 :])
    return Spec(shape, np.result_type(*[x.dtype for x in arrays]))


def _concatenate_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shapes, axis in (
        (((3, 5), (2, 5)), 0),
        (((3, 5), (3, 1), (3, 2)), 1),
        (((2, 3, 1), (2, 3, 4)), -1),
        (((4,),), 0),
        (((1,), (1,)), 0),
        (((0, 3), (2, 3)), 0),
        (((2, 1, 3), (2, 2, 3)), -2),
    ):
        yield Sample(tuple(rng.standard_normal(s) for s in shapes), {"axis": axis})


CONCATENATE = Operation(
    "concatenate",
    _concatenate_forward,
    _concatenate_backward,
    _concatenate_infer,
    _concatenate_samples,
).register()


def _split_forward(K: Any, x: Any, *, indices: tuple[int, ...], axis: int = 0) -> Any:
    bounds = [0, *indices, x.shape[axis]]
    return tuple(
        K.getitem(x, _along(x.ndim, axis, a, b)) for a, b in zip(bounds, bounds[1:], strict=False)
    )


def _split_backward(K: Any, call: Any, dy: Any, *, indices: tuple[int, ...], axis: int = 0) -> Any:
    return (K.concatenate(dy, axis=axis),)


def _split_infer(x: Spec, *, indices: tuple[int, ...], axis: int = 0) -> tuple[Spec, ...]:
    if not x.shape:
        raise ShapeError("split: x has no axes")
    (along,) = check_axis("split", axis, x)
    bounds = [0, *indices, x.shape[along]]
    if bounds != sorted(bounds):
        raise ShapeError(
            f"split: the cuts {tuple(indices)} must rise within [0, {x.shape[along]}], the "
            f"length of axis {axis} of x ({x})"
        )
    return tuple(
        Spec((*x.shape[:along], b - a, *x.shape[along + 1 :]), x.dtype)
        for a, b in zip(bounds, bounds[1:], strict=False)
    )


def _split_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, indices, axis in (
        ((6, 2), (2, 3), 0),
        ((3, 5), (1, 4), -1),
        ((2, 3, 4), (0, 2), 1),
        ((5,), (), 0),
        ((1,), (0,), 0),
        ((0, 3), (1,), 1),
    ):
        yield Sample((rng.standard_normal(shape),), {"indices": indices, "axis": axis})


# Strict: slices would take cuts that overlap or lie outside, and the rule would then join the wrong
# pieces.
SPLIT = Operation(
    "split",
    _split_forward,
    _split_backward,
    _split_infer,
    _split_samples,
    outputs="many",
    strict=True,
).register()
