"""Costs of elements against their targets, under PyTorch's names and with its meanings;
``nn.functional`` exports them.

``reduction`` is ``"mean"`` (the default), ``"sum"`` or ``"none"``. A target must have exactly the
shape of the input: one that would broadcast, such as (N, 1) against (N,), is an error.
"""

from __future__ import annotations

from typing import Any

from gpubackprop.autograd import REGISTRY, Operation, Tensor, apply
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn.functions.arguments import (
    as_operand,
    check_inside,
    check_not_nan,
    check_reduction,
    one_over,
    reduce_loss,
)
from gpubackprop.ops.losses import check_same_shape

MSE_LOSS = REGISTRY["mse_loss"]
L1_LOSS = REGISTRY["l1_loss"]
HUBER_LOSS = REGISTRY["huber_loss"]
BINARY_CROSS_ENTROPY = REGISTRY["binary_cross_entropy"]
BINARY_CROSS_ENTROPY_WITH_LOGITS = REGISTRY["binary_cross_entropy_with_logits"]
SOFTPLUS = REGISTRY["softplus"]
WHERE = REGISTRY["where"]


def mse_loss(input: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """(input - target)**2: the mean squared error.

    Parameters
    ----------
    input : any shape.
    target : of the same shape.
    reduction : ``"mean"`` over all elements, ``"sum"``, or ``"none"``.

    Returns
    -------
    Tensor
        A single element, or of the input's shape.
    """
    return _elementwise(MSE_LOSS, "mse_loss", input, target, reduction)


def quadratic_cost(input: Tensor, target: Any) -> Tensor:
    """sum((target - input)**2) / (2 n) for n samples: half the squared distance, averaged over the
    samples.

    Parameters
    ----------
    input : (n, ...) output of the network; without or with one axis it is a single sample.
    target : of the same shape: the wanted output, such as a row with a single 1 for the class.

    Returns
    -------
    Tensor
        A single element.

    Notes
    -----
    The cost of the textbook network (Nielsen, "Neural Networks and Deep Learning", chapter 1,
    equation 6); its derivative by the output is (input - target) / n. ``mse_loss`` divides by the
    number of elements and has no factor 1/2.
    """
    input, target = _pair("quadratic_cost", input, target)
    samples = input.shape[0] if input.ndim > 1 else 1
    return apply(MSE_LOSS, input, target, scale=one_over(2 * samples))


def l1_loss(input: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """abs(input - target): the mean absolute error. Shapes and `reduction` as for
    :func:`mse_loss`."""
    return _elementwise(L1_LOSS, "l1_loss", input, target, reduction)


def huber_loss(input: Tensor, target: Any, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """d**2 / 2 where d = abs(input - target) is at most delta, else delta * (d - delta / 2) (Huber
    1964).

    Parameters
    ----------
    input, target, reduction : as for :func:`mse_loss`.
    delta : positive.
    """
    if not delta > 0:
        raise ConfigError(f"huber_loss: delta must be positive, not {delta}")
    return _elementwise(HUBER_LOSS, "huber_loss", input, target, reduction, delta=delta)


def smooth_l1_loss(
    input: Tensor, target: Any, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """d**2 / (2 beta) where d = abs(input - target) is below beta, else d - beta / 2; the Huber
    loss divided by its delta.

    Parameters
    ----------
    input, target, reduction : as for :func:`mse_loss`.
    beta : not negative; 0 gives :func:`l1_loss`.
    """
    if not beta >= 0:
        raise ConfigError(f"smooth_l1_loss: beta must not be negative, but is {beta}")
    if beta == 0:
        return _elementwise(L1_LOSS, "smooth_l1_loss", input, target, reduction)
    return _elementwise(
        HUBER_LOSS, "smooth_l1_loss", input, target, reduction, 1.0 / beta, delta=beta
    )


def binary_cross_entropy(
    input: Tensor, target: Any, weight: Any = None, reduction: str = "mean"
) -> Tensor:
    """-(target * log(input) + (1 - target) * log(1 - input)) for probabilities.

    Parameters
    ----------
    input : probabilities, any shape.
    target : probabilities of the same shape; labels are 0 or 1.
    weight : factor of each element's loss; must broadcast to the shape of the input.
    reduction : as for :func:`mse_loss`; weights do not enter the divisor of the mean.

    Raises
    ------
    ConfigError
        If (on the CPU, where looking costs nothing) an element of input or target is not between 0
        and 1.

    Notes
    -----
    As in PyTorch the logarithms are held above -100. With logits at hand,
    :func:`binary_cross_entropy_with_logits` is more exact.
    """
    input, target = _pair("binary_cross_entropy", input, target)
    for argument, x in (("input", input), ("target", target)):
        check_inside("binary_cross_entropy", argument, x, 0.0, 1.0, "between 0 and 1", ConfigError)
    return _weighted(BINARY_CROSS_ENTROPY, "binary_cross_entropy", input, target, weight, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Any,
    weight: Any = None,
    reduction: str = "mean",
    pos_weight: Any = None,
) -> Tensor:
    """:func:`binary_cross_entropy` of sigmoid(input), for logits of any size without overflow or
    lost digits.

    Parameters
    ----------
    input : logits, any shape.
    target : probabilities of the same shape; labels are 0 or 1.
    weight : factor of each element's loss; must broadcast to the shape of the input.
    reduction : as for :func:`mse_loss`; weights do not enter the divisor of the mean.
    pos_weight : factor of the part of the loss that the target multiplies, above 1 for more recall;
        must broadcast to the shape of the input, commonly (C,).
    """
    name = "binary_cross_entropy_with_logits"
    input, target = _pair(name, input, target)
    check_not_nan(name, target)
    if pos_weight is None:
        return _weighted(BINARY_CROSS_ENTROPY_WITH_LOGITS, name, input, target, weight, reduction)
    factor = (_factor(name, "pos_weight", pos_weight, input) - 1.0) * target + 1.0
    loss = (1.0 - target) * input + factor * apply(SOFTPLUS, -input)
    if weight is not None:
        loss = loss * _factor(name, "weight", weight, input)
    return reduce_loss(name, loss, reduction)


def kl_div(input: Tensor, target: Any, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """target * (log(target) - input): the divergence of the target distribution from the input's
    (Kullback & Leibler 1951).

    Parameters
    ----------
    input : log-probabilities, any shape.
    target : probabilities of the same shape, or their logarithms with `log_target`. Where it is 0
        the loss is 0.
    reduction : as for :func:`mse_loss`, or ``"batchmean"``: the sum divided by the length of the
        first axis, which is the mean of the rows' divergences.
    log_target : whether the target is a logarithm.
    """
    input, target = _pair("kl_div", input, target)
    if log_target:
        loss = target.exp() * (target - input)
    else:
        entropy = target * apply(WHERE, target == 0.0, 1.0, target).log()
        loss = entropy - target * input
    if reduction != "batchmean":
        return reduce_loss("kl_div", loss, reduction, ("batchmean",))
    return loss.sum() * one_over(input.shape[0] if input.ndim else 1)


def _pair(name: str, input: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """Input and target as tensors of real numbers of one shape."""
    target = as_operand(name, "target", target, input)
    if input.array.shape != target.array.shape:
        check_same_shape(name, input, target)
    if input.array.dtype.kind in "iub":
        raise DTypeError(
            f"{name}: input must be real numbers, not {input.dtype}; use a float dtype"
        )
    if target.array.dtype.kind in "iub":  # labels 0 and 1; they must not widen the result
        target = target.astype(input.dtype)
    return input, target


def _elementwise(
    op: Operation,
    name: str,
    input: Tensor,
    target: Any,
    reduction: str,
    scale: float = 1.0,
    **options: Any,
) -> Tensor:
    """A pointwise cost with its reduction, in one node."""
    input, target = _pair(name, input, target)
    if reduction == "mean":
        return apply(op, input, target, scale=scale * one_over(input.array.size), **options)
    check_reduction(name, reduction)
    return apply(op, input, target, scale=scale, reduce=reduction == "sum", **options)


def _weighted(
    op: Operation, name: str, input: Tensor, target: Tensor, weight: Any, reduction: str
) -> Tensor:
    """A pointwise cost whose elements may have weights."""
    if weight is None:
        return _elementwise(op, name, input, target, reduction)
    loss = apply(op, input, target, reduce=False) * _factor(name, "weight", weight, input)
    return reduce_loss(name, loss, reduction)


def _factor(name: str, argument: str, value: Any, input: Tensor) -> Tensor:
    """Weights that broadcast to the input without making it larger."""
    value = as_operand(name, argument, value, input)
    lead = input.ndim - value.ndim
    if lead < 0 or any(
        n not in (1, m) for n, m in zip(value.shape, input.shape[lead:], strict=True)
    ):
        raise ShapeError(
            f"{name}: {argument} of shape {value.shape} does not broadcast to the shape "
            f"{input.shape} of input"
        )
    return value
