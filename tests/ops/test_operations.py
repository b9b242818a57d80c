"""Every registered operation is held to its record, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop  # noqa: F401 - registers the operations
from gpubackprop import testing
from gpubackprop.autograd import REGISTRY
from tests.places import PLACES

SAMPLES = [
    pytest.param(op, sample, id=f"{op.name}-{i}")
    for op in REGISTRY.values()
    for i, sample in enumerate(testing.samples_of(op))
]
DIFFERENTIABLE = [
    p for p in SAMPLES if p.values[0].backward is not None and p.values[1].differentiable
]
TWICE = [p for p in DIFFERENTIABLE if p.values[0].order >= 2]
OTHERS = [place for place in PLACES if place.id != "cpu"]


@pytest.mark.parametrize("op", REGISTRY.values(), ids=list(REGISTRY))
def test_samples_cover_the_corners(op):
    samples = testing.samples_of(op)
    assert samples, "an operation without samples is not tested"
    sizes = [x.size for s in samples for x in s.inputs if isinstance(x, np.ndarray)]
    assert max(sizes) > 1
    assert 1 in sizes, "no sample has an input with one element"


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_shape_rule(op, sample):
    testing.check_shape_rule(op, sample)


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_forward(op, sample):
    testing.check_forward(op, sample)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_precision(op, sample, dtype):
    testing.check_precision(op, sample, dtype)


@pytest.mark.parametrize(("op", "sample"), DIFFERENTIABLE)
def test_backward_rule(op, sample):
    testing.check_rule(op, sample)


@pytest.mark.parametrize(("op", "sample"), DIFFERENTIABLE)
def test_first_derivative(op, sample):
    testing.check_gradient(op, sample)


@pytest.mark.parametrize(("op", "sample"), TWICE)
def test_second_derivative(op, sample):
    testing.check_second_order(op, sample)


@pytest.mark.parametrize("place", OTHERS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_parity(op, sample, dtype, place):
    if place.backend is None:
        pytest.skip(place.reason)
    testing.check_parity(op, sample, place.backend, dtype)
