"""The CUDA kernels of normalisation, executed on the CPU from the same source, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.base import Backend
from gpubackprop.backends.cuda import geometry, sources
from tests.backends.support import shim
from tests.backends.support.shim_cases import BFLOAT16, DTYPES, HALVES, wide_of
from tests.backends.test_cuda_backend import BACKEND, NUMPY

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-13, np.float16: 1e-2, BFLOAT16: 4e-2}
# Samples, places, channels and groups: many places, many channels, one of each.
SIZES = [(2, 90, 6, 3), (3, 1, 300, 1), (1, 70, 5, 5), (2, 40, 8, 4), (1, 1, 2, 1), (3, 70, 16, 2)]


@pytest.fixture(params=["whole", "few threads", "reversed"])
def device(request, monkeypatch):
    """The backend; on a grid far smaller than the arrays, so that every loop goes round; and with a
    block's threads served in falling order."""
    monkeypatch.setattr(shim.RawModule, "reverse", request.param == "reversed")
    if request.param == "few threads":
        monkeypatch.setattr(geometry, "_MAX_BLOCKS", 1)
        monkeypatch.setattr(geometry, "_MAX_ROW_BLOCKS", 2)
    return BACKEND


def random(*shape, seed, dtype, mean=0.0):
    return (np.random.default_rng(seed).standard_normal(shape) + mean).astype(dtype)


def compare(device, kernel, dtype, *arguments):
    """The kernel on the device beside its definition, which computes halves in float as it does."""
    wide = wide_of(dtype)
    is_array = [isinstance(a, np.ndarray) for a in arguments]
    there = [device.asarray(a) if i else a for a, i in zip(arguments, is_array, strict=True)]
    here = [a.astype(wide) if i else a for a, i in zip(arguments, is_array, strict=True)]
    found = getattr(device, kernel)(*there)
    expected = getattr(Backend, kernel)(NUMPY, *here)
    results = []
    for k, (got, want) in enumerate(zip(found, expected, strict=True)):
        got = device.to_numpy(got)
        plain = got.astype(wide)  # NumPy takes bfloat16 for no number
        # Moments, and the cotangents of the parameters, are not rounded.
        assert got.dtype == (wide if k else dtype)
        np.testing.assert_allclose(plain, want, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])
        results.append(got)
    return results


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", ["plain", "affine", "wide"])
@pytest.mark.parametrize(("samples", "places", "channels", "groups"), SIZES)
def test_group_norm_and_its_derivative(device, samples, places, channels, groups, affine, dtype):
    x = random(samples, places, channels, seed=1, dtype=dtype, mean=3.0)
    dy = random(*x.shape, seed=2, dtype=dtype)
    given = wide_of(dtype) if affine == "wide" else dtype
    weight, bias = (random(channels, seed=s, dtype=given) for s in (3, 4))
    if affine == "plain":
        weight = bias = None
    _, mean, rstd = compare(device, "group_norm", dtype, x, weight, bias, groups, 1e-2)
    compare(device, "group_norm_backward", dtype, dy, x, weight, mean, rstd, groups)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", ["plain", "affine", "wide"])
