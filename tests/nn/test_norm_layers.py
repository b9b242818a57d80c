"""Layers of normalisation: what they compute, what they remember, and their words for mistakes."""

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.autograd import REGISTRY, STATE, apply
from gpubackprop.backends import get_backend
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.testing import StandInBackend

RNG = np.random.default_rng(5)


def x(*shape, mean=1.0):
    return gb.tensor((2.0 * RNG.normal(size=shape) + mean).astype(np.float32))


def last(a):
    """The channels of a batch of images moved to the end."""
    return np.ascontiguousarray(np.moveaxis(a, 1, -1))


BATCH = [
    (nn.BatchNorm1d, (6, 3)),
    (nn.BatchNorm1d, (6, 3, 5)),
    (nn.BatchNorm2d, (4, 3, 2, 5)),
    (nn.BatchNorm3d, (2, 3, 2, 3, 2)),
]


@pytest.mark.parametrize(("make", "shape"), BATCH, ids=str)
def test_batch_norm_brings_each_channel_to_mean_0_and_variance_1(make, shape):
    layer, data = make(3, eps=1e-6), x(*shape)
    over = (0, *range(2, len(shape)))
    y = layer(data).numpy()
    np.testing.assert_allclose(y.mean(axis=over), 0.0, atol=1e-5)
    np.testing.assert_allclose(y.var(axis=over), 1.0, rtol=1e-4)
    np.testing.assert_allclose(
        layer.running_mean.numpy(), 0.1 * data.numpy().mean(axis=over), rtol=1e-5
    )
    unbiased = data.numpy().var(axis=over, ddof=1)
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * unbiased, rtol=1e-5)
    assert layer.num_batches_tracked.numpy() == 1
    layer.eval()
    y = layer(data).numpy()
    wide = (slice(None), *(None,) * (len(shape) - 2))
    mean, var = layer.running_mean.numpy()[wide], layer.running_var.numpy()[wide]
    np.testing.assert_allclose(y, (data.numpy() - mean) / np.sqrt(var + 1e-6), rtol=1e-4, atol=1e-5)
    assert layer.num_batches_tracked.numpy() == 1, "evaluation is no batch"


MAKERS = {
    "BatchNorm1d": (lambda **o: nn.BatchNorm1d(6, **o), (5, 6, 4)),
    "BatchNorm2d": (lambda **o: nn.BatchNorm2d(6, **o), (5, 6, 4, 3)),
    "BatchNorm3d": (lambda **o: nn.BatchNorm3d(6, **o), (2, 6, 2, 3, 2)),
    "GroupNorm": (lambda **o: nn.GroupNorm(3, 6, **o), (5, 6, 4, 3)),
    "InstanceNorm1d": (lambda **o: nn.InstanceNorm1d(6, affine=True, **o), (5, 6, 4)),
    "InstanceNorm2d": (lambda **o: nn.InstanceNorm2d(6, affine=True, **o), (5, 6, 4, 3)),
    "InstanceNorm3d": (lambda **o: nn.InstanceNorm3d(6, affine=True, **o), (2, 6, 2, 3, 2)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("make", "shape"), MAKERS.values(), ids=MAKERS)
def test_channels_last_is_the_same_function(make, shape, training):
    first, other = make(), make(channels_last=True)
    other.load_state_dict(first.state_dict())
    for layer in (first, other):
        layer.train(training)
    data = x(*shape)
    a, b = data.detach().requires_grad_(), gb.tensor(last(data.numpy())).requires_grad_()
    y, z = first(a), other(b)
    np.testing.assert_allclose(last(y.numpy()), z.numpy(), rtol=1e-5, atol=1e-5)
    slope = RNG.normal(size=shape).astype(np.float32)
    y.backward(slope)
    z.backward(last(slope))
    np.testing.assert_allclose(last(a.grad.numpy()), b.grad.numpy(), rtol=1e-4, atol=1e-4)
    for p, q in zip(first.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-4, atol=1e-4)
    for p, q in zip(first.buffers(), other.buffers(), strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-5, atol=1e-6)


def test_images_with_the_channels_first_are_not_copied_to_be_normalised():
    data = x(4, 3, 5, 5)
    y = nn.BatchNorm2d(3)(data)
    assert y.numpy().flags.c_contiguous, "the result lies in memory as the input does"


def test_state_has_pytorchs_names():
    tracked = ["running_mean", "running_var", "num_batches_tracked"]
    assert list(nn.BatchNorm2d(3).state_dict()) == ["weight", "bias", *tracked]
    assert list(nn.BatchNorm2d(3, affine=False).state_dict()) == tracked
    assert list(nn.BatchNorm2d(3, bias=False).state_dict()) == ["weight", *tracked]
    assert list(nn.BatchNorm2d(3, track_running_stats=False).state_dict()) == ["weight", "bias"]
    assert list(nn.InstanceNorm2d(3).state_dict()) == []
    assert list(nn.InstanceNorm2d(3, track_running_stats=True).state_dict()) == tracked
    assert list(nn.GroupNorm(1, 3).state_dict()) == ["weight", "bias"]
    assert list(nn.GroupNorm(1, 3, affine=False).state_dict()) == []
    assert list(nn.RMSNorm(3).state_dict()) == ["weight"]
    assert list(nn.RMSNorm(3, elementwise_affine=False).state_dict()) == []
    layer = nn.BatchNorm2d(3)
    assert layer.num_batches_tracked.dtype == np.int64
    assert layer.to(dtype=np.float64).running_var.dtype == np.float64
    assert layer.num_batches_tracked.dtype == np.int64


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nn.InstanceNorm1d])
@pytest.mark.parametrize("how", ["dtype", "half"])
def test_deviations_of_thousands_in_half_precision(make, how):
    options = {"momentum": 1.0, "affine": True, "track_running_stats": True}
    layer = make(3, dtype=np.float16, **options) if how == "dtype" else make(3, **options).half()
    assert layer.weight.dtype == np.float16 and layer.running_var.dtype == np.float32
    data = RNG.normal(size=(16, 3, 8), scale=3000.0).astype(np.float16)
    t = gb.tensor(data, requires_grad=True)
    y = layer(t)
    wide = data.astype(np.float64)
    over = (0, 2) if make is nn.BatchNorm1d else 2
    centred = wide - wide.mean(over, keepdims=True)
    expected = centred / wide.std(over, keepdims=True)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y.numpy(), expected, atol=5e-3)
    variances = wide.var(over, ddof=1).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(layer.running_var.numpy(), variances, rtol=1e-4)
    (y * y).mean().backward()
    assert t.grad.dtype == np.float16 and np.isfinite(t.grad.numpy()).all()
    layer.eval()
    y = layer(gb.tensor(data))
    assert y.dtype == np.float16 and np.isfinite(y.numpy()).all() and y.numpy().any()


