"""Arguments and results of a compiled function: tensors taken out of their containers, and put
back."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.nn.parameter import Parameter


class Slot:
    """The place of a tensor or array in a container."""

    __slots__ = ("index", "tensor")

    def __init__(self, index: int, tensor: bool) -> None:
        self.index, self.tensor = index, tensor


def take_out(value: Any, found: list[Any], constants: list[Any]) -> Any:
    """`value` with a :class:`Slot` in the place of each tensor and array.

    Parameters
    ----------
    value : tensors, arrays, containers of them (tuples, lists, dictionaries), or anything else.
    found : receives the tensors and arrays.
    constants : receives a key of everything else: numbers and words by value, objects by identity.
        Parameters belong to these: a step changes them where they are.
    """
    if isinstance(value, Tensor) and not isinstance(value, Parameter):
        found.append(value)
        return Slot(len(found) - 1, True)
    if isinstance(value, np.ndarray):
        found.append(value)
        return Slot(len(found) - 1, False)
    if isinstance(value, dict):
        constants.append((dict, tuple(value)))
        return {key: take_out(item, found, constants) for key, item in value.items()}
    if type(value) in (tuple, list):
        constants.append((type(value), len(value)))
        return type(value)([take_out(item, found, constants) for item in value])
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        constants.append((type(value), len(value)))
        return type(value)(*[take_out(item, found, constants) for item in value])
    if isinstance(value, (bool, int, float, str, type(None))):
        constants.append((type(value), value))
    else:
        constants.append((type(value), id(value)))
    return value


def put_back(pattern: Any, values: list[Any]) -> Any:
    """The container with ``values[i]`` at slot `i`."""
    if isinstance(pattern, Slot):
        return values[pattern.index]
    if isinstance(pattern, dict):
        return {key: put_back(item, values) for key, item in pattern.items()}
    if isinstance(pattern, tuple) and hasattr(pattern, "_fields"):
        return type(pattern)(*[put_back(item, values) for item in pattern])
    if type(pattern) in (tuple, list):
        return type(pattern)([put_back(item, values) for item in pattern])
    return pattern
