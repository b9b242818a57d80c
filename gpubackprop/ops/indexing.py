"""Operations that choose elements: indexing and slicing, gather and scatter, where, clip."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.autograd.operation import IndexErrorInOperation
from gpubackprop.backends import Shape, backend_of
from gpubackprop.errors import DTypeError, ShapeError
from gpubackprop.ops.define import BROADCAST_SHAPES, ODD_SHAPES, broadcast_shapes, check_axis, draw, result_dtype

# Indexing with a key.


def _on_device(K: Any, key: Any) -> Any:  # noqa: N803
    """A key with its host arrays moved to the device of K."""
    if isinstance(key, tuple):
        return tuple(_on_device(K, k) for k in key)
    return K.asarray(key) if isinstance(key, np.ndarray) else key


def _on_host(key: Any) -> Any:
    """A key with its arrays as NumPy arrays."""
    if isinstance(key, tuple):
        return tuple(_on_host(k) for k in key)
    return backend_of(key).to_numpy(key) if hasattr(key, "dtype") else key


def _getitem_forward(K: Any, x: Any, *, key: Any) -> Any:  # noqa: N803
    return K.getitem(x, _on_device(K, key))


def _getitem_backward(K: Any, call: Any, dy: Any, *, key: Any) -> Any:  # noqa: N803
    return (K.scatter_getitem(dy, key, call.shapes[0]),)


def _getitem_infer(x: Spec, *, key: Any) -> Spec:
    return Spec(_selected("getitem", x.shape, key), x.dtype)


def _selected(name: str, shape: Shape, key: Any) -> Shape:
    """Shape of what `key` selects out of `shape`: NumPy is asked, with an array that occupies no memory."""
    try:
        return np.broadcast_to(np.zeros((), np.int8), shape)[_on_host(key)].shape
    except (IndexError, ValueError) as error:
        raise IndexErrorInOperation(f"{name}: {error} (x has shape {tuple(shape)}, the index is {_words(key)})") from None
    except TypeError as error:
        raise DTypeError(f"{name}: {error} (the index is {_words(key)})") from None


def _words(key: Any) -> str:
    """A key as one would write it between brackets; arrays by shape and dtype."""
    parts = []
    for k in key if isinstance(key, tuple) else (key,):
        if isinstance(k, slice):
            ends = ["" if e is None else str(e) for e in (k.start, k.stop)]
            parts.append(":".join(ends) + ("" if k.step is None else f":{k.step}"))
        elif k is Ellipsis:
            parts.append("...")
        else:
            parts.append(str(Spec.of(k)))
    return f"[{', '.join(parts)}]"


KEYS: tuple[tuple[Shape, Any, str], ...] = (
    ((3, 5), 1, "an integer"),
    ((3, 5), (-1, 2), "integers"),
    ((3, 5), slice(1, None), "a slice"),
    ((7, 5), (slice(None, None, -2), slice(1, 4)), "steps"),
    ((2, 3, 4), (..., 1), "ellipsis"),
    ((3, 5), (None, slice(None), None, 2), "new axes"),
    ((3, 5), slice(0, 0), "nothing"),
    ((0, 3), (slice(None), 1), "out of nothing"),
    ((1,), 0, "one"),
    ((), (), "no axes"),
    ((3, 5), np.array([2, 0, 2, 2, -1]), "rows, some twice"),
    ((3, 5), (np.array([0, 2, 0]), np.array([4, 1, 4])), "elements, one twice"),
    ((3, 5), (slice(1, 3), np.array([[0, 1], [4, 0]])), "a slice and an array"),
    ((2, 3, 4), (np.array([1, 0]), slice(None), np.array([3, 3])), "arrays apart"),
    ((3, 5), np.array([], dtype=np.int64), "an empty array"),
    ((3,), np.array([True, False, True]), "a mask of rows"),
    ((2, 3), np.array([[True, False, True], [False, False, True]]), "a mask"),
)


def _getitem_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, key, note in KEYS:
        yield Sample((rng.standard_normal(shape),), {"key": key}, note=note)


GETITEM = Operation("getitem", _getitem_forward, _getitem_backward, _getitem_infer, _getitem_samples).register()


def _scatter_getitem_forward(K: Any, dy: Any, *, key: Any, shape: Shape) -> Any:  # noqa: N803
    return K.scatter_getitem(dy, _on_device(K, key), shape)


def _scatter_getitem_backward(K: Any, call: Any, dy: Any, *, key: Any, shape: Shape) -> Any:  # noqa: N803
    return (K.getitem(dy, key),)


def _scatter_getitem_infer(dy: Spec, *, key: Any, shape: Shape) -> Spec:
    selected = _selected("scatter_getitem", shape, key)
    if selected != dy.shape:
        raise ShapeError(f"scatter_getitem: the index selects shape {selected} out of {tuple(shape)}, but dy is {dy}")
    return Spec(tuple(shape), dy.dtype)


def _scatter_getitem_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, key, note in KEYS:
        dy = rng.standard_normal(_selected("scatter_getitem", shape, key))
        yield Sample((dy,), {"key": key, "shape": shape}, note=note)


SCATTER_GETITEM = Operation(
    "scatter_getitem",
    _scatter_getitem_forward,
    _scatter_getitem_backward,
    _scatter_getitem_infer,
    _scatter_getitem_samples,
).register()


# Slices along one axis, by number.


def _check_indices(name: str, indices: Any) -> None:
    if not isinstance(indices, Spec) or indices.dtype.kind not in "iu":
        raise DTypeError(f"{name}: indices must be an array of integers, not {indices}")


def _take_forward(K: Any, x: Any, indices: Any, *, axis: int = 0) -> Any:  # noqa: N803
    return K.take(x, indices, axis=axis)


def _take_backward(K: Any, call: Any, dy: Any, indices: Any, *, axis: int = 0) -> Any:  # noqa: N803
    shape = call.shapes[0]
    axis %= len(shape)
    return K.scatter_take(dy, indices, axis, shape[axis]), None


def _take_infer(x: Spec, indices: Spec, *, axis: int = 0) -> Spec:
    _check_indices("take", indices)
    if not x.shape:
        raise ShapeError("take: x has no axes")
    (along,) = check_axis("take", axis, x)
    return Spec((*x.shape[:along], *indices.shape, *x.shape[along + 1 :]), x.dtype)


TAKE_CASES: tuple[tuple[Shape, int, Any], ...] = (
    ((5, 3), 0, [4, 0, 4, 1]),
    ((3, 5), 1, [[0, 2, 2], [4, 4, 1]]),
    ((2, 3, 4), 1, [2, -1, 0, -3]),
    ((5,), 0, 3),
    ((1, 2), 0, [0, 0, 0]),
    ((4, 3), 0, np.zeros((0,), np.int64)),
    ((0, 3), 1, [2, 2]),
)


def _take_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, axis, indices in TAKE_CASES:
        yield Sample((rng.standard_normal(shape), np.asarray(indices, np.int64)), {"axis": axis})
    yield Sample((rng.standard_normal((2, 3, 4)), np.array([[3, 0], [1, 3]])), {"axis": -1})


TAKE = Operation("take", _take_forward, _take_backward, _take_infer, _take_samples, saves=("indices",)).register()


def _scatter_take_forward(K: Any, dy: Any, indices: Any, *, axis: int, size: int) -> Any:  # noqa: N803
    return K.scatter_take(dy, indices, axis, size)


def _scatter_take_backward(K: Any, call: Any, dy: Any, indices: Any, *, axis: int, size: int) -> Any:  # noqa: N803
    return K.take(dy, indices, axis=axis), None


def _scatter_take_infer(dy: Spec, indices: Spec, *, axis: int, size: int) -> Spec:
    _check_indices("scatter_take", indices)
    end = axis + len(indices.shape)
    if axis < 0 or dy.shape[axis:end] != indices.shape:
        raise ShapeError(
            f"scatter_take: from axis {axis} on (counted from the front), dy ({dy}) must have the axes of indices ({indices})"
        )
    return Spec((*dy.shape[:axis], size, *dy.shape[end:]), dy.dtype)


def _scatter_take_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, axis, indices in TAKE_CASES:
        numbers = np.asarray(indices, np.int64)
        dy = rng.standard_normal((*shape[:axis], *numbers.shape, *shape[axis + 1 :]))
        yield Sample((dy, numbers), {"axis": axis, "size": shape[axis]})


SCATTER_TAKE = Operation(
    "scatter_take",
    _scatter_take_forward,
    _scatter_take_backward,
    _scatter_take_infer,
    _scatter_take_samples,
    saves=("indices",),
).register()


# One element along an axis for each position.


def _take_along_axis_forward(K: Any, x: Any, indices: Any, *, axis: int) -> Any:  # noqa: N803
    return K.take_along_axis(x, indices, axis)


def _take_along_axis_backward(K: Any, call: Any, dy: Any, indices: Any, *, axis: int) -> Any:  # noqa: N803
    return K.scatter_along_axis(dy, indices, axis, call.shapes[0][axis]), None


def _along_axis_shape(name: str, x: Spec, indices: Spec, axis: int) -> Shape:
    """Shape of ``take_along_axis``: that of the indices, broadcast with the other axes of x."""
    _check_indices(name, indices)
    if len(x.shape) != len(indices.shape) or not x.shape:
        raise ShapeError(f"{name}: indices ({indices}) must have as many axes as x ({x}), and at least one")
    (along,) = check_axis(name, axis, x)
    lead = Spec((*x.shape[:along], 1, *x.shape[along + 1 :]), x.dtype)
    shape = broadcast_shapes(name, (lead, Spec((*indices.shape[:along], 1, *indices.shape[along + 1 :]), x.dtype)))
    return (*shape[:along], indices.shape[along], *shape[along + 1 :])


def _take_along_axis_infer(x: Spec, indices: Spec, *, axis: int) -> Spec:
    return Spec(_along_axis_shape("take_along_axis", x, indices, axis), x.dtype)


ALONG_CASES: tuple[tuple[Shape, Shape, int], ...] = (
    ((3, 5), (3, 1), 1),
    ((3, 5), (3, 4), -1),
    ((5, 3), (7, 3), 0),
    ((2, 3, 4), (2, 2, 4), 1),
    ((1,), (3,), 0),
    ((0, 3), (0, 2), 1),
    ((3, 5), (1, 2), 1),
)


def _take_along_axis_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, selected, axis in (*ALONG_CASES, ((1, 5), (4, 2), 1)):
        indices = rng.integers(-shape[axis], shape[axis], selected)
        yield Sample((rng.standard_normal(shape), indices), {"axis": axis})


TAKE_ALONG_AXIS = Operation(
    "take_along_axis",
    _take_along_axis_forward,
    _take_along_axis_backward,
    _take_along_axis_infer,
    _take_along_axis_samples,
    saves=("indices",),
    broadcasts=True,
).register()


def _scatter_along_axis_forward(K: Any, dy: Any, indices: Any, *, axis: int, size: int) -> Any:  # noqa: N803
    return K.scatter_along_axis(dy, indices, axis, size)


def _scatter_along_axis_backward(K: Any, call: Any, dy: Any, indices: Any, *, axis: int, size: int) -> Any:  # noqa: N803
    return K.take_along_axis(dy, indices, axis), None


def _scatter_along_axis_infer(dy: Spec, indices: Spec, *, axis: int, size: int) -> Spec:
    shape = _along_axis_shape("scatter_along_axis", dy, indices, axis)
    if shape != dy.shape:
        raise ShapeError(f"scatter_along_axis: indices ({indices}) must broadcast to the shape of dy ({dy})")
    along = axis % len(shape)
    return Spec((*shape[:along], size, *shape[along + 1 :]), dy.dtype)


def _scatter_along_axis_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, selected, axis in ALONG_CASES:
        indices = rng.integers(-shape[axis], shape[axis], selected)
        dy = rng.standard_normal(np.take_along_axis(np.zeros(shape), indices, axis).shape)
        yield Sample((dy, indices), {"axis": axis, "size": shape[axis]})


SCATTER_ALONG_AXIS = Operation(
    "scatter_along_axis",
    _scatter_along_axis_forward,
    _scatter_along_axis_backward,
    _scatter_along_axis_infer,
    _scatter_along_axis_samples,
    saves=("indices",),
).register()


# Choosing by value.


def _where_forward(K: Any, condition: Any, x1: Any, x2: Any) -> Any:  # noqa: N803
    return K.where(condition, x1, x2)


def _where_backward(K: Any, call: Any, dy: Any, condition: Any) -> Any:  # noqa: N803
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
    yield Sample((row, rng.standard_normal((3, 1)), rng.standard_normal((3, 5))), note="a broadcast condition")
    yield Sample((row, rng.standard_normal((5,)), 0.0), note="a Python number")
    yield Sample((row, -1.5, rng.standard_normal((5,))), note="a Python number")


WHERE = Operation(
    "where", _where_forward, _where_backward, _where_infer, _where_samples, saves=("condition",), broadcasts=True
).register()


def _clip_forward(K: Any, x: Any, *, low: float | None = None, high: float | None = None) -> Any:  # noqa: N803
    return K.clip(x, low, high)


def _clip_backward(K: Any, call: Any, dy: Any, x: Any, *, low: float | None = None, high: float | None = None) -> Any:  # noqa: N803
    # The slope is 1 within the bounds, and on them (as in PyTorch), else 0.
    if low is not None:
        dy = K.where(K.greater_equal(x, low), dy, 0.0)
    if high is not None:
        dy = K.where(K.less_equal(x, high), dy, 0.0)
    return (dy,)


def _clip_infer(x: Spec, *, low: float | None = None, high: float | None = None) -> Spec:
    dtype = result_dtype("clip", [x, low, high])
    return Spec(x.shape, dtype)


def _clip_samples(rng: np.random.Generator) -> Iterable[Sample]:
    bounds: tuple[tuple[float | None, float | None], ...] = ((-0.5, 0.75), (None, 0.5), (-0.25, None))
    for shape in ODD_SHAPES:
        for low, high in bounds:
            x = draw(rng, shape, -2.0, 2.0, tuple(b for b in (low, high) if b is not None))
            yield Sample((x,), {"low": low, "high": high})


CLIP = Operation("clip", _clip_forward, _clip_backward, _clip_infer, _clip_samples, saves=("x",)).register()
