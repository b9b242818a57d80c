"""Checks that the functions of networks share."""

from __future__ import annotations

from typing import Any

from gpubackprop.autograd import Tensor
from gpubackprop.autograd.operation import IndexErrorInOperation
from gpubackprop.errors import DTypeError


def as_operand(name: str, argument: str, value: Any, like: Tensor) -> Tensor:
    """`value` as a tensor beside `like`: a tensor as it is, an array of the same device without a copy.

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
    name: str, argument: str, x: Tensor, low: float, high: float, wanted: str
) -> None:
    """Raise where an element is outside [low, high] or NaN, naming it; on a device that would have to be waited for, do nothing.

    Raises
    ------
    IndexErrorInOperation
        A ShapeError and IndexError that says `wanted`, what the element should have been.
    """
    found = x.backend.first_outside(x.array, low, high)
    if found is not None:
        at, value = found
        place = f"{argument}[{', '.join(map(str, at))}]" if at else argument
        raise IndexErrorInOperation(f"{name}: {place} = {value} is not {wanted}")
