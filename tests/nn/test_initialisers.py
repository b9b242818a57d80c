"""Initial values: formulas, statistics, the same bits from the same seed."""

import math

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.nn import init

SHAPE = (200, 300)
FAN_IN, FAN_OUT = 300, 200


def weight(*shape, dtype=np.float32):
    return nn.Parameter(np.full(shape or SHAPE, np.nan, dtype))


UNIFORM = {
    "xavier_uniform_": (init.xavier_uniform_, {}, math.sqrt(6 / (FAN_IN + FAN_OUT))),
    "gain": (init.xavier_uniform_, {"gain": 2.0}, 2 * math.sqrt(6 / (FAN_IN + FAN_OUT))),
    "kaiming_uniform_": (init.kaiming_uniform_, {}, math.sqrt(6 / FAN_IN)),
    "fan_out": (init.kaiming_uniform_, {"mode": "fan_out"}, math.sqrt(6 / FAN_OUT)),
    "slope": (init.kaiming_uniform_, {"a": math.sqrt(5)}, 1 / math.sqrt(FAN_IN)),
    "tanh": (
        init.kaiming_uniform_,
        {"nonlinearity": "tanh"},
        5 / 3 * math.sqrt(3 / FAN_IN),
    ),
    "uniform_": (init.uniform_, {"a": -0.5, "b": 0.5}, 0.5),
}
NORMAL = {
    "xavier_normal_": (init.xavier_normal_, {}, math.sqrt(2 / (FAN_IN + FAN_OUT))),
    "kaiming_normal_": (init.kaiming_normal_, {"nonlinearity": "relu"}, math.sqrt(2 / FAN_IN)),
    "normal_": (init.normal_, {"std": 0.3}, 0.3),
}


@pytest.mark.parametrize(("fill", "options", "bound"), UNIFORM.values(), ids=UNIFORM)
def test_uniform(fill, options, bound):
    w = weight()
    assert fill(w, **options, generator=Generator(1)) is w
    values = w.numpy().astype(float)
    assert np.abs(values).max() <= bound * (1 + 1e-6)
    assert np.abs(values).max() > 0.999 * bound
    assert values.mean() == pytest.approx(0, abs=4 * bound / math.sqrt(3 * values.size))
    assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.01)


@pytest.mark.parametrize(("fill", "options", "std"), NORMAL.values(), ids=NORMAL)
def test_normal(fill, options, std):
    values = fill(weight(), **options, generator=Generator(1)).numpy().astype(float)
    assert values.mean() == pytest.approx(0, abs=4 * std / math.sqrt(values.size))
    assert values.std() == pytest.approx(std, rel=0.01)
    kurtosis = ((values / std) ** 4).mean()
    assert kurtosis == pytest.approx(3, abs=0.1)


def test_truncated_normal():
    values = init.trunc_normal_(weight(), 1.0, 2.0, a=0.0, b=3.0, generator=Generator(1)).numpy()
    assert 0.0 <= values.min() < 0.01 and 2.99 < values.max() <= 3.0
    # Mean of a normal cut at -1/2 and 1 deviations: mu + sigma * (phi(-1/2) - phi(1)) / P.
    phi = lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    share = (math.erf(1 / math.sqrt(2)) + math.erf(0.5 / math.sqrt(2))) / 2
    assert values.mean() == pytest.approx(1 + 2 * (phi(0.5) - phi(1.0)) / share, abs=0.01)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6), (4, 3, 2)])
def test_orthogonal(shape):
    w = init.orthogonal_(weight(*shape, dtype=np.float64), gain=3.0, generator=Generator(2))
    flat = w.numpy().reshape(shape[0], -1)
    gram = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
    np.testing.assert_allclose(gram, 9 * np.eye(len(gram)), atol=1e-12)


def test_orthogonal_is_not_biased_to_one_sign():
    signs = [
        np.sign(init.orthogonal_(weight(3, 3), generator=Generator(s)).numpy()[0, 0])
        for s in range(60)
    ]
    assert abs(sum(signs)) < 30


def test_constants():
    assert (init.zeros_(weight()).numpy() == 0).all()
    assert (init.ones_(weight()).numpy() == 1).all()
    assert (init.constant_(weight(), 2.5).numpy() == 2.5).all()
    np.testing.assert_array_equal(init.eye_(weight(2, 3)).numpy(), np.eye(2, 3))


def test_they_write_in_place_also_in_an_arena():
    w = weight(3, 3)
    arena = nn.Arena([w])
    init.eye_(w)
    assert arena.values[0][:9].sum() == 3.0


def test_the_same_seed_gives_the_same_bits_and_the_default_generator_is_used():
    a = init.kaiming_normal_(weight(), generator=Generator(7)).numpy()
    b = init.kaiming_normal_(weight(), generator=Generator(7)).numpy()
    np.testing.assert_array_equal(a, b)
    gb.manual_seed(7)
    np.testing.assert_array_equal(init.kaiming_normal_(weight()).numpy(), a)
    assert (init.kaiming_normal_(weight()).numpy() != a).any()


def test_gains():
    assert init.calculate_gain("linear") == 1.0
    assert init.calculate_gain("tanh") == pytest.approx(5 / 3)
    assert init.calculate_gain("relu") == pytest.approx(math.sqrt(2))
    assert init.calculate_gain("leaky_relu", 0.2) == pytest.approx(math.sqrt(2 / 1.04))
    assert init.calculate_gain("leaky_relu") == pytest.approx(math.sqrt(2 / 1.0001))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: init.xavier_normal_(weight(3)), ShapeError, "2 axes"),
        (lambda: init.orthogonal_(weight(3)), ShapeError, "2 axes"),
        (lambda: init.eye_(weight(3)), ShapeError, "2 axes"),
        (lambda: init.kaiming_normal_(weight(), mode="fanin"), ConfigError, "fan_in"),
        (lambda: init.calculate_gain("rleu"), ConfigError, "did you mean 'relu'"),
        (lambda: init.uniform_(weight(), 1.0, 0.0), ConfigError, "order"),
        (lambda: init.normal_(weight(), std=-1.0), ConfigError, "std"),
        (lambda: init.trunc_normal_(weight(), a=2.0, b=1.0), ConfigError, "a < b"),
    ],
)
def test_wrong_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.gpu
def test_a_network_starts_with_the_same_bits_on_the_gpu():
    def build(device):
        gb.manual_seed(3)
        return nn.Sequential(nn.Linear(7, 5, device=device), nn.Embedding(4, 3, device=device))

    cpu, gpu = build("cpu").state_dict(), build("cuda").state_dict()
    for name in cpu:
        np.testing.assert_array_equal(cpu[name], gpu[name])
