"""Resizing, channels as pixels, an axis in parts: by hand, derivatives, and errors in words."""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.autograd import gradcheck, gradgradcheck
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation


def resized(row, **options):
    return F.interpolate(gb.tensor(np.array([[row]], float)), **options).numpy().ravel().tolist()


def test_rows_by_hand():
    assert resized([1, 2], scale_factor=2) == [1, 1, 2, 2]
    assert resized([1, 2, 3, 4], size=2) == [1, 3]
    assert resized([1, 2, 3, 4], size=2, mode="nearest-exact") == [2, 4]
    assert resized([1, 2, 3], size=5, mode="nearest") == [1, 1, 2, 2, 3]
    assert resized([0, 4], size=4, mode="linear") == [0, 1, 3, 4]
    assert resized([0, 3], size=4, mode="linear", align_corners=True) == [0, 1, 2, 3]
    assert resized([0, 2, 4], size=1, mode="linear", align_corners=True) == [0]
    assert resized([1, 3, 5, 7], size=2, mode="area") == [2, 6]


@pytest.mark.parametrize("factor", range(1, 50))
def test_a_whole_factor_repeats_each_pixel_as_often(factor):
    assert resized(range(7), scale_factor=factor) == np.repeat(np.arange(7.0), factor).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"scale_factor": 2},
        {"size": (3, 7)},
        {"scale_factor": 1.5, "mode": "bilinear"},
        {"size": (3, 7), "mode": "bilinear", "align_corners": True},
        {"size": (3, 2), "mode": "area"},
    ],
    ids=str,
)
def test_derivatives(options):
    x = gb.tensor(np.random.default_rng(0).standard_normal((1, 2, 4, 5)), requires_grad=True)
    gradcheck(lambda t: F.interpolate(t, **options) ** 2, (x,))
    gradgradcheck(lambda t: F.interpolate(t, **options) ** 3, (x,))


def test_dtypes_are_kept():
    for dtype in (np.float64, np.float32, np.float16):
        x = gb.tensor(np.ones((1, 1, 3, 4), dtype))
        for mode in ("nearest", "bilinear", "area"):
            assert F.interpolate(x, size=(5, 3), mode=mode).dtype == dtype
    assert F.interpolate(gb.tensor(np.ones((1, 1, 3), np.int64)), 5).dtype == np.int64


def test_pixels_and_channels_are_exchanged_and_back():
    x = np.random.default_rng(0).standard_normal((2, 12, 3, 4))
    y = F.pixel_shuffle(gb.tensor(x), 2)
    assert y.shape == (2, 3, 6, 8)
    np.testing.assert_array_equal(y.numpy()[:, 0, ::2, 1::2], x[:, 1])
    np.testing.assert_array_equal(nn.PixelUnshuffle(2)(y).numpy(), x)
    one = nn.PixelShuffle(2, channels_last=True)(gb.tensor(np.moveaxis(x, 1, -1)[0].copy()))
    np.testing.assert_array_equal(np.moveaxis(one.numpy(), -1, 0), y.numpy()[0])


def test_an_axis_in_parts():
    x = gb.tensor(np.arange(24.0).reshape(2, 12), requires_grad=True)
    y = nn.Unflatten(1, (3, -1))(x)
    assert y.shape == (2, 3, 4)
    y.sum().backward()
    assert x.grad.shape == (2, 12)
    assert repr(nn.Unflatten(1, (3, 4))) == "Unflatten(dim=1, unflattened_size=(3, 4))"


X = gb.tensor(np.ones((2, 3, 4, 5)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: F.interpolate(X), ConfigError, "give either size or scale_factor"),
        (lambda: F.interpolate(X, 2, 2), ConfigError, "give either size or scale_factor"),
        (lambda: F.interpolate(X, 2, mode="bicubic"), ConfigError, "bicubic.*bilinear"),
        (lambda: F.interpolate(X, 2, mode="linear"), ShapeError, "1 spatial axis beside batch"),
        (lambda: F.interpolate(X[0, 0], 2), ShapeError, "one to three spatial axes"),
        (lambda: F.interpolate(X, 2, align_corners=True), ConfigError, "align_corners is for"),
        (lambda: F.interpolate(X, (2, 2, 2)), ConfigError, "size must be an integer"),
        (lambda: F.interpolate(X, scale_factor=-1), ConfigError, "scale_factor must be a positive"),
        (lambda: F.interpolate(X, scale_factor=0.1), ShapeError, "leaves no pixel"),
        (lambda: F.interpolate(X[:, :, :0], 2), ShapeError, "is empty"),
        (
            lambda: F.interpolate(X, 2, recompute_scale_factor=True),
            ConfigError,
            "recompute_scale_factor needs a scale_factor",
        ),
        (
            lambda: F.interpolate(X.astype("int64"), 2, mode="bilinear"),
            DTypeError,
            "needs a float dtype",
        ),
        (lambda: nn.Upsample(), ConfigError, "Upsample: give either"),
        (lambda: nn.Upsample(2, mode="cubic"), ConfigError, "Upsample: .*cubic"),
        (lambda: F.pixel_shuffle(X, 2), ShapeError, "channels in multiples of 4"),
        (lambda: F.pixel_unshuffle(X, 2), ShapeError, "must divide the 4 x 5 pixels"),
        (lambda: nn.PixelShuffle(0), ConfigError, "PixelShuffle: upscale_factor"),
        (lambda: nn.Unflatten(1, (2, 2))(X), ShapeError, r"3 elements, which do not make \(2, 2\)"),
        (lambda: nn.Unflatten(7, (3,))(X), ShapeError, "dim 7 is no axis"),
        (lambda: nn.Unflatten(1, (-1, -1)), ConfigError, "one may be -1"),
    ],
)
def test_errors_in_words(call, error, words):
    with pytest.raises(error, match=words):
        call()
