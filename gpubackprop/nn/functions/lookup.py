"""Integers as rows: of a table, and of zeros with a single 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn.functions.arguments import as_operand, check_inside

__all__ = ["embedding", "one_hot"]

TAKE = REGISTRY["take"]
WHERE = REGISTRY["where"]


def embedding(input: Any, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of a table, by number.

    Parameters
    ----------
    input : integers in [0, rows), any shape.
    weight : (rows, features).
    padding_idx : this row gets no gradient; a negative number counts from the end.

    Returns
    -------
    Tensor
        (*input.shape, features).

    Raises
    ------
    DTypeError, ShapeError
        If the input is not integer, the table has not two axes, or (on the CPU, where looking costs
        nothing) a number is out of range: the error names it.
    """
    input = as_operand("embedding", "input", input, weight)
    if input.dtype.kind not in "iu":
        raise DTypeError(
            f"embedding: input must be integers, row numbers of weight, not {input.dtype}"
        )
    if weight.ndim != 2:
        raise ShapeError(f"embedding: weight must have shape (rows, features), not {weight.shape}")
    rows = weight.shape[0]
    check_inside("embedding", "input", input, 0, rows - 1, f"a row of weight, in [0, {rows})")
    result = apply(TAKE, weight, input, axis=0)
    if padding_idx is None:
        return result
    if not -rows <= padding_idx < rows:
        raise ConfigError(
            f"embedding: padding_idx {padding_idx} is no row of weight, which has {rows}"
        )
    padding = (input == padding_idx % rows).reshape(*input.shape, 1)
    return apply(WHERE, padding, result.detach(), result)


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Class indices as rows of zeros with a single 1.

    Parameters
    ----------
    tensor : integers in [0, num_classes), any shape.
    num_classes : -1 takes the largest index plus one, which waits for a device.

    Returns
    -------
    Tensor
        int64, (*tensor.shape, num_classes). An index out of range is an error on the CPU and a row
        of zeros on a device.
    """
    if tensor.dtype.kind not in "iu":
        raise DTypeError(f"one_hot: class indices must be integers, not {tensor.dtype}")
    if num_classes == -1:
        if not tensor.size:
            raise ShapeError(
                "one_hot: an empty tensor does not tell the number of classes; pass num_classes"
            )
        num_classes = int(tensor.max().item()) + 1
    if num_classes < 1:
        raise ConfigError(
            f"one_hot: num_classes must be positive, or -1 for the largest index, not {num_classes}"
        )
    check_inside("one_hot", "tensor", tensor, 0, num_classes - 1, f"a class in [0, {num_classes})")
    kernels = tensor.backend
    column = kernels.reshape(kernels.astype(tensor.array, np.int64), (*tensor.shape, 1))
    hit = kernels.equal(column, kernels.arange(0, num_classes, 1, np.int64))
    return Tensor(kernels.astype(hit, np.int64), kernels)
