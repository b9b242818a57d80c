"""Layers, activations and costs as modules."""

import inspect

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError
from gpubackprop.nn import functional as F  # noqa: N812

RNG = np.random.default_rng(3)


def x(*shape):
    return gb.tensor(RNG.normal(size=shape).astype(np.float32))


def test_linear():
    layer = nn.Linear(4, 3, generator=Generator(1), dtype=np.float64)
    assert layer.weight.shape == (3, 4) and layer.bias.shape == (3,)
    assert layer.weight.dtype == np.float64
    data = RNG.normal(size=(2, 5, 4))
    expected = data @ layer.weight.numpy().T + layer.bias.numpy()
    np.testing.assert_allclose(layer(gb.tensor(data)).numpy(), expected)
    again = nn.Linear(4, 3, generator=Generator(1), dtype=np.float64)
    np.testing.assert_array_equal(again.weight.numpy(), layer.weight.numpy())
    free = nn.Linear(4, 3, bias=False)
    assert free.bias is None and list(free.state_dict()) == ["weight"]


def test_linear_starts_as_documented():
    layer = nn.Linear(400, 300, generator=Generator(0))
    for values in (layer.weight.numpy(), layer.bias.numpy()):
        assert abs(values).max() <= 1 / 20
        assert abs(values).max() > 0.95 / 20
        assert values.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(0, 3),
        lambda: nn.Linear(3, 2.5),
        lambda: nn.Linear(3, True),
        lambda: nn.Dropout(1.5),
        lambda: nn.Dropout(float("nan")),
        lambda: nn.Embedding(3, 2, padding_idx=3),
        lambda: nn.LayerNorm((2, 0)),
        lambda: nn.GELU("tahn"),
        lambda: nn.Softplus(beta=0),
        lambda: nn.Softmax(dim=1.0),
        lambda: nn.MSELoss(reduction="average"),
        lambda: nn.MSELoss(reduction="batchmean"),
    ],
)
def test_wrong_arguments_are_refused_when_the_layer_is_made(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("make", [lambda: nn.ReLU(3), lambda: nn.MSELoss(redaction="sum")])
def test_unknown_arguments_are_refused(make):
    with pytest.raises(TypeError):
        make()


def test_dropout_drops_in_training_only_and_owns_its_sequence():
    source = Generator(5)
    layer = nn.Dropout(0.25, generator=source)
    other = nn.Dropout(0.25, generator=source)
    data = gb.tensor(np.ones((100, 100), np.float32))
    y = layer(data).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.02)
    assert (layer(data).numpy() != y).any() and (other(data).numpy() != y).any()
    assert layer.generator is not other.generator is not source
    assert layer.eval()(data) is data
    np.testing.assert_array_equal(
        nn.Dropout(0.25, generator=Generator(5))(data).numpy(), y
    )  # a pure function of the seed


def test_embedding_and_its_padding_row():
    layer = nn.Embedding(5, 3, padding_idx=-1, generator=Generator(1))
    assert layer.padding_idx == 4 and not layer.weight.numpy()[4].any()
    index = gb.tensor(np.array([[0, 4], [2, 0]]))
    y = layer(index)
    np.testing.assert_array_equal(y.numpy(), layer.weight.numpy()[index.numpy()])
    y.sum().backward()
    np.testing.assert_array_equal(layer.weight.grad.numpy()[:, 0], [2, 0, 1, 0, 0])


def test_layer_norm():
    layer = nn.LayerNorm((3, 4), eps=0.1)
    assert list(layer.state_dict()) == ["weight", "bias"]
    data = RNG.normal(size=(5, 3, 4)).astype(np.float32)
    mean, var = data.mean((1, 2), keepdims=True), data.var((1, 2), keepdims=True)
    expected = (data - mean) / np.sqrt(var + 0.1)
    np.testing.assert_allclose(layer(gb.tensor(data)).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert list(nn.LayerNorm(4, bias=False).state_dict()) == ["weight"]
    assert list(nn.LayerNorm(4, elementwise_affine=False).state_dict()) == []
    with gb.no_grad():
        layer.weight.copy_(np.full((3, 4), 2.0))
    layer.reset_parameters()
    assert (layer.weight.numpy() == 1).all()


def test_flatten_identity_lambda():
    data = x(2, 3, 4, 5)
    assert nn.Flatten()(data).shape == (2, 60)
    assert nn.Flatten(1, 2)(data).shape == (2, 12, 5)
    assert nn.Identity(3, anything=4)(data) is data
    assert nn.Lambda(lambda t: t * 2.0)(data).shape == data.shape


ACTIVATIONS = [
    (nn.ReLU(), F.relu),
    (nn.LeakyReLU(0.2), lambda t: F.leaky_relu(t, 0.2)),
    (nn.ELU(0.5), lambda t: F.elu(t, 0.5)),
    (nn.GELU(), F.gelu),
    (nn.GELU("tanh"), lambda t: F.gelu(t, approximate="tanh")),
    (nn.SiLU(), F.silu),
    (nn.Sigmoid(), F.sigmoid),
    (nn.Tanh(), F.tanh),
    (nn.Softplus(2.0, 5.0), lambda t: F.softplus(t, 2.0, 5.0)),
    (nn.Softmax(dim=0), lambda t: F.softmax(t, 0)),
    (nn.LogSoftmax(dim=1), lambda t: F.log_softmax(t, 1)),
]


@pytest.mark.parametrize(
    ("module", "function"), ACTIVATIONS, ids=[repr(m)[:24] for m, _ in ACTIVATIONS]
)
def test_activations_are_their_functions(module, function):
    data = x(4, 5)
    np.testing.assert_array_equal(module(data).numpy(), function(data).numpy())


def test_costs_take_the_options_of_their_functions():
    assert list(inspect.signature(nn.CrossEntropyLoss).parameters) == [
        "weight",
        "ignore_index",
        "reduction",
        "label_smoothing",
    ]
    assert "huber_loss" in nn.HuberLoss.__doc__ and "delta" in nn.HuberLoss.__doc__
    assert repr(nn.HuberLoss(delta=2.0)) == "HuberLoss(delta=2.0)"
    logits, target = x(6, 3), gb.tensor(np.array([0, 1, 2, 0, -1, 1]))
    loss = nn.CrossEntropyLoss([1.0, 2.0, 3.0], ignore_index=-1, label_smoothing=0.1)
    expected = F.cross_entropy(
        logits,
        target,
        weight=gb.tensor([1.0, 2.0, 3.0]),
        ignore_index=-1,
        label_smoothing=0.1,
    )
    assert loss(logits, target).item() == expected.item()
    assert list(loss.state_dict()) == ["weight"]
    assert nn.KLDivLoss(reduction="batchmean").reduction == "batchmean"


def test_quadratic_cost_with_rows_and_with_class_indices():
    out = x(4, 3).requires_grad_()
    labels = np.array([0, 2, 1, 1])
    rows = np.eye(3, dtype=np.float32)[labels]
    cost = nn.QuadraticCost()
    by_rows = cost(out, gb.tensor(rows))
    assert by_rows.item() == pytest.approx(((rows - out.numpy()) ** 2).sum() / 8, rel=1e-6)
    by_rows.backward()
    np.testing.assert_allclose(out.grad.numpy(), (out.numpy() - rows) / 4, rtol=1e-6)
    assert cost(out, gb.tensor(labels)).item() == by_rows.item()
    assert cost(out, labels).item() == by_rows.item()
