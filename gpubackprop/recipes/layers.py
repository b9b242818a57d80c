"""The table of layers that a recipe can name: a further layer is a further row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpubackprop import nn
from gpubackprop.nn import init
from gpubackprop.recipes.options import Option

Shape = tuple[int, ...]
Options = Mapping[str, Any]

MAX_UNITS = 1_000_000
"""The most outputs of one layer: a slip of the finger should not be an attempt to allocate."""

INITIALISERS: dict[str, Callable[[Any, float], Any]] = {
    "xavier-uniform": lambda t, gain: init.xavier_uniform_(t, gain),
    "xavier-normal": lambda t, gain: init.xavier_normal_(t, gain),
    "kaiming-uniform": lambda t, gain: init.kaiming_uniform_(t, nonlinearity="relu"),
    "kaiming-normal": lambda t, gain: init.kaiming_normal_(t, nonlinearity="relu"),
    "orthogonal": lambda t, gain: init.orthogonal_(t, gain),
    "normal": lambda t, gain: init.normal_(t, 0.0, gain),
    "truncated-normal": lambda t, gain: init.trunc_normal_(t, 0.0, gain, -2.0 * gain, 2.0 * gain),
    "zeros": lambda t, gain: init.zeros_(t),
}
"""Initial values by name; the number is the gain, or the standard deviation of the normal ones."""

FLAT_INITIALISERS = ("normal", "truncated-normal", "zeros")
"""Those that do not need the two axes of a weight, so that a bias can have them."""

SCALED_INITIALISERS = frozenset(INITIALISERS) - {"kaiming-uniform", "kaiming-normal", "zeros"}
"""Those for which the scale counts."""


@dataclass(frozen=True)
class LayerKind:
    """A row of the table.

    Attributes
    ----------
    name : what a recipe calls it.
    summary : one line.
    build : makes the module from the shape of one input (batch axis left out) and the options.
    options : what may be set.
    shape : the shape of one result; raises ValueError, in words, where the input does not fit.
    parameters : how many numbers the layer learns. Counted before anything is allocated.
    """

    name: str
    summary: str
    build: Callable[[Shape, Options], nn.Module]
    options: Mapping[str, Option] = field(default_factory=dict)
    shape: Callable[[Shape, Options], Shape] = lambda shape, options: shape
    parameters: Callable[[Shape, Options], int] = lambda shape, options: 0


def _linear_shape(shape: Shape, options: Options) -> Shape:
    if len(shape) != 1:
        raise ValueError(
            f"it needs inputs of one axis, but gets {list(shape)}; put a layer of kind 'flatten' "
            "before it, or flatten = true in [data]"
        )
    return (options["units"],)


def _linear(shape: Shape, options: Options) -> nn.Module:
    module = nn.Linear(shape[0], options["units"], bias=options["bias"])
    if options["init"] != "default":
        INITIALISERS[options["init"]](module.weight, options["init_scale"])
    if module.bias is not None and options["bias_init"] != "default":
        INITIALISERS[options["bias_init"]](module.bias, options["init_scale"])
    return module


def _flat(shape: Shape, options: Options) -> Shape:
    return (math.prod(shape),)


def _norm_shape(shape: Shape, options: Options) -> Shape:
    if not shape:
        raise ValueError("it needs inputs of at least one axis")
    return shape


LAYERS: dict[str, LayerKind] = {
    row.name: row
    for row in (
        LayerKind(
            "linear",
            "y = x W^T + b",
            _linear,
            {
                "units": Option(int, least=1, most=MAX_UNITS),
                "bias": Option(bool, True),
                "init": Option(str, "default", choices=("default", *INITIALISERS)),
                "bias_init": Option(str, "default", choices=("default", *FLAT_INITIALISERS)),
                "init_scale": Option(float, 1.0, above=0.0, most=1e6),
            },
            _linear_shape,
            lambda shape, o: o["units"] * (shape[0] + o["bias"]),
        ),
        LayerKind("relu", "max(x, 0)", lambda shape, o: nn.ReLU()),
        LayerKind(
            "leaky-relu",
            "x, or a fraction of it where it is negative",
            lambda shape, o: nn.LeakyReLU(o["negative_slope"]),
            {"negative_slope": Option(float, 0.01, least=0.0, most=1.0)},
        ),
        LayerKind(
            "elu",
            "x, or alpha * (exp(x) - 1) where it is negative",
            lambda shape, o: nn.ELU(o["alpha"]),
            {"alpha": Option(float, 1.0, above=0.0, most=1e6)},
        ),
        LayerKind(
            "gelu",
            "x times the normal distribution function of x",
            lambda shape, o: nn.GELU(o["approximate"]),
            {"approximate": Option(str, "none", choices=("none", "tanh"))},
        ),
        LayerKind("silu", "x * sigmoid(x)", lambda shape, o: nn.SiLU()),
        LayerKind("softplus", "log(1 + exp(x))", lambda shape, o: nn.Softplus()),
        LayerKind("sigmoid", "1 / (1 + exp(-x))", lambda shape, o: nn.Sigmoid()),
        LayerKind("tanh", "hyperbolic tangent", lambda shape, o: nn.Tanh()),
        LayerKind("softmax", "exp(x) / sum(exp(x))", lambda shape, o: nn.Softmax(-1)),
        LayerKind("log-softmax", "log(softmax(x))", lambda shape, o: nn.LogSoftmax(-1)),
        LayerKind(
            "dropout",
            "in training, elements set to zero with probability p",
            lambda shape, o: nn.Dropout(o["p"]),
            {"p": Option(float, 0.5, least=0.0, below=1.0)},
        ),
        LayerKind(
            "flatten", "all axes joined into one", lambda shape, o: nn.Flatten(), shape=_flat
        ),
        LayerKind(
            "layer-norm",
            "mean 0 and variance 1 over the last axis, then scale and shift",
            lambda shape, o: nn.LayerNorm(shape[-1], eps=o["eps"]),
            {"eps": Option(float, 1e-5, above=0.0, most=1.0)},
            _norm_shape,
            lambda shape, o: 2 * shape[-1],
        ),
    )
}
"""Every layer by name."""
