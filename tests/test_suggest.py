"""The words for a wrong name."""

from __future__ import annotations

import pytest

from gpubackprop import suggest

NAMES = ["digits", "mnist", "fashion-mnist", "two-moons"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("minst", "mnist"),
        ("MNIST", "mnist"),
        ("two_moons", "two-moons"),
        ("digit", "digits"),
        ("zzz", ""),
        (7, ""),
    ],
)
def test_nearest(given: object, expected: str) -> None:
    assert suggest.nearest(given, NAMES) == expected


def test_unknown_names_the_nearest_and_all_allowed() -> None:
    words = suggest.unknown("dataset", "minst", NAMES)
    assert words == (
        "unknown dataset 'minst'; did you mean 'mnist'? "
        "allowed: digits, mnist, fashion-mnist, two-moons"
    )


def test_unknown_without_a_similar_name_asks_nothing() -> None:
    assert suggest.unknown("dataset", "zzz", ["a", "b"]) == "unknown dataset 'zzz'; allowed: a, b"
    assert suggest.unknown("array", "x", []) == "unknown array 'x'; allowed: none"
