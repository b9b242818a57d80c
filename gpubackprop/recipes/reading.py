"""Finding a recipe, reading its TOML and applying what was set on the command line."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from gpubackprop import suggest
from gpubackprop.data.reading import open_file
from gpubackprop.errors import ConfigError, DataError
from gpubackprop.recipes.options import shorten
from gpubackprop.recipes.schema import Recipe, keys_of_another, parse

MAX_BYTES = 1 << 18
"""The most bytes that a recipe may have: far more than any needs."""

MAX_DEPTH = 16
"""The deepest key that ``--set`` may name."""

MAX_PARTS = 32
"""The most parts of a dotted key in a file: the parser's time grows with their square."""

_KEY_PART = re.compile(r"[\w\-\"' \t]*")


def names() -> list[str]:
    """The built-in recipes, in alphabetical order."""
    files = (entry.name for entry in resources.files("gpubackprop.recipes").iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def text(recipe: str | os.PathLike[str]) -> str:
    """The TOML of a built-in recipe or of a file.

    Raises
    ------
    ConfigError
        There is no such recipe, or the file cannot be read or is not UTF-8.
    """
    given = os.fspath(recipe)
    known = names()
    if given in known:
        return resources.files("gpubackprop.recipes").joinpath(f"{given}.toml").read_text("utf-8")
    if not given.endswith(".toml") and not any(sep in given for sep in (os.sep, "/")):
        words = suggest.unknown("recipe", given[:60], known)
        raise ConfigError(f"{words}, or the path of a TOML file")
    try:
        with open_file(given, "recipe") as stream:
            data = stream.read(MAX_BYTES + 1)
    except DataError as error:
        raise ConfigError(str(error)) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{given}: it has more than {MAX_BYTES:,} bytes, too many for a recipe")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{given}: line {line} is not valid UTF-8; TOML files must be in UTF-8"
        ) from None


def load(recipe: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe.

    Parameters
    ----------
    recipe : the name of a built-in recipe or the path of a TOML file.
    overrides : ``"table.key=VALUE"`` texts, applied in order before the check. VALUE is TOML; what
        is no TOML value is taken as a text. ``model.layers.0.units=64`` reaches into the list.
        With another name in a table, ``optimizer.name=sgd``, the keys go that only the recipe's
        own one has: no override could take them out.

    Returns
    -------
    Recipe
        The checked recipe.

    Raises
    ------
    ConfigError
        See :func:`text`, :func:`~gpubackprop.recipes.schema.parse`; or the TOML is not well formed
        or an override names no key.

    Examples
    --------
    >>> load("digits-mlp", ["train.epochs=3"]).train.epochs
    3
    """
    source = os.fspath(recipe)
    raw = _parsed(text(recipe), source)
    own = {name: dict(table) for name, table in raw.items() if isinstance(table, dict)}
    overrides = list(overrides)
    for override in overrides:
        apply(raw, override)
    set_here = {override.partition("=")[0].strip() for override in overrides}
    for name, table in own.items():
        now = raw[name]
        if not isinstance(now, dict) or now.get("name") == table.get("name"):
            continue
        for key in keys_of_another(name, table, now.get("name")):
            if f"{name}.{key}" not in set_here:
                now.pop(key, None)
    return parse(raw, Path(source).name.removesuffix(".toml"), source)


def _parsed(toml: str, source: str) -> dict[str, Any]:
    # What stands between two dots is part of a key only if it has no other punctuation.
    parts = 0
    for piece in toml.split(".")[1:-1]:
        parts = parts + 1 if _KEY_PART.fullmatch(piece) else 0
        if parts > MAX_PARTS:
            raise ConfigError(f"{source}: it has a key of more than {MAX_PARTS} parts")
    try:
        return tomllib.loads(toml)
    except RecursionError:
        raise ConfigError(f"{source}: it is nested too deeply for a recipe") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{source}: not well-formed TOML: {reason}") from None


def apply(raw: dict[str, Any], override: str) -> None:
    """Set one key of the tables of a recipe, in place.

    Parameters
    ----------
    raw : the tables.
    override : ``"table.key=VALUE"``.

    Raises
    ------
    ConfigError
        It is not of that form, or a part of the key is no table.
    """
    key, equals, value = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    shown = shorten(override)
    if any("\ud800" <= c <= "\udfff" for c in override):
        raise ConfigError(f"--set {shown}: it is not valid UTF-8")
    if not equals or not all(parts):
        raise ConfigError(f"--set {shown}: write table.key=VALUE, for example optimizer.lr=0.01")
    if len(parts) > MAX_DEPTH:
        raise ConfigError(f"--set {shown}: the key has too many parts")
    target: Any = raw
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if isinstance(target, list):
            place: Any = _index(target, part, ".".join(parts[:number]))
        elif isinstance(target, dict):
            place = part
            if not last:
                target.setdefault(part, {})
        else:
            raise ConfigError(
                f"--set {shown}: {'.'.join(parts[:number])} is a single value, not a table"
            )
        if last:
            target[place] = _value(value.strip())
        else:
            target = target[place]


def _index(target: list[Any], part: str, path: str) -> int:
    if not part.isascii() or not part.isdigit() or not int(part[:9]) < len(target):
        raise ConfigError(
            f"--set: {path} is a list of {len(target)} entries; {shorten(part)} is none of their "
            f"numbers, 0 to {len(target) - 1}"
        )
    return int(part)


def _value(given: str) -> Any:
    """`given` as a TOML value, or as a text where it is none."""
    try:
        parsed = tomllib.loads(f"value = {given}")
    except (ValueError, RecursionError):
        return given
    return parsed["value"] if list(parsed) == ["value"] else given
