"""Where in a sequence something stands: sinusoidal, learned and rotary positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.backends import Backend, as_dtype, get_backend
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.nn import init
from gpubackprop.nn.functions.attention import rotary
from gpubackprop.nn.layers import Device, _empty, _size
from gpubackprop.nn.module import Module

BASE = 10000.0


def _angles(first: int, last: int, pairs: int, width: int, base: float) -> np.ndarray:
    """(last - first, pairs) angles position / base**(2 i / width) in float64."""
    rates = float(base) ** (-2.0 * np.arange(pairs) / width)
    return np.arange(first, last)[:, None] * rates


def sinusoidal_positions(
    length: int,
    width: int,
    *,
    offset: int = 0,
    base: float = BASE,
    device: Device = None,
    dtype: Any = np.float32,
) -> Tensor:
    """Sines and cosines of positions at geometrically spaced rates (Vaswani et al. 2017, section
    3.5).

    Parameters
    ----------
    length, width : positions, and features of each.
    offset : the first position.
    base : ratio of the slowest rate to the fastest, about.

    Returns
    -------
    Tensor
        (length, width): feature 2 i is sin(position / base**(2 i / width)), feature 2 i + 1 its
        cosine.
    """
    angles = _angles(offset, offset + length, -(-width // 2), width, base)
    table = np.empty((length, width), as_dtype(dtype))
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles[:, : width // 2])
    backend = get_backend(device)
    return Tensor(backend.asarray(table), backend)


def _waves(
    length: int, backend: Backend, dtype: Any, width: int, base: float
) -> tuple[Tensor, ...]:
    return (sinusoidal_positions(length, width, base=base, device=backend, dtype=dtype),)


def _turns(
    length: int, backend: Backend, dtype: Any, width: int, base: float
) -> tuple[Tensor, ...]:
    angles = _angles(0, length, width // 2, width, base)
    tables = [f(angles).astype(dtype) for f in (np.cos, np.sin)]
    return tuple(Tensor(backend.asarray(t), backend) for t in tables)


class _Tables:
    """Arrays by position, made once for each device and dtype and longer when they must be."""

    def __init__(self, make: Any, *given: Any) -> None:
        self.make, self.given = make, given
        self.known: dict[tuple[str, str], tuple[Tensor, ...]] = {}

    def rows(self, x: Tensor, start: int, stop: int) -> list[Tensor]:
        """The tables' rows from `start` to `stop`, beside the tensor `x`."""
        key = (x.device, x.dtype.name)
        tables = self.known.get(key)
        if tables is None or tables[0].backend is not x.backend or tables[0].shape[0] < stop:
            length = 1 << max(stop - 1, 15).bit_length()
            tables = self.known[key] = self.make(length, x.backend, x.dtype, *self.given)
        return [Tensor(t.array[start:stop], t.backend) for t in tables]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Tables, (self.make, *self.given)  # a copy makes the arrays when it needs them


class SinusoidalPositions(Module):
    """Add to each feature a sine or a cosine of its position (Vaswani et al. 2017, section 3.5).

    Parameters
    ----------
    width : length of the last axis.
    base : see :func:`sinusoidal_positions`.
    """

    def __init__(self, width: int, base: float = BASE) -> None:
        self.width = _size("SinusoidalPositions", "width", width)
        self.base = float(base)
        self._tables = _Tables(_waves, self.width, self.base)

    def forward(self, input: Tensor, offset: int = 0) -> Tensor:
        """(..., T, width) plus the rows of positions `offset` to `offset` + T."""
        if input.ndim < 2 or input.shape[-1] != self.width:
            raise ShapeError(
                f"SinusoidalPositions: the input {input.shape} must end in (T, {self.width})"
            )
        (rows,) = self._tables.rows(input, offset, offset + input.shape[-2])
        return input + rows

    def extra_repr(self) -> str:
        return f"{self.width}"


class LearnedPositions(Module):
    """Add to each feature a number that is learned for its position.

    Parameters
    ----------
    length, width : positions, and features of each.
    generator, device, dtype : as for :class:`~gpubackprop.nn.Linear`.

    Attributes
    ----------
    weight : (length, width) parameter, normal with deviation 0.02 at first.
    """

    def __init__(
        self,
        length: int,
        width: int,
        *,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        self.length = _size("LearnedPositions", "length", length)
        self.width = _size("LearnedPositions", "width", width)
        self.weight = _empty((self.length, self.width), device, dtype)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw new initial values."""
        init.normal_(self.weight, std=0.02, generator=generator)

    def forward(self, input: Tensor, offset: int = 0) -> Tensor:
        """(..., T, width) plus the rows of positions `offset` to `offset` + T."""
        steps = input.shape[-2] if input.ndim > 1 else 0
        if offset + steps > self.length:
            raise ShapeError(
                f"LearnedPositions: positions {offset} to {offset + steps} go beyond the "
                f"{self.length} that there are; shorten the input (its shape is {input.shape})"
            )
        whole = steps == self.length
        return input + (self.weight if whole else self.weight[offset : offset + steps])

    def extra_repr(self) -> str:
        return f"{self.length}, {self.width}"


class RotaryPositions(Module):
    """Rotate pairs of features of queries and keys by angles that grow with the position, so that
    their products depend on the distance alone (Su et al. 2021, "RoFormer").

    Parameters
    ----------
    width : features of a head, an even number.
    base : pair i turns by ``base**(-2 i / width)`` a position.
    interleaved : which features are a pair, see :func:`~gpubackprop.nn.functional.rotary`.
    """

    def __init__(self, width: int, base: float = BASE, interleaved: bool = False) -> None:
        self.width = _size("RotaryPositions", "width", width)
        if width % 2:
            raise ConfigError(f"RotaryPositions: width must be even, not {width}")
        self.base, self.interleaved = float(base), bool(interleaved)
        self._tables = _Tables(_turns, self.width, self.base)

    def forward(self, input: Tensor, offset: int = 0) -> Tensor:
        """(..., T, width) turned by the angles of positions `offset` to `offset` + T."""
        if input.ndim < 2 or input.shape[-1] != self.width:
            raise ShapeError(
                f"RotaryPositions: the input {input.shape} must end in (T, {self.width})"
            )
        cos, sin = self._tables.rows(input, offset, offset + input.shape[-2])
        return rotary(input, cos, sin, self.interleaved)

    def extra_repr(self) -> str:
        return f"{self.width}, base={self.base:g}, interleaved={self.interleaved}"
