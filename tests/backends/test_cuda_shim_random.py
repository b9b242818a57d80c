"""The CUDA kernels that draw, executed on the CPU from the same source, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends import philox
from gpubackprop.backends.cuda import geometry
from tests.backends.support import shim
from tests.backends.support.shim_cases import (  # noqa: F401
    DTYPES,
    close,
    cpp,
    define,
    is_half,
    launch,
    lying,
    random,
)

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

PLACES = [(0, 0, 0), (2**64 - 1, 2**32 - 1, 2**64 - 2), (0x123456789ABCDEF0, 7, 2**32 - 3)]


@pytest.mark.parametrize("n", [1, 3, 4, 5, 1025, 3001])
@pytest.mark.parametrize(("seed", "stream", "offset"), PLACES)
def test_random_bits_are_numpys(launch, n, seed, stream, offset):  # noqa: F811
    out = np.empty(n, np.uint32)
    launch("random_bits", (), geometry.over((n + 3) // 4), out, n, seed, stream, None, offset)
    assert np.array_equal(out, philox.random_bits(seed, stream, offset, n))


def test_the_offset_may_live_on_the_device(launch):  # noqa: F811
    out, place = np.empty(50, np.uint32), np.array(123, np.uint64)
    launch("random_bits", (), geometry.over(13), out, 50, 5, 6, place, 0)
    assert np.array_equal(out, philox.random_bits(5, 6, 123, 50))


def test_few_threads_cover_many_words(launch):  # noqa: F811
    out = np.empty(5001, np.uint32)
    launch("random_bits", (), geometry.Launch(2, 32), out, 5001, 1, 2, None, 3)
    assert np.array_equal(out, philox.random_bits(1, 2, 3, 5001))


def test_uniform_is_exact(launch):  # noqa: F811
    out = np.empty(1003, np.float32)
    launch("uniform", (), geometry.over(251), out, 1003, 9, 1, None, 4)
    assert np.array_equal(out, define("uniform", (1003,), 9, 1, 4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 3, 4, 9, 1030])
@pytest.mark.parametrize("offsets", [(0, 0, 0), (1, 1, 1), (0, 0, 1), (0, 4, 0), (2, 0, 0)])
def test_dropout_of_arrays_that_begin_anywhere(launch, dtype, size, offsets):  # noqa: F811
    x = random(size, dtype, 1)
    expected, mask = define("dropout", x, 0.3, 3, 4, 5)
    threshold, scale = round(0.7 * 2**32), 1 / 0.7
    given, y, keep = (lying(a, o) for a, o in zip((x, x, mask), offsets, strict=True))
    y[...], keep[...] = 99, False
    rest = (size, threshold, scale, 3, 4, None, 5)
    launch("dropout", (cpp(dtype),), geometry.over((size + 3) // 4), given, y, keep, *rest)
    assert np.array_equal(keep, mask)
    close(y, expected, dtype, 1 if is_half(dtype) else 0)
    dx, shape = np.full_like(x, 99), geometry.over_packs(size, x.itemsize)
    launch("dropout_backward", (cpp(dtype),), shape, given, keep, dx, size, scale)
    assert np.array_equal(dx, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.99])
def test_dropout_has_the_mask_of_the_cpu(launch, dtype, p):  # noqa: F811
    x = random((37, 11), dtype)
    y, keep = np.empty_like(x), np.empty(x.shape, bool)
    threshold, scale = round((1 - p) * 2**32), 1 / (1 - p)
    shape = geometry.over((x.size + 3) // 4)
    launch("dropout", (cpp(dtype),), shape, x, y, keep, x.size, threshold, scale, 3, 4, None, 5)
    expected, mask = define("dropout", x, p, 3, 4, 5)
    assert np.array_equal(keep, mask)
    close(y, expected, dtype, 1 if is_half(dtype) else 0)
    alone = np.empty_like(keep)
    launch("bernoulli", (), shape, alone, x.size, threshold, 3, 4, None, 5)
    assert np.array_equal(alone, mask)
    dx = np.empty_like(x)
    launch("dropout_backward", (cpp(dtype),), geometry.over(x.size), x, keep, dx, x.size, scale)
    assert np.array_equal(dx, y)
