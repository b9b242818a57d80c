"""What the public functions accept, made into what operations take."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor, tensor
from gpubackprop.autograd.operation import Spec
from gpubackprop.autograd.tape import NUMBERS
from gpubackprop.backends import Backend
from gpubackprop.errors import DeviceError

Operand = Any
"""A tensor, a number, a nested sequence, or an array (a host array only beside CPU tensors)."""


def as_tensor(x: Operand) -> Tensor:
    """`x` itself if it is a tensor, else a tensor made of it."""
    return x if isinstance(x, Tensor) else tensor(x)


def tensors(name: str, *values: Operand) -> list[Tensor]:
    """`values` as tensors of one device: that of the tensors among them."""
    first = next((v for v in values if isinstance(v, Tensor)), None)
    backend = None if first is None else first.backend
    made = []
    for i, v in enumerate(values):
        if isinstance(v, Tensor):
            made.append(v)
            continue
        if backend is not None and hasattr(v, "shape") and v.shape and not backend.owns(v):
            raise DeviceError(
                f"{name}: argument {i} is a host array {Spec.of(v)} beside a tensor on "
                f"{backend.device}; move it with gb.tensor(x, device={backend.device!r})"
            )
        made.append(tensor(v, device=backend))
    return made


def operands(name: str, *values: Operand) -> list[Any]:
    """`values` as tensors; Python numbers beside others stay, for they do not widen a dtype."""
    numbers = [type(v) in NUMBERS for v in values]
    if all(numbers):
        return [first_number(*values), *values[1:]]
    made = iter(
        tensors(name, *[v for v, is_number in zip(values, numbers, strict=True) if not is_number])
    )
    return [v if is_number else next(made) for v, is_number in zip(values, numbers, strict=True)]


def first_number(*values: float | bool, device: Backend | None = None) -> Tensor:
    """The first of several numbers as a tensor of a dtype for all: bool, int64 or float32."""
    kinds = {type(v) for v in values}
    dtype = np.float32 if float in kinds else np.int64 if int in kinds else np.bool_
    return tensor(values[0], dtype, device)
