"""The devices that there are, as parameters of a test."""

from __future__ import annotations

import pytest

from gpubackprop import testing

PLACES = [
    pytest.param(place, id=place.name, marks=[pytest.mark.gpu] if place.name == "cuda" else [])
    for place in testing.backends()
]
"""Rows of :func:`gpubackprop.testing.backends`: a test skips one without a backend."""