@pytest.mark.parametrize("name", ["batch_norm", "group_norm", "layer_norm", "rms_norm"])
@pytest.mark.parametrize("backend", [get_backend("cpu"), StandInBackend()], ids=lambda b: b.device)
def test_moments_of_half_precision_are_wider(name, backend):
    """The derivative loses no digits to a rounded mean, nor the variance its range."""
    data = RNG.normal(size=(4, 6, 6), scale=0.1, loc=40.0).astype(np.float16)
    dy = RNG.normal(size=data.shape).astype(np.float16)
    affine = (None,) if name == "rms_norm" else (None, None)
    size = {"batch_norm": (), "group_norm": (3,), "layer_norm": (1,), "rms_norm": (1,)}[name]
    results = []
    for dtype in (np.float16, np.float64):
        given = backend.asarray(data.astype(dtype))
        y, *moments = getattr(backend, name)(given, *affine, *size, 1e-5)
        assert all(m.dtype == np.result_type(dtype, np.float32) for m in moments)
        if name == "batch_norm":
            del moments[1]
        backward = getattr(backend, f"{name}_backward")
        found = backward(backend.asarray(dy.astype(dtype)), given, None, *moments, *size)
        assert y.dtype == found[0].dtype == dtype
        assert all(a.dtype == moments[0].dtype for a in found[1:])
        results.append([backend.to_numpy(a) for a in (y, *found)])
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3 * np.abs(want).max())


@pytest.mark.parametrize("backend", [get_backend("cpu"), StandInBackend()], ids=lambda b: b.device)
def test_pictures_of_half_precision_stay_so_beside_float32_parameters(backend):
    """As mixed precision has them: the result is rounded once, the parameters' cotangents never."""
    rng = np.random.default_rng(8)
    x, dy = (rng.normal(size=(6, 4, 3)).astype(np.float16) for _ in range(2))
    weight, bias = (rng.normal(size=3).astype(np.float32) for _ in range(2))
    wide = [a.astype(np.float64) for a in (x, weight, bias)]
    there = [backend.asarray(a) for a in (x, weight, bias)]
    y, mean, _, rstd = backend.batch_norm(*there, 1e-5)
    exact, *moments = get_backend("cpu").batch_norm(*wide, 1e-5)
    assert y.dtype == np.float16
    np.testing.assert_allclose(backend.to_numpy(y), exact, rtol=2.0**-11 * 1.01, atol=1e-6)
    dx, dweight, dbias = backend.batch_norm_backward(backend.asarray(dy), *there[:2], mean, rstd)
    slopes = get_backend("cpu").batch_norm_backward(
        dy.astype(np.float64), *wide[:2], moments[0], moments[2]
    )
    assert dx.dtype == np.float16 and dweight.dtype == dbias.dtype == np.float32
    np.testing.assert_allclose(backend.to_numpy(dx), slopes[0], rtol=2.0**-11 * 1.01, atol=1e-6)
    for got, want in ((dweight, slopes[1]), (dbias, slopes[2])):
        np.testing.assert_allclose(backend.to_numpy(got), want, rtol=1e-5, atol=1e-5)
    y = backend.scale_shift(*there)
    assert y.dtype == np.float16
    exact = wide[0] * wide[1] + wide[2]
    np.testing.assert_allclose(backend.to_numpy(y), exact, rtol=2.0**-11 * 1.01, atol=1e-6)


