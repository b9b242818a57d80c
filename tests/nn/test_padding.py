"""Borders: by hand, derivatives, and errors in words."""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.autograd import gradcheck, gradgradcheck
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation

ROW = [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("mode", "pad", "expected"),
    [
        ("constant", (1, 2), [0, 1, 2, 3, 0, 0]),
        ("constant", (-1, 1), [2, 3, 0]),
        ("constant", (-1, -2), []),
        ("reflect", (2, 1), [3, 2, 1, 2, 3, 2]),
        ("reflect", (0, 2), [1, 2, 3, 2, 1]),
        ("replicate", (3, 2), [1, 1, 1, 1, 2, 3, 3, 3]),
        ("circular", (3, 3), [1, 2, 3, 1, 2, 3, 1, 2, 3]),
        ("circular", (1, 0), [3, 1, 2, 3]),
        ("replicate", (-1, 1), [2, 3, 3]),
        ("replicate", (-3, 2), [3, 3]),
        ("reflect", (2, -2), [3, 2, 1]),
        ("circular", (-1, 2), [2, 3, 2, 3]),
    ],
)
def test_a_row(mode, pad, expected):
    y = F.pad(gb.tensor(ROW), pad, mode)
    assert y.numpy().tolist() == expected


def test_the_last_axis_comes_first():
    y = F.pad(gb.tensor(np.ones((1, 2))), (1, 0, 0, 2), value=5.0)
    assert y.numpy().tolist() == [[5, 1, 1], [5, 5, 5], [5, 5, 5]]


def test_nothing_to_pad_is_the_input():
    x = gb.tensor(np.ones((2, 3)))
    for mode in ("constant", "reflect", "replicate", "circular"):
        assert F.pad(x, (0, 0, 0, 0), mode) is x


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_derivatives(mode):
    x = gb.tensor(np.random.default_rng(0).standard_normal((2, 3, 4)), requires_grad=True)
    gradcheck(lambda t: F.pad(t, (2, 1, 1, 2), mode) ** 3, (x,))
    gradgradcheck(lambda t: F.pad(t, (2, -1, 0, 1), mode) ** 3, (x,))


def test_integers_and_single_precision_keep_their_dtype():
    for dtype in (np.int64, np.float32, np.float16):
        for mode in ("constant", "reflect", "replicate", "circular"):
            assert F.pad(gb.tensor(np.ones(4, dtype)), (1, 2), mode).dtype == dtype


def test_layers_keep_the_layout():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    for name in ("ZeroPad2d", "ReflectionPad2d", "ReplicationPad2d", "CircularPad2d"):
        first = getattr(nn, name)((1, 2, 3, 0))(gb.tensor(x)).numpy()
        given = gb.tensor(np.moveaxis(x, 1, -1).copy())
        last = getattr(nn, name)((1, 2, 3, 0), channels_last=True)(given).numpy()
        np.testing.assert_array_equal(np.moveaxis(first, 1, -1), last)
    assert repr(nn.ConstantPad1d(2, 0.5)) == "ConstantPad1d((2, 2), value=0.5)"


X = gb.tensor(np.ones((2, 3, 4)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: F.pad(X, (1, 1), "mirror"), ConfigError, "mode .*mirror.*reflect"),
        (lambda: F.pad(X, (1, 1, 1)), ShapeError, "must be pairs"),
        (lambda: F.pad(X, (0,) * 8), ShapeError, "at most the 3 axes"),
        (lambda: F.pad(X, (1.5, 1)), ConfigError, "pad must be integers"),
        (lambda: F.pad(X, (-3, -2)), ShapeError, "takes more than the 4 elements of axis 2"),
        (lambda: F.pad(X, (4, 0), "reflect"), ShapeError, "fewer elements than the axis has"),
        (lambda: F.pad(X, (5, 0), "circular"), ShapeError, "at most as many elements"),
        (lambda: F.pad(X[:, :, :0], (1, 0), "replicate"), ShapeError, "has 0 elements"),
        (lambda: F.pad(X, (1, 1), "reflect", 2.0), ConfigError, "value is for mode 'constant'"),
        (lambda: nn.ZeroPad2d((1, 2, 3)), ConfigError, "ZeroPad2d: padding must be an integer or"),
        (lambda: nn.ZeroPad1d("same"), ConfigError, "ZeroPad1d: padding"),
        (lambda: nn.ZeroPad3d(1)(X), ShapeError, r"ZeroPad3d: input must be \(N, C, D, H, W\)"),
    ],
)
def test_errors_in_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("channels_last", [False, True])
def test_layers_name_the_shape_that_they_were_given(channels_last):
    """Not that of the view, with the channels last, which they work on."""

    def image(*spatial):
        return gb.tensor(np.ones((2, *spatial, 3) if channels_last else (2, 3, *spatial)))

    axis = 2 if channels_last else 3
    cases = [
        (nn.ReflectionPad2d, (0, 5, 1, 1), rf"axis {axis} of input .* has 5 elements .*\(0, 5\)"),
        (nn.CircularPad2d, (-3, 3, 1, 1), rf"axis {axis} of input .* has 2 elements"),
        (nn.ReflectionPad2d, (1, 1, 4, 0), rf"axis {axis - 1} of input .* has 4 elements"),
        (nn.ZeroPad2d, (-3, -3, 0, 0), rf"takes more than the 5 elements of axis {axis}"),
    ]
    for layer, padding, words in cases:
        x = image(4, 5)
        with pytest.raises(ShapeError, match=words) as caught:
            layer(padding, channels_last=channels_last)(x)
        assert str(caught.value).startswith(f"{layer.__name__}: ")
        assert f"(shape {x.shape})" in str(caught.value)
    for layer in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d):
        x = image(0, 5)
        with pytest.raises(ShapeError, match="is empty") as caught:
            layer(2, channels_last=channels_last)(x)
        assert f"(shape {x.shape})" in str(caught.value)


def test_the_shape_is_that_before_other_axes_grew():
    with pytest.raises(ShapeError, match=r"axis 2 of input \(shape \(2, 3, 4\)\)"):
        F.pad(X, (4, 0, 1, 1), "reflect")
