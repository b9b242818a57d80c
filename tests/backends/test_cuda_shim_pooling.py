"""The pooling kernels of the GPU, executed on the CPU from the same source, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.base import Backend
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import geometry
from gpubackprop.backends.cuda.images import PLACES, _numbers
from gpubackprop.backends.images import pooled_sizes, winner_dtype
from tests.backends.support import shim
from tests.backends.support.images_cases import DIVISORS, POOLINGS, fill
from tests.backends.support.shim_cases import DTYPES, close, cpp, launch, wide_of  # noqa: F401

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

NUMPY = NumPyBackend()
FILLED = [case for case in POOLINGS if case[0][0]]


def widened(x):
    """Halves as floats, which the kernels compute in."""
    return x.astype(wide_of(x.dtype.type))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FILLED, ids=str)
def test_max_pool_and_its_derivative(launch, case, dtype):  # noqa: F811
    shape, kernel, stride, padding, dilation, ceil = case
    x = np.rint(fill(shape, 1) * 2).astype(dtype)  # with equal elements
    out = pooled_sizes(shape[1:-1], kernel, stride, padding, dilation, ceil)
    y = np.empty((shape[0], *out, shape[-1]), dtype)
    winner, dx = np.empty(y.shape, winner_dtype(kernel)), np.empty_like(x)
    numbers = _numbers(shape, out, kernel, stride, padding, dilation)
    template = (cpp(dtype), PLACES[winner.dtype.name])
    launch("max_pool", template, geometry.over(y.size), x, y, winner, *numbers)
    expected, places = Backend.max_pool(NUMPY, x, kernel, stride, padding, dilation, ceil)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(winner, places)
    dy = fill(y.shape, 2).astype(dtype)
    launch("max_pool_backward", template, geometry.over(dx.size), dy, winner, dx, *numbers)
    where = (shape[1:-1], kernel, stride, padding, dilation)
    close(dx, Backend.max_pool_backward(NUMPY, widened(dy), winner, *where), dtype)


@pytest.mark.parametrize("divisor", DIVISORS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in FILLED if max(c[4]) == 1], ids=str)
def test_avg_pool_and_its_derivative(launch, case, dtype, divisor):  # noqa: F811
    shape, kernel, stride, padding, dilation, ceil = case
    x, where = fill(shape, 1).astype(dtype), (kernel, stride, padding)
    out = pooled_sizes(shape[1:-1], *where, dilation, ceil)
    y, dx = np.empty((shape[0], *out, shape[-1]), dtype), np.empty_like(x)
    numbers = (*_numbers(shape, out, *where), int(divisor[0]), divisor[1] or 0)
    launch("avg_pool", (cpp(dtype),), geometry.over(y.size), x, y, *numbers)
    close(y, Backend.avg_pool(NUMPY, widened(x), *where, ceil, *divisor), dtype)
    dy = fill(y.shape, 2).astype(dtype)
    launch("avg_pool_backward", (cpp(dtype),), geometry.over(dx.size), dy, dx, *numbers)
    given = (widened(dy), shape[1:-1], *where, ceil, *divisor)
    close(dx, Backend.avg_pool_backward(NUMPY, *given), dtype)


def test_few_threads_cover_an_image(launch):  # noqa: F811
    x = fill((2, 6, 5, 7), 3)
    numbers = _numbers(x.shape, (3, 3), (2, 2), (2, 2), (0, 1))
    y, dx = np.empty((2, 3, 3, 7)), np.empty_like(x)
    few = geometry.Launch(2, 32)
    launch("avg_pool", ("double",), few, x, y, *numbers, 1, 0)
    np.testing.assert_allclose(y, NUMPY.avg_pool(x, (2, 2), (2, 2), (0, 1)), rtol=1e-14)
    launch("avg_pool_backward", ("double",), few, y, dx, *numbers, 1, 0)
    expected = NUMPY.avg_pool_backward(y, (6, 5), (2, 2), (2, 2), (0, 1))
    np.testing.assert_allclose(dx, expected, rtol=1e-14)


def test_nan_is_the_largest_and_a_window_of_nothing_gives_minus_infinity(launch):  # noqa: F811
    x = np.array([np.nan, 1.0, np.inf, np.nan, -np.inf, -np.inf], np.float32).reshape(1, 6, 1)
    y, winner = np.empty((1, 3, 1), np.float32), np.empty((1, 3, 1), np.uint8)
    numbers = _numbers(x.shape, (3,), (2,), (2,), (0,), (1,))
    launch("max_pool", ("float", "u8"), geometry.over(3), x, y, winner, *numbers)
    np.testing.assert_array_equal(y.ravel(), [np.nan, np.nan, -np.inf])
    assert winner.ravel().tolist() == [0, 1, 0]
    # Both places of the only window are outside: one before the element, one behind it.
    one = _numbers((1, 1, 1), (1,), (2,), (1,), (1,), (2,))
    x, y, winner = x[:, 1:2].copy(), y[:, :1].copy(), winner[:, :1].copy()
    launch("max_pool", ("float", "u8"), geometry.over(1), x, y, winner, *one)
    assert y.item() == -np.inf
    dx = np.empty_like(x)
    dy = np.ones_like(y)
    launch("max_pool_backward", ("float", "u8"), geometry.over(1), dy, winner, dx, *one)
    assert not dx.any()
