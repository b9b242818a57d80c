"""Recurrent layers: one layer and one direction over a whole sequence, as one operation each.

The products that do not depend on the order of the steps are made once for the whole sequence: the
input's before the steps, and backwards the gradients of the weights after them. What happens step
by step is a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.autograd.operation import Samples
from gpubackprop.errors import ConfigError, DTypeError, ShapeError

NONLINEARITIES = ("tanh", "relu")


# What the three have in common.


def _project(K: Any, x: Any, weight: Any, bias: Any, state: Any) -> Any:
    """``x @ weight.T + bias`` of all steps as one product of two matrices, in the state's dtype:
    operands of half precision beside a float32 state are added up in float32 and stay so."""
    steps, batch, _ = x.shape
    if _narrower(x, weight, state):
        rows = K.wide_matmul(_rows(K, x), K.transpose(weight))
        rows = rows if bias is None else K.add(rows, bias)
    else:
        rows = K.linear(_rows(K, x), weight, bias)
    return K.reshape(rows, (steps, batch, weight.shape[0]))


def _narrower(x: Any, weight: Any, state: Any) -> bool:
    """Whether input and weight are both of half precision, and the states are not."""
    return bool(x.dtype == weight.dtype and x.dtype.itemsize == 2 < state.dtype.itemsize)


def _both(K: Any, b_ih: Any, b_hh: Any) -> Any:
    """The sum of the biases, where both are simply added."""
    if b_ih is None or b_hh is None:
        return b_hh if b_ih is None else b_ih
    return K.add(b_ih, b_hh)


def _running(K: Any, lengths: Any, steps: int) -> Any:
    """(T, N, 1), whether a sequence has that step."""
    order = K.reshape(K.arange(0, steps, 1, lengths.dtype), (steps, 1, 1))
    return K.greater(K.reshape(lengths, (1, lengths.shape[0], 1)), order)


def _after(K: Any, states: Any, reverse: bool) -> Any:
    """The states after each step."""
    return K.getitem(states, slice(0, -1) if reverse else slice(1, None))


def _output(K: Any, hidden: Any, lengths: Any, reverse: bool) -> Any:
    """The states after each step, with zeros beyond the ends of the sequences."""
    y = _after(K, hidden, reverse)
    if lengths is None:
        return y
    return K.where(_running(K, lengths, y.shape[0]), y, 0.0)


def _last(K: Any, states: Any, reverse: bool) -> Any:
    """The state when all steps are done."""
    return K.getitem(states, 0 if reverse else -1)


def _rows(K: Any, x: Any) -> Any:
    steps, batch, size = x.shape
    return K.reshape(x, (steps * batch, size))


def _products(
    K: Any,
    needs: dict[str, bool],
    dprojected: Any,
    drecurrent: Any,
    x: Any,
    hidden: Any,
    weight: Any,
    lengths: Any,
    reverse: bool,
) -> dict[str, Any]:
    """Cotangents of the input, the weights and the biases: one product each for all steps. Those of
    the input's product are of its dtype."""
    found: dict[str, Any] = {}
    inner = _rows(K, dprojected)
    outer = inner if drecurrent is dprojected else _rows(K, drecurrent)
    rounded = inner
    if (needs["x"] or needs["w_ih"]) and _narrower(x, weight, inner):
        rounded = K.astype(inner, x.dtype)
    if needs["x"]:
        found["x"] = K.reshape(K.matmul(rounded, weight), x.shape)
    if needs["w_ih"]:
        if lengths is not None:  # whatever stands beyond the end, infinite or not, is not read
            x = K.where(_running(K, lengths, x.shape[0]), x, 0.0)
        found["w_ih"] = K.matmul(K.transpose(rounded), _rows(K, x))
    if needs["w_hh"]:
        before = _after(K, hidden, not reverse)
        found["w_hh"] = K.matmul(K.transpose(outer), _rows(K, before))
    if needs["b_ih"]:
        found["b_ih"] = K.sum(inner, axis=0)
    if needs["b_hh"]:
        same = outer is inner and "b_ih" in found
        found["b_hh"] = found["b_ih"] if same else K.sum(outer, axis=0)
    return found


def _needed(op: Operation, call: Any) -> dict[str, bool]:
    return dict(zip(op.inputs, call.needs, strict=True))


def _in_order(op: Operation, found: dict[str, Any]) -> list[Any]:
    return [found.get(name) for name in op.inputs]


