"""Recurrent layers: RNN, LSTM and GRU over sequences, as PyTorch has them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.backends.random import Generator, default_generator
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation
from gpubackprop.nn.cells import Recurrent, State, check_nonlinearity
from gpubackprop.nn.layers import Device, _size

CONCATENATE = REGISTRY["concatenate"]


class _Layers(Recurrent):
    """Layers of one kind above one another."""

    first_suffix = "_l0"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        owner = type(self).__name__
        self.input_size = _size(owner, "input_size", input_size)
        self.hidden_size = _size(owner, "hidden_size", hidden_size)
        self.num_layers = _size(owner, "num_layers", num_layers)
        if not 0.0 <= dropout <= 1.0:
            raise ConfigError(f"{owner}: dropout must be a probability in [0, 1], not {dropout}")
        if proj_size:
            raise ConfigError(
                f"{owner}: proj_size={proj_size!r}: projected states are not supported; put a "
                "Linear layer behind this one"
            )
        if dropout and self.num_layers == 1:
            warnings.warn(
                f"{owner}: dropout={dropout:g} acts between layers, and there is only one",
                stacklevel=2,
            )
        self.bias, self.batch_first = bool(bias), bool(batch_first)
        self.dropout, self.bidirectional = float(dropout), bool(bidirectional)
        if dropout:
            self.generator = (generator or default_generator()).split()
        for layer in range(self.num_layers):
            features = input_size if layer == 0 else hidden_size * len(self._directions)
            for direction in self._directions:
                self._add_parameters(f"_l{layer}{direction}", features, bias, device, dtype)
        self.reset_parameters(generator)

    @property
    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def forward(self, input: Tensor, hx: Any = None, lengths: Any = None) -> tuple[Tensor, State]:
        """All steps of all layers.

        Parameters
        ----------
        input : (T, N, input_size), with `batch_first` (N, T, input_size), or one sequence
            (T, input_size).
        hx : the initial state h (num_layers * D, N, hidden_size) with D = 2 if `bidirectional`,
            else 1; for an LSTM the pair (h, c). Without N for one sequence. None for zeros.
        lengths : (N,) integers from 0 to T in any order, how many steps of each sequence count;
            None if all have T. As in PyTorch's packed sequences, the output is zero beyond the end
            of a sequence, its last state is the one at its end, and the reverse direction begins
            there.

        Returns
        -------
        output : (T, N, D * hidden_size), the last layer's h at every step; the axes are ordered as
            those of the input.
        state : the last state, of the shape of `hx`: what to give to the next call to go on.

        Raises
        ------
        ShapeError, DTypeError
            If an argument does not fit, in words.
        """
        owner = type(self).__name__
        if not isinstance(input, Tensor):
            raise DTypeError(f"{owner}: input is a {type(input).__name__}; make a tensor of it")
        if input.ndim not in (2, 3) or input.shape[-1] != self.input_size:
            axes = "(N, T" if self.batch_first else "(T, N"
            raise ShapeError(
                f"{owner}: input must have shape {axes}, {self.input_size}), or (T, "
                f"{self.input_size}) for one sequence, not {input.shape}"
            )
        single = input.ndim == 2
        if single and lengths is not None:
            raise ShapeError(f"{owner}: lengths is for a batch; cut the one sequence {input.shape}")
        if single:
            x = input.reshape(input.shape[0], 1, self.input_size)
        else:
            x = input.transpose(1, 0, 2) if self.batch_first else input
        steps, batch = x.shape[:2]
        rows = self.num_layers * len(self._directions)
        shape = (rows, self.hidden_size) if single else (rows, batch, self.hidden_size)
        given = self._given_states(hx, shape, input)
        first = [[s[k].reshape(batch, self.hidden_size) for s in given] for k in range(rows)]
        y, last = self._layers(x, first, _lengths(owner, lengths, steps, batch, x))
        state = self._packed(
            [_joined([s[k] for s in last], 0).reshape(*shape) for k in range(len(given))]
        )
        if single:
            return y.reshape(steps, y.shape[2]), state
        return (y.transpose(1, 0, 2) if self.batch_first else y), state

    def _layers(
        self, x: Tensor, first: list[list[Tensor]], lengths: Tensor | None
    ) -> tuple[Tensor, list[list[Tensor]]]:
        last: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training, generator=self.generator)
            outputs = []
            for direction in self._directions:
                suffix = f"_l{layer}{direction}"
                y, state = self._run(x, first[len(last)], suffix, lengths, bool(direction))
                outputs.append(y)
                last.append(state)
            x = _joined(outputs, 2)
        return x, last

    def extra_repr(self) -> str:
        """Sizes, and the settings that differ from the defaults."""
        plain = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
        }
        set_ = [f"{n}={getattr(self, n)}" for n, d in plain.items() if getattr(self, n) != d]
        return ", ".join([str(self.input_size), str(self.hidden_size), *set_])


class RNN(_Layers):
    """h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) for the steps t of a sequence.

    Parameters
    ----------
    input_size, hidden_size : lengths of x_t and of h_t.
    num_layers : how many layers; each reads the h_t of the one below.
    nonlinearity : f, ``"tanh"`` or ``"relu"``.
    bias : whether there are b_ih and b_hh.
    batch_first : whether the batch is the first axis of input and output (not of the states).
    dropout : probability of dropout on the output of every layer but the last, in training.
    bidirectional : whether each layer runs in both directions of time, joining their results.
    generator : where the initial values are drawn, and the sequence that dropout's is split from;
        None for the default generator.
    device, dtype : of the parameters.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, ... : parameters (hidden_size, input_size),
        (hidden_size, hidden_size) and twice (hidden_size,); ``_reverse`` follows the layer's number
        for the other direction.

    Notes
    -----
    Elman, "Finding structure in time" (1990). All parameters begin uniform on
    +-1/sqrt(hidden_size), which is PyTorch's default.
    """

    operation = REGISTRY["rnn"]
    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        self.nonlinearity = check_nonlinearity("RNN", nonlinearity)
        super().__init__(
            *(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional),
            generator=generator,
            device=device,
            dtype=dtype,
        )


class LSTM(_Layers):
    """Long short-term memory: c_t = f * c_{t-1} + i * g and h_t = o * tanh(c_t).

    The gates i, f and o are sigmoids and g is a tanh of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh, each
    with its own block of rows of the parameters, in this order: i, f, g, o.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, generator,
    device, dtype : as for :class:`RNN`.
    proj_size : must be 0; projected states are not supported.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, ... : parameters (4 * hidden_size,
        input_size), (4 * hidden_size, hidden_size) and twice (4 * hidden_size,).

    Notes
    -----
    Hochreiter & Schmidhuber, "Long short-term memory" (1997); the forget gate is that of Gers,
    Schmidhuber & Cummins (2000).
    """

    operation = REGISTRY["lstm"]
    gates = 4
    states = ("h", "c")


class GRU(_Layers):
    """Gated recurrent unit: h_t = (1 - z) * n + z * h_{t-1}.

    The gates r and z are sigmoids of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh, and n = tanh(W_in x_t +
    b_in + r * (W_hn h_{t-1} + b_hn)); the blocks of rows of the parameters are in the order r, z,
    n.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, generator,
    device, dtype : as for :class:`RNN`.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, ... : parameters (3 * hidden_size,
        input_size), (3 * hidden_size, hidden_size) and twice (3 * hidden_size,).

    Notes
    -----
    Cho et al., "Learning phrase representations using RNN encoder-decoder" (2014), with the reset
    gate after the matrix product, as PyTorch and cuDNN have it.
    """

    operation = REGISTRY["gru"]
    gates = 3


def _joined(tensors: list[Tensor], axis: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else apply(CONCATENATE, *tensors, axis=axis)


def _lengths(owner: str, lengths: Any, steps: int, batch: int, like: Tensor) -> Tensor | None:
    """`lengths` as a tensor beside `like`, checked where looking costs nothing."""
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        host = np.asarray(lengths)
        _check_lengths(owner, host.shape, host.dtype, batch)
        wrong = np.flatnonzero((host < 0) | (host > steps))
        if wrong.size:
            _refuse_length(owner, int(wrong[0]), host[wrong[0]], steps)
        return Tensor(like.backend.asarray(host.astype(np.int64)), like.backend)
    _check_lengths(owner, lengths.shape, lengths.dtype, batch)
    found = lengths.backend.first_outside(lengths.array, 0, steps)
    if found is not None:
        _refuse_length(owner, found[0][0], found[1], steps)
    return lengths


def _check_lengths(owner: str, shape: tuple[int, ...], dtype: Any, batch: int) -> None:
    if np.dtype(dtype).kind not in "iu":
        raise DTypeError(f"{owner}: lengths must be integers, not {dtype}")
    if shape != (batch,):
        raise ShapeError(
            f"{owner}: lengths must have shape ({batch},), one for each sequence of the batch, "
            f"not {shape}"
        )


def _refuse_length(owner: str, place: int, value: Any, steps: int) -> None:
    raise ShapeError(
        f"{owner}: lengths[{place}] = {value} is not between 0 and the {steps} steps of the input"
    )
