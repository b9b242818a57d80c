"""Functions that move elements without changing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor, apply
from gpubackprop.backends import Axis, DType
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.ops import joining as _joining
from gpubackprop.ops import shape as _shape
from gpubackprop.ops.functions.operands import Operand, as_tensor, tensors

__all__ = [
    "astype",
    "broadcast_to",
    "cat",
    "concatenate",
    "copy",
    "expand_dims",
    "flip",
    "moveaxis",
    "pad",
    "ravel",
    "reshape",
    "split",
    "squeeze",
    "stack",
    "swapaxes",
    "transpose",
]


def reshape(x: Operand, shape: int | Sequence[int]) -> Tensor:
    """The elements in C order under another shape.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    shape : the new shape; one entry may be -1, which is then worked out.

    Returns
    -------
    Tensor
        Of shape `shape`; shares memory with `x` where the layout allows.

    Raises
    ------
    ShapeError
        If the elements do not fill the shape.
    """
    return as_tensor(x).reshape(shape)


def ravel(x: Operand) -> Tensor:
    """The elements in C order along one axis.

    Parameters
    ----------
    x : tensor or array-like, any shape.

    Returns
    -------
    Tensor
        Of shape ``(x.size,)``.
    """
    return as_tensor(x).ravel()


def squeeze(x: Operand, axis: Axis = None) -> Tensor:
    """`x` without axes of size one.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis or axes to remove, which must have size one; None for all that have.

    Returns
    -------
    Tensor
        The same elements with fewer axes.

    Raises
    ------
    ShapeError
        If a named axis does not exist or has not size one.
    """
    return as_tensor(x).squeeze(axis)


def expand_dims(x: Operand, axis: int | tuple[int, ...]) -> Tensor:
    """`x` with new axes of size one.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : place or places of the new axes in the result.

    Returns
    -------
    Tensor
        The same elements with more axes.
    """
    return as_tensor(x).expand_dims(axis)


def transpose(x: Operand, axes: Sequence[int] | None = None) -> Tensor:
    """Axes permuted.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axes : for each axis of the result, the axis of `x` that it is; None reverses them.

    Returns
    -------
    Tensor
        Shares memory with `x`.

    Raises
    ------
    ShapeError
        If `axes` does not name each axis once.
    """
    return as_tensor(x).transpose(axes)


def swapaxes(x: Operand, axis1: int, axis2: int) -> Tensor:
    """Two axes exchanged.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis1, axis2 : the axes.

    Returns
    -------
    Tensor
        Shares memory with `x`.
    """
    return as_tensor(x).swapaxes(axis1, axis2)


def moveaxis(x: Operand, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """Axes moved to other places; the rest keep their order.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    source : axis or axes to move.
    destination : for each of them, its place in the result.

    Returns
    -------
    Tensor
        Shares memory with `x`.
    """
    return as_tensor(x).moveaxis(source, destination)


def broadcast_to(x: Operand, shape: Sequence[int]) -> Tensor:
    """Axes of size one, and missing leading axes, repeated to fill a shape.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    shape : the new shape.

    Returns
    -------
    Tensor
        Of shape `shape`; shares memory with `x`.

    Raises
    ------
    ShapeError
        If the shape of `x` does not broadcast to `shape`.
    """
    return as_tensor(x).broadcast_to(shape)


def concatenate(arrays: Sequence[Operand], axis: int | None = 0) -> Tensor:
    """Arrays joined along an axis that they have.

    Parameters
    ----------
    arrays : tensors or array-likes of equal shape, except along `axis`.
    axis : axis to join along; None joins the flattened arrays.

    Returns
    -------
    Tensor
        As long along `axis` as all the arrays together.

    Raises
    ------
    ShapeError
        If there are no arrays, or their shapes differ along another axis.
    """
    parts = _several("concatenate", arrays)
    if axis is None:
        return apply(_joining.CONCATENATE, *[p.ravel() for p in parts], axis=0)
    return apply(_joining.CONCATENATE, *parts, axis=axis)


def cat(tensors: Sequence[Operand], dim: int = 0) -> Tensor:
    """PyTorch's name for :func:`concatenate`.

    Parameters
    ----------
    tensors : tensors or array-likes of equal shape, except along `dim`.
    dim : axis to join along.

    Returns
    -------
    Tensor
        As long along `dim` as all the tensors together.
    """
    return concatenate(tensors, dim)


def stack(arrays: Sequence[Operand], axis: int = 0) -> Tensor:
    """Arrays of equal shape joined along a new axis.

    Parameters
    ----------
    arrays : tensors, numbers or array-likes of equal shape.
    axis : place of the new axis in the result.

    Returns
    -------
    Tensor
        With one axis more than the arrays.

    Raises
    ------
    ShapeError
        If there are no arrays or their shapes differ.
    """
    parts = _several("stack", arrays)
    for i, part in enumerate(parts):
        if part.shape != parts[0].shape:
            raise ShapeError(
                f"stack: array {i} has shape {part.shape} and array 0 has {parts[0].shape}; they "
                "must be equal"
            )
    ndim = parts[0].ndim
    if not -ndim - 1 <= axis <= ndim:
        raise ShapeError(
            f"stack: axis {axis} is no place among {ndim} axes; allowed: {-ndim - 1} to {ndim}"
        )
    return apply(_joining.CONCATENATE, *[p.expand_dims(axis) for p in parts], axis=axis)


def split(
    x: Operand, indices_or_sections: int | Sequence[int], axis: int = 0
) -> tuple[Tensor, ...]:
    """`x` cut along an axis.

    Parameters
    ----------
    x : tensor or array-like with at least one axis.
    indices_or_sections : a number of equal parts, or the indices at which a new part begins.
    axis : axis to cut.

    Returns
    -------
    tuple of Tensor
        The parts, which share memory with `x`.

    Raises
    ------
    ShapeError
        If the axis cannot be cut into equal parts, or the indices do not rise within its length.
    """
    return as_tensor(x).split(indices_or_sections, axis)


def pad(
    x: Operand,
    pad_width: int | Sequence[int] | Sequence[Sequence[int]],
    mode: str = "constant",
    constant_values: float = 0.0,
) -> Tensor:
    """One value added around an array.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    pad_width : how many elements to add: one number for all ends, ``(before, after)`` for all axes,
        or such a pair for each axis.
    mode : ``"constant"``, the only one.
    constant_values : the value.

    Returns
    -------
    Tensor
        Larger by ``before + after`` along each axis.

    Raises
    ------
    ConfigError
        If `mode` is another.
    ShapeError
        If the widths are negative or do not fit the axes.
    """
    if mode != "constant":
        raise ConfigError(f"pad: mode {mode!r} is not known; allowed: 'constant'")
    x = as_tensor(x)
    try:
        pairs = np.broadcast_to(np.asarray(pad_width), (x.ndim, 2)).tolist()
    except ValueError:
        raise ShapeError(
            f"pad: pad_width {pad_width} must be a number, a pair, or a pair for each of the "
            f"{x.ndim} axes of x"
        ) from None
    return apply(
        _shape.PAD, x, pad_width=tuple((int(a), int(b)) for a, b in pairs), value=constant_values
    )


def flip(x: Operand, axis: Axis = None) -> Tensor:
    """The order of the elements reversed.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis or axes to reverse; None for all.

    Returns
    -------
    Tensor
        Of the shape of `x`.
    """
    return as_tensor(x).flip(axis)


def astype(x: Operand, dtype: DType) -> Tensor:
    """The values with another dtype.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    dtype : NumPy dtype. Between floats the derivative passes through; integers and booleans have
        none.

    Returns
    -------
    Tensor
        Of the shape of `x`; shares its memory if it has the dtype already.
    """
    return as_tensor(x).astype(dtype)


def copy(x: Operand) -> Tensor:
    """The same values in memory of their own.

    Parameters
    ----------
    x : tensor or array-like, any shape.

    Returns
    -------
    Tensor
        Of the shape of `x`, C-contiguous; the derivative passes through.
    """
    return as_tensor(x).copy()


def _several(name: str, arrays: Any) -> list[Tensor]:
    parts = tensors(name, *arrays)
    if not parts:
        raise ShapeError(f"{name}: needs at least one array")
    return parts