def _shape_rule(name: str, gates: int, states: tuple[str, ...]) -> Callable[..., tuple[Spec, ...]]:
    """The ``infer`` of an operation whose weights have a block of rows for each of `gates`."""

    def infer(x: Spec, *rest: Any, nonlinearity: str = "tanh", reverse: bool = False) -> Any:
        if nonlinearity not in NONLINEARITIES:
            raise ConfigError(
                f"{name}: nonlinearity must be 'tanh' or 'relu', not {nonlinearity!r}"
            )
        *given, w_ih, w_hh, b_ih, b_hh, lengths = rest
        if len(x.shape) != 3:
            raise ShapeError(f"{name}: x ({x}) must have the axes (steps, batch, features)")
        steps, batch, features = x.shape
        if not steps:
            raise ShapeError(f"{name}: x ({x}) has no steps; give it at least one")
        if len(w_hh.shape) != 2 or w_hh.shape[0] != gates * w_hh.shape[1]:
            of = "(hidden, hidden)" if gates == 1 else f"({gates} * hidden, hidden)"
            raise ShapeError(f"{name}: w_hh must have shape {of}, not {w_hh}")
        size = w_hh.shape[1]
        if w_ih.shape != (gates * size, features):
            raise ShapeError(
                f"{name}: w_ih ({w_ih}) must have shape {(gates * size, features)}: the rows of "
                f"w_hh ({w_hh}) and the features of x ({x})"
            )
        for argument, state in zip(states, given, strict=True):
            if state.shape != (batch, size):
                raise ShapeError(
                    f"{name}: {argument} ({state}) must have shape {(batch, size)}: the batch of x "
                    f"({x}) and the columns of w_hh ({w_hh})"
                )
        biases = [b for b in (b_ih, b_hh) if b is not None]
        for bias in biases:
            if bias.shape != (gates * size,):
                argument = "b_ih" if bias is b_ih else "b_hh"
                raise ShapeError(
                    f"{name}: {argument} must have shape ({gates * size},) or be None, not {bias}"
                )
        if lengths is not None:
            if lengths.dtype.kind not in "iu":
                raise DTypeError(f"{name}: lengths must be integers, not {lengths}")
            if lengths.shape != (batch,):
                raise ShapeError(
                    f"{name}: lengths ({lengths}) must have shape ({batch},), a length for each "
                    f"sequence of the batch of x ({x})"
                )
        dtypes = dict.fromkeys(s.dtype for s in (x, *given, w_ih, w_hh, *biases))
        if any(d.kind not in "fV" for d in dtypes):  # V: bfloat16
            raise DTypeError(
                f"{name}: input, states and parameters must be floats, not "
                f"{', '.join(map(str, dtypes))}"
            )
        dtype = np.result_type(*dtypes)
        return Spec((steps, batch, size), dtype), *[Spec((batch, size), dtype)] * len(states)

    return infer


SIZES = ((3, 2, 4, 3), (1, 1, 1, 1), (2, 0, 3, 2), (4, 3, 2, 5))
"""Steps, batch, features, hidden size."""
LENGTHS = np.array([2, 4, 1])


def _arrays(
    rng: np.random.Generator,
    gates: int,
    states: int,
    steps: int,
    batch: int,
    features: int,
    size: int,
) -> list[Any]:
    """The inputs of a sample but for the lengths."""
    rows = gates * size
    shapes = [(steps, batch, features), *[(batch, size)] * states]
    shapes += [(rows, features), (rows, size), (rows,), (rows,)]
    return [rng.uniform(-1.0, 1.0, s) for s in shapes]


def _samples(gates: int, states: int) -> Samples:
    def samples(rng: np.random.Generator) -> Iterable[Sample]:
        for sizes in SIZES:
            yield Sample((*_arrays(rng, gates, states, *sizes), None))
        arrays = _arrays(rng, gates, states, 4, 3, 2, 3)
        yield Sample((*arrays, None), {"reverse": True}, note="backwards")
        yield Sample((*arrays, LENGTHS), note="lengths")
        yield Sample((*arrays, LENGTHS), {"reverse": True}, note="lengths, backwards")
        yield Sample((*arrays[:-2], None, None, None), note="no bias")

    return samples


# Plain recurrent network.


def _rnn_forward(
    K: Any,
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    lengths: Any,
    *,
    nonlinearity: str = "tanh",
    reverse: bool = False,
) -> Any:
    projected = _project(K, x, w_ih, _both(K, b_ih, b_hh), h0)
    hidden = K.rnn_steps(projected, h0, w_hh, lengths, nonlinearity, reverse)
    return (_output(K, hidden, lengths, reverse), _last(K, hidden, reverse)), hidden