def test_only_cotangents_that_arrive_are_given_to_the_rule():
    """The moments' are none in a network, and no zeros are made for them; a penalty on a moment
    alone has none of the pictures."""
    backend, made = get_backend("cpu"), []
    x = gb.tensor(np.random.default_rng(4).normal(size=(5, 3)), requires_grad=True)
    zeros = backend.zeros
    backend.zeros = lambda *a: made.append(a) or zeros(*a)
    try:
        y, _, _ = apply(REGISTRY["batch_norm"], x, None, None)
        y.sum().backward()
        assert not made
    finally:
        del backend.zeros
    x.grad = None
    _, _, var = apply(REGISTRY["batch_norm"], x, None, None)
    var.sum().backward()
    centred = x.numpy() - x.numpy().mean(0)
    np.testing.assert_allclose(x.grad.numpy(), 2 / 5 * centred, rtol=1e-12)


def test_without_momentum_the_averages_are_plain_means():
    layer = nn.BatchNorm1d(3, momentum=None, affine=False)
    batches = [x(8, 3) for _ in range(4)]
    for batch in batches:
        layer(batch)
    means = np.mean([b.numpy().mean(axis=0) for b in batches], axis=0)
    variances = np.mean([b.numpy().var(axis=0, ddof=1) for b in batches], axis=0)
    np.testing.assert_allclose(layer.running_mean.numpy(), means, rtol=1e-5)
    np.testing.assert_allclose(layer.running_var.numpy(), variances, rtol=1e-5)
    assert layer.num_batches_tracked.numpy() == 4
    layer.reset_running_stats()
    assert not layer.running_mean.numpy().any() and (layer.running_var.numpy() == 1).all()
    assert layer.num_batches_tracked.numpy() == 0


def test_without_averages_evaluation_uses_the_batch():
    layer, data = nn.BatchNorm1d(3, track_running_stats=False), x(8, 3)
    expected = layer(data).numpy()
    np.testing.assert_array_equal(layer.eval()(data).numpy(), expected)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=None)])
def test_a_block_that_is_computed_again_counts_its_batch_once(layer, monkeypatch):
    data = x(8, 3)
    expected = layer(data).numpy()
    state = layer.state_dict()
    monkeypatch.setattr(STATE, "recomputing", True)
    np.testing.assert_array_equal(layer(data).numpy(), expected)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_a_checkpointed_block_counts_its_batch_once_and_has_the_same_gradients():
    plain, block = nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3, momentum=None)
    for _ in range(2):
        data = x(8, 3).requires_grad_()
        (plain(data) ** 2 * data.detach()).sum().backward()
        expected, data.grad = data.grad.numpy(), None
        (gb.checkpoint(block, data) ** 2 * data.detach()).sum().backward()
        np.testing.assert_array_equal(data.grad.numpy(), expected)
    for name, value in plain.state_dict().items():
        np.testing.assert_array_equal(block.state_dict()[name], value, err_msg=name)


def test_running_averages_are_tracked_without_a_gradient():
    layer, data = nn.BatchNorm1d(3), x(8, 3)
    with gb.no_grad():
        layer(data)
    assert layer.num_batches_tracked.numpy() == 1
    layer(data.requires_grad_()).sum().backward()
    assert layer.running_mean.node is None and not layer.running_mean.requires_grad


def test_an_empty_batch_leaves_the_averages_alone():
    layer = nn.BatchNorm2d(3)
    with np.errstate(all="ignore"):
        assert layer(x(0, 3, 2, 2)).shape == (0, 3, 2, 2)
    assert np.isfinite(layer.running_mean.numpy()).all()


