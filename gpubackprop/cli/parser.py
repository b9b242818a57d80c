"""Arguments that several subcommands share, and errors in one line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from gpubackprop import suggest
from gpubackprop.backends.device import canonical
from gpubackprop.backends.memory import parse_bytes
from gpubackprop.errors import ConfigError, DeviceError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ``ConfigError``, with the nearest option."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument(
            "--traceback", action="store_true", help="where an error came from, for a report"
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """The options; an unknown one is an error that names the nearest."""
        options, extra = self.parse_known_args(arguments)
        if extra:
            given = extra[0]
            if given.startswith("-"):
                known = [o for o in self._option_string_actions if o.startswith("--")]
                raise ConfigError(suggest.unknown("option", given.partition("=")[0], known))
            self.error(f"unexpected argument {given!r}")
        return options


def add_device(parser: Parser) -> None:
    """``--device``."""
    parser.add_argument(
        "--device",
        type=device,
        metavar="D",
        help="auto, cpu, cuda or cuda:N (default: GPUBACKPROP_DEVICE, else auto)",
    )


def add_memory_limit(parser: Parser) -> None:
    """``--gpu-memory-limit``."""
    parser.add_argument(
        "--gpu-memory-limit",
        dest="memory_limit",
        type=size,
        metavar="SIZE",
        help="the most memory that arrays on the GPU may take, for example 8GiB",
    )


def add_data_dir(parser: Parser) -> None:
    """``--data-dir``."""
    parser.add_argument("--data-dir", metavar="DIR", help="the folder of the data's files")


def add_json(parser: Parser, what: str = "print exactly one JSON object, at the end") -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help=what)


def add_set(parser: Parser, example: str) -> None:
    """``--set``."""
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help=f"change a key of the recipe, for example {example}",
    )


TRAIN_OPTIONS = ("epochs", "batch_size", "precision", "accumulate", "dtype", "seed")
"""Options of commands that stand for a key of a recipe's table ``[train]``."""


def settings_of(options: argparse.Namespace) -> list[str]:
    """What ``--set`` and the options that stand for it change, for ``recipes.load``."""
    given = [(key, getattr(options, key, None)) for key in TRAIN_OPTIONS]
    return [*options.set, *[f"train.{k}={v}" for k, v in given if v is not None]]


def device(text: str) -> str:
    """A device's name, for argparse."""
    try:
        canonical(text)
    except DeviceError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def whole_number(text: str) -> int:
    """A positive whole number, for argparse."""
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text[:40]!r}")
    return int(text)


def size(text: str) -> int:
    """A number of bytes, for argparse."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seed(text: str) -> int:
    """A seed, for argparse."""
    if not text.isascii() or not text.isdigit() or len(text) > 20 or int(text) >= 1 << 64:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 0 to 2**64 - 1, not {text[:40]!r}"
        )
    return int(text)


def fail(text: str) -> None:
    """Print the one line of an error."""
    print(f"gpubackprop: error: {' '.join(text.split())}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Print a line that is no result: to standard error."""
    print(text, file=sys.stderr, flush=True)


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object to standard output."""
    print(json.dumps(values, allow_nan=False))
