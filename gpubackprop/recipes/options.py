"""What a key of a recipe may hold, and the words of the error where it holds something else."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gpubackprop.errors import ConfigError
from gpubackprop.suggest import unknown

REQUIRED: Any = object()
"""Default of an option that has none."""

ANY = -1
MAX_ENTRIES = 1000

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother, _short.maxlong = 3, 60, 60, 40


def shorten(value: Any) -> str:
    """A value of a TOML file for an error: never long, however deep or long the value is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _short.repr(value)


class Place(NamedTuple):
    """Where in which file something stands.

    Attributes
    ----------
    file : the file, or the name of a built-in recipe.
    table : the table as a reader of the file would name it: ``[optimizer]``.
    """

    file: str
    table: str

    def error(self, text: str) -> ConfigError:
        """The error of this place."""
        return ConfigError(
            f"{self.file}: {self.table}: {text}" if self.table else f"{self.file}: {text}"
        )


@dataclass(frozen=True)
class Option:
    """What one key may hold.

    Attributes
    ----------
    kind : ``bool``, ``int``, ``float`` or ``str``. A whole number will do for a float.
    default : its value where the key is absent; ``REQUIRED`` for none.
    least, most : bounds, included.
    above, below : bounds, not included.
    choices : the allowed texts; beside numbers where `kind` is a number.
    length : the number of entries where the key holds a list; 0 for a single value, ``ANY`` for a
        list of any length from 1 on.
    """

    kind: type
    default: Any = REQUIRED
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()
    length: int = 0

    def words(self) -> str:
        """What is allowed, in words."""
        if self.choices and self.kind is str:
            return f"one of {', '.join(self.choices)}"
        bounds = []
        if self.least > -math.inf:
            bounds.append(f"at least {_plain(self.least)}")
        if self.above > -math.inf:
            bounds.append(f"more than {_plain(self.above)}")
        if self.most < math.inf:
            bounds.append(f"at most {_plain(self.most)}")
        if self.below < math.inf:
            bounds.append(f"less than {_plain(self.below)}")
        one = " ".join([_WORDS[self.kind], *([" and ".join(bounds)] if bounds else [])])
        one = ", or ".join([one, *map(repr, self.choices)])
        many = "one or more" if self.length == ANY else f"{self.length}"
        return f"a list of {many} entries, each {one}" if self.length else one

    def check(self, place: Place, key: str, value: Any) -> Any:
        """`value` as this option wants it.

        Raises
        ------
        ConfigError
            It is of another type or out of range.
        """
        if self.length:
            wanted = range(1, MAX_ENTRIES) if self.length == ANY else (self.length,)
            if not isinstance(value, list) or len(value) not in wanted:
                raise self._refuse(place, key, value)
            return tuple(self._single(place, key, v) for v in value)
        return self._single(place, key, value)

    def _single(self, place: Place, key: str, value: Any) -> Any:
        if self.choices and isinstance(value, str) and value not in self.choices:
            if self.kind is str:
                raise place.error(unknown(f"value of {key!r}", value[:60], self.choices))
            raise self._refuse(place, key, value)
        if self.choices and isinstance(value, str):
            return value
        accepted: Any = (int, float) if self.kind is float else (self.kind,)
        if not isinstance(value, accepted) or isinstance(value, bool) is not (self.kind is bool):
            raise self._refuse(place, key, value)
        if self.kind not in (int, float):
            return value
        sound = self.least <= value <= self.most and self.above < value < self.below
        # The comparison comes first: an integer beyond the range of float cannot be converted.
        if not sound or not math.isfinite(value):
            raise self._refuse(place, key, value)
        return self.kind(value)

    def _refuse(self, place: Place, key: str, value: Any) -> ConfigError:
        return place.error(f"{key} must be {self.words()}, not {shorten(value)}")


def table(place: Place, value: Any) -> Mapping[str, Any]:
    """`value` if it is a table.

    Raises
    ------
    ConfigError
        It is something else.
    """
    if not isinstance(value, dict):
        raise place.error(f"must be a table of keys and values, not {shorten(value)}")
    return value


def known_keys(place: Place, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise ConfigError, with the nearest allowed key, at the first key that is not allowed."""
    names = list(allowed)
    for key in given:
        if key not in names:
            raise place.error(unknown("key", key[:60], names))


def check_options(
    place: Place,
    given: Mapping[str, Any],
    options: Mapping[str, Option],
    *,
    beside: Iterable[str] = (),
) -> dict[str, Any]:
    """Every option's value, checked or by default.

    Parameters
    ----------
    place : where the table stands.
    given : the table.
    options : what it may hold.
    beside : further keys of the table that are dealt with elsewhere.

    Raises
    ------
    ConfigError
        A key is unknown, missing or has a wrong value.
    """
    known_keys(place, given, [*beside, *options])
    values = {}
    for key, option in options.items():
        if key in given:
            values[key] = option.check(place, key, given[key])
        elif option.default is REQUIRED:
            raise place.error(f"{key} is missing; it must be {option.words()}")
        else:
            values[key] = option.default
    return values


def _plain(bound: float) -> str:
    return f"{int(bound):,}" if float(bound).is_integer() and abs(bound) < 1e15 else f"{bound:g}"
