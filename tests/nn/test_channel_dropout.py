"""Dropout of whole channels: what is dropped, how often, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation

SHAPES = {1: (6, 8, 5), 2: (6, 8, 3, 4), 3: (6, 8, 2, 3, 2)}


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_whole_channels_are_dropped_and_the_others_scaled(axes):
    shape = SHAPES[axes]
    x = gb.tensor(np.ones(shape), requires_grad=True)
    layer = getattr(nn, f"Dropout{axes}d")(0.25, generator=Generator(3))
    y = layer(x)
    flat = y.numpy().reshape(*shape[:2], -1)
    kept = flat[..., 0] != 0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(flat, (kept / 0.75)[..., None].repeat(flat.shape[-1], -1))
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())
    assert not np.array_equal(layer(x).numpy(), y.numpy()), "the same draw twice"


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_layouts_drop_the_same_channels(axes):
    x = np.random.default_rng(0).standard_normal(SHAPES[axes])
    function = getattr(F, f"dropout{axes}d")
    first = function(gb.tensor(x), 0.5, generator=Generator(1)).numpy()
    moved = gb.tensor(np.moveaxis(x, 1, -1).copy())
    last = function(moved, 0.5, generator=Generator(1), channels_last=True).numpy()
    np.testing.assert_array_equal(np.moveaxis(last, -1, 1), first)
    single = function(gb.tensor(x[0]), 0.5, generator=Generator(1)).numpy()
    np.testing.assert_array_equal(single, first[0])


def test_a_channel_is_dropped_as_often_as_was_asked():
    x = gb.tensor(np.ones((200, 100, 1), np.float32))
    for p in (0.1, 0.5, 0.9):
        y = F.dropout1d(x, p, generator=Generator(5))
        assert y.dtype == np.float32
        dropped = float((y.numpy() == 0).mean())
        assert abs(dropped - p) < 5 * np.sqrt(p * (1 - p) / 20000)


def test_nothing_happens_in_evaluation_mode_or_with_no_probability():
    x = gb.tensor(np.ones((2, 3, 4, 4)))
    assert nn.Dropout2d(0.5).eval()(x) is x
    assert nn.Dropout2d(0.0)(x) is x
    assert not nn.Dropout2d(1.0)(x).numpy().any()


def test_the_place_in_the_random_sequence_is_kept():
    layer, x = nn.Dropout2d(0.5, generator=Generator(1)), gb.tensor(np.ones((4, 8, 2, 2)))
    state = layer.random_state()
    y = layer(x).numpy()
    layer.load_random_state(state)
    np.testing.assert_array_equal(layer(x).numpy(), y)


X = gb.tensor(np.ones((2, 3, 4)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: F.dropout1d(X, 1.5), ConfigError, "dropout1d: p must be a probability"),
        (lambda: nn.Dropout3d(-0.1), ConfigError, "Dropout3d: p must be a probability"),
        (lambda: F.dropout3d(X), ShapeError, r"dropout3d: input must be \(N, C, D, H, W\)"),
        (lambda: F.dropout1d(X.astype("int64")), DTypeError, "dropout1d: .*float dtype"),
    ],
)
def test_errors_in_words(call, error, words):
    with pytest.raises(error, match=words):
        call()
