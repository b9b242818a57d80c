"""Text out of a language model, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor, no_grad
from gpubackprop.backends.random import Generator, default_generator
from gpubackprop.errors import ConfigError, DTypeError, ShapeError


def generate(
    model: Any,
    prompt: Tensor,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Continue each row of tokens.

    Parameters
    ----------
    model : a module with ``step(tokens, state) -> (logits, state)``, such as
        :class:`~gpubackprop.nn.TransformerLM` or :class:`~gpubackprop.nn.RecurrentLM`. It runs in
        evaluation mode, without derivatives, and is put back into the mode that it was in.
    prompt : (N, T) integers, T at least 1.
    length : tokens to add to each row.
    temperature : logits are divided by it; 0 takes the most probable token each time.
    top_k : draw among this many most probable tokens only (Fan et al. 2018).
    top_p : draw among the fewest tokens only whose probabilities reach this sum (Holtzman et al.
        2020).
    generator : where the draws come from; None for the default generator. The same state gives the
        same text.

    Returns
    -------
    Tensor
        (N, T + length): the prompts and what follows them.

    Notes
    -----
    Where a model has a ``context`` and it is full, generation begins anew with the second half of
    it: every token sees at least half a context before it, and a token costs one position on
    average, where keeping the context full would cost all of them for each token.
    """
    if not callable(getattr(model, "step", None)):
        raise ConfigError(
            f"generate: {type(model).__name__} has no method step, which gives the logits of the "
            "next token; TransformerLM and RecurrentLM have it"
        )
    if not isinstance(prompt, Tensor):
        kind = type(prompt).__name__
        raise DTypeError(f"generate: prompt is a {kind}; make a tensor of it with gb.tensor(...)")
    if prompt.ndim != 2 or prompt.dtype.kind not in "iu" or not prompt.shape[1]:
        raise ShapeError(
            "generate: prompt must be integers of shape (N, T) with at least one token, not "
            f"{prompt.dtype} of {prompt.shape}"
        )
    if length < 0:
        raise ConfigError(f"generate: length must not be negative, not {length}")
    if not temperature >= 0.0:
        raise ConfigError(f"generate: temperature must not be negative, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"generate: top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ConfigError(f"generate: top_p must be in (0, 1], not {top_p}")
    draw = generator or default_generator()
    context = getattr(model, "context", None)
    backend, dtype = prompt.backend, prompt.dtype
    text = prompt.numpy()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with no_grad():
            state, fresh = None, text if context is None else text[:, -context:]
            seen = 0
            for _ in range(length):
                if context is not None and seen + fresh.shape[1] > context:
                    state, seen, fresh = None, 0, text[:, -max(context // 2, 1) :]
                logits, state = model.step(Tensor(backend.asarray(fresh), backend), state)
                seen += fresh.shape[1]
                last = logits[:, -1].numpy().astype(np.float64)
                chosen = _choose(last, temperature, top_k, top_p, draw)
                fresh = chosen.astype(dtype)[:, None]
                text = np.concatenate([text, fresh], axis=1)
    finally:
        for module, training in modes:
            object.__setattr__(module, "training", training)
    return Tensor(backend.asarray(text), backend)


def _choose(
    logits: np.ndarray,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: Generator,
) -> np.ndarray:
    """A token for each row of logits (N, V)."""
    if temperature == 0.0:
        return logits.argmax(axis=1)
    order = np.argsort(-logits, axis=1, kind="stable")
    sorted_logits = np.take_along_axis(logits, order, axis=1) / temperature
    weights = np.exp(sorted_logits - sorted_logits[:, :1])
    if top_k is not None:
        weights[:, top_k:] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    if top_p is not None:
        before = np.cumsum(weights, axis=1) - weights
        weights[before >= top_p] = 0.0
    total = np.cumsum(weights, axis=1)
    # The first token whose running sum exceeds the draw; one of weight 0 never is.
    u = generator.uniform((len(logits), 1), dtype=np.float64) * total[:, -1:]
    place = np.minimum((total <= u).sum(axis=1), (weights > 0).sum(axis=1) - 1)
    return np.take_along_axis(order, place[:, None], axis=1)[:, 0]
