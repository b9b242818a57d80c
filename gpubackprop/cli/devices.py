"""``gpubackprop devices``: what was found, what is chosen, what mends a GPU that is not usable."""

from __future__ import annotations

import argparse
import os
import platform
from typing import Any

import numpy as np

from gpubackprop.backends import detect, get_backend
from gpubackprop.backends.device import choose
from gpubackprop.cli.parser import Parser, add_device, add_json, print_json


def add_arguments(parser: Parser) -> None:
    """The options of the subcommand."""
    add_device(parser)
    add_json(parser)


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
    print(f"chosen   {chosen.device} ({backend.name}): {chosen.reason}")
    return 0