@pytest.mark.parametrize("shape", [(3, 50, 5), (700, 2), (5, 300), (2, 1), (3, 90, 24)], ids=str)
def test_batch_norm_and_its_derivative(device, shape, affine, dtype):
    """With parameters of the dtype of x, and with float32 ones, as mixed precision has them."""
    x, dy = random(*shape, seed=1, dtype=dtype, mean=3.0), random(*shape, seed=2, dtype=dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    given = wide if affine == "wide" else dtype
    parts = [
        random(shape[-1], seed=s, dtype=d) for s, d in enumerate((given, given, wide, wide), 3)
    ]
    weight, bias, dmean, dvar = (None, *parts[1:]) if affine == "plain" else parts
    _, mean, _, rstd = compare(device, "batch_norm", dtype, x, weight, bias, 1e-2)
    compare(device, "batch_norm_backward", dtype, dy, x, weight, mean, rstd)
    compare(device, "batch_norm_backward", dtype, dy, x, weight, mean, rstd, dmean, dvar)
    scale = weight if weight is not None else random(shape[-1], seed=9, dtype=wide)
    for shift in (bias, None):
        arrays = [device.asarray(a) if a is not None else None for a in (x, scale, shift)]
        exact = NUMPY.scale_shift(
            *(a if a is None else a.astype(np.float64) for a in (x, scale, shift))
        )
        y = device.scale_shift(*arrays)
        assert y.dtype == dtype
        np.testing.assert_allclose(device.to_numpy(y), exact, rtol=TOLERANCE[dtype], atol=1e-3)


def test_float32_parameters_beside_halves_need_no_cast(monkeypatch):
    """What mixed precision gives: no copy of an activation or of a parameter in another type."""
    monkeypatch.setattr(BACKEND, "astype", lambda *a: pytest.fail("a copy in another type"))
    x = BACKEND.asarray(random(4, 5, 3, seed=1, dtype=np.float16))
    weight = BACKEND.asarray(random(3, seed=2, dtype=np.float32))
    y, mean, _, rstd = BACKEND.batch_norm(x, weight, weight, 1e-5)
    BACKEND.batch_norm_backward(y, x, weight, mean, rstd)
    BACKEND.scale_shift(x, weight, weight)
    y, mean, rstd = BACKEND.group_norm(x, weight, weight, 3, 1e-5)
    BACKEND.group_norm_backward(y, x, weight, mean, rstd, 3)
    for rows in (x, BACKEND.asarray(random(4, 5, 3, seed=1, dtype=np.float32))):
        y, mean, rstd = BACKEND.layer_norm(rows, weight, weight, 1, 1e-5, np.float16)
        dx, *sums = BACKEND.layer_norm_backward(y, rows, weight, mean, rstd, 1)
        assert (y.dtype, dx.dtype) == (np.float16, rows.dtype)
        assert [s.dtype for s in sums] == [np.float32] * 2
        y, rstd = BACKEND.rms_norm(rows, weight, 1, 1e-5, np.float16)
        dx, dweight = BACKEND.rms_norm_backward(y, rows, weight, rstd, 1)
        assert (y.dtype, dx.dtype, dweight.dtype) == (np.float16, rows.dtype, np.float32)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("shape", [(3, 50, 5), (9, 1026), (2100, 776), (5, 9000), (2, 1)], ids=str)
def test_rows_of_float32_for_half_products(shape, half):
    """Through the backend, for rows that it shares in each of its ways: the result is that of
    float32, rounded once, and a half cotangent counts as what it is."""
    x = random(*shape, seed=1, dtype=np.float32, mean=3.0)
    dy = random(*shape, seed=2, dtype=half)
    weight, bias = (random(shape[-1], seed=s, dtype=np.float32) for s in (3, 4))
    arrays = [BACKEND.asarray(a) for a in (x, weight, bias)]
    for kernel, given in (("layer_norm", arrays), ("rms_norm", arrays[:2])):
        y, *moments = getattr(BACKEND, kernel)(*given, 1, 1e-2, half)
        wide, *same = getattr(BACKEND, kernel)(*given, 1, 1e-2)
        assert y.dtype == half and wide.dtype == np.float32
        rounded = BACKEND.to_numpy(wide).astype(half)
        np.testing.assert_array_equal(BACKEND.to_numpy(y), rounded)
        for got, want in zip(moments, same, strict=True):
            np.testing.assert_array_equal(BACKEND.to_numpy(got), BACKEND.to_numpy(want))
        back, inner = getattr(BACKEND, f"{kernel}_backward"), (*arrays[:2], *moments, 1)
        found = back(BACKEND.asarray(dy), *inner)
        expected = back(BACKEND.asarray(dy.astype(np.float32)), *inner)
        for got, want in zip(found, expected, strict=True):
            assert got.dtype == np.float32
            np.testing.assert_array_equal(BACKEND.to_numpy(got), BACKEND.to_numpy(want))


def test_a_variance_beyond_half_precision(device):
    x = random(64, 3, seed=1, dtype=np.float16) * np.float16(1000.0)
    y, mean, var, rstd = device.batch_norm(device.asarray(x), None, None, 1e-5)
    wide = x.astype(np.float64)
    assert device.to_numpy(var).min() > 65504
    np.testing.assert_allclose(device.to_numpy(var), wide.var(0), rtol=1e-5)
    dy = random(64, 3, seed=2, dtype=np.float16)
    for got, want in zip(
        device.batch_norm_backward(*map(device.asarray, (dy, x)), None, mean, rstd),
        NUMPY.batch_norm_backward(dy.astype(float), wide, None, wide.mean(0), 1 / wide.std(0)),
        strict=True,
    ):
        np.testing.assert_allclose(device.to_numpy(got), want, rtol=1e-2, atol=2e-2)
    np.testing.assert_allclose(device.to_numpy(y), (wide - wide.mean(0)) / wide.std(0), atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (6, 10), (100, 33), (3, 700)], ids=str)
