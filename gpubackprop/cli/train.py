"""``gpubackprop train``: from a recipe to a trained network in a folder."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from gpubackprop import recipes
from gpubackprop.autograd.precision import shortfall
from gpubackprop.backends import get_backend
from gpubackprop.backends.device import choose
from gpubackprop.backends.precision import half_dtype
from gpubackprop.cli import folders, pictures
from gpubackprop.cli.parser import (
    Parser,
    add_data_dir,
    add_device,
    add_json,
    add_memory_limit,
    add_set,
    fail,
    note,
    print_json,
    seed,
    settings_of,
    whole_number,
)
from gpubackprop.cli.runs import fingerprint, settings
from gpubackprop.data import DATASETS
from gpubackprop.errors import CheckpointError, ConfigError
from gpubackprop.recipes import Job, Recipe
from gpubackprop.recipes.updates import SCHEDULES
from gpubackprop.training import FitResult, Interrupted, evaluate, progress
from gpubackprop.training.checkpoint import CheckpointFolder
from gpubackprop.training.files import write_atomic
from gpubackprop.version import __version__


def add_arguments(parser: Parser) -> None:
    """The options of the subcommand."""
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a built-in recipe, or the path of a TOML file"
    )
    add_device(parser)
    parser.add_argument("--epochs", type=whole_number, metavar="N", help="how many epochs in all")
    parser.add_argument("--seed", type=seed, metavar="S", help="of weights, order and dropout")
    parser.add_argument(
        "--precision",
        metavar="P",
        help="of products: float32 (default), tf32, bf16-mixed or fp16-mixed",
    )
    parser.add_argument(
        "--accumulate",
        type=whole_number,
        metavar="K",
        help="compute each batch in K pieces, one after the other: the same update, less memory",
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="run each step operation by operation instead of replaying a compiled one",
    )
    add_memory_limit(parser)
    add_data_dir(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the run (default: a new one, runs/RECIPE)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in DIR, or with the newest one"
    )
    add_set(parser, "optimizer.lr=0.01")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Train, and report."""
    _find_recipe(options)
    overrides = settings_of(options)
    recipe = recipes.load(options.recipe, overrides)  # errors before any folder is made
    half_dtype(recipe.train.precision or "float32")  # and before the data are read
    choice = choose(options.device)
    if options.memory_limit is not None:
        get_backend(choice.device).limit_memory(options.memory_limit)
    chosen, resume = folders.choose(options.out, recipe.name, options.resume)
    data_dir = options.data_dir
    if resume and chosen is not None:
        info = _stored(chosen, recipe)
        overrides = [*info["overrides"], *overrides]
        recipe = recipes.load(options.recipe, overrides)
        data_dir = data_dir or info.get("data_dir")
        _say_what_changes(recipe, info, choice.device, not options.no_compile)
    note(f"{recipe.name} on {choice.device} ({choice.reason})")
    words = shortfall(recipe.train.precision or "float32", get_backend(choice.device))
    if words is not None:
        note(words)
    job = recipes.build(recipe, device=choice.device, data_dir=data_dir)
    # Only now, when nothing stands in the way any more.
    out = folders.fresh(recipe.name) if chosen is None else chosen
    watched = "validation" if recipe.train.validation else "test"
    note(_description(job, out))
    trainer = recipes.make_trainer(
        job,
        out=out,
        progress=progress.choose(watched),
        compile=not options.no_compile,
        config={"recipe": settings(job.recipe), "data": fingerprint(job.data)},
        attached={"offset": job.data.scaling.offset, "scale": job.data.scaling.scale},
        info={
            **_info(job, overrides, choice.device, data_dir),
            "compiled": not options.no_compile,
        },
    )
    if resume and trainer.resume():
        note(f"resumed after step {trainer.run.step} ({trainer.run.epoch} complete epochs)")
    folders.make(out)
    write_atomic(out / folders.RECIPE, recipes.dump(recipe).encode())
    try:
        result = trainer.fit(recipe.train.epochs)
    except Interrupted as interruption:
        command = ["gpubackprop", "train", options.recipe, "--out", str(out), "--resume"]
        fail(f"{interruption}; to go on: {shlex.join(command)}")
        return 128 + interruption.signum
    summary = _summary(job, result, choice.device, out)
    write_atomic(out / folders.RESULT, (json.dumps(summary, indent=1) + "\n").encode())
    pictures.draw(job, result, out, watched)
    if options.json:
        print_json(summary)
    else:
        print(_report(summary, result))
    return 0