def test_a_frozen_layer_in_evaluation_has_gradients():
    layer = nn.BatchNorm2d(3).eval()
    data = x(2, 3, 2, 2).requires_grad_()
    layer(data).sum().backward()
    np.testing.assert_allclose(data.grad.numpy(), 1 / np.sqrt(1 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(layer.bias.grad.numpy(), 8.0)


def test_group_norm():
    layer, data = nn.GroupNorm(2, 6, eps=1e-6), x(3, 6, 4)
    y = layer(data).numpy().reshape(3, 2, -1)
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(axis=-1), 1, rtol=1e-4)
    one = F.instance_norm(data)
    np.testing.assert_allclose(one.numpy(), F.group_norm(data, 6).numpy(), rtol=1e-6)


def test_instance_norm_of_one_image():
    layer, data = nn.InstanceNorm2d(3), x(3, 4, 5)
    expected = layer(data.reshape(1, 3, 4, 5)).numpy()[0]
    np.testing.assert_allclose(layer(data).numpy(), expected, rtol=1e-6)
    with pytest.raises(ShapeError, match="2 channels, the layer 3"):
        layer(x(2, 4, 5))


def test_rms_norm():
    layer, data = nn.RMSNorm((3, 4)), x(5, 3, 4)
    power = (data.numpy() ** 2).mean(axis=(1, 2), keepdims=True)
    eps = np.finfo(np.float32).eps
    expected = data.numpy() / np.sqrt(power + eps)
    np.testing.assert_allclose(layer(data).numpy(), expected, rtol=1e-5)
    assert repr(nn.RMSNorm(4)) == "RMSNorm((4,), eps=None, elementwise_affine=True)"
    with pytest.raises(ShapeError, match=r"must be normalized_shape \(3, 4\)"):
        layer(x(5, 4, 3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.BatchNorm2d(0), "num_features must be an integer of at least 1"),
        (
            lambda: nn.BatchNorm2d(3, momentum=1.5),
            r"momentum must be a number in \[0, 1\], or None",
        ),
        (
            lambda: nn.InstanceNorm2d(3, momentum=None),
            r"momentum must be a number in \[0, 1\], not",
        ),
        (lambda: nn.BatchNorm2d(3, eps=-1e-5), "eps must be a number of at least 0"),
        (lambda: nn.BatchNorm2d(3, eps="small"), "eps must be a number of at least 0"),
        (lambda: nn.GroupNorm(4, 6), "6 channels cannot be split into 4 groups of one size"),
        (lambda: nn.RMSNorm((2, 0)), "normalized_shape must be an integer"),
        (lambda: F.batch_norm(x(2, 3), None, None), "needs running_mean and running_var"),
        (lambda: F.instance_norm(x(2, 3, 4), use_input_stats=False), "needs running_mean"),
    ],
)
def test_wrong_settings_are_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nn.BatchNorm1d(3)(x(1, 3)), "a single value for each channel"),
        (lambda: nn.BatchNorm2d(3)(x(1, 3, 1, 1)), r"\(1, 3, 1, 1\).*use a larger batch"),
        (lambda: nn.InstanceNorm1d(3)(x(2, 3, 1)), "a single value for each channel of an image"),
        (lambda: nn.BatchNorm2d(3)(x(2, 3)), r"\(2, 3\)\) must have 4 axes"),
        (lambda: nn.BatchNorm1d(3)(x(3)), "must have 2 or 3 axes"),
        (lambda: nn.BatchNorm2d(3)(x(2, 4, 4, 3)), "has 4 channels, the layer 3.*channels_last"),
        (lambda: nn.BatchNorm2d(3, channels_last=True)(x(2, 3, 4, 4)), "has 4 channels"),
        (lambda: F.batch_norm(x(4, 3), gb.zeros(2), gb.ones(2)), r"running_mean has shape \(2,\)"),
        (
            lambda: F.batch_norm(x(4, 3), None, None, gb.ones(2), training=True),
            r"weight has shape \(2,\) and must have \(3,\), the channels",
        ),
        (
            lambda: nn.GroupNorm(2, 4, affine=False)(x(2, 8, 8, 4)),
            r"GroupNorm: input .* has 8 channels, the layer 4; .*\(channels_last=False\)",
        ),
        (lambda: F.group_norm(x(4, 6), 4), "6 channels .* cannot be split into 4 groups"),
        (lambda: F.group_norm(x(4), 2), "needs a batch axis and an axis of channels"),
        (lambda: F.rms_norm(x(4, 6), 6, gb.ones(5)), r"rms_norm: weight .* must have the shape"),
        (lambda: F.rms_norm(x(4, 6), 6, gb.ones(1)), r"weight \(shape \(1,\)\) .* shape \(6,\)"),
        (lambda: F.layer_norm(x(4, 6), 6, None, gb.ones((4, 6))), r"bias \(shape \(4, 6\)\) must"),
    ],
)
def test_shapes_that_do_not_fit_are_named(call, words):
    with pytest.raises(ShapeError, match=words):
        call()


def test_a_single_value_is_enough_in_evaluation():
    assert nn.BatchNorm1d(3).eval()(x(1, 3)).shape == (1, 3)
