"""``gpubackprop bench``: how fast the recipes and the kernels are on each device."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from gpubackprop import suggest
from gpubackprop.backends import get_backend
from gpubackprop.backends.device import choose
from gpubackprop.bench import show
from gpubackprop.bench.run import Options, known_peers, names, report
from gpubackprop.cli.parser import (
    Parser,
    add_memory_limit,
    device,
    note,
    size,
    whole_number,
)
from gpubackprop.errors import ConfigError
from gpubackprop.training.files import write_atomic

DONE, FAILED = 0, 1


def add_arguments(parser: Parser) -> None:
    """The options of the subcommand."""
    parser.description = (
        "Time the training step of every recipe, on made-up data, and single kernels: in turns, "
        "medians and spread, beside what the device can do (copies and matrix products measured in "
        "the same run). A device or library that cannot be used is named with the reason."
    )
    parser.add_argument(
        "--devices", type=_devices, metavar="A,B", help="such as cpu,cuda (default: auto)"
    )
    parser.add_argument(
        "--vs",
        type=_peers,
        metavar="LIBRARIES",
        default=[],
        help=f"other libraries to time beside: {', '.join(known_peers())}",
    )
    parser.add_argument(
        "--only",
        type=_names,
        metavar="NAMES",
        default=[],
        help="recipes, kernels, determinism (what repeatable bits cost), or single names",
    )
    parser.add_argument(
        "--rounds", type=whole_number, metavar="N", default=5, help="turns of each (default: 5)"
    )
    parser.add_argument(
        "--seconds", type=_seconds, metavar="S", default=0.1, help="of a turn (default: 0.1)"
    )
    parser.add_argument(
        "--size",
        type=size,
        metavar="SIZE",
        help="what kernels limited by memory move, for example 1GiB (default: 10 ms of it)",
    )
    add_memory_limit(parser)
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--chart", metavar="FILE", help="draw it, a PNG (the extra 'plot')")


def run(options: argparse.Namespace) -> int:
    """Measure, and report."""
    for given in (options.json, options.chart):
        if given is not None and not Path(given).resolve().parent.is_dir():
            raise ConfigError(f"the folder of {given} does not exist")
    if options.chart is not None and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "--chart needs matplotlib, which is not installed (pip install 'gpubackprop[plot]')"
        )
    devices = options.devices or [choose(None).device]
    if options.memory_limit is not None and set(devices) == {"cpu"}:
        get_backend("cpu").limit_memory(options.memory_limit)  # says that there is nothing to limit
    found = report(
        Options(
            devices,
            options.vs,
            options.only,
            options.rounds,
            options.seconds,
            options.size,
            options.memory_limit,
        ),
        note,
        (lambda found: _keep(found, Path(options.json))) if options.json else lambda found: None,
    )
    print(show.text(found))
    if options.chart:
        show.chart(found, Path(options.chart))
    return DONE if show.repeatable(found) else FAILED


def _keep(found: dict[str, Any], path: Path) -> None:
    write_atomic(path, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())


def _devices(text: str) -> list[str]:
    return [device(part.strip()) for part in text.split(",")]


def _listed(text: str, known: list[str], what: str) -> list[str]:
    given = [part.strip() for part in text.split(",")]
    for name in given:
        if name not in known:
            raise argparse.ArgumentTypeError(suggest.unknown(what, name, known))
    return given


def _peers(text: str) -> list[str]:
    return _listed(text, known_peers(), "library")


def _names(text: str) -> list[str]:
    return _listed(text, names(), "name")


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.0 < found <= 60.0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds up to 60, not {text[:40]!r}")
    return found
