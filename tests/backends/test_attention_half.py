"""Attention in half precision: scores that it cannot hold do not make the result NaN."""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.autograd import REGISTRY, apply
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.testing import StandInBackend

NUMPY = NumPyBackend()
BACKENDS = [pytest.param(b, id=b.device) for b in (NUMPY, StandInBackend())]
WIDTH = 64


def arrays(dtype):
    """Queries and keys whose scores go up to 64 * 120**2, beyond half precision's 65504; a mask."""
    rng = np.random.default_rng(0)
    q, k = (120.0 * np.sign(rng.standard_normal((1, 2, 3, WIDTH))) for _ in range(2))
    k[..., :2, :] = q[..., :2, :]
    # Two scores that are near each other: weights between 0 and 1, which have a derivative.
    k[..., 2, :], k[..., 2, 0] = q[..., 1, :], k[..., 2, 0] * 1.0625
    v, mask = rng.standard_normal((1, 2, 3, 5)), 100.0 * rng.standard_normal((3, 3))
    rounded = [x.astype(np.float16) for x in (q, k, v, mask)]
    return [x.astype(dtype) for x in rounded]


def step(backend, dtype, scale):
    """The result and the cotangents of all inputs."""
    inputs = [gb.Tensor(backend.asarray(x), backend, True) for x in arrays(dtype)]
    y = apply(REGISTRY["attention"], *inputs, scale=scale)
    (y * y).sum().backward()
    return [backend.to_numpy(x.array) for x in (y, *(i.grad for i in inputs))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [WIDTH**-0.5, 1e-3, 1.0])
def test_scores_beyond_half_precision(backend, scale):
    found, expected = step(backend, np.float16, scale), step(NUMPY, np.float64, scale)
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2 * np.abs(want).max() + 1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_half_among_wider_arrays(backend):
    q, k, v, _ = (backend.asarray(x) for x in arrays(np.float16))
    for args in ((q, backend.astype(k, "float32"), v), (q, k, backend.astype(v, "float64"))):
        y, lse = backend.attention(*args, None)
        assert y.dtype == np.result_type(*[a.dtype for a in args])
        assert np.isfinite(backend.to_numpy(y)).all() and np.isfinite(backend.to_numpy(lse)).all()
