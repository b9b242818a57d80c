"""The command ``gpubackprop``.

Each subcommand is a module of this package with ``add_arguments(parser)`` and ``run(options)``,
which returns the exit status; a row of ``COMMANDS`` makes it known. Only the module that is asked
for is imported.

Exit status: 0 done, 1 failed, 2 used wrongly (also a wrong recipe), 130 and 143 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import NamedTuple

from gpubackprop import suggest
from gpubackprop.cli.parser import Parser, fail
from gpubackprop.errors import ConfigError, GpubackpropError
from gpubackprop.version import __version__

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class Command(NamedTuple):
    """A subcommand.

    Attributes
    ----------
    module : where it is.
    summary : one line for the help.
    """

    module: str
    summary: str


COMMANDS = {
    "train": Command("gpubackprop.cli.train", "train a network by a recipe"),
    "evaluate": Command("gpubackprop.cli.evaluate", "cost and accuracy of a trained network"),
    "predict": Command("gpubackprop.cli.predict", "what a trained network says about samples"),
    "generate": Command("gpubackprop.cli.generate", "text from a trained language model"),
    "compare": Command(
        "gpubackprop.cli.compare", "train on two devices and show how far apart they are"
    ),
    "memory": Command("gpubackprop.cli.memory", "what memory a training step of a recipe needs"),
    "bench": Command(
        "gpubackprop.cli.bench", "time recipes and kernels on the devices, beside other libraries"
    ),
    "recipes": Command("gpubackprop.cli.recipes", "list the built-in recipes, or show one"),
    "devices": Command("gpubackprop.cli.devices", "which devices were found, and which is chosen"),
}
"""Every subcommand by name."""


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : the arguments; by default those of the process.

    Returns
    -------
    int
        The exit status.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    show = "--traceback" in arguments
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except SystemExit as end:  # argparse, after --help
        return end.code if isinstance(end.code, int) else USAGE
    except BrokenPipeError:
        # The reader of the output has gone; what is left to flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        fail("interrupted")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - whatever happens, the user gets one line
        if show:
            traceback.print_exc()
        fail(_words(error))
        return USAGE if isinstance(error, ConfigError) else FAILED


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return DONE if arguments else USAGE
    if name == "--version":
        print(f"gpubackprop {__version__}")
        return DONE
    command = COMMANDS.get(name)
    if command is None:
        raise ConfigError(suggest.unknown("command", name, COMMANDS))
    module = importlib.import_module(command.module)
    parser = Parser(prog=f"gpubackprop {name}", description=command.summary)
    module.add_arguments(parser)
    status: int = module.run(parser.parse(arguments[1:]))
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gpubackprop COMMAND ...",
            "",
            "Train neural networks by backpropagation on NumPy (CPU) and CuPy (CUDA).",
            "",
            *rows,
            "",
            "gpubackprop COMMAND --help describes a command; gpubackprop --version its version.",
        ]
    )


def _words(error: Exception) -> str:
    if isinstance(error, GpubackpropError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}" if str(error) else "not enough memory"
    if isinstance(error, OSError):
        return str(error)
    return f"{type(error).__name__}: {error} (an error of the program; --traceback shows where)"
