"""Normalisation on NumPy in many blocks: what the large images of a real batch take, on small
ones."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop import testing
from gpubackprop.backends.base import Backend
from gpubackprop.backends.cpu import norms as numpy_norms
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cpu.norms import Channels, divisor
from tests.backends import test_composites as composites
from tests.backends.support import norms_cases

NUMPY = NumPyBackend()


SIZES = [(7, 4, 4, 1), (40, 24, 12, 2), (300, 64, 16, 1)]


@pytest.fixture(params=SIZES, ids=str)
def small_blocks(request, monkeypatch):
    make_small(monkeypatch, *request.param)


def make_small(monkeypatch, *sizes, threads=2):
    """Blocks of a few elements, each worth a thread."""
    for name, value in zip(("BLOCK", "WIDE", "NARROW", "ROWS"), sizes, strict=True):
        monkeypatch.setattr(numpy_norms, name, value)
    monkeypatch.setattr(numpy_norms, "SHARE", 1)
    monkeypatch.setattr(numpy_norms, "threads", lambda: threads)


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


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kernel", [n for n in composites.COMPOSITES if norms_cases.knows(n)])
def test_each_bit_is_the_same_for_any_number_of_threads(monkeypatch, kernel, sizes):
    for _, arguments, options in norms_cases.cases(kernel):
        results = []
        for threads in (1, 2, 5):
            make_small(monkeypatch, *sizes, threads=threads)
            run = composites.run(NUMPY, getattr(NUMPY, kernel), arguments, options, "float32")
            results.append([a.tobytes() for a in run])
        assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("mean", [0.0, 3.5, 4.5, 1000.0])
def test_means_far_from_zero_cost_few_digits(mean):
    rng = np.random.default_rng(8)
    exact = (rng.standard_normal((8, 9, 9, 6)) + mean).astype(np.float32).astype(np.float64)
    dy, weight, bias = rng.standard_normal(exact.shape), *rng.standard_normal((2, 6))
    x, given, w, b = (a.astype(np.float32) for a in (exact, dy, weight, bias))
    assert numpy_norms._near(x.mean((0, 1, 2)), 1 / x.std((0, 1, 2))) == (mean < 4.0)
    y, *moments = NUMPY.batch_norm(x, w, b, 1e-5)
    wanted, *exactly = NUMPY.batch_norm(exact, *(a.astype(np.float64) for a in (w, b)), 1e-5)
    # x itself is known to this much, in standard deviations.
    step = float(np.spacing(np.float32(max(mean, 4.0))))
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=4 * step)
    found = NUMPY.batch_norm_backward(given, x, w, moments[0], moments[2])
    gradients = NUMPY.batch_norm_backward(
        given.astype(np.float64), exact, w.astype(np.float64), exactly[0], exactly[2]
    )
    for got, want in zip(found, gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=np.sqrt(len(x) * 81) * 4 * step)


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
