"""Normalisation on NumPy in many blocks: what the large images of a real batch take, on small
ones."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop import testing
from gpubackprop.backends import numpy_norms
from gpubackprop.backends.base import Backend
from gpubackprop.backends.numpy_backend import NumPyBackend
from gpubackprop.backends.numpy_norms import Channels, divisor
from tests.backends import test_composites as composites
from tests.backends.support import norms_cases

NUMPY = NumPyBackend()


@pytest.fixture(params=[(7, 4, 4, 1), (40, 24, 12, 2), (300, 64, 16, 1)], ids=str)
def small_blocks(request, monkeypatch):
    for name, value in zip(("BLOCK", "WIDE", "NARROW", "ROWS"), request.param, strict=True):
        monkeypatch.setattr(numpy_norms, name, value)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kernel", [n for n in composites.COMPOSITES if norms_cases.knows(n)])
def test_many_blocks_give_what_the_definition_says(small_blocks, kernel, dtype):
    definition = getattr(Backend, kernel).__get__(NUMPY)
    for note, arguments, options in norms_cases.cases(kernel):
        found = composites.run(NUMPY, getattr(NUMPY, kernel), arguments, options, dtype)
        expected = composites.run(NUMPY, definition, arguments, options, dtype)
        scale = 1000.0 if "about" in note else 1.0
        bound = testing.tolerance(dtype, arguments[0].size)
        for got, want in zip(found, expected, strict=True):
            testing.require_close(f"{kernel} {note}", got, want, bound, scale)


@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("first", [False, True])
def test_blocks_cover_every_element_once(small_blocks, first, groups):
    x = np.zeros((6, 4, 5, 3)).transpose(0, 2, 3, 1) if first else np.zeros((6, 5, 3, 4))
    channels = Channels(x, groups)
    assert np.shares_memory(channels.view(x), x), "it lies as it can be passed over"
    for block, place in channels.blocks():
        channels.view(x)[block] += channels.spread(np.ones(4), x.dtype)[place]
    assert (x == 1).all()


def test_places_that_share_no_divisor_stand_alone():
    assert [divisor(12, n) for n in (0, 1, 5, 12, 99)] == [1, 1, 4, 12, 12]
    assert divisor(131, 100) == 1


def test_a_large_mean_costs_no_more_digits_than_it_has():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, 16, 16, 8)) + 1000).astype(np.float32)
    wide = x.astype(np.float64)
    _, mean, var, _ = NUMPY.batch_norm(x, None, None, 1e-5)
    np.testing.assert_allclose(mean, wide.mean(axis=(0, 1, 2)), rtol=2e-7)
    np.testing.assert_allclose(var, wide.var(axis=(0, 1, 2)), rtol=1e-5)
