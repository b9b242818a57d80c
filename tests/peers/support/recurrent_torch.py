"""PyTorch's counterparts of the recurrent operations: called with an operation's inputs and
parameters, on PyTorch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def sequence(module: type) -> Callable[..., Any]:
    """One layer and direction of a module of PyTorch, called with the arrays of our operation."""

    def call(x: Any, *rest: Any, reverse: bool = False, **options: Any) -> Any:
        *states, w_ih, w_hh, b_ih, b_hh, lengths = rest
        layer = module(w_ih.shape[1], w_hh.shape[1], bias=b_ih is not None, **options)
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        given = zip(names, (w_ih, w_hh, b_ih, b_hh), strict=True)
        weights = {name: w for name, w in given if w is not None}
        ends = torch.full((x.shape[1],), len(x)) if lengths is None else torch.as_tensor(lengths)

        def run(x: Any) -> Any:
            hx = tuple(s[None] for s in states)
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, ends, enforce_sorted=False)
            arguments = (packed, hx if len(hx) > 1 else hx[0])
            y, last = torch.func.functional_call(layer, weights, arguments)
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=len(x))
            return y, *(s[0] for s in (last if isinstance(last, tuple) else (last,)))

        def turned(x: Any) -> Any:
            """Each sequence from its own end to its beginning."""
            order = torch.arange(len(x))[:, None]
            order = torch.where(order < ends, ends - 1 - order, order)
            return torch.take_along_dim(x, order[:, :, None], 0)

        if not x.shape[1]:  # PyTorch refuses to pack nothing
            nothing = x.sum() + sum(w.sum() for w in weights.values())
            empty = [s + 0 * nothing for s in states]
            return x.new_zeros((len(x), 0, w_hh.shape[1])) + 0 * nothing, *empty
        if not reverse:
            return run(x)
        y, *last = run(turned(x))
        return turned(y), *last

    return call


TORCH: dict[str, Callable[..., Any]] = {
    "rnn": sequence(torch.nn.RNN),
    "lstm": sequence(torch.nn.LSTM),
    "gru": sequence(torch.nn.GRU),
}