def _rnn_backward(
    K: Any,
    call: Any,
    dy: Any,
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    lengths: Any,
    hidden: Any,
    *,
    nonlinearity: str = "tanh",
    reverse: bool = False,
) -> Any:
    d, dh0 = K.rnn_steps_backward(*dy, w_hh, hidden, lengths, nonlinearity, reverse)
    found = _products(K, _needed(RNN, call), d, d, x, hidden, w_ih, lengths, reverse)
    return _in_order(RNN, {**found, "h0": dh0})


def _rnn_samples(rng: np.random.Generator) -> Iterable[Sample]:
    yield from _samples(1, 1)(rng)
    # Pre-activations away from 0, where the slope of relu jumps: weights and states are positive.
    positive = [np.abs(a) + 0.1 for a in _arrays(rng, 1, 1, 4, 3, 2, 3)]
    positive[4] = np.array([0.5, -20.0, 0.5])
    for reverse in (False, True):
        params = {"nonlinearity": "relu", "reverse": reverse}
        yield Sample((*positive, LENGTHS if reverse else None), params, note="relu, one unit off")


RNN = Operation(
    "rnn",
    _rnn_forward,
    _rnn_backward,
    _shape_rule("rnn", 1, ("h0",)),
    _rnn_samples,
    saves=("x", "h0", "w_ih", "w_hh", "b_ih", "b_hh", "lengths", "hidden"),
    extras=("hidden",),
    constant_extras=False,
    outputs="many",
    strict=True,
).register()


# Long short-term memory.


def _lstm_forward(
    K: Any,
    x: Any,
    h0: Any,
    c0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    lengths: Any,
    *,
    reverse: bool = False,
) -> Any:
    projected = _project(K, x, w_ih, _both(K, b_ih, b_hh), h0)
    hidden, cells, gates = K.lstm_steps(projected, h0, c0, w_hh, lengths, reverse)
    y = _output(K, hidden, lengths, reverse)
    return (y, _last(K, hidden, reverse), _last(K, cells, reverse)), hidden, cells, gates


def _lstm_backward(
    K: Any,
    call: Any,
    dy: Any,
    x: Any,
    h0: Any,
    c0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    lengths: Any,
    hidden: Any,
    cells: Any,
    gates: Any,
    *,
    reverse: bool = False,
) -> Any:
    d, dh0, dc0 = K.lstm_steps_backward(*dy, w_hh, cells, gates, lengths, reverse)
    found = _products(K, _needed(LSTM, call), d, d, x, hidden, w_ih, lengths, reverse)
    return _in_order(LSTM, {**found, "h0": dh0, "c0": dc0})


LSTM = Operation(
    "lstm",
    _lstm_forward,
    _lstm_backward,
    _shape_rule("lstm", 4, ("h0", "c0")),
    _samples(4, 2),
    saves=("x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh", "lengths", "hidden", "cells", "gates"),
    extras=("hidden", "cells", "gates"),
    constant_extras=False,
    outputs="many",
    strict=True,
).register()


# Gated recurrent unit.


def _gru_forward(
    K: Any,
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    lengths: Any,
    *,
    reverse: bool = False,
) -> Any:
    # b_hh stays with the state's product: the reset gate multiplies its third block.
    projected = _project(K, x, w_ih, b_ih, h0)
    hidden, gates, inner = K.gru_steps(projected, h0, w_hh, b_hh, lengths, reverse)
    results = _output(K, hidden, lengths, reverse), _last(K, hidden, reverse)
    return results, hidden, gates, inner


def _gru_backward(
    K: Any,
    call: Any,
    dy: Any,
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    lengths: Any,
    hidden: Any,
    gates: Any,
    inner: Any,
    *,
    reverse: bool = False,
) -> Any:
    d, dq, dh0 = K.gru_steps_backward(*dy, w_hh, hidden, gates, inner, lengths, reverse)
    found = _products(K, _needed(GRU, call), d, dq, x, hidden, w_ih, lengths, reverse)
    return _in_order(GRU, {**found, "h0": dh0})


GRU = Operation(
    "gru",
    _gru_forward,
    _gru_backward,
    _shape_rule("gru", 3, ("h0",)),
    _samples(3, 1),
    saves=("x", "h0", "w_ih", "w_hh", "b_ih", "b_hh", "lengths", "hidden", "gates", "inner"),
    extras=("hidden", "gates", "inner"),
    constant_extras=False,
    outputs="many",
    strict=True,
).register()