def _find_recipe(options: argparse.Namespace) -> None:
    """``--set A=1 B=2 RECIPE`` takes the recipe for a setting; give it back."""
    others = [text for text in options.set if "=" not in text]
    if options.recipe is None and len(others) == 1:
        options.recipe = others[0]
        options.set.remove(others[0])
    if options.recipe is None:
        raise ConfigError(
            f"name a recipe: {', '.join(recipes.names())}, or the path of a TOML file "
            "(see gpubackprop train --help)"
        )


def _stored(out: Path, recipe: Recipe) -> dict[str, Any]:
    """What the run in a folder was started with."""
    info: Any = CheckpointFolder(out).read().meta.get("info")
    sound = isinstance(info, dict) and isinstance(info.get("overrides"), list)
    if not sound or not all(isinstance(text, str) for text in info["overrides"]):
        raise CheckpointError(f"{out} holds a run that this command did not write")
    if info.get("name") != recipe.name:
        raise ConfigError(
            f"--out {out}: it holds a run of the recipe {info.get('name')!r}, not {recipe.name!r}"
        )
    return info


def _say_what_changes(recipe: Recipe, info: dict[str, Any], device: str, compiled: bool) -> None:
    """Say where the rest of the run will not be what it would have been."""
    if info.get("device") != device:
        note(f"the run began on {info.get('device')}: the last bits may differ on {device}")
    if info.get("compiled") is not compiled and info.get("device") == device:
        steps = "compiled steps" if info.get("compiled") else "steps that were not compiled"
        note(f"the run began with {steps}: the last bits may differ")
    stored = info.get("recipe")
    train = stored.get("train") if isinstance(stored, dict) else None
    epochs = train.get("epochs") if isinstance(train, dict) else None
    if epochs != recipe.train.epochs and SCHEDULES[recipe.schedule.name].stretches:
        note(
            f"the schedule {recipe.schedule.name!r} is laid out for {recipe.train.epochs} epochs "
            f"from here on; the run began with {epochs}"
        )


def _info(job: Job, overrides: list[str], device: str, data_dir: str | None) -> dict[str, Any]:
    data = job.data
    return {
        "name": job.recipe.name,
        "overrides": overrides,
        "recipe": job.recipe.as_dict(),
        "device": device,
        "backend": get_backend(device).name,
        "data_dir": data_dir,
        "source": data.source,
        "classes": data.classes,
        "class_names": None if data.class_names is None else list(data.class_names),
        "input_shape": list(data.input_shape),
        "columns": None if data.columns is None else list(data.columns),
        "version": __version__,
    }


def _description(job: Job, out: Path) -> str:
    parameters = sum(p.size for p in job.model.parameters())
    # Held-out windows do not overlap: without that word their number would look too small.
    text = DATASETS[job.recipe.data.name].tokens
    what = f" windows of {job.data.input_shape[0]:,}" if text else ""
    apart = " without overlap" if text else ""
    return (
        f"{job.data.source}: {len(job.data.train):,}{what} to train on, {len(job.data.test):,} "
        f"held out{apart}; {parameters:,} parameters; writing to {out}"
    )


def _summary(job: Job, result: FitResult, device: str, out: Path) -> dict[str, Any]:
    test = evaluate(
        job.model,
        job.loss,
        job.test.batches(0),
        get_backend(device),
        accuracy=job.data.classes is not None,
    )
    finite = test.loss == test.loss and abs(test.loss) != float("inf")
    return {
        "recipe": job.recipe.name,
        "precision": job.recipe.train.precision or "float32",
        "device": device,
        "backend": get_backend(device).name,
        "seed": job.recipe.train.seed,
        "epochs": result.epochs,
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
        "samples_per_second": None
        if result.samples_per_second is None
        else round(result.samples_per_second, 1),
        "train_loss": result.train_loss,
        "test_loss": test.loss if finite else None,
        "test_accuracy": test.accuracy,
        "out": str(out),
    }


def _report(summary: dict[str, Any], result: FitResult) -> str:
    epochs = f"{summary['epochs']} epoch{'s' * (summary['epochs'] != 1)}"
    steps = f"{summary['steps']:,} step{'s' * (summary['steps'] != 1)}"
    parts = [f"{epochs}, {steps} in {summary['seconds']:.1f} s"]
    if result.stopped_early:
        parts.append("stopped early")
    if summary["test_loss"] is not None:
        parts.append(f"test loss {progress.short(summary['test_loss'])}")
    if summary["test_accuracy"] is not None:
        parts.append(f"test accuracy {100 * summary['test_accuracy']:.2f} %")
    return f"{'; '.join(parts)}; everything is in {summary['out']}"
