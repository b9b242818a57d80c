"""Functions that combine the elements along axes.

Parameters that all of them share: `x`, a tensor or array-like of any shape; `axis`, an axis,
several, or None for all of them (negative axes count from the end); `keepdims`, whether the reduced
axes stay, with size one.
"""

from __future__ import annotations

from gpubackprop.autograd import Tensor
from gpubackprop.backends import Axis
from gpubackprop.ops.functions.operands import Operand, as_tensor

__all__ = [
    "all",
    "any",
    "argmax",
    "argmin",
    "cumsum",
    "logsumexp",
    "max",
    "mean",
    "min",
    "prod",
    "std",
    "sum",
    "var",
]


def sum(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Sum of the elements; the sum of nothing is 0.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis or axes to sum over; None for all.
    keepdims : keep the reduced axes, with size one.

    Returns
    -------
    Tensor
        Of the shape of `x` without the reduced axes. Integers are summed as int64, float16 in
        float32.

    Raises
    ------
    ShapeError
        If `x` has no such axis.
    """
    return as_tensor(x).sum(axis, keepdims)


def prod(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Product of the elements; the product of nothing is 1.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis or axes to multiply over; None for all.
    keepdims : keep the reduced axes, with size one.

    Returns
    -------
    Tensor
        Of the shape of `x` without the reduced axes.

    Notes
    -----
    The derivative by an element is the product of the others, which is also right where elements
    are 0.
    """
    return as_tensor(x).prod(axis, keepdims)


def mean(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Arithmetic mean of the elements; the mean of nothing is NaN.

    Parameters
    ----------
    x : tensor or array-like, any shape; integers give float64.
    axis : axis or axes to average over; None for all.
    keepdims : keep the reduced axes, with size one.

    Returns
    -------
    Tensor
        Of the shape of `x` without the reduced axes.
    """
    return as_tensor(x).mean(axis, keepdims)


def var(x: Operand, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """Variance: the mean squared deviation from the mean.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis or axes to average over; None for all.
    keepdims : keep the reduced axes, with size one.
    ddof : the sum of squares of n elements is divided by ``n - ddof`` (1 for the unbiased
        estimate).

    Returns
    -------
    Tensor
        Of the shape of `x` without the reduced axes.
    """
    return as_tensor(x).var(axis, keepdims, ddof)


def std(x: Operand, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """Standard deviation: the square root of :func:`var`.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis or axes to average over; None for all.
    keepdims : keep the reduced axes, with size one.
    ddof : the sum of squares of n elements is divided by ``n - ddof``.

    Returns
    -------
    Tensor
        Of the shape of `x` without the reduced axes.

    Notes
    -----
    It has no derivative where all elements are equal; the result there is NaN.
    """
    return as_tensor(x).std(axis, keepdims, ddof)


def max(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Largest element; NaN if there is one.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis or axes to search; None for all.
    keepdims : keep the reduced axes, with size one.

    Returns
    -------
    Tensor
        Of the shape of `x` without the reduced axes.

    Raises
    ------
    ShapeError
        If there is nothing to choose from.

    Notes
    -----
    Elements that share the first place share the derivative equally.
    """
    return as_tensor(x).max(axis, keepdims)


def min(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Smallest element; NaN if there is one.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis or axes to search; None for all.
    keepdims : keep the reduced axes, with size one.

    Returns
    -------
    Tensor
        Of the shape of `x` without the reduced axes.

    Raises
    ------
    ShapeError
        If there is nothing to choose from.

    Notes
    -----
    Elements that share the last place share the derivative equally.
    """
    return as_tensor(x).min(axis, keepdims)


def any(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether some element is true (not zero).

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis or axes to search; None for all.
    keepdims : keep the reduced axes, with size one.

    Returns
    -------
    Tensor
        Booleans, of the shape of `x` without the reduced axes.
    """
    return as_tensor(x).any(axis, keepdims)


def all(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether every element is true (not zero).

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis or axes to search; None for all.
    keepdims : keep the reduced axes, with size one.

    Returns
    -------
    Tensor
        Booleans, of the shape of `x` without the reduced axes.
    """
    return as_tensor(x).all(axis, keepdims)


def argmax(x: Operand, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Index of the first largest element.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis to search; None for the flattened `x`.
    keepdims : keep the reduced axes, with size one.

    Returns
    -------
    Tensor
        int64, of the shape of `x` without the axis.

    Raises
    ------
    ShapeError
        If there is nothing to choose from.
    """
    return as_tensor(x).argmax(axis, keepdims)


def argmin(x: Operand, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Index of the first smallest element.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis to search; None for the flattened `x`.
    keepdims : keep the reduced axes, with size one.

    Returns
    -------
    Tensor
        int64, of the shape of `x` without the axis.

    Raises
    ------
    ShapeError
        If there is nothing to choose from.
    """
    return as_tensor(x).argmin(axis, keepdims)


def logsumexp(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))), computed so that nothing overflows.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis or axes to sum over; None for all.
    keepdims : keep the reduced axes, with size one.

    Returns
    -------
    Tensor
        Of the shape of `x` without the reduced axes.

    Raises
    ------
    ShapeError
        If there is nothing to sum.

    Notes
    -----
    The largest element is taken out before and added after. The derivative is the softmax of `x`.
    """
    return as_tensor(x).logsumexp(axis, keepdims)


def cumsum(x: Operand, axis: int | None = None) -> Tensor:
    """Running sum.

    Parameters
    ----------
    x : tensor or array-like, any shape.
    axis : axis to sum along; None for the flattened `x`.

    Returns
    -------
    Tensor
        Of the shape of `x` (1-d where `axis` is None): element i is the sum of elements 0 to i.
    """
    return as_tensor(x).cumsum(axis)
