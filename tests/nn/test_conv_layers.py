"""Convolution layers: layouts, options, errors in words, second derivatives."""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.autograd import gradcheck, gradgradcheck
from gpubackprop.backends import get_backend
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812

RNG = np.random.default_rng(3)


def draw(*shape):
    return gb.tensor(RNG.standard_normal(shape))


def last(x):
    """Channels first to channels last."""
    return np.moveaxis(x.numpy(), 1, -1)


LAYERS = {
    "Conv1d": (nn.Conv1d, {"padding": 1, "stride": 2}, (2, 3, 8)),
    "Conv2d": (nn.Conv2d, {"padding": "same", "dilation": 2}, (2, 3, 7, 6)),
    "Conv3d": (nn.Conv3d, {"groups": 3}, (2, 3, 4, 5, 4)),
    "ConvTranspose1d": (nn.ConvTranspose1d, {"stride": 2, "output_padding": 1}, (2, 3, 5)),
    "ConvTranspose2d": (nn.ConvTranspose2d, {"stride": 2, "padding": 1}, (2, 3, 4, 5)),
    "ConvTranspose3d": (nn.ConvTranspose3d, {"groups": 3}, (1, 3, 3, 4, 3)),
}


def pair(cls, options):
    """The layer in both layouts, with the same parameters."""
    first = cls(3, 6, 3, **options, dtype=np.float64)
    second = cls(3, 6, 3, **options, channels_last=True, dtype=np.float64)
    second.load_state_dict(first.state_dict())
    return first, second


@pytest.mark.parametrize(("cls", "options", "shape"), LAYERS.values(), ids=LAYERS)
def test_channels_last_equals_channels_first(cls, options, shape):
    first, second = pair(cls, options)
    x = draw(*shape).requires_grad_()
    moved = gb.tensor(np.ascontiguousarray(last(x)), requires_grad=True)
    y, z = first(x), second(moved)
    np.testing.assert_allclose(last(y), z.numpy(), rtol=1e-12, atol=1e-13)
    (y * y).sum().backward()
    (z * z).sum().backward()
    np.testing.assert_allclose(last(x.grad), moved.grad.numpy(), rtol=1e-11, atol=1e-12)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("cls", "options", "shape"), LAYERS.values(), ids=LAYERS)
def test_one_image_needs_no_batch_axis(cls, options, shape, channels_last):
    layer = pair(cls, options)[channels_last]
    x = draw(*shape[1:])
    if channels_last:
        x = gb.tensor(np.moveaxis(x.numpy(), 0, -1))
    alone = layer(x)
    assert alone.ndim == len(shape) - 1
    np.testing.assert_array_equal(alone.numpy(), layer(x.reshape(1, *x.shape)).numpy()[0])


@pytest.mark.parametrize(("cls", "options", "shape"), LAYERS.values(), ids=LAYERS)
def test_derivatives_of_both_orders(cls, options, shape):
    layer = pair(cls, options)[0]
    small = (1, *shape[1:])
    function = F.__dict__[
        cls.__name__.lower().replace("transpose", "_transpose").replace("convt", "conv_t")
    ]
    inputs = [draw(*small), *[p.detach() for p in layer.parameters()]]
    inputs = [t.requires_grad_() for t in inputs]

    def run(x, weight, bias):
        return function(x, weight, bias, **options)

    gradcheck(run, inputs)
    gradgradcheck(run, inputs)


def test_a_penalty_on_the_gradient_can_be_trained():
    layer = nn.Conv2d(2, 3, 3, padding=1, dtype=np.float64)
    x = draw(2, 2, 5, 5).requires_grad_()
    (g,) = gb.grad((layer(x) ** 3).sum(), [x], create_graph=True)
    (g * g).sum().backward()
    step = 1e-6
    before = layer.weight.array.copy()

    def penalty():
        y = gb.tensor(x.numpy(), requires_grad=True)
        (h,) = gb.grad((layer(y) ** 3).sum(), [y])
        return float((h * h).sum())

    layer.weight.array[1, 0, 2, 1] = before[1, 0, 2, 1] + step
    up = penalty()
    layer.weight.array[1, 0, 2, 1] = before[1, 0, 2, 1] - step
    down = penalty()
    assert layer.weight.grad.numpy()[1, 0, 2, 1] == pytest.approx((up - down) / 2 / step, rel=1e-5)


# No copies between layers.


def test_channels_first_is_a_view_of_channels_last():
    layer = nn.Conv2d(3, 4, 3)
    y = layer(draw(2, 3, 6, 6))
    assert y.shape == (2, 4, 4, 4)
    assert y.array.transpose(0, 2, 3, 1).flags.c_contiguous


