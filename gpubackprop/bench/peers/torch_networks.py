"""Networks of recipes in PyTorch, layer by layer in the order of the recipe, so that parameters can
be copied from one to the other in order.

Pictures are (N, channels, height, width) inside, as PyTorch has them; what a flatten joins is put
in this project's order, channels last, so that both networks are the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's abbreviation

Shape = tuple[int, ...]
Options = Mapping[str, Any]


class Flatten(nn.Module):
    """All axes but the first joined, pictures with their channels last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).flatten(1)


class ResidualBlock(nn.Module):
    """The basic block of He et al. 2015 with shortcut A."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, filters - channels
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.added:
            x = F.pad(x, (0, 0, 0, 0, 0, self.added))
        return F.relu(y + x)


Turns = tuple[torch.Tensor, torch.Tensor]


def rotary(context: int, width: int) -> Turns:
    """Cosines and sines (context, width / 2) of rotary positions (Su et al. 2021, equation 34)."""
    rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(context, dtype=torch.float64)[:, None] * rates
    return angles.cos().float(), angles.sin().float()


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Feature i turned with feature i + D / 2."""
    cos, sin = cos[: x.shape[-2]].to(x.dtype), sin[: x.shape[-2]].to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Block(nn.Module):
    """A block of a GPT, as nanoGPT writes it."""

    def __init__(self, width: int, heads: int, bias: bool, turns: Turns | None) -> None:
        super().__init__()
        self.heads, self.turns = heads, turns
        self.norm1 = nn.LayerNorm(width, bias=bias)
        self.in_proj = nn.Linear(width, 3 * width, bias)
        self.out_proj = nn.Linear(width, width, bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.expand = nn.Linear(width, 4 * width, bias)
        self.contract = nn.Linear(4 * width, width, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, width = x.shape
        q, k, v = (
            part.view(n, t, self.heads, width // self.heads).transpose(1, 2)
            for part in self.in_proj(self.norm1(x)).split(width, dim=2)
        )
        if self.turns is not None:
            q, k = turned(q, *self.turns), turned(k, *self.turns)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out_proj(y.transpose(1, 2).reshape(n, t, width))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class GPT(nn.Module):
    """A decoder-only transformer with learned or rotary positions and tied weights."""

    def __init__(self, context: int, o: Options, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, o["width"])
        turning = o["positions"] == "rotary"
        turns = rotary(context, o["width"] // o["heads"]) if turning else None
        self.positions = None if turning else nn.Embedding(context, o["width"])
        self.blocks = nn.ModuleList(
            Block(o["width"], o["heads"], o["bias"], turns) for _ in range(o["layers"])
        )
        self.norm = nn.LayerNorm(o["width"], bias=o["bias"])
        self.head = nn.Linear(o["width"], vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class RecurrentLM(nn.Module):
    """Embedding, recurrent layers, logits."""

    def __init__(self, o: Options, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, o["embedding"])
        kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[o["cell"]]
        between = o["dropout"] if o["layers"] > 1 else 0.0
        self.rnn = kind(o["embedding"], o["hidden"], o["layers"], batch_first=True, dropout=between)
        self.dropout = nn.Dropout(o["dropout"])
        self.head = nn.Linear(o["hidden"], vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        y, _ = self.rnn(self.dropout(self.embedding(tokens)))
        return self.head(self.dropout(y))


def _conv(shape: Shape, o: Options, classes: int) -> nn.Module:
    padding = o["padding"]
    return nn.Conv2d(
        shape[2], o["filters"], o["kernel"], o["stride"], padding, 1, o["groups"], o["bias"]
    )


def _norm(shape: Shape, o: Options, classes: int) -> nn.Module:
    if len(shape) == 1:
        return nn.BatchNorm1d(shape[0], o["eps"], o["momentum"])
    return nn.BatchNorm2d(shape[2], o["eps"], o["momentum"])


LAYERS: dict[str, Callable[[Shape, Options, int], nn.Module]] = {
    "linear": lambda shape, o, c: nn.Linear(
        shape[0], c if o["units"] == "classes" else o["units"], o["bias"]
    ),
    "relu": lambda shape, o, c: nn.ReLU(),
    "tanh": lambda shape, o, c: nn.Tanh(),
    "sigmoid": lambda shape, o, c: nn.Sigmoid(),
    "dropout": lambda shape, o, c: nn.Dropout(o["p"]),
    "flatten": lambda shape, o, c: Flatten(),
    "conv2d": _conv,
    "max-pool": lambda shape, o, c: nn.MaxPool2d(o["kernel"], o["stride"], o["padding"]),
    "batch-norm": _norm,
    "residual-block": lambda shape, o, c: ResidualBlock(shape[2], o["filters"], o["stride"]),
    "global-avg-pool": lambda shape, o, c: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "gpt": lambda shape, o, c: GPT(shape[0], o, c),
    "recurrent-lm": lambda shape, o, c: RecurrentLM(o, c),
}
"""A layer of a recipe in PyTorch, from the shape of one input, the options and the classes."""


def network(layers: Any, shapes: Any, classes: int) -> nn.Sequential:
    """The network of a recipe.

    Parameters
    ----------
    layers : the recipe's layers.
    shapes : shape of one input of each, channels last.
    classes : number of classes, or of tokens.
    """
    made = [
        LAYERS[layer.name](shape, layer.options, classes)
        for layer, shape in zip(layers, shapes, strict=False)
    ]
    return nn.Sequential(*made)


def optimizer(name: str, o: Options, parameters: Any, fused: bool) -> torch.optim.Optimizer:
    """The optimizer of a recipe; `fused` asks for PyTorch's fused update."""
    o = dict(o)
    named: Any = list(parameters)
    if o.pop("decay_vectors") is False:
        vectors = [p for p in named if p.ndim <= 1]
        named = [
            {"params": [p for p in named if p.ndim > 1]},
            {"params": vectors, "weight_decay": 0.0},
        ]
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return make(named, **o, fused=fused or None)


def cost(name: str, o: Options, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The cost of a recipe."""
    if name == "quadratic":
        wanted = F.one_hot(target, outputs.shape[-1]).to(outputs.dtype)
        return ((outputs - wanted) ** 2).sum() / (2 * len(outputs))
    smoothing = o.get("label_smoothing", 0.0)
    flat = outputs.reshape(-1, outputs.shape[-1])
    return F.cross_entropy(flat, target.reshape(-1), label_smoothing=smoothing)
