"""Small made-up sets in the plane, each a pure function of its arguments.

Every random number is a counter-based one, so a set is the same on every machine and in every
version of NumPy, up to the last bit of the sine, cosine and logarithm of the platform.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.random import normal, uniform
from gpubackprop.data import streams
from gpubackprop.data.arguments import MAX_SEED, number, whole

Points = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def two_moons(n: int = 1000, noise: float = 0.1, seed: int = 0) -> Points:
    """Return two interleaved half circles, one for each class.

    Parameters
    ----------
    n : int, optional
        Number of points, at least 2; classes alternate.
    noise : float, optional
        Standard deviation of the normal noise on both coordinates; the circles have radius 1.
    seed : int, optional
        Seed of the angles and of the noise.

    Returns
    -------
    points : numpy.ndarray
        float32, shape (n, 2).
    labels : numpy.ndarray
        int64, shape (n,): 0 for the upper half circle around (0, 0), 1 for the lower one around
        (1, 1/2).

    Raises
    ------
    ConfigError
        ``n`` is too small, or ``noise`` is negative or not finite.
    """
    n, labels = _labels("two_moons", n, 2)
    angles = np.pi * _uniform("two_moons", n, seed)
    upper = labels == 0
    x = np.where(upper, np.cos(angles), 1 - np.cos(angles))
    y = np.where(upper, np.sin(angles), 0.5 - np.sin(angles))
    return _noisy("two_moons", np.stack([x, y], axis=1), noise, seed), labels


def spirals(
    n: int = 1000, classes: int = 2, turns: float = 1.0, noise: float = 0.02, seed: int = 0
) -> Points:
    """Return spiral arms that start in the origin, one for each class.

    Parameters
    ----------
    n : int, optional
        Number of points, at least ``classes``; classes alternate.
    classes : int, optional
        Number of arms, at least 2.
    turns : float, optional
        Turns of an arm from the origin to radius 1.
    noise : float, optional
        Standard deviation of the normal noise on both coordinates.
    seed : int, optional
        Seed of the places along the arms and of the noise.

    Returns
    -------
    points : numpy.ndarray
        float32, shape (n, 2).
    labels : numpy.ndarray
        int64, shape (n,), 0 to ``classes - 1``.

    Raises
    ------
    ConfigError
        An argument is out of range.
    """
    n, labels = _labels("spirals", n, classes)
    turns = number("spirals", "turns", turns)
    # The square root spreads the points evenly over the area, not over the radius.
    radius = np.sqrt(_uniform("spirals", n, seed))
    angle = 2 * np.pi * (turns * radius + labels / classes)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return _noisy("spirals", points, noise, seed), labels


def blobs(n: int = 1000, classes: int = 3, noise: float = 0.25, seed: int = 0) -> Points:
    """Return round clouds of normally distributed points, centred evenly on the unit circle.

    Parameters
    ----------
    n : int, optional
        Number of points, at least ``classes``; classes alternate.
    classes : int, optional
        Number of clouds, at least 2.
    noise : float, optional
        Standard deviation of a cloud in each coordinate.
    seed : int, optional
        Seed of the points.

    Returns
    -------
    points : numpy.ndarray
        float32, shape (n, 2).
    labels : numpy.ndarray
        int64, shape (n,), 0 to ``classes - 1``.

    Raises
    ------
    ConfigError
        An argument is out of range.
    """
    n, labels = _labels("blobs", n, classes)
    angle = 2 * np.pi * labels / classes
    centres = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _noisy("blobs", centres, noise, seed), labels


def _labels(what: str, n: int, classes: int) -> tuple[int, np.ndarray[Any, Any]]:
    classes = whole(what, "classes", classes, 2)
    n = whole(what, "n", n, classes)
    return n, np.arange(n, dtype=np.int64) % classes


def _uniform(what: str, n: int, seed: int) -> np.ndarray[Any, Any]:
    seed = whole(what, "seed", seed, 0, MAX_SEED)
    return uniform((n,), seed=seed, stream=streams.PLACE, dtype=np.float64)


def _noisy(
    what: str, points: np.ndarray[Any, Any], noise: float, seed: int
) -> np.ndarray[Any, Any]:
    noise = number(what, "noise", noise, 0)
    seed = whole(what, "seed", seed, 0, MAX_SEED)
    shift = normal(points.shape, seed=seed, stream=streams.NOISE, dtype=np.float64)
    return (points + noise * shift).astype(np.float32)
