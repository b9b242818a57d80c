"""Functions that choose elements by position or by value."""

from __future__ import annotations

from gpubackprop.autograd import Tensor, apply
from gpubackprop.autograd.tape import NUMBERS
from gpubackprop.errors import ShapeError
from gpubackprop.ops import indexing as _indexing
from gpubackprop.ops import selection as _selection
from gpubackprop.ops import shape as _shape
from gpubackprop.ops.functions.operands import Operand, as_tensor, first_number, operands, tensors

__all__ = ["clip", "gather", "scatter_add", "take", "take_along_axis", "where"]


def where(condition: Operand, x: Operand, y: Operand) -> Tensor:
    """Elements of `x` where a condition holds, else those of `y`.

    Parameters
    ----------
    condition : tensor or array-like; where it is not zero it holds.
    x, y : tensors, numbers or array-likes. The three broadcast.

    Returns
    -------
    Tensor
        Of the common shape.

    Raises
    ------
    ShapeError
        If the shapes do not broadcast.

    Notes
    -----
    The derivative of the element that was not chosen is 0, but 0 times an infinite slope further up
    is NaN: guard the argument, not the result, of a function such as ``log``.
    """
    if type(x) in NUMBERS and type(y) in NUMBERS:
        # Two numbers would make float64; one of them becomes a tensor as gb.tensor makes it.
        x = first_number(x, y, device=condition.backend if isinstance(condition, Tensor) else None)
    return apply(_selection.WHERE, *operands("where", condition, x, y))


def clip(x: Operand, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """Each element, but no smaller than `min` and no larger than `max`.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    min, max : the bounds: numbers, or tensors that broadcast with `x`; None for no bound.

    Returns
    -------
    Tensor
        Of the shape of `x` (broadcast with the bounds).

    Raises
    ------
    DTypeError
        If there is no bound at all.

    Notes
    -----
    For bounds that are numbers the derivative is 1 within and on them, and 0 outside.
    """
    return as_tensor(x).clip(min, max)


def take(x: Operand, indices: Operand, axis: int | None = None) -> Tensor:
    """Slices along an axis, by number.

    Parameters
    ----------
    x : tensor or array-like with at least one axis.
    indices : integers of any shape; negative ones count from the end.
    axis : axis to take from; None for the flattened `x`.

    Returns
    -------
    Tensor
        Of shape ``x.shape[:axis] + indices.shape + x.shape[axis + 1:]``. The derivatives of a slice
        that was taken several times add up.

    Raises
    ------
    ShapeError
        If an index is out of range (on a GPU, where looking would mean to wait, indices wrap around
        instead).
    """
    return as_tensor(x).take(indices, axis)


def take_along_axis(x: Operand, indices: Operand, axis: int | None = -1) -> Tensor:
    """For each position, the element along an axis that an index names.

    Parameters
    ----------
    x : tensor or array-like with at least one axis.
    indices : integers, with as many axes as `x`; the other axes broadcast with those of `x`.
    axis : axis that the indices count along; None for the flattened `x` and 1-d indices.

    Returns
    -------
    Tensor
        ``result[i, j] = x[i, indices[i, j]]`` for two axes and axis 1.

    Raises
    ------
    ShapeError
        If the shapes do not fit or an index is out of range.
    """
    x, indices = tensors("take_along_axis", x, indices)
    if axis is None:
        x, axis = x.ravel(), 0
    return apply(_indexing.TAKE_ALONG_AXIS, x, indices, axis=axis)


def gather(input: Operand, dim: int, index: Operand) -> Tensor:
    """PyTorch's gather: for each position, the element along an axis that an index names.

    Parameters
    ----------
    input : tensor or array-like with at least one axis.
    dim : axis that the indices count along.
    index : integers, with as many axes as `input` and no longer than it along the other axes.

    Returns
    -------
    Tensor
        Of the shape of `index`: ``result[i, j] = input[i, index[i, j]]`` for two axes and dim 1.

    Raises
    ------
    ShapeError
        If the shapes do not fit or an index is out of range.
    """
    x, numbers = tensors("gather", input, index)
    along = _check_lengths("gather", "input", x, dim, numbers, skip=True)
    key = tuple(slice(None) if a == along else slice(0, n) for a, n in enumerate(numbers.shape))
    return apply(_indexing.TAKE_ALONG_AXIS, x[key], numbers, axis=along)


def scatter_add(input: Operand, dim: int, index: Operand, src: Operand) -> Tensor:
    """PyTorch's scatter_add: elements added at the places along an axis that an index names.

    Parameters
    ----------
    input : tensor or array-like with at least one axis: what is added to.
    dim : axis that the indices count along.
    index : integers, with as many axes as `input` and no longer than it along the other axes.
    src : elements to add; as many axes, and no axis shorter than that of `index`.

    Returns
    -------
    Tensor
        Of the shape of `input`: ``result[i, index[i, j]] += src[i, j]`` for two axes and dim 1. A
        place named several times gets all of its elements, in a fixed order.

    Raises
    ------
    ShapeError
        If the shapes do not fit or an index is out of range.
    """
    x, numbers, values = tensors("scatter_add", input, index, src)
    along = _check_lengths("scatter_add", "input", x, dim, numbers, skip=True)
    _check_lengths("scatter_add", "src", values, dim, numbers, skip=False)
    values = values[tuple(slice(0, n) for n in numbers.shape)]
    added = apply(_indexing.SCATTER_ALONG_AXIS, values, numbers, axis=along, size=x.shape[along])
    missing = tuple((0, n - m) for n, m in zip(x.shape, added.shape, strict=True))
    if missing != ((0, 0),) * x.ndim:
        added = apply(_shape.PAD, added, pad_width=missing)
    return x + added


def _check_lengths(name: str, role: str, x: Tensor, dim: int, index: Tensor, skip: bool) -> int:
    """The axis, counted from the front; `index` must fit into `x` (where `skip`, save along it)."""
    if x.ndim != index.ndim or not x.ndim or not -x.ndim <= dim < x.ndim:
        raise ShapeError(
            f"{name}: index {list(index.shape)} must have as many axes as {role} "
            f"{list(x.shape)}, dim {dim} among them"
        )
    along = dim % x.ndim
    for a, (n, m) in enumerate(zip(x.shape, index.shape, strict=True)):
        if m > n and not (skip and a == along):
            raise ShapeError(
                f"{name}: index {list(index.shape)} is longer than {role} {list(x.shape)} along "
                f"axis {a}"
            )
    return along
