"""Large arrays in blocks, shared among threads: every bit is that of one pass, for any number of
threads."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpubackprop.backends.cpu import gelu
from gpubackprop.backends.cpu import shared as sharing
from gpubackprop.backends.cpu import threads as cpu_threads
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cpu.fused import MANY, leading
from gpubackprop.backends.updates import Updates

K = NumPyBackend()
RNG = np.random.default_rng(29)
LAYOUTS = {
    "flat": lambda x: x,
    "channels first": lambda x: x.transpose(0, 3, 1, 2),
    "fortran": lambda x: x.T,
    "gaps": lambda x: x[:, ::2],
    "backwards": lambda x: x[::-1],
    "repeated": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.fixture(params=[1, 2, 3])
def shared(request, monkeypatch):
    """Small blocks, each worth a thread."""
    monkeypatch.setattr(sharing, "threads", lambda: request.param)
    monkeypatch.setattr(sharing.in_blocks, "__defaults__", (8192 + 256, 8192))
    monkeypatch.setattr(gelu, "BLOCK", 1000)
    monkeypatch.setattr(gelu, "SHARE", 1000)


def images(dtype, seed=0):
    x = np.random.default_rng([3, seed]).standard_normal((6, 13, 40, 7)).astype(dtype)
    x.reshape(-1)[:5] = [np.nan, np.inf, -np.inf, 0.0, -0.0]
    assert x[:, ::2].size > MANY
    return x


def same(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_relu(shared, layout, dtype):
    x = LAYOUTS[layout](images(dtype))
    before = x.copy()
    np.testing.assert_array_equal(K.relu(x), np.maximum(x, 0))
    for other in LAYOUTS.values():
        dy = other(images(dtype, seed=1))
        if dy.shape == x.shape:
            same(K.relu_backward(dy, x), np.where(x > 0, dy, 0.0))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_choosing_between_an_array_and_zero(shared, layout, dtype):
    x = LAYOUTS[layout](images(dtype))
    condition = np.random.default_rng(4).uniform(size=x.shape) < 0.5
    same(K.where(condition, x, 0.0), np.where(condition, x, 0.0))
    same(K.where(condition, 0.0, x), np.where(condition, 0.0, x))
    turned = np.asfortranarray(condition)
    same(K.where(turned, x, 0.0), np.where(condition, x, 0.0))


@pytest.mark.parametrize("large", [False, True])
def test_gelu_has_the_bits_of_one_thread(monkeypatch, large):
    x, dy = RNG.standard_normal((2, 7, 1111)).astype(np.float32)
    if large:
        x[3, 500:] *= 100.0
    monkeypatch.setattr(gelu, "BLOCK", 1000)
    monkeypatch.setattr(gelu, "SHARE", 1000)
    results = []
    for n in (1, 2, 5):
        monkeypatch.setattr(sharing, "threads", lambda n=n: n)
        results.append((K.gelu(x), K.gelu_backward(dy, x)))
    for found in results[1:]:
        same(found[0], results[0][0])
        same(found[1], results[0][1])
    np.testing.assert_allclose(results[0][0], x * K.erf(x / math.sqrt(2)) / 2 + x / 2, atol=1e-5)


def test_an_update_has_the_bits_of_its_definition(monkeypatch):
    monkeypatch.setattr(sharing, "threads", lambda: 3)
    arrays = np.abs(RNG.standard_normal((4, 500_001))).astype(np.float32)
    expected = arrays.copy()
    K.adam_update(*arrays, lr=0.01, step=3)
    Updates.adam_update(K, *expected, lr=0.01, step=3)
    same(arrays, expected)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("n", [0, 1, 9, 10, 11, 95, 100])
def test_blocks_cover_each_element_once(monkeypatch, n, threads):
    monkeypatch.setattr(sharing, "threads", lambda: threads)
    seen = []
    sharing.in_blocks(lambda start, stop: seen.append((start, stop)), n, 10, 10)
    assert sorted(seen) == [(i, min(i + 10, n)) for i in range(0, n, 10)] or not n
    assert all(a < b for a, b in seen)


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(sharing, "threads", lambda: 2)

    def work(start, stop):
        if start:
            raise ValueError("in the second half")

    with pytest.raises(ValueError, match="second half"):
        sharing.in_blocks(work, 20, 10, 10)


@pytest.mark.parametrize("variable", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_one_thread_where_the_environment_says_so(monkeypatch, variable):
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "1")
    assert cpu_threads.threads.__wrapped__() == 1


# Sums over the leading axes.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(8192, 1), (2731, 3), (1021, 17), (20, 600), (3, 4000)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_sum_over_rows(shape, keepdims, dtype):
    x = (RNG.standard_normal(shape) + 3.0).astype(dtype)
    cube = x.reshape(-1, *(1, 1), shape[1])
    for array, axis in ((x, 0), (x, (0,)), (cube, (0, 1, 2)), (cube, (0, 1))):
        found = K.sum(array, axis, keepdims)
        expected = array.astype(np.longdouble).sum(axis, keepdims=keepdims)
        assert found.shape == expected.shape and found.dtype == x.dtype
        np.testing.assert_allclose(found, expected, rtol=20 * np.finfo(dtype).eps)
        same(found, K.sum(array, axis, keepdims))


def test_what_are_leading_axes():
    assert [leading(a) for a in (0, (0,), (0, 1), (0, 1, 2))] == [1, 1, 2, 3]
    assert [leading(a) for a in (None, 1, -1, (1,), (1, 0), (0, 2), ())] == [0] * 7
