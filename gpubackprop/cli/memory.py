"""``gpubackprop memory``: what one training step of a recipe needs."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from gpubackprop import recipes
from gpubackprop.backends import get_backend
from gpubackprop.backends.device import choose
from gpubackprop.cli.parser import (
    Parser,
    add_data_dir,
    add_device,
    add_json,
    add_set,
    note,
    print_json,
    settings_of,
    whole_number,
)
from gpubackprop.inspect.memory import MemoryReport, memory, words
from gpubackprop.recipes import Job


def add_arguments(parser: Parser) -> None:
    """The options of the subcommand."""
    parser.description = (
        "Train two steps by a recipe, write nothing, and show what the second needed: the most "
        "memory in use, and by operation and direction what the calls kept, the most that one of "
        "them took beside that for a while, and the most in use while they ran."
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a built-in recipe, or a TOML file")
    add_device(parser)
    parser.add_argument("--batch-size", type=whole_number, metavar="N", help="samples of a batch")
    parser.add_argument(
        "--accumulate", type=whole_number, metavar="K", help="compute each batch in K pieces"
    )
    add_data_dir(parser)
    add_set(parser, "model.layers.0.units=500")
    add_json(parser, "print exactly one JSON object, sizes in bytes")


def run(options: argparse.Namespace) -> int:
    """Train two steps, and report."""
    recipe = recipes.load(options.recipe, settings_of(options))
    choice = choose(options.device)
    note(f"{recipe.name} on {choice.device} ({choice.reason})")
    job = recipes.build(recipe, device=choice.device, data_dir=options.data_dir)
    trainer = recipes.make_trainer(job, compile=False)
    job.model.train()
    batch = next(job.loader.batches(0))
    with np.errstate(all="ignore"):
        trainer.update(batch)  # makes the state of the optimizer
        report = memory(trainer.update, batch, device=get_backend(choice.device))
    held = _held(job)
    if options.json:
        print_json({"recipe": recipe.name, "batch": len(batch[-1]), **held, **report.as_dict()})
    else:
        print(_table(recipe.name, len(batch[-1]), held, report))
    return 0


def _held(job: Job) -> dict[str, int]:
    """Bytes that stay in use from step to step."""
    sections = job.optimizer.arena.sections
    state = sum(slot.nbytes for s in sections for slot in s.slots.values())
    weights = sum(s.values.nbytes for s in sections)
    return {"weights": weights, "gradients": weights, "optimizer_state": state}


def _table(name: str, samples: int, held: dict[str, Any], report: MemoryReport) -> str:
    parts = ", ".join(f"{k.replace('_', ' ')} {words(n)}" for k, n in held.items())
    return f"{name}, a batch of {samples} samples\nheld throughout: {parts}\nbeside that, {report}"
