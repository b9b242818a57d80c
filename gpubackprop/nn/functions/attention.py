"""Functions of attention under PyTorch's names, and the masks that they take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.backends.attention import keep_row
from gpubackprop.backends.random import Generator, default_generator
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn.functions.arguments import as_operand

ATTENTION = REGISTRY["attention"]
BROADCAST_TO = REGISTRY["broadcast_to"]
DROPOUT = REGISTRY["dropout"]
LOGICAL_AND = REGISTRY["logical_and"]
MATMUL = REGISTRY["matmul"]
ROTARY = REGISTRY["rotary"]
SOFTMAX = REGISTRY["softmax"]
WHERE = REGISTRY["where"]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """softmax(scale * query key^T + mask) value (Vaswani et al. 2017, section 3.2.1).

    Parameters
    ----------
    query : (..., H, L, E).
    key, value : (..., H, S, E) and (..., H, S, Ev). With `enable_gqa`, H there may be any divisor
        of the queries' H (Ainslie et al. 2023).
    attn_mask : booleans, True where a query may attend to a key, or numbers to add to the scores;
        broadcasts to (..., H, L, S).
    dropout_p : each weight is dropped with this probability, whatever the mode of a module.
    is_causal : query i attends to keys j <= i only, counted from the first query and the first
        key (as in PyTorch, also where L and S differ). Not together with `attn_mask`.
    scale : factor of the scores; None for 1 / sqrt(E).
    enable_gqa : whether heads of key and value may be shared.
    generator : where dropout's random numbers come from; None for the default generator.

    Returns
    -------
    Tensor
        (..., H, L, Ev). A query that may attend to nothing gives zeros and gets no gradient, as in
        PyTorch.

    Notes
    -----
    Memory grows with L + S, not with L * S: the weights are computed in tiles, and again for the
    derivative (Dao et al. 2022).
    """
    name = "scaled_dot_product_attention"
    if query.ndim < 2 or key.ndim != query.ndim or value.ndim != query.ndim:
        raise ShapeError(
            f"{name}: query {query.shape}, key {key.shape} and value {value.shape} must have the "
            "same number of axes, (..., heads, length, features)"
        )
    if not 0.0 <= dropout_p <= 1.0:
        raise ConfigError(f"{name}: dropout_p must be a probability between 0 and 1: {dropout_p}")
    if is_causal and attn_mask is not None:
        raise ConfigError(f"{name}: is_causal and attn_mask exclude each other; pass one of them")
    lead = query.shape[:-2]
    if not enable_gqa:
        key, value = (_repeated(name, x, lead) for x in (key, value))
    mask = None if attn_mask is None else _as_mask(name, "attn_mask", attn_mask, query)
    q, k, v = query, key, value
    if query.ndim != 4:
        q, k, v = (x.reshape(_four(x.shape)) for x in (q, k, v))
        if mask is not None and mask.ndim > 3:
            full = (*lead, query.shape[-2], key.shape[-2])
            mask = apply(BROADCAST_TO, mask, shape=full).reshape(_four(full))
    y = attend(q, k, v, mask, causal=is_causal, scale=scale, p=dropout_p, generator=generator)
    return y if query.ndim == 4 else y.reshape(*lead, query.shape[-2], value.shape[-1])


def _four(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` with the axes before the last three joined, or new ones of size one."""
    return (math.prod(shape[:-3]), *((1,) * (3 - len(shape))), *shape[-3:])


def _repeated(name: str, x: Tensor, lead: tuple[int, ...]) -> Tensor:
    """A key or value, whose leading axes may be one where those of the query are not."""
    if x.shape[:-2] == lead:
        return x
    if any(n not in (1, m) for n, m in zip(x.shape[:-2], lead, strict=True)):
        raise ShapeError(
            f"{name}: the leading axes of key and value {x.shape} must be those of the query, "
            f"{lead}; pass enable_gqa=True for fewer heads"
        )
    return apply(BROADCAST_TO, x, shape=(*lead, *x.shape[-2:]))


def _as_mask(name: str, argument: str, mask: Any, like: Tensor) -> Tensor:
    mask = as_operand(name, argument, mask, like)
    if mask.dtype != np.bool_ and mask.dtype.kind in "iu":
        raise DTypeError(
            f"{name}: {argument} must be booleans or floats, not {mask.dtype}; compare with 0 to "
            "make booleans of it"
        )
    if mask.dtype == np.float64 != like.dtype and like.dtype.kind in "fV":
        # NumPy's default of numbers to add is not meant to widen the whole network.
        mask = mask.astype(like.dtype)
    return mask


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = False,
    past: int = 0,
    scale: float | None = None,
    p: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """The operation on arrays of four axes, with its place in a random sequence."""
    if not p:
        return apply(ATTENTION, q, k, v, mask, causal=causal, past=past, scale=scale)
    words = math.prod(q.shape[:3]) * keep_row(k.shape[2])
    seed, stream, offset = (generator or default_generator()).take(words)
    place = {"p": p, "seed": seed, "stream": stream, "offset": offset}
    return apply(ATTENTION, q, k, v, mask, causal=causal, past=past, scale=scale, **place)


