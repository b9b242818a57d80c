"""``gpubackprop generate``: text from a trained language model."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import numpy as np

from gpubackprop import nn
from gpubackprop.autograd import Tensor
from gpubackprop.backends import get_backend
from gpubackprop.backends.device import choose
from gpubackprop.backends.random import Generator
from gpubackprop.cli.parser import Parser, add_device, add_json, print_json, seed, whole_number
from gpubackprop.cli.runs import Run, load_run
from gpubackprop.data import DATASETS, Vocabulary
from gpubackprop.errors import ConfigError, DataError

LENGTH = 500
TEMPERATURE = 0.8
MAX_LENGTH = 10_000_000


def add_arguments(parser: Parser) -> None:
    """The options of the subcommand."""
    parser.add_argument("run", metavar="RUN", help="the folder that train wrote")
    parser.add_argument(
        "--prompt", metavar="TEXT", help="what the text begins with (default: a line end)"
    )
    parser.add_argument(
        "--length",
        type=whole_number,
        default=LENGTH,
        metavar="N",
        help=f"characters to add (default: {LENGTH})",
    )
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=TEMPERATURE,
        metavar="T",
        help="0 for the likeliest character each time, more for bolder text "
        f"(default: {TEMPERATURE})",
    )
    parser.add_argument(
        "--top-k", type=whole_number, metavar="K", help="draw among the K likeliest characters only"
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="S", help="another text for each (default: 0)"
    )
    add_device(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Generate, and print."""
    if options.length > MAX_LENGTH:
        raise ConfigError(f"--length: at most {MAX_LENGTH:,} characters")
    device = choose(options.device).device
    backend = get_backend(device)
    trained = load_run(options.run, backend)
    model, vocabulary = language_model(trained)
    prompt = _prompt(options.prompt, vocabulary)
    found = nn.generate(
        model,
        Tensor(backend.asarray(prompt[None]), backend),
        options.length,
        temperature=options.temperature,
        top_k=options.top_k,
        generator=Generator(options.seed),
    ).numpy()[0]
    begun, added = vocabulary.decode(found[: len(prompt)]), vocabulary.decode(found[len(prompt) :])
    if options.json:
        print_json(
            {
                "run": str(trained.path),
                "recipe": trained.recipe.name,
                "device": device,
                "backend": backend.name,
                "seed": options.seed,
                "temperature": options.temperature,
                "top_k": options.top_k,
                "prompt": begun,
                "text": added,
            }
        )
    else:
        print(_printable(begun + added))
    return 0


def language_model(trained: Run) -> tuple[nn.Module, Vocabulary]:
    """The network of a run that continues texts, and its vocabulary.

    Raises
    ------
    ConfigError
        The run's network does not continue texts.
    """
    recipe = trained.recipe
    if not DATASETS[recipe.data.name].tokens or trained.class_names is None:
        raise ConfigError(
            f"{trained.path} holds a network of the recipe {recipe.name!r}, which is no language "
            "model; generate is for runs of recipes such as shakespeare-gpt"
        )
    layers = list(trained.model)
    if len(layers) != 1 or not hasattr(layers[0], "step"):
        kinds = ", ".join(layer.name for layer in recipe.layers)
        raise ConfigError(
            f"{trained.path}: generate needs a network of one layer of kind 'gpt' or "
            f"'recurrent-lm', but this one has {kinds}"
        )
    return layers[0], Vocabulary(trained.class_names)


def _prompt(given: str | None, vocabulary: Vocabulary) -> np.ndarray[Any, Any]:
    if given is None:
        given = "\n" if "\n" in vocabulary.characters else vocabulary.characters[0]
    if not given:
        raise ConfigError("--prompt is empty; give one character at least, or leave it out")
    try:
        return vocabulary.encode(given)
    except DataError as error:
        raise ConfigError(f"--prompt: {error}") from None


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, not {text[:40]!r}")
    return value


def _printable(text: str) -> str:
    """`text` with question marks for what the output's encoding does not have."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
