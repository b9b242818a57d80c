"""Checks of arguments that several modules here share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.errors import ConfigError

MAX_SEED = (1 << 64) - 1
"""The largest seed of the counter-based random numbers."""


def whole(what: str, name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return an argument that must be a whole number, as an ``int``.

    Parameters
    ----------
    what : str
        The function or class, for the error.
    name : str
        The argument.
    value : object
        What was given.
    least, most : int
        Bounds, included; no upper bound by default.

    Raises
    ------
    ConfigError
        It is no whole number, or out of bounds.
    """
    sound = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not sound or value < least or (most is not None and value > most):
        upper = "" if most is None else f" to {most}"
        raise ConfigError(
            f"{what}: {name} must be a whole number from {least}{upper or ' on'}, got {value!r}"
        )
    return int(value)


def number(what: str, name: str, value: Any, least: float = -math.inf) -> float:
    """Return an argument that must be a finite number of at least ``least``, as a ``float``.

    Raises
    ------
    ConfigError
        It is no such number.
    """
    sound = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not sound or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" from {least:g} on"
        raise ConfigError(f"{what}: {name} must be a finite number{bound}, got {value!r}")
    return float(value)