def attend_with_weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = False,
    past: int = 0,
    p: float = 0.0,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`attend`, step by step, and the weights (B, H, Tq, Tk), after dropout."""
    (b, h, tq, d), (groups, tk) = q.shape, k.shape[1:3]
    rows = (q * d**-0.5).reshape(b, groups, h // groups * tq, d)
    scores = apply(MATMUL, rows, k.swapaxes(-1, -2)).reshape(b, h, tq, tk)
    seen = causal_mask(tq, tk, past, q) if causal else None
    if mask is not None and mask.dtype == np.bool_:
        seen = mask if seen is None else apply(LOGICAL_AND, mask, seen)
    elif mask is not None:
        scores = scores + mask
    if seen is not None:
        scores = apply(WHERE, seen, scores, -math.inf)
    if mask is not None:  # a query may see nothing: its weights are zeros
        some = (scores.detach() > -math.inf).any(axis=-1, keepdims=True)
        weights = apply(SOFTMAX, apply(WHERE, some, scores, 0.0), axis=-1)
        weights = apply(WHERE, some, weights, 0.0)
    else:
        weights = apply(SOFTMAX, scores, axis=-1)
    if p:
        seed, stream, offset = (generator or default_generator()).take(weights.size)
        weights = apply(DROPOUT, weights, p=p, seed=seed, stream=stream, offset=offset)
    shared = weights.reshape(b, groups, h // groups * tq, tk)
    return apply(MATMUL, shared, v).reshape(b, h, tq, v.shape[-1]), weights


def causal_mask(queries: int, keys: int, past: int, like: Tensor) -> Tensor:
    """(queries, keys) booleans on the device of a tensor: True where j <= i + past."""
    kernels = like.backend
    last = kernels.reshape(kernels.arange(past, past + queries, 1, np.int64), (queries, 1))
    return Tensor(kernels.less_equal(kernels.arange(0, keys, 1, np.int64), last), kernels)


def joined_masks(
    name: str,
    attn_mask: Any,
    key_padding_mask: Any,
    q: Tensor,
    keys: int,
) -> Tensor | None:
    """One mask in the sense of the operation out of PyTorch's two, where True forbids.

    Parameters
    ----------
    attn_mask : (L, S), (B * H, L, S), or None.
    key_padding_mask : (B, S), or None.
    q : (B, H, L, D).
    keys : S.
    """
    b, h, tq, _ = q.shape
    masks = []
    if attn_mask is not None:
        mask = _as_mask(name, "attn_mask", attn_mask, q)
        if mask.shape not in ((tq, keys), (b * h, tq, keys)):
            raise ShapeError(
                f"{name}: attn_mask {mask.shape} must have the shape {(tq, keys)} (queries, keys) "
                f"or {(b * h, tq, keys)}"
            )
        masks.append(mask if mask.ndim == 2 else mask.reshape(b, h, tq, keys))
    if key_padding_mask is not None:
        mask = _as_mask(name, "key_padding_mask", key_padding_mask, q)
        if mask.shape != (b, keys):
            raise ShapeError(
                f"{name}: key_padding_mask {mask.shape} must have the shape {(b, keys)} "
                "(batch, keys)"
            )
        masks.append(mask.reshape(b, 1, 1, keys))
    if all(m.dtype == np.bool_ for m in masks):
        masks = [~m for m in masks]
        return apply(LOGICAL_AND, *masks) if len(masks) == 2 else next(iter(masks), None)
    added = [
        apply(WHERE, m, -math.inf, 0.0).astype(q.dtype) if m.dtype == np.bool_ else m for m in masks
    ]
    return added[0] + added[1] if len(added) == 2 else added[0]


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate pairs of features by angles: (a, b) becomes (a cos - b sin, b cos + a sin) (Su et al.
    2021, equation 34).

    Parameters
    ----------
    x : (..., T, D) with an even D.
    cos, sin : (T, D / 2), of the angle of each position and pair.
    interleaved : feature 2 i is paired with 2 i + 1, as in the paper; otherwise feature i with
        i + D / 2, as in GPT-NeoX and LLaMA. A network trained with one needs the same one later.

    Returns
    -------
    Tensor
        Like x.
    """
    return apply(ROTARY, x, cos, sin, interleaved=interleaved)
