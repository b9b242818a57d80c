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


# Padding.


PADS = [(1, 2), (0, 3), (-1, 2), (4, 4), (-2, -1), (0, 0)]


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_pad(axes, mode):
    for i in range(len(PADS)):
        pad = tuple(n for k in range(axes) for n in PADS[(i + 2 * k) % len(PADS)])
        x = IMAGES[axes]
        a, b = gb.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        y = nn.functional.pad(a, pad, mode)
        z = torch.nn.functional.pad(b, pad, mode)
        np.testing.assert_array_equal(y.numpy(), z.detach().numpy())
        dy = np.random.default_rng(i).standard_normal(y.shape)
        (y * dy).sum().backward()
        (want,) = torch.autograd.grad(z, b, torch.tensor(dy))
        require_close(f"pad {pad} {mode}", a.grad.numpy(), want.numpy(), 1e-12)


def test_pad_of_other_axes_and_values():
    x = IMAGES[2]
    for pad in ((1, 2), (0, 0, 1, 0, 2, 2), (0, 1, 2, 0, 1, 1, 0, 3), ()):
        ours = nn.functional.pad(gb.tensor(x), pad, value=1.5).numpy()
        theirs = torch.nn.functional.pad(torch.tensor(x), pad, value=1.5).numpy()
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["Zero", "Reflection", "Replication", "Circular"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_padding_layers(axes, kind):
    for padding in (2, tuple(range(1, 2 * axes + 1))[::-1] if axes < 3 else (3, 2, 1, 0, 2, 1)):
        name = f"{kind}Pad{axes}d"
        compare(lambda m, more: getattr(m, name)(padding, **more), IMAGES[axes])  # noqa: B023


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_constant_pad(axes):
    name = f"ConstantPad{axes}d"
    compare(lambda m, more: getattr(m, name)(2, 1.5, **more), IMAGES[axes])
    compare(lambda m, more: getattr(m, name)((-1, 2) * axes, -0.5, **more), IMAGES[axes])


# Other sizes.


def resized(options: dict[str, Any], x: np.ndarray, dtype: str = "float64") -> None:
    n, x = x.ndim - 2, x.astype(dtype)
    b = torch.tensor(x, requires_grad=True)
    z = torch.nn.functional.interpolate(b, **options)
    dy = np.random.default_rng(2).standard_normal(z.shape).astype(dtype)
    (want,) = torch.autograd.grad(z, b, torch.tensor(dy))
    for last in (False, True):
        move = (lambda v: np.moveaxis(v, 1, -1)) if last else (lambda v: v)
        a = gb.tensor(move(x).copy(), requires_grad=True)
        y = nn.Upsample(**options, channels_last=last)(a)
        relative = 1e-10 if dtype == "float64" else tolerance(dtype, 16**n)
        require_close(f"{options}", y.numpy(), move(z.detach().numpy()), relative)
        (y * move(dy)).sum().backward()
        require_close(f"{options}: gradient", a.grad.numpy(), move(want.numpy()), relative)


TARGETS = [
    {"scale_factor": 2},
    {"scale_factor": 3.0},
    {"scale_factor": 1.7},
    {"scale_factor": 0.6},
    {"scale_factor": 1.7, "recompute_scale_factor": True},
    {"size": 5},
    {"size": 13},
    {"size": 1},
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_interpolate(axes, target, dtype):
    linear = ("linear", "bilinear", "trilinear")[axes - 1]
    for mode in ("nearest", "nearest-exact", "area"):
        if mode != "area" or "size" in target:
            resized({**target, "mode": mode}, IMAGES[axes], dtype)
    for corners in (None, False, True):
        resized({**target, "mode": linear, "align_corners": corners}, IMAGES[axes], dtype)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_factor_that_adds_no_pixel(axes):
    linear = ("linear", "bilinear", "trilinear")[axes - 1]
    for corners in (False, True):
        options = {"scale_factor": 1.05, "mode": linear, "align_corners": corners}
        resized(options, IMAGES[axes], "float64")


def test_interpolate_with_a_size_for_each_axis():
    for target in ({"size": (9, 3)}, {"size": (18, 10)}, {"scale_factor": (0.5, 2.5)}):
        for mode in ("nearest", "bilinear"):
            resized({**target, "mode": mode}, IMAGES[2])
    resized({"size": (4, 5), "mode": "area"}, IMAGES[2])


def test_pixel_shuffle():
    x = RNG.standard_normal((2, 12, 4, 6))
    compare(lambda m, more: m.PixelShuffle(2, **more), x)
    compare(lambda m, more: m.PixelUnshuffle(2, **more), x)


def test_unflatten():
    x = RNG.standard_normal((2, 12, 5))
    for dim, parts in ((1, (3, 4)), (-2, (2, -1, 3)), (2, (5, 1))):
        ours = nn.Unflatten(dim, parts)(gb.tensor(x)).numpy()
        np.testing.assert_array_equal(ours, torch.nn.Unflatten(dim, parts)(torch.tensor(x)).numpy())
