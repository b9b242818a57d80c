"""What a row of the table of layers is, and the initial values that rows share."""

from __future__ import annotations

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
    options : what may be set. Beside them the functions find ``classes``, the number of classes of
        the data (None for a regression), among the options.
    shape : the shape of one result; raises ValueError, in words, where the input does not fit.
    parameters : how many numbers the layer learns. Counted before anything is allocated.
    """

    name: str
    summary: str
    build: Callable[[Shape, Options], nn.Module]
    options: Mapping[str, Option] = field(default_factory=dict)
    shape: Callable[[Shape, Options], Shape] = lambda shape, options: shape
    parameters: Callable[[Shape, Options], int] = lambda shape, options: 0


def weight_options(bias: bool = True) -> dict[str, Option]:
    """The options of a layer with a weight and a bias about their presence and initial values."""
    return {
        "bias": Option(bool, bias),
        "init": Option(str, "default", choices=("default", *INITIALISERS)),
        "bias_init": Option(str, "default", choices=("default", *FLAT_INITIALISERS)),
        "init_scale": Option(float, 1.0, above=0.0, most=1e6),
    }


def initialise(module: Any, options: Options) -> Any:
    """Give the weight and the bias of a module the values that the options ask for."""
    if options["init"] != "default":
        INITIALISERS[options["init"]](module.weight, options["init_scale"])
    if module.bias is not None and options["bias_init"] != "default":
        INITIALISERS[options["bias_init"]](module.bias, options["init_scale"])
    return module
