"""Pooling, padding and resizing against PyTorch: values, gradients, every option."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make peers installs it")

import gpubackprop as gb  # noqa: E402
from gpubackprop import nn  # noqa: E402
from gpubackprop.testing import require_close, tolerance  # noqa: E402

pytestmark = pytest.mark.peers

RNG = np.random.default_rng(5)
IMAGES = {
    1: RNG.standard_normal((2, 3, 11)),
    2: RNG.standard_normal((2, 3, 9, 10)),
    3: RNG.standard_normal((2, 2, 6, 7, 5)),
}


def compare(make: Any, x: np.ndarray, dtype: str = "float64", length: int = 1) -> None:
    """Values and input gradients of ``make(nn)`` in both layouts, with and without a batch axis."""
    relative = 1e-10 if dtype == "float64" else tolerance(dtype, length)
    n = x.ndim - 2
    for batch in (True, False):
        x = (x if batch else x[0]).astype(dtype)
        b = torch.tensor(x, requires_grad=True)
        z = make(torch.nn, {})(b)
        results = z if isinstance(z, tuple) else (z,)
        dy = np.random.default_rng(1).standard_normal(results[0].shape).astype(dtype)
        (want,) = torch.autograd.grad(results[0], b, torch.tensor(dy))
        for last in (False, True):
            move = (lambda v: np.moveaxis(v, -n - 1, -1)) if last else (lambda v: v)
            a = gb.tensor(move(x).copy(), requires_grad=True)
            y = make(nn, {"channels_last": True} if last else {})(a)
            found = y if isinstance(y, tuple) else (y,)
            about = f"{make(nn, {})} batch={batch} channels_last={last}"
            assert len(found) == len(results)
            for mine, theirs in zip(found, results, strict=True):
                require_close(about, mine.numpy(), move(theirs.detach().numpy()), relative)
            (found[0] * move(dy)).sum().backward()
            require_close(f"{about}: gradient", a.grad.numpy(), move(want.numpy()), relative)


MAX = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 2},
    {"kernel_size": 2, "stride": 3, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 3, "padding": 1, "return_indices": True},
    {"kernel_size": 2, "stride": 1, "dilation": 3, "return_indices": True},
]
AVG = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 3, "stride": 4, "ceil_mode": True, "count_include_pad": False},
]


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("options", MAX, ids=str)
def test_max_pool(axes, options):
    compare(lambda m, more: getattr(m, f"MaxPool{axes}d")(**options, **more), IMAGES[axes])


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("options", AVG, ids=str)
def test_avg_pool(axes, options):
    compare(lambda m, more: getattr(m, f"AvgPool{axes}d")(**options, **more), IMAGES[axes])


@pytest.mark.parametrize("axes", [2, 3])
def test_a_divisor_of_ones_own(axes):
    compare(
        lambda m, more: getattr(m, f"AvgPool{axes}d")(3, 2, 1, divisor_override=5, **more),
        IMAGES[axes],
    )


def test_a_number_for_each_axis():
    x = IMAGES[2]
    compare(lambda m, more: m.MaxPool2d((3, 2), (1, 2), (1, 0), (2, 1), **more), x)
    compare(lambda m, more: m.AvgPool2d((3, 2), (1, 2), (1, 0), **more), x)
    compare(lambda m, more: m.MaxPool3d((1, 2, 3), (2, 1, 1), (0, 1, 1), **more), IMAGES[3])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_adaptive_pool(axes, size):
    for kind in ("Avg", "Max"):
        name = f"Adaptive{kind}Pool{axes}d"
        compare(lambda m, more: getattr(m, name)(size, **more), IMAGES[axes])  # noqa: B023
    name = f"AdaptiveMaxPool{axes}d"
    compare(lambda m, more: getattr(m, name)(size, return_indices=True, **more), IMAGES[axes])


def test_adaptive_pool_with_a_size_for_each_axis():
    for size in ((3, 4), (None, 4), (9, 1), (None, None), (3, None)):
        compare(lambda m, more: m.AdaptiveAvgPool2d(size, **more), IMAGES[2])  # noqa: B023
        compare(lambda m, more: m.AdaptiveMaxPool2d(size, **more), IMAGES[2])  # noqa: B023


def test_single_precision():
    x = IMAGES[2]
    compare(lambda m, more: m.AvgPool2d(3, 2, 1, **more), x, "float32", 9)
    compare(lambda m, more: m.MaxPool2d(3, 2, 1, **more), x, "float32", 4)
    compare(lambda m, more: m.AdaptiveAvgPool2d(4, **more), x, "float32", 9)


def test_nan_and_infinity():
    x = IMAGES[2].copy()
    x[0, 0, 3, 3], x[0, 1, 4], x[1, 1] = np.nan, np.inf, -np.inf
    ours = nn.functional.max_pool2d(gb.tensor(x), 3, 2, 1).numpy()
    theirs = torch.nn.functional.max_pool2d(torch.tensor(x), 3, 2, 1).numpy()
    np.testing.assert_array_equal(ours, theirs)
