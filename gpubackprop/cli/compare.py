"""``gpubackprop compare``: does one device's run stand for the other's?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gpubackprop import recipes
from gpubackprop.backends.device import choose
from gpubackprop.cli.parser import (
    Parser,
    add_data_dir,
    add_json,
    add_set,
    device,
    note,
    print_json,
    seed,
    settings_of,
    whole_number,
)
from gpubackprop.errors import ConfigError
from gpubackprop.inspect.compare import Comparison, table
from gpubackprop.inspect.runs import Progress, compare_devices, compare_with_trace, record
from gpubackprop.inspect.trace import Trace

STEPS = 20
AGREE, DISAGREE = 0, 1


def add_arguments(parser: Parser) -> None:
    """The options of the subcommand."""
    parser.add_argument("recipe", metavar="RECIPE", help="a built-in recipe, or a TOML file")
    parser.add_argument(
        "--devices",
        type=_devices,
        metavar="A,B",
        default=["auto"],
        help="two devices; one with --save-trace or --against",
    )
    parser.add_argument("--dtype", choices=("float32", "float64"), help="of the whole run")
    parser.add_argument(
        "--steps", type=whole_number, metavar="N", help=f"updates to compare (default: {STEPS})"
    )
    parser.add_argument("--seed", type=seed, metavar="S", help="of weights, order and dropout")
    add_data_dir(parser)
    add_set(parser, "optimizer.lr=0.01")
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--save-trace", metavar="FILE", help="keep the run of one device in a file")
    files.add_argument("--against", metavar="FILE", help="compare one device with such a file")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Compare, and report; the exit status is the verdict."""
    wanted = 1 if options.save_trace or options.against else 2
    if len(options.devices) != wanted:
        raise ConfigError(
            f"--devices: name {('one device', 'two devices, such as cpu,cuda')[wanted - 1]}, "
            f"not {','.join(options.devices)!r}"
        )
    recipe = recipes.load(options.recipe, settings_of(options))
    trace = Trace.load(options.against) if options.against else None
    devices = [choose(d).device for d in options.devices]
    data = recipes.load_data(recipe, options.data_dir)
    if options.save_trace:
        return _save(options, recipe, devices[0], data)
    show = _progress()
    if trace is not None:
        elsewhere = f"{options.against} ({trace.meta.get('device')})"
        names = (devices[0], elsewhere)
        result = compare_with_trace(recipe, devices[0], data, trace, options.steps, show)
    else:
        names = (devices[0], devices[1])
        result = compare_devices(recipe, names, data, options.steps or STEPS, show)
    if options.json:
        print_json(_summary(recipe, names, result))
    else:
        print(_report(recipe, names, result))
    return AGREE if result.agrees else DISAGREE


def _save(options: argparse.Namespace, recipe: recipes.Recipe, device: str, data: Any) -> int:
    path = Path(options.save_trace)
    if not path.parent.is_dir():
        raise ConfigError(f"--save-trace: the folder {str(path.parent)!r} does not exist")
    trace = record(recipe, device, data, options.steps or STEPS)
    trace.save(path)
    size = path.stat().st_size
    if options.json:
        steps = len(trace.steps)
        print_json({"recipe": recipe.name, "device": device, "steps": steps, "trace": str(path)})
    else:
        print(f"{recipe.name} on {device}: {len(trace.steps)} steps in {path} ({size:,} bytes)")
    return AGREE


def _report(recipe: recipes.Recipe, names: tuple[str, str], result: Comparison) -> str:
    steps = result.steps
    every = max(1, len(steps) // 10)
    lines = [f"{recipe.name}: {names[0]} against {names[1]}, {recipe.train.dtype}", ""]
    lines += ["largest distance in each step (relative norm, units in the last place):"]
    lines += [table(steps, every), "", f"by layer, in step {steps[-1].step}:"]
    width = max([14, *map(len, steps[-1].layers)])
    for layer, kinds in steps[-1].layers.items():
        cells = ", ".join(f"{kind} {d.relative:.1e} ({d.ulps} ulp)" for kind, d in kinds.items())
        lines.append(f"  {layer or 'the loss':<{width}} {cells}")
    lines.append("")
    if result.divergence is None:
        lines.append("no operation goes beyond its tolerance")
    else:
        lines.append(f"first divergence: {result.divergence}")
    lines.append(
        f"weights end {result.weights_relative:.1e} apart; {result.weights_allowed:.1e} is allowed"
    )
    lines.append("verdict: the runs agree" if result.agrees else "verdict: the runs DISAGREE")
    return "\n".join(lines)


def _summary(recipe: recipes.Recipe, names: tuple[str, str], result: Comparison) -> dict[str, Any]:
    found = _finite(result.as_dict())
    return {
        "recipe": recipe.name,
        "devices": list(names),
        "dtype": recipe.train.dtype,
        "seed": recipe.train.seed,
        **found,
    }


def _finite(value: Any) -> Any:
    """`value` with infinite distances as strings, since JSON has no infinity."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value


def _progress() -> Progress | None:
    """A line per step on standard error where a person is looking."""
    import sys

    if not sys.stderr.isatty():
        return None
    return lambda report: note(
        f"step {report.step}: loss {report.loss[0]:.6g} and {report.loss[1]:.6g}"
    )


def _devices(text: str) -> list[str]:
    return [device(part.strip()) for part in text.split(",")]
