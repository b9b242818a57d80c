"""Products of matrices and sums of products."""

from __future__ import annotations

from gpubackprop.autograd import Tensor, apply
from gpubackprop.errors import DTypeError, ShapeError
from gpubackprop.ops import products as _products
from gpubackprop.ops.functions.operands import Operand, tensors

__all__ = ["dot", "einsum", "matmul", "outer"]


def matmul(x1: Operand, x2: Operand) -> Tensor:
    """Matrix product of the last two axes; ``x1 @ x2``.

    Parameters
    ----------
    x1 : tensor or array-like of shape (..., m, k), or (k,) for a row.
    x2 : tensor or array-like of shape (..., k, n), or (k,) for a column.

    Returns
    -------
    Tensor
        Of shape (..., m, n), where the leading axes broadcast; m or n is missing where an argument
        is 1-d.

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    """
    if isinstance(x1, Tensor) and isinstance(x2, Tensor):
        return apply(_products.MATMUL, x1, x2)
    return apply(_products.MATMUL, *tensors("matmul", x1, x2))


def dot(x1: Operand, x2: Operand) -> Tensor:
    """Inner product of two vectors, or the matrix product of up to two axes.

    Parameters
    ----------
    x1, x2 : tensors, numbers or array-likes with at most two axes. A number is multiplied by each
        element.

    Returns
    -------
    Tensor

    Raises
    ------
    ShapeError
        If the shapes do not fit, or there are more axes: use :func:`matmul` or :func:`einsum` then.
    """
    a, b = tensors("dot", x1, x2)
    if a.ndim > 2 or b.ndim > 2:
        raise ShapeError(
            f"dot: x1 {list(a.shape)} and x2 {list(b.shape)} may have two axes at most; use "
            "matmul or einsum"
        )
    return a @ b if a.ndim and b.ndim else a * b


def outer(x1: Operand, x2: Operand) -> Tensor:
    """Every product of an element of `x1` and one of `x2`.

    Parameters
    ----------
    x1, x2 : tensors or array-likes; flattened to m and n elements.

    Returns
    -------
    Tensor
        Of shape (m, n).
    """
    a, b = tensors("outer", x1, x2)
    return a.reshape(-1 if a.size else 0, 1) * b.ravel()


def einsum(subscripts: str, *operands: Operand) -> Tensor:
    """Sums of products by Einstein's convention.

    Parameters
    ----------
    subscripts : a letter for each axis of each operand, and after ``->`` those of the result:
        ``"ij,jk->ik"`` is the matrix product. Letters missing from the result are summed over; one
        that an operand has twice reads its diagonal. ``...`` stands for axes that broadcast.
        Without ``->`` the result has the letters that occur once, in alphabetical order.
    operands : tensors or array-likes.

    Returns
    -------
    Tensor

    Raises
    ------
    ShapeError
        If the subscripts are not well formed or do not fit the operands.
    """
    if not isinstance(subscripts, str):
        raise DTypeError(f"einsum: subscripts must be a string, not a {type(subscripts).__name__}")
    parts = tensors("einsum", *operands)
    if not parts:
        raise ShapeError("einsum: needs at least one operand")
    plain = _products.explicit_subscripts(subscripts, [p.ndim for p in parts])
    return apply(_products.EINSUM, *parts, subscripts=plain)