def test_no_activation_is_copied_between_channels_first_layers(monkeypatch):
    seen = []
    kernels = get_backend("cpu")
    original = kernels.conv

    def spy(x, *rest):
        y = original(x, *rest)
        seen.append((x, y))
        return y

    monkeypatch.setattr(kernels, "conv", spy, raising=False)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3), nn.ReLU())
    net.append(nn.Conv2d(5, 2, 1))
    net(gb.tensor(RNG.standard_normal((2, 3, 6, 6)).astype(np.float32)))
    (_, first), (second, between), (third, _) = seen
    assert np.shares_memory(first, second) and second.flags.c_contiguous
    # ReLU makes a new array, in the order in memory of its input: channels last.
    assert third.flags.c_contiguous and third.shape == between.shape


def test_cotangents_stay_channels_last(monkeypatch):
    seen = []
    kernels = get_backend("cpu")
    original = kernels.conv_transpose

    def spy(dy, *rest):
        seen.append(dy)
        return original(dy, *rest)

    monkeypatch.setattr(kernels, "conv_transpose", spy, raising=False)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU())
    x = gb.tensor(RNG.standard_normal((2, 3, 8, 8)).astype(np.float32), requires_grad=True)
    (net(x) ** 2).sum().backward()
    assert len(seen) == 2 and all(dy.flags.c_contiguous for dy in seen)


# Settings.


def test_a_number_stands_for_every_axis():
    layer = nn.Conv3d(2, 4, 3, stride=2, padding=1, dilation=2)
    assert layer.kernel_size == (3, 3, 3) and layer.stride == (2, 2, 2)
    assert layer.padding == (1, 1, 1) and layer.dilation == (2, 2, 2)
    assert layer.weight.shape == (4, 2, 3, 3, 3) and layer.bias.shape == (4,)
    assert nn.ConvTranspose2d(2, 4, (3, 2), groups=2).weight.shape == (2, 2, 3, 2)


def test_initial_values_are_uniform_on_the_fan_in():
    for layer in (nn.Conv2d(4, 64, 5, groups=2), nn.ConvTranspose2d(64, 4, 5, groups=2)):
        bound = 1 / np.sqrt(2 * 25)
        for p in layer.parameters():
            largest = np.abs(p.numpy()).max()
            assert largest <= bound and (p.size < 50 or largest > 0.97 * bound)
        assert layer.weight.numpy().std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_the_same_generator_gives_the_same_layer():
    one, two = (nn.Conv2d(2, 3, 3, generator=gb.Generator(5)) for _ in range(2))
    np.testing.assert_array_equal(one.weight.numpy(), two.weight.numpy())


def test_printed_form():
    assert repr(nn.Conv2d(1, 8, 3)) == "Conv2d(1, 8, kernel_size=(3, 3), stride=(1, 1))"
    text = repr(nn.Conv1d(4, 8, 3, 2, 1, 1, 2, False, "reflect", channels_last=True))
    assert text == (
        "Conv1d(4, 8, kernel_size=(3,), stride=(2,), padding=(1,), groups=2, "
        "padding_mode='reflect', channels_last=True, bias=False)"
    )
    text = repr(nn.ConvTranspose2d(4, 8, 3, 2, output_padding=1))
    assert text.endswith("stride=(2, 2), output_padding=(1, 1))")


ILL = {
    "in_channels": (lambda: nn.Conv2d(0, 2, 3), "Conv2d: in_channels must be an integer"),
    "out_channels": (lambda: nn.Conv2d(1, 2.5, 3), "Conv2d: out_channels must be an integer"),
    "kernel_size": (
        lambda: nn.Conv2d(1, 2, (3, 3, 3)),
        r"Conv2d: kernel_size must be an integer of at least 1 or 2 of them.*\(3, 3, 3\)",
    ),
    "stride": (lambda: nn.Conv1d(1, 2, 3, 0), "Conv1d: stride must be .* at least 1, not 0"),
    "padding": (lambda: nn.Conv2d(1, 2, 3, padding=-1), "Conv2d: padding must be .* least 0"),
    "padding word": (
        lambda: nn.Conv2d(1, 2, 3, padding="full"),
        "Conv2d: padding must be 'same', 'valid' or a number of zeros, not 'full'",
    ),
    "same with stride": (
        lambda: nn.Conv2d(1, 2, 3, stride=2, padding="same"),
        "Conv2d: padding='same' needs stride 1",
    ),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=4), "out_channels=6 must be divisible by groups"),
    "no groups": (lambda: nn.Conv2d(4, 6, 3, groups=0), "groups must be an integer of at least 1"),
    "padding_mode": (lambda: nn.Conv2d(1, 2, 3, padding_mode="mirror"), "padding_mode 'mirror'"),
    "transposed padding_mode": (
        lambda: nn.ConvTranspose2d(1, 2, 3, padding_mode="reflect"),
        "ConvTranspose2d: padding_mode must be 'zeros'",
    ),
    "transposed padding": (
        lambda: nn.ConvTranspose2d(1, 2, 3, padding="same"),
        "ConvTranspose2d: padding must be a number",
    ),
    "output_padding": (
        lambda: nn.ConvTranspose2d(1, 2, 3, stride=2, output_padding=2)(draw(1, 1, 4, 4)),
        "output_padding 2 must be smaller than stride 2 or dilation 1",
    ),
}


