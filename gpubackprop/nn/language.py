"""Language models: the next token out of those before it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor, no_grad
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation
from gpubackprop.nn import init
from gpubackprop.nn.attention import KeyValueCache, MultiheadAttention
from gpubackprop.nn.containers import ModuleList
from gpubackprop.nn.layers import Device, Dropout, Embedding, LayerNorm, Linear, _size
from gpubackprop.nn.module import Module
from gpubackprop.nn.positions import LearnedPositions, RotaryPositions, SinusoidalPositions
from gpubackprop.suggest import unknown

POSITIONS = ("learned", "rotary", "sinusoidal")
KINDS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
DEVIATION = 0.02
"""Standard deviation of the first weights of a transformer (Radford et al. 2018, section 4.1)."""


def _check_tokens(name: str, tokens: Tensor) -> None:
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise ShapeError(
            f"{name}: tokens must be integers of shape (N, T), not {tokens.dtype} of {tokens.shape}"
        )


class TransformerBlock(Module):
    """Self-attention and a network of two linear layers, each after a normalisation and added to
    what came in (Radford et al. 2019, section 2.3).

    Parameters
    ----------
    width, heads, kv_heads : features of a position; heads of queries, and of keys and values.
    dropout : probability of dropout on the weights and on what is added.
    bias : whether linear layers and normalisations have a bias.
    rotary : positions that queries and keys are turned by, or None.
    generator, device, dtype : as for :class:`~gpubackprop.nn.Linear`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: RotaryPositions | None = None,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        drawn: dict[str, Any] = {"generator": generator, **place}
        self.norm1 = LayerNorm(width, bias=bias, **place)
        self.attention = MultiheadAttention(
            width,
            heads,
            dropout,
            bias,
            batch_first=True,
            num_kv_heads=kv_heads,
            rotary=rotary,
            **drawn,
        )
        self.norm2 = LayerNorm(width, bias=bias, **place)
        self.expand = Linear(width, 4 * width, bias, **drawn)
        self.contract = Linear(4 * width, width, bias, **drawn)
        self.dropout = Dropout(dropout, generator=generator)

    def forward(self, input: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(N, T, width) to the same shape; each position sees itself and those before it."""
        x = self.norm1(input)
        y, _ = self.attention(x, x, x, need_weights=False, is_causal=True, cache=cache)
        x = input + self.dropout(y)
        y = self.contract(F.gelu(self.expand(self.norm2(x))))
        return x + self.dropout(y)


class TransformerLM(Module):
    """A decoder-only transformer in the manner of GPT-2 (Radford et al. 2019).

    Parameters
    ----------
    vocabulary : number of tokens.
    width : features of a position.
    layers : number of :class:`TransformerBlock` above one another.
    heads : heads of each attention.
    context : the most tokens that are looked at.
    kv_heads : heads of keys and values where those of queries share them (Ainslie et al. 2023).
    dropout : probability of dropout on embeddings, weights and what the blocks add.
    bias : whether linear layers and normalisations have a bias.
    positions : ``"learned"`` or ``"sinusoidal"`` ones, which are added to the embedding, or
        ``"rotary"`` ones, which queries and keys are turned by.
    tie_weights : whether the logits' matrix is the table of embeddings (Press & Wolf 2017).
    generator, device, dtype : as for :class:`~gpubackprop.nn.Linear`.

    Notes
    -----
    First values: matrices normal with deviation 0.02, those whose result is added to a residual
    connection 0.02 / sqrt(2 * layers), biases zero (Radford et al. 2019, section 2.3; nanoGPT).

    Examples
    --------
    >>> from gpubackprop import nn
    >>> model = nn.TransformerLM(65, width=32, layers=2, heads=4, context=64)
    >>> sum(p.size for p in model.parameters())
    29600
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        context: int,
        *,
        kv_heads: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        positions: str = "learned",
        tie_weights: bool = True,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        name = "TransformerLM"
        self.vocabulary = _size(name, "vocabulary", vocabulary)
        self.context = _size(name, "context", context)
        if positions not in POSITIONS:
            raise ConfigError(f"{name}: {unknown('positions', positions, POSITIONS)}")
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        drawn: dict[str, Any] = {"generator": generator, **place}
        self.embedding = Embedding(vocabulary, width, **drawn)
        rotary = None
        if positions == "rotary":
            rotary = RotaryPositions(_size(name, "width / heads", width // heads))
        elif positions == "learned":
            self.positions: Module = LearnedPositions(context, width, **drawn)
        else:
            self.positions = SinusoidalPositions(width)
        self.dropout = Dropout(dropout, generator=generator)
        self.blocks = ModuleList(
            TransformerBlock(
                width, heads, kv_heads=kv_heads, dropout=dropout, bias=bias, rotary=rotary, **drawn
            )
            for _ in range(_size(name, "layers", layers))
        )
        self.norm = LayerNorm(width, bias=bias, **place)
        self.head = Linear(width, vocabulary, bias=False, **drawn)
        if tie_weights:
            self.head.weight = self.embedding.weight
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw new initial values."""
        residual = DEVIATION / math.sqrt(2 * len(self.blocks))
        for path, p in self.named_parameters():
            if p.ndim > 1:
                added = path.endswith(("attention.out_proj.weight", "contract.weight"))
                init.normal_(p, std=residual if added else DEVIATION, generator=generator)
            elif path.endswith("bias"):
                init.zeros_(p)
            else:
                init.ones_(p)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, T, vocabulary) of the token after each of `tokens` (N, T)."""
        return self._logits(tokens, None)

    def step(
        self, tokens: Tensor, state: list[KeyValueCache] | None = None
    ) -> tuple[Tensor, list[KeyValueCache]]:
        """Go on with a text: logits of the token after each of `tokens`, without derivatives.

        Parameters
        ----------
        tokens : (N, T) behind those that `state` has seen.
        state : what an earlier call gave, and which this call changes in place; None at the
            beginning.

        Returns
        -------
        logits : (N, T, vocabulary).
        state : keys and values of all tokens so far.

        Raises
        ------
        ShapeError
            If there are more than `context` tokens in all: begin anew with the last ones.
        """
        if state is None:
            state = [KeyValueCache(self.context) for _ in self.blocks]
        with no_grad():
            return self._logits(tokens, state), state

    def _logits(self, tokens: Tensor, caches: list[KeyValueCache] | None) -> Tensor:
        _check_tokens("TransformerLM", tokens)
        past = caches[0].length if caches else 0
        if past + tokens.shape[1] > self.context:
            raise ShapeError(
                f"TransformerLM: {past + tokens.shape[1]} tokens are more than the context of "
                f"{self.context}; pass the last {self.context} or fewer"
            )
        x = self.embedding(tokens)
        if "positions" in self._registry:
            x = self.positions(x, past)
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            x = block(x, caches[i] if caches else None)
        return self.head(self.norm(x))


class RecurrentLM(Module):
    """A recurrent network that reads a text token by token (Mikolov et al. 2010; with LSTM cells,
    Sundermeyer et al. 2012).

    Parameters
    ----------
    vocabulary : number of tokens.
    embedding : features of a token.
    hidden, layers : units of a layer, and layers above one another.
    kind : ``"lstm"``, ``"gru"`` or ``"rnn"``.
    dropout : probability of dropout on embeddings, between layers and before the logits (Zaremba
        et al. 2014).
    tie_weights : whether the logits' matrix is the table of embeddings (Press & Wolf 2017); then
        `embedding` and `hidden` must be equal.
    generator, device, dtype : as for :class:`~gpubackprop.nn.Linear`.

    Notes
    -----
    Table and logits' matrix begin uniform on +-0.1, the logits' bias at zero.
    """

    def __init__(
        self,
        vocabulary: int,
        embedding: int,
        hidden: int,
        layers: int = 1,
        kind: str = "lstm",
        dropout: float = 0.0,
        tie_weights: bool = False,
        *,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        from gpubackprop.nn import recurrent

        if kind not in KINDS:
            raise ConfigError(f"RecurrentLM: {unknown('kind', kind, KINDS)}")
        if tie_weights and embedding != hidden:
            raise ConfigError(
                f"RecurrentLM: tie_weights needs as many features of a token ({embedding}) as "
                f"hidden units ({hidden})"
            )
        drawn: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
        self.vocabulary = _size("RecurrentLM", "vocabulary", vocabulary)
        self.embedding = Embedding(vocabulary, embedding, **drawn)
        self.dropout = Dropout(dropout, generator=generator)
        self.rnn: Module = getattr(recurrent, KINDS[kind])(
            embedding,
            hidden,
            num_layers=layers,
            dropout=dropout if layers > 1 else 0.0,
            batch_first=True,
            **drawn,
        )
        self.head = Linear(hidden, vocabulary, **drawn)
        if tie_weights:
            self.head.weight = self.embedding.weight
        for weight in {id(w): w for w in (self.embedding.weight, self.head.weight)}.values():
            init.uniform_(weight, -0.1, 0.1, generator=generator)
        assert self.head.bias is not None
        init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, T, vocabulary) of the token after each of `tokens` (N, T)."""
        return self.step(tokens)[0]

    def step(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Go on with a text: logits of the token after each of `tokens`.

        Parameters
        ----------
        tokens : (N, T) behind those that `state` has seen.
        state : the layers' state that an earlier call gave; None at the beginning. For training
            through parts of a long text, detach it in between.

        Returns
        -------
        logits : (N, T, vocabulary).
        state : the layers' state after the last token.
        """
        _check_tokens("RecurrentLM", tokens)
        y, state = self.rnn(self.dropout(self.embedding(tokens)), state)
        return self.head(self.dropout(y)), state
