"""Rows of the table of layers for sequences of class numbers, such as the characters of a text."""

from __future__ import annotations

from gpubackprop import nn
from gpubackprop.recipes.layer_kind import LayerKind, Options, Shape
from gpubackprop.recipes.options import Option

MAX_WIDTH = 65_536
MAX_LAYERS = 256

POSITIONS = ("learned", "rotary", "sinusoidal")
CELLS = {"lstm": 4, "gru": 3, "rnn": 1}
"""Kinds of cell, and how many linear maps of a step each has."""

_WIDTH = Option(int, least=1, most=MAX_WIDTH)
_LAYERS = Option(int, 1, least=1, most=MAX_LAYERS)
_SHARE = Option(float, 0.0, least=0.0, below=1.0)


def sequence(shape: Shape, options: Options) -> Shape:
    """The shape of a class for each place; ValueError, in words, where there are no places."""
    if len(shape) != 1 or options["classes"] is None:
        raise ValueError(
            f"it needs a sequence of class numbers, such as [data] name = 'text' gives, but gets "
            f"inputs of shape {list(shape)}"
        )
    return (shape[0], options["classes"])


def _gpt_shape(shape: Shape, options: Options) -> Shape:
    found = sequence(shape, options)
    width, heads = options["width"], options["heads"]
    kv_heads = options["kv_heads"] or heads
    if width % heads:
        raise ValueError(f"heads = {heads} must divide width = {width}")
    if heads % kv_heads:
        raise ValueError(f"kv_heads = {kv_heads} must divide heads = {heads}")
    if options["positions"] == "rotary" and width // heads % 2:
        raise ValueError(
            f"positions = 'rotary' turns pairs of features, but width / heads is "
            f"{width // heads}, an odd number"
        )
    return found


def _gpt(shape: Shape, options: Options) -> nn.Module:
    return nn.TransformerLM(
        options["classes"],
        options["width"],
        options["layers"],
        options["heads"],
        shape[0],
        kv_heads=options["kv_heads"],
        dropout=options["dropout"],
        bias=options["bias"],
        positions=options["positions"],
        tie_weights=options["tie_weights"],
    )


def _gpt_parameters(shape: Shape, options: Options) -> int:
    width, bias = options["width"], int(options["bias"])
    shared = width // options["heads"] * (options["kv_heads"] or options["heads"])
    norm = width * (1 + bias)
    attention = (2 * width + 2 * shared) * width + bias * (2 * width + 2 * shared)
    inner = 8 * width * width + bias * 5 * width
    tables = options["classes"] * (1 if options["tie_weights"] else 2)
    tables += shape[0] if options["positions"] == "learned" else 0
    return int(tables * width + options["layers"] * (2 * norm + attention + inner) + norm)


def _recurrent_shape(shape: Shape, options: Options) -> Shape:
    found = sequence(shape, options)
    if options["tie_weights"] and options["embedding"] != options["hidden"]:
        raise ValueError(
            f"tie_weights needs embedding = {options['embedding']} and hidden = "
            f"{options['hidden']} to be equal"
        )
    return found


def _recurrent(shape: Shape, options: Options) -> nn.Module:
    return nn.RecurrentLM(
        options["classes"],
        options["embedding"],
        options["hidden"],
        options["layers"],
        options["cell"],
        options["dropout"],
        options["tie_weights"],
    )


def _recurrent_parameters(shape: Shape, options: Options) -> int:
    classes, features, hidden = options["classes"], options["embedding"], options["hidden"]
    total = classes * features + classes
    if not options["tie_weights"]:
        total += classes * hidden
    for layer in range(options["layers"]):
        inputs = hidden if layer else features
        total += CELLS[options["cell"]] * hidden * (inputs + hidden + 2)
    return int(total)


SEQUENCE_LAYERS = (
    LayerKind(
        "gpt",
        "a decoder-only transformer: the class at each place out of those before it",
        _gpt,
        {
            "width": _WIDTH,
            "layers": Option(int, least=1, most=MAX_LAYERS),
            "heads": Option(int, least=1, most=MAX_WIDTH),
            "kv_heads": Option(int, None, least=1, most=MAX_WIDTH),
            "dropout": _SHARE,
            "bias": Option(bool, True),
            "positions": Option(str, "learned", choices=POSITIONS),
            "tie_weights": Option(bool, True),
        },
        _gpt_shape,
        _gpt_parameters,
    ),
    LayerKind(
        "recurrent-lm",
        "a recurrent network: the class at each place out of those before it",
        _recurrent,
        {
            "embedding": _WIDTH,
            "hidden": _WIDTH,
            "layers": _LAYERS,
            "cell": Option(str, "lstm", choices=tuple(CELLS)),
            "dropout": _SHARE,
            "tie_weights": Option(bool, False),
        },
        _recurrent_shape,
        _recurrent_parameters,
    ),
)
"""Every row for sequences."""
