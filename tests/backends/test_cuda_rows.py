"""Kernels over rows, through the CUDA backend: the sources run by the shim, over a fake CuPy."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.base import Backend
from gpubackprop.backends.cuda import geometry
from tests.backends.support import shim
from tests.backends.test_cuda_backend import BACKEND, NUMPY, random

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

KERNELS = (
    *("softmax", "log_softmax", "softmax_backward", "log_softmax_backward"),
    *("softmax_cross_entropy", "softmax_cross_entropy_backward"),
    *("layer_norm", "layer_norm_backward", "rms_norm", "rms_norm_backward"),
)


def calls(shape, smoothing=0.1):
    """Arguments of each kernel."""
    rows, cols = shape
    x, dy, w, b = random(*shape), random(*shape, seed=1), random(cols, seed=2), random(cols, seed=3)
    target = np.random.default_rng(4).integers(0, max(cols, 1), rows)
    mean, rstd = x.mean(1, keepdims=True), np.full((rows, 1), 1.25, np.float32)
    classes = (target, np.abs(w), -100, smoothing)
    top = x.max(axis=1, initial=-8.0)
    sums = np.exp(x - top[:, None]).sum(axis=1)
    return {
        "softmax": (x,),
        "log_softmax": (x,),
        "softmax_backward": (dy, x),
        "log_softmax_backward": (dy, x),
        "softmax_cross_entropy": (x, *classes),
        "softmax_cross_entropy_backward": (dy[:, :1].reshape(-1), x, top, sums, *classes),
        "layer_norm": (x, w, b, 1, 1e-5),
        "layer_norm_backward": (dy, x, w, mean, rstd, 1),
        "rms_norm": (x, w, 1, 1e-5),
        "rms_norm_backward": (dy, x, w, rstd, 1),
    }


def run(backend, definition, arguments, place=lambda x: x):
    """All results as NumPy arrays; arrays among the arguments go through `place`."""
    given = [place(backend.asarray(a)) if isinstance(a, np.ndarray) else a for a in arguments]
    results = definition(backend, *given)
    return [backend.to_numpy(r) for r in (results if isinstance(results, tuple) else (results,))]


@pytest.fixture
def stages(monkeypatch):
    """Names of the kernels that were launched, and the stage of each that has one."""
    seen = []
    launch = BACKEND.kernels.launch

    def spy(name, template, shape, *arguments):
        seen.append((name, arguments[-1]))
        launch(name, template, shape, *arguments)

    monkeypatch.setattr(BACKEND.kernels, "launch", spy)
    return seen


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(1, 9000), (3, 8200)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_few_long_rows_are_cut_into_pieces(monkeypatch, stages, kernel, shape, smoothing):
    arguments = calls(shape, smoothing)[kernel]
    expected = run(NUMPY, getattr(Backend, kernel), [
        a.astype(np.float64) if getattr(a, "dtype", None) == np.float32 else a for a in arguments
    ])  # fmt: skip
    monkeypatch.setattr(geometry, "_PIECE", 500)
    found = run(BACKEND, getattr(type(BACKEND), kernel), arguments)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)
    own = [stage for name, stage in stages if name == kernel.replace("softmax_cross", "cross")]
    last = 3 if kernel == "layer_norm" or (kernel == "softmax_cross_entropy" and smoothing) else 2
    alone = kernel == "softmax_cross_entropy_backward" and not smoothing
    assert own == ([2] if alone else list(range(1, last + 1)))
    again = run(BACKEND, getattr(type(BACKEND), kernel), arguments)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [None, np.float16, np.float32])
@pytest.mark.parametrize("cols", [40, 1003])
def test_half_logits_are_read_as_they_are(stages, cols, weighted, smoothing):
    """By the kernels: in no part of the work are they widened."""
    x, dy = random(6, cols).astype(np.float16), random(6, seed=1)
    target, weight = np.arange(6) * 6, None
    if weighted:
        weight = np.abs(random(cols, seed=2)).astype(weighted)
    options, wide = (weight, -100, smoothing), x.astype(np.float64)
    expected = Backend.softmax_cross_entropy(NUMPY, wide, target, *options)
    slope = Backend.softmax_cross_entropy_backward(
        NUMPY, dy.astype(np.float64), wide, *expected[1:], target, *options
    )
    found = run(BACKEND, type(BACKEND).softmax_cross_entropy, (x, target, *options))
    arguments = (dy, x, *found[1:], target, *options)
    (dx,) = run(BACKEND, type(BACKEND).softmax_cross_entropy_backward, arguments)
    assert {name for name, _ in stages} == {"cross_entropy", "cross_entropy_backward"}
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert dx.dtype == np.float16
    np.testing.assert_allclose(dx, slope, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (0, 9000), (4, 0)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_arrays_without_elements(stages, kernel, shape):
    arguments = calls((4, 5))[kernel]
    rows, cols = shape
    cut = [a[:rows] if getattr(a, "shape", (0,))[0] == 4 else a for a in arguments if a is not None]
    cut = [
        np.resize(a, (*a.shape[:-1], cols)) if getattr(a, "shape", (0,))[-1] == 5 else a
        for a in cut
    ]
    definition = getattr(Backend, kernel)
    try:
        with np.errstate(all="ignore"):
            expected = run(NUMPY, definition, cut)
    except (
        ValueError,
        ZeroDivisionError,
    ) as refused:  # the largest of no elements, a share of none
        with pytest.raises(type(refused)):
            run(BACKEND, getattr(type(BACKEND), kernel), cut)
        return
    found = run(BACKEND, getattr(type(BACKEND), kernel), cut)
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kernel", ["gelu", "silu", "softplus", "sigmoid", "erf", "gelu_backward"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 9, 1030])
def test_elementwise_kernels_of_a_view_that_begins_anywhere(kernel, size):
    values = random(size + 3, seed=5)
    for first in range(4):
        x = BACKEND.asarray(values)[first : first + size]
        arguments = (x, x) if kernel.endswith("backward") else (x,)
        found = BACKEND.to_numpy(getattr(BACKEND, kernel)(*arguments))
        part = values[first : first + size]
        other = (part, part) if kernel.endswith("backward") else (part,)
        expected = getattr(NUMPY, kernel)(*other)
        np.testing.assert_allclose(found, expected, rtol=4e-6, atol=4e-6)
