"""``gpubackprop devices``: what was found, what is chosen, what mends a GPU that is not usable."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from typing import Any

import numpy as np

from gpubackprop.backends import detect, get_backend
from gpubackprop.backends.cuda.choices import Table, saved, tables_folder
from gpubackprop.backends.device import choose
from gpubackprop.cli.parser import Parser, add_device, add_json, print_json


def add_arguments(parser: Parser) -> None:
    """The options of the subcommand."""
    add_device(parser)
    add_json(parser)
    parser.add_argument(
        "--choices",
        action="store_true",
        help="also which kernels of a GPU were measured, and which runs: cuDNN's or the plain one, "
        "a product that takes others along or its parts",
    )


def run(options: argparse.Namespace) -> int:
    """Print the devices; a device that was asked for and cannot be used is an error."""
    problem = detect.gpu_problem()
    found: list[dict[str, Any]] = [
        {
            "device": "cpu",
            "name": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        }
    ]
    for info in detect.devices():
        found.append(
            {
                "device": f"cuda:{info.index}",
                "name": info.name,
                "memory": info.memory,
                "compute_capability": list(info.compute_capability),
            }
        )
    chosen = choose(options.device)
    backend = get_backend(chosen.device)
    if options.json:
        print_json(
            {
                "devices": found,
                "chosen": chosen.device,
                "backend": backend.name,
                "reason": chosen.reason,
                "problem": None
                if problem is None
                else {"code": problem.code, "cause": problem.cause, "mend": problem.mend},
                "cudnn": None if problem else _cudnn(),
                **({"choices": [_as_json(t) for t in saved()]} if options.choices else {}),
            }
        )
        return 0
    cpu = found[0]
    print(f"found    cpu  {cpu['name']}, {cpu['cores']} cores, NumPy {np.__version__}")
    for info in detect.devices():
        print(f"found    {info}")
    if problem is not None:
        print(f"no GPU   {problem.cause}")
        print(f"to mend  {problem.mend}")
    else:
        cudnn = _cudnn()
        if cudnn["version"]:
            print(f"cuDNN    {cudnn['version']} runs what it was measured to be faster at")
        else:
            print(f"cuDNN    not in use: {cudnn['cause']}")
            print(f"to mend  {cudnn['mend']}")
    print(f"chosen   {chosen.device} ({backend.name}): {chosen.reason}")
    if options.choices:
        _print_choices(saved())
    return 0


def _cudnn() -> dict[str, str | None]:
    """The version of cuDNN that can be used, or why there is none and what mends it."""
    problem = detect.cudnn_problem()
    if problem is not None:
        return {"version": None, "cause": problem.cause, "mend": problem.mend}
    number = importlib.import_module("cudnn").backend_version()
    return {"version": detect.cudnn_version(number), "cause": None, "mend": None}


def _print_choices(tables: list[Table]) -> None:
    if not tables:
        print(f"choices  none: no table in {tables_folder()}")
    for table in tables:
        versions = ", ".join(f"{name} {version}" for name, version in table.versions.items())
        print(f"choices  {table.device} ({versions})")
        print(f"         {table.path}")
        for call, choice in table.choices.items():
            times = ", ".join(f"{n} {s * 1e6:.1f} us" for n, s in choice.seconds.items())
            print(f"  {choice.use:<6} {times or choice.reason}: {call}")


def _as_json(table: Table) -> dict[str, Any]:
    return {
        "path": str(table.path),
        "device": table.device,
        "versions": table.versions,
        "choices": [
            {
                "call": call,
                "use": choice.use,
                "microseconds": {name: s * 1e6 for name, s in choice.seconds.items()},
                "reason": choice.reason,
            }
            for call, choice in table.choices.items()
        ],
    }