@pytest.mark.parametrize(("make", "words"), ILL.values(), ids=ILL)
def test_ill_settings(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


X, W = draw(2, 3, 5, 5), draw(4, 3, 3, 3)
UNFIT = {
    "axes of the input": (
        lambda: F.conv2d(X[0, 0], W),
        r"conv2d: input must be \(N, C, H, W\), or \(C, H, W\) without .*, not of shape \(5, 5\)",
    ),
    "axes of the weight": (lambda: F.conv1d(X, W), "conv1d: weight must have the axes"),
    "channels": (
        lambda: F.conv2d(X[:, :2], W),
        r"conv2d: input \(shape \(2, 2, 5, 5\)\) has 2 channels .* takes 3$",
    ),
    "images with channels behind": (
        lambda: nn.Conv2d(3, 4, 3)(draw(2, 6, 5, 3)),
        r"conv2d: input .* has 6 channels .* takes 3; if they are elsewhere, pass channels_last",
    ),
    "grey images without a channel": (
        lambda: nn.Conv2d(1, 4, 3)(draw(8, 6, 5)),
        r"has 8 channels .* takes 1; it was taken as one image .*: x\[:, None\] makes a batch",
    ),
    "channels last": (
        lambda: F.conv2d(X, W, channels_last=True),  # X is channels first
        "has 5 channels in its last axis, .* drop channels_last=True",
    ),
    "bias": (lambda: F.conv2d(X, W, draw(3)), r"conv: bias must have shape \(4,\), not float64"),
    "too small": (
        lambda: F.conv2d(X[:, :, :2], W),
        "conv: a window of 3 .* does not fit in the 2 elements",
    ),
    "groups of the weight": (
        lambda: F.conv2d(draw(1, 9, 5, 5), W, groups=3),
        "conv: the 4 channels of weight .* do not fall into groups=3",
    ),
    "transposed channels": (
        lambda: F.conv_transpose2d(X, W),
        "conv_transpose2d: input .* has 3 channels .* takes 4",
    ),
    "transposed bias": (
        lambda: F.conv_transpose2d(draw(1, 4, 5, 5), W, draw(4)),
        r"conv_transpose2d: bias must have shape \(3,\), not \(4,\)",
    ),
    "nothing is left": (
        lambda: F.conv_transpose2d(draw(1, 4, 1, 1), W, padding=2),
        r"would have the spatial axes \(-1, -1\); use less padding",
    ),
}


@pytest.mark.parametrize(("call", "words"), UNFIT.values(), ids=UNFIT)
def test_shapes_that_do_not_fit(call, words):
    with pytest.raises(ShapeError, match=words):
        call()


@pytest.mark.parametrize("name", ["conv", "conv_transpose", "conv_weight"])
def test_the_operations_say_what_does_not_fit(name):
    from gpubackprop.autograd import REGISTRY, apply

    one = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
    x, dy = draw(2, 5, 5, 3), draw(2, 3, 3, 4)
    calls = {
        "conv": [(x, draw(4, 2, 3, 3), None), {}, "has 3 channels, but weight .* takes 2"],
        "conv_transpose": [(dy, W), {"spatial": (7, 5)}, "must have .5, 3. windows of 4 channels"],
        "conv_weight": [(x, dy[:1]), {"kernel": (3, 3)}, "must have as many images"],
    }
    inputs, params, words = calls[name]
    with pytest.raises(ShapeError, match=f"{name}: .*{words}"):
        apply(REGISTRY[name], *inputs, **params, **one)
    with pytest.raises(ShapeError, match=f"{name}: padding must be 2 pairs"):
        unfit = {**params, **one, "padding": ((0, -1), (0, 0))}
        first = inputs if name != "conv" else (x, draw(4, 3, 3, 3), None)
        apply(REGISTRY[name], *(first if name != "conv_weight" else (x, dy)), **unfit)
