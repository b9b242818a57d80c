"""Normalisation of rows in blocks: what the definitions say, for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop import testing
from gpubackprop.backends.base import Backend
from gpubackprop.backends.cpu import fused, rows, shared
from gpubackprop.backends.cpu.backend import NumPyBackend

NUMPY = NumPyBackend()
KERNELS = ("layer_norm", "layer_norm_backward", "rms_norm", "rms_norm_backward")
# Elements of a block, of rows that are taken together, and from where on rows are added in pairs.
SIZES = [(1, 1, 1), (70, 30, 4096), (40, 100, 4), (1 << 17, 8192, 4096)]
LAYOUTS = {
    "rows": lambda x: x,
    "turned": lambda x: np.asfortranarray(x),
    "gaps": lambda x: np.repeat(x, 2, axis=0)[::2],
}


def make_small(monkeypatch, block, wide, long, threads):
    monkeypatch.setattr(fused, "MANY", 1)
    monkeypatch.setattr(rows, "BLOCK", block)
    monkeypatch.setattr(rows, "WIDE", wide)
    monkeypatch.setattr(rows, "LONG", long)
    monkeypatch.setattr(rows, "SHARE", 1)
    monkeypatch.setattr(shared, "threads", lambda: threads)


def arguments(kernel, shape, axes, given, dtype):
    """Arrays of a call, about 3; `given` says which of weight and bias there are."""
    rng = np.random.default_rng([axes, *shape])
    features = shape[len(shape) - axes :]
    kept = shape[: len(shape) - axes] + (1,) * axes
    x, dy = (rng.standard_normal((2, *shape)) + 3.0).astype(dtype)
    weight, bias = rng.standard_normal((2, *features)).astype(dtype)
    mean, rstd = rng.uniform(0.5, 2.0, (2, *kept)).astype(dtype)
    w, b = weight if given else None, bias if given > 1 else None
    return {
        "layer_norm": (x, w, b, axes, 1e-3),
        "layer_norm_backward": (dy, x, w, mean, rstd, axes),
        "rms_norm": (x, w, axes, 1e-3),
        "rms_norm_backward": (dy, x, w, rstd, axes),
    }[kernel]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_blocks_give_what_the_definition_says(monkeypatch, kernel, sizes, dtype):
    make_small(monkeypatch, *sizes, threads=2)
    definition = getattr(Backend, kernel).__get__(NUMPY)
    for shape, axes in (((17, 10), 1), ((1, 9), 1), ((5, 4, 3), 2), ((6, 7), 2), ((11, 1), 1)):
        for given in range(3):
            for layout in LAYOUTS.values():
                call = arguments(kernel, shape, axes, given, dtype)
                call = [layout(a) if getattr(a, "shape", ()) == shape else a for a in call]
                before = [a.copy() if isinstance(a, np.ndarray) else a for a in call]
                found, expected = getattr(NUMPY, kernel)(*call), definition(*call)
                for got, want in zip(found, expected, strict=True):
                    assert got.dtype == want.dtype == np.dtype(dtype)
                    bound = testing.tolerance(dtype, 170)
                    testing.require_close(f"{kernel} {shape}", got, want, bound, 10.0)
                for a, b in zip(call, before, strict=True):
                    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_each_bit_is_the_same_for_any_number_of_threads(monkeypatch, kernel, sizes):
    call = arguments(kernel, (41, 10), 1, 2, "float32")
    results = []
    for threads in (1, 2, 5):
        make_small(monkeypatch, *sizes, threads=threads)
        results.append([a.tobytes() for a in getattr(NUMPY, kernel)(*call)])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_would_broadcast_takes_the_other_way(monkeypatch, kernel):
    make_small(monkeypatch, *SIZES[3], threads=1)
    call = list(arguments(kernel, (4, 6), 1, 1, "float64"))
    call[2 if "backward" in kernel else 1] = np.array([1.5])
    definition = getattr(Backend, kernel).__get__(NUMPY)
    for got, want in zip(getattr(NUMPY, kernel)(*call), definition(*call), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)
