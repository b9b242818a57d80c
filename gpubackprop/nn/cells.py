"""What recurrent layers are made of, and the cells: one step of one layer.

Names, order and layouts of the parameters are PyTorch's, so that a state dict moves either way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.autograd import REGISTRY, Operation, Tensor, apply
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn import init
from gpubackprop.nn.layers import Device, _empty, _size
from gpubackprop.nn.module import Module
from gpubackprop.ops.recurrent import NONLINEARITIES

State = Tensor | tuple[Tensor, Tensor]
"""What a layer carries from step to step: h, or for an LSTM (h, c)."""


class Recurrent(Module):
    """What the layers and the cells of one kind share.

    Attributes
    ----------
    gates : blocks of rows in the weights.
    states : what one step hands to the next, for the words of errors.
    first_suffix : what follows a parameter's name in the first layer.
    """

    operation: Operation
    gates: int
    states: tuple[str, ...] = ("h",)
    hidden_size: int
    nonlinearity: str | None = None
    first_suffix = ""

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw new initial values, uniform on +-1/sqrt(hidden_size)."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for p in self.parameters():
            init.uniform_(p, -bound, bound, generator=generator)

    def _add_parameters(
        self, suffix: str, features: int, bias: bool, device: Device, dtype: Any
    ) -> None:
        rows = self.gates * self.hidden_size
        shapes = {"weight_ih": (rows, features), "weight_hh": (rows, self.hidden_size)}
        for name, shape in shapes.items():
            self.register_parameter(name + suffix, _empty(shape, device, dtype))
        for name in ("bias_ih", "bias_hh"):
            parameter = _empty((rows,), device, dtype) if bias else None
            self.register_parameter(name + suffix, parameter)

    def _run(
        self, x: Tensor, state: Sequence[Tensor], suffix: str, lengths: Any, reverse: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """One layer in one direction over (T, N, features): its outputs and its last state."""
        weights = [
            getattr(self, name + suffix)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        options = {} if self.nonlinearity is None else {"nonlinearity": self.nonlinearity}
        y, *last = apply(self.operation, x, *state, *weights, lengths, reverse=reverse, **options)
        return y, last

    def _given_states(self, hx: Any, shape: tuple[int, ...], like: Tensor) -> list[Tensor]:
        """The states that the caller gave, or zeros."""
        owner, names = type(self).__name__, self.states
        if hx is None:
            first: Any = getattr(self, "weight_hh" + self.first_suffix)
            zeros = Tensor(first.backend.zeros(shape, first.dtype), first.backend)
            return [zeros] * len(names)
        given = list(hx) if isinstance(hx, (tuple, list)) else [hx]
        if len(given) != len(names) or not all(isinstance(s, Tensor) for s in given):
            wanted = "a tensor h" if len(names) == 1 else f"a pair of tensors ({', '.join(names)})"
            got = ", ".join(type(s).__name__ for s in given)
            raise DTypeError(f"{owner}: the initial state must be {wanted} or None, not ({got})")
        for name, s in zip(names, given, strict=True):
            if s.shape != shape:
                raise ShapeError(
                    f"{owner}: {name} of the initial state must have shape {shape} for an input of "
                    f"shape {like.shape}, not {s.shape}"
                )
        return given

    def _packed(self, states: Sequence[Tensor]) -> State:
        return states[0] if len(states) == 1 else (states[0], states[1])


class _Cell(Recurrent):
    """One step of one layer."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        owner = type(self).__name__
        self.input_size = _size(owner, "input_size", input_size)
        self.hidden_size = _size(owner, "hidden_size", hidden_size)
        self.bias = bool(bias)
        self._add_parameters("", input_size, bias, device, dtype)
        self.reset_parameters(generator)

    def forward(self, input: Tensor, hx: Any = None) -> State:
        """One step.

        Parameters
        ----------
        input : (N, input_size), or (input_size,) for one sequence.
        hx : the state (N, hidden_size), or (hidden_size,); for an LSTMCell the pair (h, c). None
            for zeros.

        Returns
        -------
        The new state, of the shape of `hx`.
        """
        owner = type(self).__name__
        if not isinstance(input, Tensor):
            raise DTypeError(f"{owner}: input is a {type(input).__name__}; make a tensor of it")
        if input.ndim not in (1, 2) or input.shape[-1] != self.input_size:
            raise ShapeError(
                f"{owner}: input must have shape (N, {self.input_size}) or ({self.input_size},), "
                f"not {input.shape}"
            )
        shape = (*input.shape[:-1], self.hidden_size)
        given = self._given_states(hx, shape, input)
        batch = 1 if input.ndim == 1 else input.shape[0]
        _, last = self._run(
            input.reshape(1, batch, self.input_size),
            [s.reshape(batch, self.hidden_size) for s in given],
            "",
            None,
            False,
        )
        return self._packed([s.reshape(*shape) for s in last])

    def extra_repr(self) -> str:
        """Sizes, and whether there is a bias."""
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias}"


class RNNCell(_Cell):
    """One step of an :class:`RNN` of one layer: h' = f(W_ih x + b_ih + W_hh h + b_hh).

    Parameters
    ----------
    input_size, hidden_size, bias, nonlinearity, generator, device, dtype : as for :class:`RNN`.

    Attributes
    ----------
    weight_ih, weight_hh, bias_ih, bias_hh : parameters, shaped as those of :class:`RNN`.
    """

    operation = REGISTRY["rnn"]
    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        self.nonlinearity = check_nonlinearity("RNNCell", nonlinearity)
        super().__init__(
            input_size, hidden_size, bias, generator=generator, device=device, dtype=dtype
        )


class LSTMCell(_Cell):
    """One step of an :class:`LSTM` of one layer; state and result are the pair (h, c).

    Parameters
    ----------
    input_size, hidden_size, bias, generator, device, dtype : as for :class:`RNN`.

    Attributes
    ----------
    weight_ih, weight_hh, bias_ih, bias_hh : parameters, shaped as those of :class:`LSTM`.
    """

    operation = REGISTRY["lstm"]
    gates = 4
    states = ("h", "c")


class GRUCell(_Cell):
    """One step of a :class:`GRU` of one layer.

    Parameters
    ----------
    input_size, hidden_size, bias, generator, device, dtype : as for :class:`RNN`.

    Attributes
    ----------
    weight_ih, weight_hh, bias_ih, bias_hh : parameters, shaped as those of :class:`GRU`.
    """

    operation = REGISTRY["gru"]
    gates = 3


def check_nonlinearity(owner: str, value: str) -> str:
    if value not in NONLINEARITIES:
        raise ConfigError(f"{owner}: nonlinearity must be 'tanh' or 'relu', not {value!r}")
    return value
