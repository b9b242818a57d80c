"""Pooling: the cases that PyTorch leaves open, layouts, and errors in words."""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.autograd import gradgradcheck
from gpubackprop.backends.base import Backend
from gpubackprop.backends.cpu import images as numpy_images
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation


def image(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_halves_by_hand():
    x = gb.tensor([[[[1.0, 2.0, 5.0], [3.0, 4.0, 9.0]]]], requires_grad=True)
    assert F.max_pool2d(x, 2).numpy().tolist() == [[[[4.0]]]]
    y = F.avg_pool2d(x, 2)
    assert y.numpy().tolist() == [[[[2.5]]]]
    y.sum().backward()
    assert x.grad.numpy().tolist() == [[[[0.25, 0.25, 0.0], [0.25, 0.25, 0.0]]]]


def test_the_first_of_equal_elements_gets_the_derivative():
    x = gb.tensor(np.array([[1.0, 7.0, 7.0, 7.0], [7.0, 7.0, 0.0, 0.0]])[None], requires_grad=True)
    F.max_pool1d(x, 4).sum().backward()
    assert x.grad.numpy().tolist() == [[[0, 1, 0, 0], [1, 0, 0, 0]]]
    x = gb.tensor(np.zeros((1, 1, 2, 2)), requires_grad=True)
    F.max_pool2d(x, 2, padding=1, stride=2).sum().backward()
    assert x.grad.numpy().tolist() == [[[[1, 1], [1, 1]]]]


def test_padding_never_wins():
    x = gb.tensor(np.full((1, 1, 3), -np.inf), requires_grad=True)
    y, places = F.max_pool1d(x, 3, stride=1, padding=1, return_indices=True)
    assert y.numpy().tolist() == [[[-np.inf] * 3]]
    assert places.numpy().tolist() == [[[0, 0, 1]]]
    y.sum().backward()
    assert x.grad.numpy().tolist() == [[[2, 1, 0]]]


def test_a_window_of_nothing_but_padding_has_no_gradient():
    # Window [-1, 1] of a single element at 0, which PyTorch reads out of range.
    for backend in (NumPyBackend(), None):
        pool = backend.max_pool if backend else Backend.max_pool.__get__(NumPyBackend())
        y, _ = pool(np.ones((1, 1, 1)), (2,), (1,), (1,), (2,))
        assert y.tolist() == [[[-np.inf]]]
    x = gb.tensor(np.ones((1, 1, 1)), requires_grad=True)
    F.max_pool1d(x, 2, 1, 1, 2).sum().backward()
    assert x.grad.numpy().tolist() == [[[0]]]


def test_a_nan_wins_wherever_it_is():
    for at in range(4):
        x = np.zeros((1, 1, 4))
        x[0, 0, at] = np.nan
        t = gb.tensor(x, requires_grad=True)
        y, place = F.max_pool1d(t, 4, return_indices=True)
        assert np.isnan(y.numpy()).all() and place.item() == at


def test_an_infinite_gradient_stays_where_it_belongs():
    x = gb.tensor(np.abs(image(1, 1, 4, 4)), requires_grad=True)
    (F.max_pool2d(x, 2) * np.inf).sum().backward()
    assert np.isinf(x.grad.numpy()).sum() == 4 and not np.isnan(x.grad.numpy()).any()


def test_integers_have_a_maximum():
    x = gb.tensor(np.arange(-8, 0).reshape(1, 1, 8))
    y = F.max_pool1d(x, 3, 2, 1)
    assert y.dtype == np.int64 and y.numpy().tolist() == [[[-7, -5, -3, -1]]]
    assert F.avg_pool1d(x, 2).numpy().tolist() == [[[-7.5, -5.5, -3.5, -1.5]]]


@pytest.mark.parametrize("kernel", [(2, 2), (3, 2), (4, 5)])
def test_memory_layout_is_kept(kernel):
    """An image that is channels first in memory gives such a result, of the same values."""
    x = image(2, 3, 7, 8)
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    backend = NumPyBackend()
    for given in (last, np.moveaxis(x, 1, -1)):
        y, winner = backend.max_pool(given, kernel, kernel, (1, 1), (1, 1))
        expected, places = Backend.max_pool(backend, last, kernel, kernel, (1, 1), (1, 1))
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(winner, places)
        assert np.argsort(y.strides).tolist() == np.argsort(given.strides).tolist()
        dx = backend.max_pool_backward(y, winner, (7, 8), kernel, kernel, (1, 1), (1, 1))
        want = Backend.max_pool_backward(
            backend, expected, places, (7, 8), kernel, kernel, (1, 1), (1, 1)
        )
        np.testing.assert_array_equal(dx, want)
        mean = backend.avg_pool(given, kernel, kernel, (1, 1), True, False)
        want = Backend.avg_pool(backend, last, kernel, kernel, (1, 1), True, False)
        np.testing.assert_allclose(mean, want, rtol=1e-13)


def test_a_batch_in_several_runs(monkeypatch):
    """More than one run of images, the last one short, in more than one thread."""
    monkeypatch.setattr(numpy_images, "RUN", 200_000)
    monkeypatch.setattr(numpy_images, "SHARE", 100_000)
    x = image(11, 40, 40, 9).astype(np.float32)
    backend = NumPyBackend()
    for padding in ((0, 0), (1, 1)):
        found = backend.max_pool(x, (3, 3), (2, 2), padding, (1, 1))
        want = Backend.max_pool(backend, x, (3, 3), (2, 2), padding, (1, 1))
        for a, b in zip(found, want, strict=True):
            np.testing.assert_array_equal(a, b)
        where = ((40, 40), (3, 3), (2, 2), padding, (1, 1))
        np.testing.assert_allclose(
            backend.max_pool_backward(*found, *where),
            Backend.max_pool_backward(backend, *want, *where),
            rtol=1e-5,
        )


def test_many_places_in_a_window_take_wider_numbers():
    x = image(1, 1, 20, 20)
    y, places = F.max_pool2d(gb.tensor(x), 20, return_indices=True)
    assert y.item() == x.max() and places.item() == x.argmax()


def test_global_pooling():
    x = image(2, 3, 4, 5)
    t = gb.tensor(x)
    for y in (nn.GlobalAvgPool2d()(t), F.global_avg_pool(t), nn.AdaptiveAvgPool2d(1)(t)):
        np.testing.assert_allclose(y.numpy(), x.mean((2, 3), keepdims=True), rtol=1e-14)
    np.testing.assert_array_equal(nn.GlobalMaxPool2d()(t).numpy(), x.max((2, 3), keepdims=True))
    last = gb.tensor(np.moveaxis(x, 1, -1).copy())
    y = F.global_max_pool(last, channels_last=True)
    np.testing.assert_array_equal(y.numpy()[:, 0, 0], x.max((2, 3)))
    with pytest.raises(ShapeError, match="global_avg_pool: input needs spatial axes"):
        F.global_avg_pool(gb.tensor(x[0, 0]))


@pytest.mark.parametrize("name", ["MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d"])
def test_second_derivatives(name):
    pool = getattr(nn, name)(3)
    x = gb.tensor(image(1, 2, 7, 6), requires_grad=True)
    gradgradcheck(lambda t: (pool(t) ** 2).sum(), (x,))


def test_a_maximum_of_overlapping_adaptive_windows_has_second_derivatives():
    x = gb.tensor(image(1, 1, 7), requires_grad=True)
    gradgradcheck(lambda t: (F.adaptive_max_pool1d(t, 3) ** 3).sum(), (x,))


def test_what_a_layer_says_of_itself():
    assert repr(nn.MaxPool2d(3, 2, 1)) == (
        "MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=1)"
    )
    assert repr(nn.AdaptiveAvgPool2d((3, None))) == "AdaptiveAvgPool2d(output_size=(3, None))"
    assert repr(nn.AvgPool2d(2, ceil_mode=True, channels_last=True)) == (
        "AvgPool2d(kernel_size=2, stride=2, padding=0, ceil_mode=True, channels_last=True)"
    )


X = gb.tensor(image(2, 3, 6, 8))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: F.max_pool2d(X, 0), ConfigError, "kernel_size must be an integer of at least 1"),
        (lambda: F.max_pool2d(X, (2, 2, 2)), ConfigError, "or 2 of them, one for each spatial"),
        (lambda: F.max_pool2d(X, 2, padding=2), ShapeError, "more than half of the window"),
        (lambda: F.max_pool2d(X, 9), ShapeError, r"windows of sizes \(9, 9\) do not fit"),
        (lambda: F.max_pool2d(X, 3, dilation=4), ShapeError, r"windows of sizes \(9, 9\)"),
        (lambda: F.max_pool2d(X[0, 0], 2), ShapeError, r"input must be \(N, C, H, W\)"),
        (lambda: F.avg_pool1d(X, 2), ShapeError, r"input must be \(N, C, L\), or \(C, L\)"),
        (lambda: F.avg_pool2d(X, 2, divisor_override=0), ConfigError, "divisor_override"),
        (lambda: F.max_pool2d(X > 0, 2), DTypeError, "must be numbers"),
        (lambda: F.adaptive_avg_pool2d(X, 0), ConfigError, "output_size must be an integer"),
        (
            lambda: F.adaptive_avg_pool2d(X, (1, 2, 3)),
            ConfigError,
            r"spatial axis, not \(1, 2, 3\)$",
        ),
        (lambda: F.adaptive_max_pool2d(X[:, :, :0], 2), ShapeError, "a spatial axis .* is empty"),
        (lambda: nn.MaxPool2d(2, stride=-1), ConfigError, "MaxPool2d: stride"),
        (lambda: nn.AvgPool3d(2.5), ConfigError, "AvgPool3d: kernel_size"),
    ],
)
def test_errors_in_words(call, error, words):
    with pytest.raises(error, match=words):
        call()
