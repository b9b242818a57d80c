"""Checks that the functions of networks share."""

from __future__ import annotations

import math
from typing import Any

from gpubackprop.autograd import Tensor
from gpubackprop.autograd.operation import IndexRangeError
from gpubackprop.errors import ConfigError, DTypeError, GpubackpropError
from gpubackprop.ops.cross_entropy import REDUCTIONS
from gpubackprop.suggest import unknown


def as_operand(name: str, argument: str, value: Any, like: Tensor) -> Tensor:
    """`value` as a tensor beside `like`: a tensor as it is, an array of the same device without a
    copy.

    Raises
    ------
    DTypeError
        If it is neither.
    """
    if isinstance(value, Tensor):
        return value
    if like.backend.owns(value):
        return Tensor(value, like.backend)
    raise DTypeError(
        f"{name}: {argument} is a {type(value).__name__}; "
        f"make a tensor of it with gb.tensor(..., device={like.device!r})"
    )


def check_inside(
    name: str,
    argument: str,
    x: Tensor,
    low: float,
    high: float,
    wanted: str,
    error: type[GpubackpropError] = IndexRangeError,
) -> None:
    """Raise where an element is outside [low, high] or NaN, naming it; on a device that would have
    to be waited for, do nothing.

    Raises
    ------
    error
        Says `wanted`, what the element should have been; by default an IndexError that is also a
        ShapeError.
    """
    found = x.backend.first_outside(x.array, low, high)
    if found is not None:
        at, value = found
        place = f"{argument}[{', '.join(map(str, at))}]" if at else argument
        raise error(f"{name}: {place} = {value} is not {wanted}")


def one_over(n: int) -> float:
    """1 / n; NaN for a mean of nothing."""
    return 1.0 / n if n else math.nan


def reduce_loss(name: str, loss: Tensor, reduction: str, more: tuple[str, ...] = ()) -> Tensor:
    if reduction == "mean":
        return loss.mean() if loss.size else loss.sum() * math.nan
    if reduction == "sum":
        return loss.sum()
    check_reduction(name, reduction, more)
    return loss


def check_not_nan(name: str, target: Tensor) -> None:
    check_inside(name, "target", target, -math.inf, math.inf, "a number", ConfigError)


def check_reduction(name: str, reduction: str, more: tuple[str, ...] = ()) -> None:
    """Raise ConfigError unless it is one of the reductions."""
    if reduction not in REDUCTIONS and reduction not in more:
        raise ConfigError(f"{name}: {unknown('reduction', reduction, (*REDUCTIONS, *more))}")
