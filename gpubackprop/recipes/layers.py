"""The table of layers that a recipe can name: a further layer is a further row."""

from __future__ import annotations

import math

from gpubackprop import nn
from gpubackprop.recipes.image_layers import IMAGE_LAYERS
from gpubackprop.recipes.layer_kind import (
    INITIALISERS,
    MAX_UNITS,
    SCALED_INITIALISERS,
    LayerKind,
    Options,
    Shape,
    initialise,
    weight_options,
)
from gpubackprop.recipes.options import Option
from gpubackprop.recipes.sequence_layers import SEQUENCE_LAYERS

__all__ = ["INITIALISERS", "LAYERS", "SCALED_INITIALISERS", "LayerKind", "Options", "Shape"]


def _linear_shape(shape: Shape, options: Options) -> Shape:
    if len(shape) != 1:
        raise ValueError(
            f"it needs inputs of one axis, but gets {list(shape)}; put a layer of kind 'flatten' "
            "before it, or flatten = true in [data]"
        )
    return (_units(options),)


def _units(options: Options) -> int:
    """The number of outputs: the data's classes where a recipe does not know them."""
    if options["units"] != "classes":
        return int(options["units"])
    if options["classes"] is None:
        raise ValueError("units = 'classes' is for data with classes; give a number")
    return int(options["classes"])


def _linear(shape: Shape, options: Options) -> nn.Module:
    return initialise(nn.Linear(shape[0], _units(options), bias=options["bias"]), options)


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
                "units": Option(int, least=1, most=MAX_UNITS, choices=("classes",)),
                **weight_options(),
            },
            _linear_shape,
            lambda shape, o: _units(o) * (shape[0] + o["bias"]),
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
        *IMAGE_LAYERS,
        *SEQUENCE_LAYERS,
    )
}
"""Every layer by name."""
