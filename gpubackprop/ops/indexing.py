"""Operations that choose elements: indexing and slicing, gather and scatter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.autograd.operation import IndexRangeError
from gpubackprop.backends import Shape, backend_of
from gpubackprop.errors import DTypeError, ShapeError
from gpubackprop.ops.define import broadcast_shapes, check_axis

# Indexing with a key.


def _on_host(key: Any) -> Any:
    """A key with its arrays as NumPy arrays."""
    if isinstance(key, tuple):
        return tuple(_on_host(k) for k in key)
    return backend_of(key).to_numpy(key) if hasattr(key, "dtype") else key


def _getitem_forward(K: Any, x: Any, *, key: Any) -> Any:
    return K.getitem(x, key)


def _getitem_backward(K: Any, call: Any, dy: Any, *, key: Any) -> Any:
    return (K.scatter_getitem(dy, key, call.shapes[0]),)


def _getitem_infer(x: Spec, *, key: Any) -> Spec:
    return Spec(_selected("getitem", x.shape, key), x.dtype)


def _selected(name: str, shape: Shape, key: Any) -> Shape:
    """Shape of what `key` selects out of `shape`: NumPy says, on an array without memory."""
    try:
        return np.broadcast_to(np.zeros((), np.int8), shape)[_on_host(key)].shape
    except (IndexError, ValueError) as error:
        raise IndexRangeError(
            f"{name}: {error} (x has shape {tuple(shape)}, the index is {_words(key)})"
        ) from None
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
    ((3, 5), np.int64(2), "a NumPy integer"),
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
    ((2, 3, 4), (slice(None), np.array([2, 0, 2])), "an array for one axis"),
    ((3,), np.array([True, False, True]), "a mask of rows"),
    ((2, 3), np.array([[True, False, True], [False, False, True]]), "a mask"),
)


def _getitem_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, key, note in KEYS:
        yield Sample((rng.standard_normal(shape),), {"key": key}, note=note)


GETITEM = Operation(
    "getitem", _getitem_forward, _getitem_backward, _getitem_infer, _getitem_samples
).register()


def _scatter_getitem_forward(K: Any, dy: Any, *, key: Any, shape: Shape) -> Any:
    return K.scatter_getitem(dy, key, shape)


def _scatter_getitem_backward(K: Any, call: Any, dy: Any, *, key: Any, shape: Shape) -> Any:
    return (K.getitem(dy, key),)


def _scatter_getitem_infer(dy: Spec, *, key: Any, shape: Shape) -> Spec:
    selected = _selected("scatter_getitem", shape, key)
    if selected != dy.shape:
        raise ShapeError(
            f"scatter_getitem: the index selects shape {selected} out of {tuple(shape)}, but dy "
            f"is {dy}"
        )
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


def _take_forward(K: Any, x: Any, indices: Any, *, axis: int = 0) -> Any:
    return K.take(x, indices, axis=axis)


def _take_backward(K: Any, call: Any, dy: Any, indices: Any, *, axis: int = 0) -> Any:
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


TAKE = Operation(
    "take", _take_forward, _take_backward, _take_infer, _take_samples, saves=("indices",)
).register()


def _scatter_take_forward(K: Any, dy: Any, indices: Any, *, axis: int, size: int) -> Any:
    return K.scatter_take(dy, indices, axis, size)


def _scatter_take_backward(
    K: Any, call: Any, dy: Any, indices: Any, *, axis: int, size: int
) -> Any:
    return K.take(dy, indices, axis=axis), None


def _scatter_take_infer(dy: Spec, indices: Spec, *, axis: int, size: int) -> Spec:
    _check_indices("scatter_take", indices)
    end = axis + len(indices.shape)
    if axis < 0 or dy.shape[axis:end] != indices.shape:
        raise ShapeError(
            f"scatter_take: from axis {axis} on (counted from the front), dy ({dy}) must have "
            f"the axes of indices ({indices})"
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


def _take_along_axis_forward(K: Any, x: Any, indices: Any, *, axis: int) -> Any:
    return K.take_along_axis(x, indices, axis)


def _take_along_axis_backward(K: Any, call: Any, dy: Any, indices: Any, *, axis: int) -> Any:
    return K.scatter_along_axis(dy, indices, axis, call.shapes[0][axis]), None


def _along_axis_shape(name: str, x: Spec, indices: Spec, axis: int) -> Shape:
    """Shape of ``take_along_axis``: that of the indices, broadcast with the other axes of x."""
    _check_indices(name, indices)
    if len(x.shape) != len(indices.shape) or not x.shape:
        raise ShapeError(
            f"{name}: indices ({indices}) must have as many axes as x ({x}), and at least one"
        )
    (along,) = check_axis(name, axis, x)
    lead = Spec((*x.shape[:along], 1, *x.shape[along + 1 :]), x.dtype)
    shape = broadcast_shapes(
        name, (lead, Spec((*indices.shape[:along], 1, *indices.shape[along + 1 :]), x.dtype))
    )
    return (*shape[:along], indices.shape[along], *shape[along + 1 :])


def _take_along_axis_infer(x: Spec, indices: Spec, *, axis: int) -> Spec:
    return Spec(_along_axis_shape("take_along_axis", x, indices, axis), x.dtype)


ALONG_CASES: tuple[tuple[Shape, Shape, int], ...] = (
    ((3, 5), (3, 1), 1),
    ((3, 5), (3, 4), -1),
    ((5, 3), (7, 3), 0),
    ((2, 3, 4), (2, 2, 4), 1),
    ((1,), (3,), 0),
    ((1,), (1,), 0),
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


def _scatter_along_axis_forward(K: Any, dy: Any, indices: Any, *, axis: int, size: int) -> Any:
    return K.scatter_along_axis(dy, indices, axis, size)


def _scatter_along_axis_backward(
    K: Any, call: Any, dy: Any, indices: Any, *, axis: int, size: int
) -> Any:
    return K.take_along_axis(dy, indices, axis), None


def _scatter_along_axis_infer(dy: Spec, indices: Spec, *, axis: int, size: int) -> Spec:
    shape = _along_axis_shape("scatter_along_axis", dy, indices, axis)
    if shape != dy.shape:
        raise ShapeError(
            f"scatter_along_axis: indices ({indices}) must broadcast to the shape of dy ({dy})"
        )
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
