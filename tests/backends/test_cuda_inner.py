"""The product of two vectors on a GPU: the kernels executed on the CPU, and the backend around
them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from gpubackprop.backends.cuda import CUDABackend, geometry, sources
from tests.backends.support import fake_cupy, shim
from tests.backends.support.shim_cases import DTYPES, cpp, launch, random  # noqa: F401

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")


@pytest.mark.parametrize("size", [1, 3, 8, 1023, 40_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels(launch, dtype, size):  # noqa: F811
    x, y = random(size + 1, dtype, size), random(size + 1, dtype, size + 1)
    first = x[:size].copy(), y[:size].copy()
    found = []
    for a, b in (first, (x[1:], y[1:]), (first[0], y[1:])):  # some begin within a pack
        a[...], b[...] = first
        shape = geometry.over_packs(size, a.itemsize)
        sums, total = np.empty(shape.grid), np.empty((), np.float64)
        launch("inner_product", (cpp(dtype), geometry.BLOCK), shape, a, b, sums, size)
        one = geometry.Launch(1)
        launch("inner_product_total", ("double", geometry.BLOCK), one, sums, shape.grid, total)
        exact = np.dot(a.astype(np.float64), b.astype(np.float64))
        assert float(total) == pytest.approx(exact, rel=1e-12, abs=1e-12)
        found.append(float(total))
    assert len(set(found)) == 1


def test_floats_are_doubles_by_whole_numbers():
    """Every exponent with either sign, first and last fractions; numbers below the normal ones are
    zero."""
    exponents, fractions = np.arange(512, dtype=np.uint32) << 23, [0, 1, 0x2AAAAA, 0x7FFFFF]
    x = (exponents[:, None] | np.array(fractions, np.uint32)).reshape(-1).view(np.float32)
    text = (
        sources.source("inner") + "__global__ void widen(const float* x, double* y, i64 n) {\n"
        "  for (i64 i = thread_index(); i < n; i += thread_count()) y[i] = widened(x[i]);\n}\n"
    )
    y = np.empty(x.size)
    shim.build(text, ("widen",))["widen"](1, 256, (x, y, np.int64(x.size)))
    with np.errstate(invalid="ignore"):
        expected = np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(0, x), x)
    np.testing.assert_array_equal(y, expected)
    assert np.array_equal(np.signbit(y), np.signbit(x))


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.FakeCuPy())
    return CUDABackend()


@pytest.fixture
def launched(cuda, monkeypatch):
    names, inner = [], cuda.kernels.launch

    def record(name, *arguments):
        names.append(name)
        inner(name, *arguments)

    monkeypatch.setattr(cuda.kernels, "launch", record)
    return names


def test_a_gradient_with_itself(cuda, launched):
    """In all bits whatever the policy, by many blocks, of vectors with gaps too."""
    x = np.random.default_rng(1).standard_normal(30_000).astype(np.float32)
    exact = np.dot(x.astype(np.float64), x.astype(np.float64))
    there = cuda.asarray(x)
    found = cuda.matmul(there, there)
    assert found.shape == () and found.dtype == np.float32
    assert float(cuda.to_numpy(found)) == np.float32(exact)
    assert launched == ["inner_product", "inner_product_total"]
    every_other = cuda.matmul(there[::2], there[1::2])
    np.testing.assert_allclose(cuda.to_numpy(every_other), x[::2] @ x[1::2], rtol=1e-4)
    out = cuda.zeros((), np.float32)
    assert cuda.matmul(there, there, out=out) is out
    assert float(cuda.to_numpy(out)) == np.float32(exact)


def test_halves_and_their_wide_results(cuda, launched):
    x = np.random.default_rng(1).standard_normal(300).astype(np.float16)
    exact = np.dot(x.astype(np.float64), x.astype(np.float64))
    there = cuda.asarray(x)
    found = cuda.matmul(there, there)
    assert found.dtype == np.float16 and float(cuda.to_numpy(found)) == np.float16(exact)
    out = cuda.zeros((), np.float32)
    cuda.matmul(there, there, out=out)
    assert float(cuda.to_numpy(out)) == np.float32(exact)


def test_what_is_no_such_product_goes_on(cuda, launched):
    x = cuda.asarray(np.arange(4.0, dtype=np.float32))
    cuda.matmul(x, cuda.asarray(np.ones((4, 2), np.float32)))
    wide = cuda.matmul(x, cuda.asarray(np.arange(4.0)))
    assert wide.dtype == np.float64 and float(cuda.to_numpy(wide)) == 14.0
    empty = cuda.matmul(x[:0], x[:0])
    assert float(cuda.to_numpy(empty)) == 0.0
    with pytest.raises(ValueError, match="3"):
        cuda.matmul(x, x[:3])
    assert launched == []