def test_rms_norm_and_its_derivative(device, shape, scaled, dtype):
    x, dy = random(*shape, seed=1, dtype=dtype), random(*shape, seed=2, dtype=dtype)
    weight = random(shape[1], seed=3, dtype=dtype) if scaled else None
    _, rstd = compare(device, "rms_norm", dtype, x, weight, 1, 1e-2)
    compare(device, "rms_norm_backward", dtype, dy, x, weight, rstd, 1)


def test_a_mean_that_is_large_beside_the_spread_costs_no_digits(device):
    x = random(4, 200, 3, seed=1, dtype=np.float32, mean=1000.0)
    _, mean, var, _ = device.batch_norm(device.asarray(x), None, None, 1e-5)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(device.to_numpy(mean), wide.mean(axis=(0, 1)), rtol=2e-7)
    np.testing.assert_allclose(device.to_numpy(var), wide.var(axis=(0, 1)), rtol=1e-4)


def test_an_outlier_costs_the_others_no_digits(device):
    """Where it is the first value, from which deviations are taken, it costs those of its span the
    few that a sum over so many rows has."""
    x = random(4, 200, 8, seed=1, dtype=np.float32)
    x[0, 0] = 1e4
    _, mean, var, _ = device.batch_norm(device.asarray(x), None, None, 1e-5)
    wide = x.astype(np.float64)
    spread = wide.std(axis=(0, 1)).max()
    np.testing.assert_allclose(
        device.to_numpy(mean), wide.mean(axis=(0, 1)), rtol=0, atol=1e-6 * spread
    )
    np.testing.assert_allclose(device.to_numpy(var), wide.var(axis=(0, 1)), rtol=5e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_bit_depends_on_where_an_array_lies(device, dtype):
    """16 bytes are read at once where arrays begin at such a boundary, else element by element."""
    x, dy = (random(3, 70, 16, seed=s, dtype=dtype) for s in (1, 2))
    weight = random(16, seed=3, dtype=np.float64 if dtype == np.float64 else np.float32)
    found = []
    for shift in (0, 1):
        there = []
        for a in (x, dy):
            flat = device.zeros((a.size + 64,), a.dtype)
            first = -(int(flat.data.ptr) % 16) // a.itemsize % (16 // a.itemsize) + shift
            view = device.reshape(flat[first : first + a.size], a.shape)
            assert (int(view.data.ptr) % 16 == 0) is not bool(shift)
            device.copyto(view, device.asarray(a))
            there.append(view)
        w = device.asarray(weight)
        y, mean, var, rstd = device.batch_norm(there[0], w, w, 1e-3)
        slopes = device.batch_norm_backward(there[1], there[0], w, mean, rstd)
        shifted = device.scale_shift(there[0], w, w)
        found.append([device.to_numpy(a) for a in (y, mean, var, rstd, *slopes, shifted)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_each_kernel_is_launched_once_for_each_sum(monkeypatch):
    names = []
    launch = BACKEND.kernels.launch
    monkeypatch.setattr(
        BACKEND.kernels, "launch", lambda name, *a: (names.append(name), launch(name, *a))
    )
    x = BACKEND.asarray(random(4, 5, 3, seed=1, dtype=np.float32))
    before = BACKEND.xp.transfers, BACKEND.xp.synchronised
    y, mean, _, rstd = BACKEND.batch_norm(x, None, None, 1e-5)
    BACKEND.batch_norm_backward(y, x, None, mean, rstd)
    assert names == [
        *("channel_moments", "group_moment", "group_norm"),
        *("channel_slopes", "span_sum", "group_slopes"),
        "group_norm_backward",
    ]
    assert (BACKEND.xp.transfers, BACKEND.xp.synchronised) == before, "the host waited"


def test_spans_give_work_to_a_whole_gpu():
    assert geometry.channel_span(131072, 16) == 32
    assert geometry.channel_span(131072, 256) == 512
    assert geometry.channel_span(7, 3) == 32
    assert "batch_norm" in sources.FILES
