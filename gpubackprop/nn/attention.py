"""Attention of several heads, and the cache of keys and values that generation keeps."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.backends.random import Generator, default_generator
from gpubackprop.errors import ConfigError, GradientError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation
from gpubackprop.nn import init
from gpubackprop.nn.functions.arguments import as_operand
from gpubackprop.nn.functions.attention import attend, attend_with_weights, joined_masks
from gpubackprop.nn.layers import Device, Linear, _empty, _size
from gpubackprop.nn.module import Module
from gpubackprop.nn.parameter import Parameter
from gpubackprop.nn.positions import RotaryPositions

CONCATENATE = REGISTRY["concatenate"]


class KeyValueCache:
    """Keys and values of the positions so far, in memory that is set aside once.

    Parameters
    ----------
    capacity : positions that there is room for.

    Attributes
    ----------
    length : positions so far.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = _size("KeyValueCache", "capacity", capacity)
        self.length = 0
        self._buffers: tuple[Any, ...] = ()

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write further keys (B, H, T, D) and values behind those that are there; all of them.

        Raises
        ------
        GradientError
            If a derivative by them would be wanted: a cache is written in place.
        ConfigError
            If there is no room left.
        """
        if key.requires_grad or value.requires_grad:
            raise GradientError(
                "KeyValueCache: keys and values are written in place, which leaves no derivative; "
                "use the cache under gb.no_grad()"
            )
        start, stop = self.length, self.length + key.shape[2]
        if stop > self.capacity:
            raise ConfigError(
                f"KeyValueCache: there is no room for {key.shape[2]} positions behind {start} of "
                f"{self.capacity}; begin a new cache with the last positions"
            )
        backend = key.backend
        if not self._buffers:
            self._buffers = tuple(
                backend.zeros((*x.shape[:2], self.capacity, x.shape[3]), x.dtype)
                for x in (key, value)
            )
        for buffer, x in zip(self._buffers, (key, value), strict=True):
            if buffer.shape[:2] != x.shape[:2] or buffer.shape[3] != x.shape[3]:
                raise ShapeError(
                    f"KeyValueCache: {x.shape} does not continue what is held, {buffer.shape}"
                )
            backend.copyto(buffer[:, :, start:stop], x.array)
        self.length = stop
        keys, values = (Tensor(b[:, :, :stop], backend) for b in self._buffers)
        return keys, values


class MultiheadAttention(Module):
    """Attention of several heads over projections of queries, keys and values (Vaswani et al. 2017,
    section 3.2.2).

    Parameters
    ----------
    embed_dim : features of a query and of the result; a multiple of `num_heads`.
    num_heads : how many heads, of ``embed_dim / num_heads`` features each.
    dropout : probability with which a weight is dropped, in training.
    bias : whether the projections have a bias.
    add_bias_kv : whether a learned key and value is added behind the others.
    add_zero_attn : whether a key and value of zeros is.
    kdim, vdim : features of keys and values; None for `embed_dim`.
    batch_first : whether the batch is the first axis instead of the second.
    num_kv_heads : heads of keys and values where several heads of queries share them (Ainslie et
        al. 2023); a divisor of `num_heads`. None for `num_heads`.
    rotary : positions that queries and keys are turned by before they meet.
    generator, device, dtype : as for :class:`~gpubackprop.nn.Linear`.

    Attributes
    ----------
    in_proj_weight : (3 * embed_dim, embed_dim): queries', keys' and values' projections, where
        these are of one size; otherwise `q_proj_weight`, `k_proj_weight` and `v_proj_weight`.
    in_proj_bias : biases of the three, or None.
    out_proj : the projection of the result.

    Notes
    -----
    Parameters have PyTorch's names, layouts and first values: projections Xavier uniform, biases
    zero.
    """

    in_proj_weight: Parameter | None
    q_proj_weight: Parameter | None
    k_proj_weight: Parameter | None
    v_proj_weight: Parameter | None
    in_proj_bias: Parameter | None
    bias_k: Parameter | None
    bias_v: Parameter | None
    rotary: RotaryPositions | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        *,
        num_kv_heads: int | None = None,
        rotary: RotaryPositions | None = None,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        name = "MultiheadAttention"
        self.embed_dim = _size(name, "embed_dim", embed_dim)
        self.num_heads = _size(name, "num_heads", num_heads)
        if embed_dim % num_heads:
            raise ConfigError(f"{name}: num_heads {num_heads} must divide embed_dim {embed_dim}")
        self.num_kv_heads = _size(name, "num_kv_heads", num_kv_heads or num_heads)
        if num_heads % self.num_kv_heads:
            raise ConfigError(f"{name}: num_kv_heads {num_kv_heads} must divide {num_heads} heads")
        if not 0.0 <= dropout <= 1.0:
            raise ConfigError(f"{name}: dropout must be a probability in [0, 1], not {dropout}")
        self.kdim = embed_dim if kdim is None else _size(name, "kdim", kdim)
        self.vdim = embed_dim if vdim is None else _size(name, "vdim", vdim)
        self.head_dim = embed_dim // num_heads
        self.dropout, self.batch_first = float(dropout), bool(batch_first)
        self.add_zero_attn = bool(add_zero_attn)
        # Lengths of the projections of queries, keys and values.
        shared = self.num_kv_heads * self.head_dim
        self.widths = (embed_dim, shared, shared)
        one = shared == self.kdim == self.vdim == embed_dim
        shapes = {
            "in_proj_weight": (3 * embed_dim, embed_dim) if one else None,
            "q_proj_weight": None if one else (embed_dim, embed_dim),
            "k_proj_weight": None if one else (shared, self.kdim),
            "v_proj_weight": None if one else (shared, self.vdim),
            "in_proj_bias": (sum(self.widths),) if bias else None,
            "bias_k": (1, 1, shared) if add_bias_kv else None,
            "bias_v": (1, 1, shared) if add_bias_kv else None,
        }
        for key, shape in shapes.items():
            made = None if shape is None else _empty(shape, device, dtype)
            self.register_parameter(key, made)
        self.out_proj = Linear(
            embed_dim, embed_dim, bias, generator=generator, device=device, dtype=dtype
        )
        self.register_module("rotary", rotary)
        if dropout:
            self.generator = (generator or default_generator()).split()
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw new initial values of all but the weight of ``out_proj``."""
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            weight = getattr(self, name)
            if weight is not None:
                init.xavier_uniform_(weight, generator=generator)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                init.zeros_(bias)
        for extra in (self.bias_k, self.bias_v):
            if extra is not None:
                init.xavier_normal_(extra, generator=generator)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Parameters
        ----------
        query : (L, N, embed_dim), with `batch_first` (N, L, embed_dim), without a batch
            (L, embed_dim).
        key, value : the same with S in place of L, and kdim and vdim features.
        key_padding_mask : (N, S), or (S,) without a batch: True forbids a key to all queries;
            numbers are added to the scores.
        need_weights : whether the weights are returned, which takes memory for all of them.
        attn_mask : (L, S) or (N * num_heads, L, S): True forbids a query to attend to a key;
            numbers are added to the scores.
        average_attn_weights : whether the weights are averaged over the heads.
        is_causal : query i attends to keys j <= i only, counted behind the positions of `cache`.
            With `attn_mask` it is only a hint, as in PyTorch, and that mask decides.
        cache : keys and values are written behind those in it, and queries attend to all of them.
            For inference; the masks then count the keys of the cache too.

        Returns
        -------
        output : like `query`.
        weights : (N, L, S), or (N, num_heads, L, S) if they are not averaged; None unless
            `need_weights`. A query that may attend to nothing has weights of 0, where PyTorch
            gives NaN.
        """
        name = "MultiheadAttention"
        batched = query.ndim == 3
        for argument, x, features in (
            ("query", query, self.embed_dim),
            ("key", key, self.kdim),
            ("value", value, self.vdim),
        ):
            if x.ndim != query.ndim or x.ndim not in (2, 3) or x.shape[-1] != features:
                raise ShapeError(
                    f"{name}: {argument} {x.shape} must have the axes "
                    f"{'(N, L, features)' if self.batch_first else '(L, N, features)'} or "
                    f"(L, features), with {features} features, and as many as query {query.shape}"
                )
        inputs = self._batch_first(query, key, value)
        if inputs[1].shape[:2] != inputs[2].shape[:2] or len({x.shape[0] for x in inputs}) > 1:
            raise ShapeError(
                f"{name}: key {key.shape} and value {value.shape} must have the same length, and "
                f"the batch of query {query.shape}; the batch is axis "
                f"{0 if self.batch_first else 1} (batch_first={self.batch_first})"
            )
        q, k, v = (
            x.reshape(*x.shape[:2], heads, self.head_dim).permute(0, 2, 1, 3)
            for x, heads in zip(
                self._projected(*inputs),
                (self.num_heads, self.num_kv_heads, self.num_kv_heads),
                strict=True,
            )
        )
        past = 0 if cache is None else cache.length
        if self.rotary is not None:
            q, k = self.rotary(q, past), self.rotary(k, past)
        if cache is not None:
            k, v = cache.append(k, v)
        extra = 0
        if self.bias_k is not None or self.add_zero_attn:
            if is_causal and attn_mask is None or cache is not None:
                raise ConfigError(
                    f"{name}: add_bias_kv and add_zero_attn need an attn_mask in place of "
                    "is_causal, and no cache"
                )
            k, v, extra = self._extended(k, v)
        if key_padding_mask is not None and not batched:
            key_padding_mask = as_operand(name, "key_padding_mask", key_padding_mask, query)
            key_padding_mask = key_padding_mask.reshape(1, -1)
        mask = joined_masks(name, attn_mask, key_padding_mask, q, k.shape[2] - extra)
        if mask is not None and extra:  # everybody may attend to what was added
            allowed = True if mask.dtype == np.bool_ else 0.0
            shape = (*mask.shape[:-1], extra)
            tail = Tensor(mask.backend.full(shape, allowed, mask.dtype), mask.backend)
            mask = apply(CONCATENATE, mask, tail, axis=-1)
        options: dict[str, Any] = {"causal": is_causal and attn_mask is None, "past": past}
        if self.dropout and self.training:
            options |= {"p": self.dropout, "generator": self.generator}
        weights = None
        if need_weights:
            y, weights = attend_with_weights(q, k, v, mask, **options)
            weights = weights.mean(axis=1) if average_attn_weights else weights
        else:
            y = attend(q, k, v, mask, **options)
        y = self.out_proj(y.permute(0, 2, 1, 3).reshape(*inputs[0].shape[:2], self.embed_dim))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.swapaxes(0, 1)), weights

    def _batch_first(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """The inputs as (N, L, features); what was one object stays one."""
        moved: dict[int, Tensor] = {}
        for x in (query, key, value):
            if id(x) not in moved:
                if x.ndim == 2:
                    moved[id(x)] = x.expand_dims(0)
                else:
                    moved[id(x)] = x if self.batch_first else x.swapaxes(0, 1)
        return [moved[id(x)] for x in (query, key, value)]

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values of all heads; in one product where they have one source."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        ends = (self.widths[0], self.widths[0] + self.widths[1])
        if weight is not None and query is key and key is value:
            return list(F.linear(query, weight, bias).split(ends, axis=-1))
        apart = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights: Any = apart if weight is None else weight.split(ends, axis=0)
        biases: Any = (None,) * 3 if bias is None else bias.split(ends)
        return [
            F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)
        ]

    def _extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Keys and values with the learned ones and zeros behind them, and the number of these."""
        count, pieces = 0, [[k], [v]]
        b, heads, _, features = k.shape
        if self.bias_k is not None:
            count += 1
            for piece, x in zip(pieces, (self.bias_k, self.bias_v), strict=True):
                row = x.reshape(1, heads, 1, features)  # type: ignore[union-attr]
                piece.append(row.broadcast_to(b, heads, 1, features))
        if self.add_zero_attn:
            count += 1
            for piece in pieces:
                zeros = k.backend.zeros((b, heads, 1, features), k.dtype)
                piece.append(Tensor(zeros, k.backend))
        k, v = (apply(CONCATENATE, *piece, axis=2) for piece in pieces)
        return k, v, count

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, batch_first={self.batch_first}"
