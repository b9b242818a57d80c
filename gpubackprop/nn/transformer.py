"""Transformers: layers of attention and a small network for each position, and stacks of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.backends import as_dtype, get_backend
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation
from gpubackprop.nn import init
from gpubackprop.nn.attention import MultiheadAttention
from gpubackprop.nn.containers import ModuleList
from gpubackprop.nn.layers import Device, Dropout, LayerNorm, Linear, _size
from gpubackprop.nn.module import Module
from gpubackprop.suggest import unknown

Activation = str | Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


def _activation(owner: str, activation: Activation) -> Callable[[Tensor], Tensor]:
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ConfigError(f"{owner}: {unknown('activation', activation, ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def _copies(layer: Module, count: int) -> ModuleList:
    """Layers that begin with the values of `layer`, each with random sequences of its own."""
    layers = [copy.deepcopy(layer) for _ in range(count)]
    for twin in layers:
        # A copied generator would drop the same elements in every layer.
        fresh = {n: g.split() for n, g in layer.named_generators()}
        twin.load_random_state({n: g.state() for n, g in fresh.items()})
    return ModuleList(layers)


class _Layer(Module):
    """What encoder and decoder layers share."""

    norms: tuple[str, ...] = ()
    attentions: tuple[str, ...] = ()

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        drawn: dict[str, Any] = {"generator": generator, **place}
        for name in self.attentions:
            self.register_module(
                name,
                MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first, **drawn),
            )
        self.linear1 = Linear(d_model, dim_feedforward, bias, **drawn)
        self.dropout = Dropout(dropout, generator=generator)
        self.linear2 = Linear(dim_feedforward, d_model, bias, **drawn)
        for name in self.norms:
            self.register_module(name, LayerNorm(d_model, layer_norm_eps, bias=bias, **place))
        for i in range(len(self.norms)):
            self.register_module(f"dropout{i + 1}", Dropout(dropout, generator=generator))
        self.norm_first = bool(norm_first)
        self.activation = _activation(type(self).__name__, activation)

    def _sublayer(self, number: int, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """x + dropout(f(x)), with the normalisation before f or after the sum."""
        norm, dropout = getattr(self, f"norm{number}"), getattr(self, f"dropout{number}")
        if self.norm_first:
            return x + dropout(function(norm(x)))
        return norm(x + dropout(function(x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))

    def extra_repr(self) -> str:
        return f"norm_first={self.norm_first}"


class TransformerEncoderLayer(_Layer):
    """Self-attention, then a network of two linear layers for each position; around each of them a
    residual connection and layer normalisation (Vaswani et al. 2017, section 3.1).

    Parameters
    ----------
    d_model, nhead : features of a position, and heads of the attention.
    dim_feedforward : features between the two linear layers.
    dropout : probability of dropout on weights, after the activation and on what is added.
    activation : ``"relu"``, ``"gelu"`` or a function of a tensor.
    layer_norm_eps : added to the variance.
    batch_first : whether the batch is the first axis instead of the second.
    norm_first : whether the normalisation comes before attention and network (Xiong et al. 2020)
        instead of after the sums.
    bias : whether linear layers and normalisations have a bias.
    generator, device, dtype : as for :class:`~gpubackprop.nn.Linear`.
    """

    norms, attentions = ("norm1", "norm2"), ("self_attn",)
    self_attn: MultiheadAttention

    def forward(
        self,
        src: Tensor,
        src_mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: bool = False,
    ) -> Tensor:
        """(L, N, d_model), or (N, L, d_model) with `batch_first`, to the same shape.

        Masks are those of :class:`~gpubackprop.nn.MultiheadAttention`: True forbids. `is_causal`
        without `src_mask` lets each position attend to itself and those before it.
        """

        def attention(x: Tensor) -> Tensor:
            return self.self_attn(
                x, x, x, src_key_padding_mask, False, src_mask, is_causal=is_causal
            )[0]

        x = self._sublayer(1, src, attention)
        return self._sublayer(2, x, self._feed_forward)


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to the result of an encoder, and a network for each position
    (Vaswani et al. 2017, section 3.1).

    Parameters
    ----------
    d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first,
    bias, generator, device, dtype : as for :class:`TransformerEncoderLayer`.
    """

    norms, attentions = ("norm1", "norm2", "norm3"), ("self_attn", "multihead_attn")
    self_attn: MultiheadAttention
    multihead_attn: MultiheadAttention

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Targets (T, N, d_model) and the encoder's result (S, N, d_model), or with `batch_first`
        the batch first, to the shape of the targets. Masks as for
        :class:`TransformerEncoderLayer`."""

        def own(x: Tensor) -> Tensor:
            return self.self_attn(
                x, x, x, tgt_key_padding_mask, False, tgt_mask, is_causal=tgt_is_causal
            )[0]

        def other(x: Tensor) -> Tensor:
            return self.multihead_attn(
                x,
                memory,
                memory,
                memory_key_padding_mask,
                False,
                memory_mask,
                is_causal=memory_is_causal,
            )[0]

        x = self._sublayer(1, tgt, own)
        x = self._sublayer(2, x, other)
        return self._sublayer(3, x, self._feed_forward)


class TransformerEncoder(Module):
    """Encoder layers above one another.

    Parameters
    ----------
    encoder_layer : a layer; the stack has copies of it, which begin with its values as in PyTorch,
        and drop different elements.
    num_layers : how many.
    norm : what is applied to the last result, or None.
    enable_nested_tensor, mask_check : accepted for PyTorch's sake; they have no effect.
    """

    norm: Module | None

    def __init__(
        self,
        encoder_layer: Module,
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        self.num_layers = _size("TransformerEncoder", "num_layers", num_layers)
        self.layers = _copies(encoder_layer, num_layers)
        self.register_module("norm", norm)

    def forward(
        self,
        src: Tensor,
        mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """The arguments of the layers; see :class:`TransformerEncoderLayer`."""
        for layer in self.layers:
            src = layer(src, mask, src_key_padding_mask, bool(is_causal))
        return src if self.norm is None else self.norm(src)


class TransformerDecoder(Module):
    """Decoder layers above one another.

    Parameters
    ----------
    decoder_layer, num_layers, norm : as for :class:`TransformerEncoder`.
    """

    norm: Module | None

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        self.num_layers = _size("TransformerDecoder", "num_layers", num_layers)
        self.layers = _copies(decoder_layer, num_layers)
        self.register_module("norm", norm)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """The arguments of the layers; see :class:`TransformerDecoderLayer`."""
        for layer in self.layers:
            tgt = layer(
                tgt,
                memory,
                tgt_mask,
                memory_mask,
                tgt_key_padding_mask,
                memory_key_padding_mask,
                bool(tgt_is_causal),
                memory_is_causal,
            )
        return tgt if self.norm is None else self.norm(tgt)


class Transformer(Module):
    """Encoder and decoder (Vaswani et al. 2017).

    Parameters
    ----------
    d_model, nhead : features of a position, and heads of each attention.
    num_encoder_layers, num_decoder_layers : lengths of the stacks.
    dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias : as for
        :class:`TransformerEncoderLayer`.
    custom_encoder, custom_decoder : modules in place of the stacks.
    generator, device, dtype : as for :class:`~gpubackprop.nn.Linear`.

    Notes
    -----
    Matrices begin Xavier uniform, each layer with values of its own. Embeddings, positions and the
    layer of the logits are not part of it.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        custom_encoder: Module | None = None,
        custom_decoder: Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        given: dict[str, Any] = {
            "dim_feedforward": dim_feedforward,
            "dropout": dropout,
            "activation": activation,
            "layer_norm_eps": layer_norm_eps,
            "batch_first": batch_first,
            "norm_first": norm_first,
            "bias": bias,
            "generator": generator,
            **place,
        }

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, **place)

        self.encoder = custom_encoder or TransformerEncoder(
            TransformerEncoderLayer(d_model, nhead, **given), num_encoder_layers, norm()
        )
        self.decoder = custom_decoder or TransformerDecoder(
            TransformerDecoderLayer(d_model, nhead, **given), num_decoder_layers, norm()
        )
        self.d_model, self.nhead, self.batch_first = d_model, nhead, bool(batch_first)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw new initial values of all matrices."""
        for p in self.parameters():
            if p.ndim > 1:
                init.xavier_uniform_(p, generator=generator)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Any = None,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        src_key_padding_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Sources (S, N, d_model) and targets (T, N, d_model), or with `batch_first` the batch
        first, to the shape of the targets."""
        for argument, x in (("src", src), ("tgt", tgt)):
            if x.shape[-1] != self.d_model:
                raise ShapeError(
                    f"Transformer: {argument} {x.shape} must have {self.d_model} features"
                )
        memory = self.encoder(src, src_mask, src_key_padding_mask, src_is_causal)
        return self.decoder(
            tgt,
            memory,
            tgt_mask,
            memory_mask,
            tgt_key_padding_mask,
            memory_key_padding_mask,
            tgt_is_causal,
            memory_is_causal,
        )

    @staticmethod
    def generate_square_subsequent_mask(
        sz: int, device: Device = None, dtype: Any = np.float32
    ) -> Tensor:
        """(sz, sz) numbers to add to scores: 0 where a position may attend, to itself and those
        before it, and -infinity elsewhere."""
        backend = get_backend(device)
        table = np.triu(np.full((sz, sz), -math.inf, as_dtype(dtype)), 1)
        return Tensor(backend.asarray(table), backend)
