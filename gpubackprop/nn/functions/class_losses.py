"""Costs and figures of rows of classes, under PyTorch's names and with its meanings;
``nn.functional`` exports them."""

from __future__ import annotations

import math
from typing import Any

from gpubackprop.autograd import REGISTRY, Tensor, apply, no_grad
from gpubackprop.backends import Shape
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn.functions.arguments import (
    as_operand,
    check_inside,
    check_not_nan,
    check_reduction,
    reduce_loss,
)

SOFTMAX_CROSS_ENTROPY = REGISTRY["softmax_cross_entropy"]
LOG_SOFTMAX = REGISTRY["log_softmax"]
TAKE_ALONG_AXIS = REGISTRY["take_along_axis"]
WHERE = REGISTRY["where"]


def cross_entropy(
    input: Tensor,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log(softmax(input)) of the target's class, or its mean under the target's probabilities.

    Parameters
    ----------
    input : logits (C,), (N, C) or (N, C, d1, ...): the classes are axis 1, or the only one.
    target : class indices, integers in [0, C), of the input's shape without the class axis; or
        probabilities, floats of the input's shape.
    weight : (C,), a factor for the loss of each class.
    ignore_index : places with this class index cost nothing and do not count in the mean. For class
        indices only.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``. The mean of class indices divides by the sum of
        the weights of the classes that occur (their number without `weight`); the mean of
        probabilities by the number of places. If every place is ignored the mean is NaN.
    label_smoothing : share of the target, between 0 and 1, that is spread evenly over all classes
        (Szegedy et al. 2016).

    Returns
    -------
    Tensor
        A single element, or one for each place.

    Raises
    ------
    ShapeError, DTypeError
        If the target does not fit the input.
    IndexError
        On the CPU, if a class index is out of range; the error names it. (It is also a ShapeError.)
        A device that would have to be waited for gives NaN for that row's loss instead.
    """
    target = as_operand("cross_entropy", "target", target, input)
    if target.dtype.kind not in "iu":
        return _cross_entropy_of_probabilities(
            input, target, weight, ignore_index, reduction, label_smoothing
        )
    if weight is not None:
        weight = as_operand("cross_entropy", "weight", weight, input)
    options = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
    }
    if input.ndim == 2:
        return apply(SOFTMAX_CROSS_ENTROPY, input, target, weight, **options)
    places = _check_places("cross_entropy", input, target)
    _check_classes("cross_entropy", input, target, ignore_index)
    rows = _class_last(input)
    loss = apply(SOFTMAX_CROSS_ENTROPY, rows, target.reshape(rows.shape[0]), weight, **options)
    return loss.reshape(places) if reduction == "none" else loss


def _cross_entropy_of_probabilities(
    input: Tensor,
    target: Tensor,
    weight: Any,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    name = "cross_entropy"
    if target.dtype.kind == "b":
        raise DTypeError(
            f"{name}: target is boolean; class indices must be integers, probabilities floats: "
            "target.astype(input.dtype)"
        )
    axis = _class_axis(name, input)
    if target.shape == input.shape[:axis] + input.shape[axis + 1 :]:
        raise DTypeError(
            f"{name}: target has shape {target.shape}, one number for each place of input "
            f"{input.shape}, but is {target.dtype}; class indices must be integers: "
            'target.astype("int64")'
        )
    if target.shape != input.shape:
        raise ShapeError(
            f"{name}: target of dtype {target.dtype} is taken as probabilities and must have the "
            f"shape {input.shape} of input, not {target.shape}; class indices must be integers"
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise ConfigError(f"{name}: label_smoothing must be between 0 and 1, not {label_smoothing}")
    if ignore_index >= 0:
        raise ConfigError(
            f"{name}: ignore_index={ignore_index} is for class indices, "
            "but target holds probabilities"
        )
    check_not_nan(name, target)
    classes = input.shape[axis]
    if label_smoothing:
        target = target * (1.0 - label_smoothing) + label_smoothing / classes
    logp = apply(LOG_SOFTMAX, input, axis=axis)
    if weight is not None:
        logp = logp * _class_factor(name, weight, input).reshape(
            classes, *(1,) * (input.ndim - 1 - axis)
        )
    loss = -(target * logp).sum(axis=axis)
    return reduce_loss(name, loss, reduction)


def nll_loss(
    input: Tensor,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-input at the target's class: :func:`cross_entropy` of log-probabilities, such as
    ``log_softmax`` gives.

    Parameters
    ----------
    input : log-probabilities (C,), (N, C) or (N, C, d1, ...).
    target : class indices, integers in [0, C), of the input's shape without the class axis.
    weight, ignore_index, reduction : as for :func:`cross_entropy`.
    """
    name = "nll_loss"
    target = as_operand(name, "target", target, input)
    places = _check_places(name, input, target)
    check_reduction(name, reduction)
    ignored, label = _check_classes(name, input, target, ignore_index)
    axis = _class_axis(name, input)
    index = label.reshape(*places[:axis], 1, *places[axis:])
    loss = -apply(TAKE_ALONG_AXIS, input, index, axis=axis).reshape(places)
    share: Tensor | None = None
    if weight is not None:
        share = _class_factor(name, weight, input).take(label, axis=0)
        loss = loss * share
    loss = apply(WHERE, ignored, 0.0, loss)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if share is None:
        total = (~ignored).sum().astype(loss.dtype)
    else:
        total = apply(WHERE, ignored, 0.0, share).sum()
    return loss.sum() / total


@no_grad()
def accuracy(input: Tensor, target: Any) -> Tensor:
    """The share of rows whose largest element is at the target's class.

    Parameters
    ----------
    input : (N, C) logits or probabilities.
    target : (N,) class indices; or (N, C), rows whose largest element marks the class.

    Returns
    -------
    Tensor
        A single float64, between 0 and 1 (NaN without rows), on the input's device.
    """
    target = as_operand("accuracy", "target", target, input)
    if input.ndim != 2:
        raise ShapeError(f"accuracy: input must have shape (N, C), not {input.shape}")
    if target.shape == input.shape:
        target = target.argmax(axis=1)
    elif target.shape != input.shape[:1] or target.dtype.kind not in "iu":
        raise ShapeError(
            f"accuracy: target must hold {input.shape[0]} class indices (integers), or rows of "
            f"shape {input.shape}; it is {target.dtype} of shape {target.shape}"
        )
    return (input.argmax(axis=1) == target).mean()


def _class_axis(name: str, input: Tensor) -> int:
    """The axis of the classes: the second, or the only one."""
    if not input.ndim:
        raise ShapeError(f"{name}: input must have shape (C,), (N, C) or (N, C, d1, ...), not ()")
    return min(1, input.ndim - 1)


def _check_places(name: str, input: Tensor, target: Tensor) -> Shape:
    """The input's shape without the class axis, which must be that of the integer target."""
    axis = _class_axis(name, input)
    places = input.shape[:axis] + input.shape[axis + 1 :]
    if target.dtype.kind not in "iu":
        raise DTypeError(f"{name}: target must be class indices, integers, not {target.dtype}")
    if target.shape != places:
        raise ShapeError(
            f"{name}: target has shape {target.shape}, but input of shape {input.shape} has its "
            f"classes along axis {axis} and needs a target of shape {places}"
        )
    return places


def _check_classes(
    name: str, input: Tensor, target: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Which places are ignored, and class indices that are safe to look up: 0 where ignored. A
    wrong index is an error."""
    classes = input.shape[_class_axis(name, input)]
    # Small and unsigned dtypes may not hold `ignore_index`.
    wide = target.dtype.itemsize >= 4 and target.dtype.kind == "i"
    label = target if wide else target.astype("int64")
    ignored = label == ignore_index
    label = apply(WHERE, ignored, 0, label)
    wanted = f"a class index in [0, {classes}) nor ignore_index={ignore_index}"
    check_inside(name, "target", label, 0, classes - 1, wanted)
    return ignored, label


def _class_last(input: Tensor) -> Tensor:
    """(C,) or (N, C, d1, ...) as rows of classes (places, C)."""
    axis = min(1, input.ndim - 1)
    classes = input.shape[axis]
    moved = input.moveaxis(axis, -1)
    return moved.reshape(math.prod(moved.shape[:-1]), classes)


def _class_factor(name: str, weight: Any, input: Tensor) -> Tensor:
    """Weights of the classes."""
    weight = as_operand(name, "weight", weight, input)
    classes = input.shape[_class_axis(name, input)]
    if weight.shape != (classes,):
        raise ShapeError(
            f"{name}: weight must have shape ({classes},), one for each class, not {weight.shape}"
        )
    return weight
