"""``gpubackprop evaluate``: cost and accuracy of a trained network."""

from __future__ import annotations

import argparse
import math

import numpy as np

from gpubackprop.backends import get_backend
from gpubackprop.backends.device import choose
from gpubackprop.cli.parser import (
    Parser,
    add_data_dir,
    add_device,
    add_json,
    print_json,
    whole_number,
)
from gpubackprop.cli.runs import load_its_data, load_run
from gpubackprop.data import DATASETS, DataLoader, Dataset, Subset
from gpubackprop.recipes.build import build_loss
from gpubackprop.training import evaluate
from gpubackprop.training.progress import short

PARTS = ("test", "train")


def add_arguments(parser: Parser) -> None:
    """The options of the subcommand."""
    parser.add_argument("run", metavar="RUN", help="the folder that train wrote")
    parser.add_argument("--part", choices=PARTS, default="test", help="of the recipe's data")
    add_device(parser)
    add_data_dir(parser)
    parser.add_argument("--batch-size", type=whole_number, metavar="N", help="samples at a time")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate, and report."""
    device = choose(options.device).device
    backend = get_backend(device)
    trained = load_run(options.run, backend)
    recipe = trained.recipe
    data = load_its_data(trained, options.data_dir)
    part: Dataset = data.test if options.part == "test" else data.train
    if options.part == "train" and DATASETS[recipe.data.name].tokens:
        # Every window would count each character as often as a window has places.
        part = Subset(part, np.arange(0, len(part), data.input_shape[0]))
    loader = DataLoader(part, options.batch_size or recipe.train.eval_batch_size)
    found = evaluate(
        trained.model,
        build_loss(recipe),
        loader.batches(0),
        backend,
        accuracy=data.classes is not None,
    )
    loss = found.loss if math.isfinite(found.loss) else None
    if options.json:
        print_json(
            {
                "run": str(trained.path),
                "recipe": recipe.name,
                "device": device,
                "backend": backend.name,
                "part": options.part,
                "samples": found.samples,
                "loss": loss,
                "accuracy": found.accuracy,
            }
        )
        return 0
    words = [f"{found.samples:,} samples of the {options.part} part", f"loss {short(found.loss)}"]
    if found.accuracy is not None:
        words.append(f"accuracy {100 * found.accuracy:.2f} %")
    print("; ".join(words))
    return 0
