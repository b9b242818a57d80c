"""Operations that move elements: reshape, transpose, broadcast, pad, flip, cast."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.backends import Axis, DType, Shape, as_dtype
from gpubackprop.errors import ShapeError
from gpubackprop.ops.define import BROADCAST_SHAPES, ODD_SHAPES, check_axis, result_dtype, same_spec

# Shape.


def _reshape_forward(K: Any, x: Any, *, shape: Shape) -> Any:
    if min(shape, default=0) < -1:  # NumPy takes any negative size for -1
        raise ValueError("a negative size")
    return K.reshape(x, shape)


def _reshape_backward(K: Any, call: Any, dy: Any, *, shape: Shape) -> Any:
    return (K.reshape(dy, call.shapes[0]),)


def _reshape_infer(x: Spec, *, shape: Shape) -> Spec:
    size = math.prod(x.shape)
    known = math.prod(n for n in shape if n != -1)
    if min(shape, default=0) < -1 or list(shape).count(-1) > 1:
        raise ShapeError(
            f"reshape: shape {tuple(shape)} may hold one -1 and no other negative size"
        )
    if -1 in shape and known and size % known == 0:
        shape = tuple(size // known if n == -1 else n for n in shape)
    if -1 in shape or math.prod(shape) != size:
        raise ShapeError(
            f"reshape: the {size} elements of x ({x}) do not fill the shape {tuple(shape)}"
        )
    return Spec(tuple(shape), x.dtype)


def _reshape_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for old, new in (
        ((3, 4), (2, 6)),
        ((3, 4), (-1,)),
        ((2, 3, 5), (5, -1)),
        ((1,), ()),
        ((), (1, 1)),
        ((0, 3), (3, 0, 2)),
    ):
        yield Sample((rng.standard_normal(old),), {"shape": new})
    yield Sample((rng.standard_normal((3, 4)).T,), {"shape": (6, 2)}, note="not contiguous")


RESHAPE = Operation(
    "reshape", _reshape_forward, _reshape_backward, _reshape_infer, _reshape_samples
).register()


def _transpose_forward(K: Any, x: Any, *, axes: Sequence[int] | None = None) -> Any:
    return K.transpose(x, axes)


def _transpose_backward(K: Any, call: Any, dy: Any, *, axes: Sequence[int] | None = None) -> Any:
    if axes is None:
        return (K.transpose(dy),)
    back = [0] * len(axes)
    for to, where in enumerate(axes):
        back[where] = to
    return (K.transpose(dy, tuple(back)),)


def _transpose_infer(x: Spec, *, axes: Sequence[int] | None = None) -> Spec:
    ndim = len(x.shape)
    order = tuple(reversed(range(ndim))) if axes is None else tuple(axes)
    if len(order) != ndim or len(set(check_axis("transpose", order, x))) != ndim:
        raise ShapeError(
            f"transpose: axes {order} must name each of the {ndim} axes of x ({x}) once"
        )
    return Spec(tuple(x.shape[a] for a in order), x.dtype)


def _transpose_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, axes in (
        ((3, 5), None),
        ((), None),
        ((0, 3), None),
        ((2, 3, 4), (1, 2, 0)),
        ((2, 3, 4), (-1, 0, 1)),
        ((1, 5), (1, 0)),
    ):
        yield Sample((rng.standard_normal(shape),), {"axes": axes})


TRANSPOSE = Operation(
    "transpose", _transpose_forward, _transpose_backward, _transpose_infer, _transpose_samples
).register()


def _broadcast_to_forward(K: Any, x: Any, *, shape: Shape) -> Any:
    return K.broadcast_to(x, shape)


def _broadcast_to_backward(K: Any, call: Any, dy: Any, *, shape: Shape) -> Any:
    return (K.sum_to(dy, call.shapes[0]),)


def _check_repeats(name: str, small: Shape, large: Shape) -> None:
    lead = len(large) - len(small)
    if lead < 0 or any(n not in (1, m) for n, m in zip(small, large[lead:], strict=True)):
        raise ShapeError(
            f"{name}: shape {tuple(small)} does not broadcast to {tuple(large)}; sizes, counted "
            "from the last axis, "
            "must be equal or 1"
        )


def _broadcast_to_infer(x: Spec, *, shape: Shape) -> Spec:
    _check_repeats("broadcast_to", x.shape, shape)
    return Spec(tuple(shape), x.dtype)


BROADCAST_PAIRS: tuple[tuple[Shape, Shape], ...] = (
    ((3, 1), (3, 5)),
    ((5,), (3, 5)),
    ((), (2, 3)),
    ((1,), (0,)),
    ((), (1,)),
    ((1, 3), (0, 3)),
    ((2, 1, 3), (2, 4, 3)),
    ((3, 5), (3, 5)),
)


def _broadcast_to_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for small, large in BROADCAST_PAIRS:
        yield Sample((rng.standard_normal(small),), {"shape": large})


BROADCAST_TO = Operation(
    "broadcast_to",
    _broadcast_to_forward,
    _broadcast_to_backward,
    _broadcast_to_infer,
    _broadcast_to_samples,
).register()


def _sum_to_forward(K: Any, x: Any, *, shape: Shape) -> Any:
    return K.sum_to(x, shape)


def _sum_to_backward(K: Any, call: Any, dy: Any, *, shape: Shape) -> Any:
    return (K.broadcast_to(dy, call.shapes[0]),)


def _sum_to_infer(x: Spec, *, shape: Shape) -> Spec:
    _check_repeats("sum_to", shape, x.shape)
    # Where nothing is repeated nothing is summed, and integers keep their width.
    return Spec(tuple(shape), x.dtype if shape == x.shape else result_dtype("sum", [x]))


def _sum_to_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for small, large in BROADCAST_PAIRS:
        yield Sample((rng.standard_normal(large),), {"shape": small})


SUM_TO = Operation(
    "sum_to", _sum_to_forward, _sum_to_backward, _sum_to_infer, _sum_to_samples
).register()


# Padding, order and dtype.

PadWidth = Sequence[tuple[int, int]]


def _pad_forward(K: Any, x: Any, *, pad_width: PadWidth, value: float = 0.0) -> Any:
    return K.pad(x, pad_width, value)


def _pad_backward(K: Any, call: Any, dy: Any, *, pad_width: PadWidth, value: float = 0.0) -> Any:
    inner = tuple(slice(a, a + n) for n, (a, _) in zip(call.shapes[0], pad_width, strict=True))
    return (K.getitem(dy, inner),)


def _pad_infer(x: Spec, *, pad_width: PadWidth, value: float = 0.0) -> Spec:
    if len(pad_width) != len(x.shape) or any(len(w) != 2 or min(w) < 0 for w in pad_width):
        raise ShapeError(
            f"pad: pad_width {pad_width} must give (before, after), neither negative, for each "
            f"of the {len(x.shape)} "
            f"axes of x ({x})"
        )
    return Spec(tuple(n + a + b for n, (a, b) in zip(x.shape, pad_width, strict=True)), x.dtype)


def _pad_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, widths in (
        ((3, 5), ((1, 2), (0, 3))),
        ((1,), ((2, 0),)),
        ((), ()),
        ((0, 3), ((1, 1), (0, 1))),
        ((2, 3, 4), ((0, 0), (1, 1), (2, 2))),
    ):
        yield Sample((rng.standard_normal(shape),), {"pad_width": widths})
        yield Sample((rng.standard_normal(shape),), {"pad_width": widths, "value": -1.5})


# Strict: a negative width would cut the array instead.
PAD = Operation(
    "pad", _pad_forward, _pad_backward, _pad_infer, _pad_samples, strict=True
).register()


def _flip_forward(K: Any, x: Any, *, axis: Axis = None) -> Any:
    return K.flip(x, axis=axis)


def _flip_backward(K: Any, call: Any, dy: Any, *, axis: Axis = None) -> Any:
    return (K.flip(dy, axis=axis),)


def _flip_infer(x: Spec, *, axis: Axis = None) -> Spec:
    check_axis("flip", axis, x)
    return x


def _flip_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, axis in (
        ((3, 5), None),
        ((3, 5), -1),
        ((2, 3, 4), (0, 2)),
        ((1,), 0),
        ((0, 3), 0),
        ((), None),
    ):
        yield Sample((rng.standard_normal(shape),), {"axis": axis})


FLIP = Operation("flip", _flip_forward, _flip_backward, _flip_infer, _flip_samples).register()


def _astype_forward(K: Any, x: Any, *, dtype: DType) -> Any:
    return K.astype(x, dtype)


def _astype_backward(K: Any, call: Any, dy: Any, *, dtype: DType) -> Any:
    return (dy,)  # the tape casts a cotangent to the dtype of its input


def _astype_infer(x: Spec, *, dtype: DType) -> Spec:
    return Spec(x.shape, as_dtype(dtype))


def _astype_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape in ODD_SHAPES:
        yield Sample((rng.standard_normal(shape),), {"dtype": np.dtype("float64")})
    # Values that float32 holds exactly, for the rounding itself has no derivative.
    exact = rng.integers(-8, 8, (3, 5)).astype(np.float64)
    yield Sample((exact,), {"dtype": np.dtype("float32")}, differentiable=False)
    yield Sample(
        (exact + 0.5,), {"dtype": np.dtype("int64")}, differentiable=False, note="towards zero"
    )
    yield Sample((exact.astype(np.int64),), {"dtype": np.dtype("bool")}, differentiable=False)


ASTYPE = Operation(
    "astype", _astype_forward, _astype_backward, _astype_infer, _astype_samples
).register()


def _copy_forward(K: Any, x: Any) -> Any:
    return K.copy(x)


def _copy_backward(K: Any, call: Any, dy: Any) -> Any:
    return (dy,)


def _copy_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, _ in BROADCAST_SHAPES:
        yield Sample((rng.standard_normal(shape),))
    yield Sample((rng.standard_normal((3, 5)).T,), note="not contiguous")


COPY = Operation("copy", _copy_forward, _copy_backward, same_spec, _copy_samples).register()
