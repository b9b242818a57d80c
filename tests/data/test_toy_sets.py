"""The made-up sets in the plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpubackprop.data import blobs, spirals, two_moons
from gpubackprop.errors import ConfigError

MAKERS = [two_moons, spirals, blobs]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_a_pure_function_of_the_seed(maker: Any) -> None:
    points, labels = maker(301, seed=4)
    assert points.shape == (301, 2) and points.dtype == np.float32
    assert labels.shape == (301,) and labels.dtype == np.int64
    counts = np.bincount(labels)
    assert counts.max() - counts.min() <= 1
    again, _ = maker(301, seed=4)
    np.testing.assert_array_equal(points, again)
    other, _ = maker(301, seed=5)
    assert not np.isclose(points, other).all(axis=1).any()


def test_two_moons_without_noise_lie_on_their_circles() -> None:
    points, labels = two_moons(500, noise=0.0)
    x, y = points.astype(np.float64).T
    upper = labels == 0
    np.testing.assert_allclose(np.hypot(x, y)[upper], 1, atol=1e-6)
    np.testing.assert_allclose(np.hypot(x - 1, y - 0.5)[~upper], 1, atol=1e-6)
    assert (y[upper] >= -1e-6).all() and (y[~upper] <= 0.5 + 1e-6).all()
    # The angles are spread over the whole half circle.
    assert x[upper].min() < -0.99 and x[upper].max() > 0.99 and abs(x[upper].mean()) < 0.1


def test_noise_has_the_deviation_asked_for() -> None:
    clean, _ = two_moons(4000, noise=0.0, seed=3)
    noisy, _ = two_moons(4000, noise=0.3, seed=3)
    shift = noisy - clean
    assert abs(shift.std() - 0.3) < 0.01 and abs(shift.mean()) < 0.02
    assert abs(np.corrcoef(shift.T)[0, 1]) < 0.06


def test_spirals_without_noise_lie_on_their_arms() -> None:
    points, labels = spirals(600, classes=3, turns=1.5, noise=0.0)
    radius = np.hypot(*points.T)
    angle = np.arctan2(points[:, 1], points[:, 0])
    expected = 2 * np.pi * (1.5 * radius + labels / 3)
    np.testing.assert_allclose(np.cos(angle - expected)[radius > 0.01], 1, atol=1e-4)
    assert radius.max() <= 1 + 1e-6


def test_blobs_are_centred_on_the_unit_circle() -> None:
    points, labels = blobs(4000, classes=4, noise=0.1)
    centres = [points[labels == k].mean(axis=0) for k in range(4)]
    np.testing.assert_allclose(centres, [[1, 0], [0, 1], [-1, 0], [0, -1]], atol=0.02)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: two_moons(1), "two_moons: n must be a whole number from 2 on, got 1"),
        (lambda: two_moons(10.5), "n must be"),  # type: ignore[arg-type]
        (lambda: two_moons(10, noise=-1), "noise must be a finite number from 0 on, got -1"),
        (lambda: two_moons(10, noise=float("nan")), "noise must be a finite number"),
        (lambda: two_moons(10, seed=-1), "seed must be"),
        (lambda: spirals(10, classes=1), "classes must be a whole number from 2 on"),
        (lambda: spirals(10, turns=float("inf")), "turns must be a finite number"),
        (lambda: blobs(2, classes=3), "n must be a whole number from 3 on, got 2"),
    ],
)
def test_wrong_arguments(call: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()
