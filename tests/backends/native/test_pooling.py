"""Pooling against its definition."""

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends import get_backend
from gpubackprop.backends.cpu.native.lowering import Site
from gpubackprop.backends.images import ImageKernels, pooled_sizes
from tests.backends.support.native import TABLE, executed

SMALL_TOO = ("pooling",)
NUMPY = get_backend("cpu")
RNG = np.random.default_rng(12)
PARTS = [1, 2, 3]

# image, kernel, stride, padding, dilation, ceil
WINDOWS = [
    ((3, 4, 4, 5), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 7, 9, 33), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 7, 9, 3), (2, 2), (2, 2), (0, 0), (1, 1), True),
    ((40, 13, 13, 32), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 8, 6, 4), (3, 3), (2, 2), (1, 1), (1, 1), False),
    ((2, 8, 7, 4), (3, 2), (1, 2), (1, 0), (1, 2), True),
    ((2, 5, 5, 1), (3, 3), (3, 3), (0, 0), (1, 1), False),
    ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1), False),
    ((1, 2, 2, 3), (2, 2), (1, 1), (1, 1), (3, 3), False),
    ((3, 17, 6), (4,), (3,), (1,), (1,), True),
    ((3, 16, 6), (2,), (2,), (0,), (1,), False),
]


def run(kernel, outs, parts, *args):
    return executed(kernel, outs, parts, *args)


def defined(kernel, *args):
    """By the definition, not by what overrides it."""
    return getattr(ImageKernels, kernel)(NUMPY, *args)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def images(shape, special=False):
    """With many equal numbers, and perhaps what is no number."""
    x = RNG.integers(-3, 4, shape).astype(np.float32)
    if special:
        x[RNG.random(shape) < 0.1] = np.nan
        x[RNG.random(shape) < 0.1] = np.inf
        x[RNG.random(shape) < 0.3] = -np.inf
    return x


def blank(shape, dtype=np.float32):
    return np.full(shape, 77, dtype)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("case", WINDOWS)
def test_max_pool(case, special, parts):
    shape, *windows = case
    x = images(shape, special)
    y, winner = defined("max_pool", x, *windows)
    found = run("max_pool", (blank(y.shape), blank(y.shape, np.uint8)), parts, x, *windows)
    np.testing.assert_array_equal(found[0], y)
    np.testing.assert_array_equal(found[1], winner)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("case", WINDOWS)
def test_max_pool_backward(case, parts):
    shape, *windows, ceil = case
    x = images(shape)
    y, winner = defined("max_pool", x, *windows, ceil)
    dy = images(y.shape)
    dy.flat[0] = np.inf
    dx = defined("max_pool_backward", dy, winner, shape[1:-1], *windows)
    args = (dy, winner, shape[1:-1], *windows)
    (found,) = run("max_pool_backward", (blank(shape),), parts, *args)
    np.testing.assert_array_equal(found, dx)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("case", WINDOWS)
def test_pool_relu_backward(case, summed, parts):
    shape, *windows, ceil = case
    x = normal(*shape)
    x.flat[1 % x.size] = np.nan
    y, winner = defined("max_pool", NUMPY.relu(x), *windows, ceil)
    dy = normal(*y.shape)
    dx = defined("max_pool_backward", dy, winner, shape[1:-1], *windows)
    dx = NUMPY.relu_backward(dx, NUMPY.relu(x))
    args = (dy, winner, y, shape[1:-1], *windows)
    outs = (blank(shape), blank(shape[-1:])) if summed else (blank(shape),)
    found = run("pool_relu_backward", outs, parts, *args)
    np.testing.assert_allclose(found[0], dx, rtol=1e-6, atol=1e-6)
    if summed:
        total = dx.astype(np.float64).sum(tuple(range(dx.ndim - 1)))
        np.testing.assert_allclose(found[1], total, rtol=1e-5, atol=1e-4)


AVERAGES = [
    (case, include, override)
    for case in WINDOWS
    if set(case[4]) == {1} and all(2 * p <= k for p, k in zip(case[3], case[1], strict=True))
    for include, override in [(True, None), (False, None), (True, 3)]
]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("case", "include", "override"), AVERAGES)
def test_avg_pool_and_backward(case, include, override, parts):
    shape, kernel, stride, padding, dilation, ceil = case
    x = normal(*shape)
    options = (kernel, stride, padding, ceil, include, override)
    expected = defined("avg_pool", x.astype(np.float64), *options)
    (y,) = run("avg_pool", (blank(expected.shape),), parts, x, *options)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    assert y.shape[1:-1] == pooled_sizes(shape[1:-1], kernel, stride, padding, dilation, ceil)
    dy = normal(*y.shape)
    expected = defined("avg_pool_backward", dy.astype(np.float64), shape[1:-1], *options)
    (dx,) = run("avg_pool_backward", (blank(shape),), parts, dy, shape[1:-1], *options)
    np.testing.assert_allclose(dx, expected, rtol=1e-6, atol=1e-6)


def channels_first(x):
    """The same numbers, as they lie where channels come first."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("parts", PARTS)
def test_arrays_that_do_not_lie_in_order(parts):
    x, windows = images((5, 9, 8, 12)), ((2, 2), (2, 2), (0, 0), (1, 1))
    y, winner = defined("max_pool", x, *windows, False)
    outs = (channels_first(blank(y.shape)), channels_first(blank(y.shape, np.uint8)))
    found = run("max_pool", outs, parts, channels_first(x), *windows, False)
    np.testing.assert_array_equal(found[0], y)
    np.testing.assert_array_equal(found[1], winner)
    dy, spatial = images(y.shape), x.shape[1:-1]
    dx = defined("max_pool_backward", dy, winner, spatial, *windows)
    outs, given = (channels_first(blank(x.shape)),), channels_first(dy)
    (found,) = run("max_pool_backward", outs, parts, given, winner, spatial, *windows)
    np.testing.assert_array_equal(found, dx)
    options = ((2, 2), (2, 2), (0, 0))
    (found,) = run(
        "avg_pool", (channels_first(blank(y.shape)),), parts, channels_first(x), *options
    )
    np.testing.assert_allclose(found, defined("avg_pool", x, *options), rtol=1e-6)
    outs = (channels_first(blank(x.shape)),)
    (found,) = run("avg_pool_backward", outs, parts, given, spatial, *options)
    np.testing.assert_allclose(found, defined("avg_pool_backward", dy, spatial, *options))


def test_what_is_not_served():
    windows = ((2, 2), (2, 2), (0, 0), (1, 1))

    def lower(x, winners=np.uint8, windows=windows):
        shape = (x.shape[0], *(n // 2 for n in x.shape[1:-1]), x.shape[-1])
        outs = (np.empty(shape, np.float32), np.empty(shape, winners))
        return TABLE["max_pool"].lower(Site(1), outs, x, *windows)

    assert lower(images((2, 4, 4, 3))) is not None
    assert lower(images((2, 4, 4, 3)).astype(np.float64)) is None
    assert lower(images((2, 4, 4, 3)), np.int32) is None
    assert lower(images((0, 4, 4, 3))) is None
    assert lower(images((2, 4, 4, 4, 3)), windows=tuple(w + w[:1] for w in windows)) is None
    far = ((16, 16), (16, 16), (0, 0), (1, 1))
    assert lower(images((2, 32, 32, 3)), windows=far) is None
