"""Functions that make tensors of random numbers, under PyTorch's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpubackprop.autograd import Tensor, tensor
from gpubackprop.backends import DType
from gpubackprop.errors import ShapeError
from gpubackprop.ops.functions.creation import Device

if TYPE_CHECKING:
    from gpubackprop.backends.random import Generator

__all__ = ["rand", "randn"]


def rand(
    *size: Any,
    dtype: DType = np.float32,
    device: Device = None,
    requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Numbers drawn evenly from [0, 1).

    Parameters
    ----------
    *size : lengths of the axes, one by one or as a single sequence.
    dtype : a float dtype.
    device : where to put it. The numbers are drawn on the CPU: the same on every device.
    requires_grad : whether derivatives by it are wanted.
    generator : where to draw from; by default what ``gb.manual_seed`` starts.

    Returns
    -------
    Tensor
        Of shape `size`.

    Examples
    --------
    >>> rand(2, 3, generator=gb.Generator(0)).shape
    (2, 3)
    """
    values = _drawing(generator).uniform(_shape("rand", size), dtype=dtype)
    return tensor(values, None, device, requires_grad)


def randn(
    *size: Any,
    dtype: DType = np.float32,
    device: Device = None,
    requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Numbers of the standard normal distribution.

    Parameters
    ----------
    *size, dtype, device, requires_grad, generator : see :func:`rand`.

    Returns
    -------
    Tensor
        Of shape `size`.
    """
    values = _drawing(generator).normal(_shape("randn", size), dtype=dtype)
    return tensor(values, None, device, requires_grad)


def _drawing(generator: Generator | None) -> Generator:
    # Imported on first use, so that `import gpubackprop` stays quick.
    from gpubackprop.backends.random import default_generator

    return default_generator() if generator is None else generator


def _shape(name: str, size: tuple[Any, ...]) -> tuple[int, ...]:
    lengths = tuple(size[0]) if len(size) == 1 and isinstance(size[0], (tuple, list)) else size
    if not all(isinstance(n, (int, np.integer)) and n >= 0 for n in lengths):
        raise ShapeError(f"{name}: lengths of axes are whole numbers from 0 on, not {lengths!r}")
    return tuple(int(n) for n in lengths)
