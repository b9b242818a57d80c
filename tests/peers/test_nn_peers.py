"""Modules and initial values against PyTorch: keys, values, gradients, formulas."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gpubackprop as gb  # noqa: E402
from gpubackprop import nn  # noqa: E402
from gpubackprop.nn import init  # noqa: E402

pytestmark = pytest.mark.peers

RNG = np.random.default_rng(11)
X = RNG.normal(size=(6, 4, 5))
INDEX = RNG.integers(0, 7, (6, 4))

MODULES = {
    "Linear": (lambda m: m.Linear(5, 3), X),
    "Linear without bias": (lambda m: m.Linear(5, 3, bias=False), X),
    "Flatten": (lambda m: m.Flatten(), X),
    "Flatten two axes": (lambda m: m.Flatten(0, 1), X),
    "Identity": (lambda m: m.Identity(), X),
    "Dropout of nothing": (lambda m: m.Dropout(0.0), X),
    "Dropout of everything": (lambda m: m.Dropout(1.0), X),
    "Embedding": (lambda m: m.Embedding(7, 3), INDEX),
    "Embedding with padding": (lambda m: m.Embedding(7, 3, padding_idx=-2), INDEX),
    "LayerNorm": (lambda m: m.LayerNorm(5), X),
    "LayerNorm of two axes": (lambda m: m.LayerNorm((4, 5), eps=0.1), X),
    "LayerNorm without bias": (lambda m: m.LayerNorm(5, bias=False), X),
    "LayerNorm without weight": (lambda m: m.LayerNorm(5, elementwise_affine=False), X),
    "ReLU": (lambda m: m.ReLU(), X),
    "LeakyReLU": (lambda m: m.LeakyReLU(), X),
    "LeakyReLU with a slope": (lambda m: m.LeakyReLU(0.3), X),
    "ELU": (lambda m: m.ELU(), X),
    "ELU with alpha": (lambda m: m.ELU(0.7), X),
    "GELU": (lambda m: m.GELU(), X),
    "GELU by tanh": (lambda m: m.GELU("tanh"), X),
    "SiLU": (lambda m: m.SiLU(), X),
    "Sigmoid": (lambda m: m.Sigmoid(), X),
    "Tanh": (lambda m: m.Tanh(), X),
    "Softplus": (lambda m: m.Softplus(), 10 * X),
    "Softplus with beta": (lambda m: m.Softplus(3.0, 2.0), X),
    "Softmax": (lambda m: m.Softmax(dim=1), X),
    "LogSoftmax": (lambda m: m.LogSoftmax(dim=-1), X),
    "Sequential": (
        lambda m: m.Sequential(m.Linear(5, 8), m.GELU(), m.LayerNorm(8), m.Linear(8, 2)),
        X,
    ),
}


@pytest.mark.parametrize(("make", "x"), MODULES.values(), ids=MODULES)
def test_modules(make, x):
    ours, theirs = make(nn).to(dtype=np.float64), make(torch.nn).double()
    state = theirs.state_dict()
    for value in state.values():  # away from the ones and zeros that layers start with
        value += 0.1 * torch.randn(value.shape, dtype=value.dtype)
    assert list(ours.state_dict()) == list(state)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
    ours.load_state_dict(state)
    real = x.dtype.kind == "f"
    a, b = gb.tensor(x, requires_grad=real), torch.tensor(x, requires_grad=real)
    y, z = ours(a), theirs(b)
    np.testing.assert_allclose(y.numpy(), z.detach().numpy(), rtol=1e-9, atol=1e-12)
    weights = np.random.default_rng(1).normal(size=y.shape)
    (y * weights).sum().backward()
    (z * torch.tensor(weights)).sum().backward()
    if real:
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-8, atol=1e-10)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-8, atol=1e-10)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})


LOGITS, TARGET = RNG.normal(size=(8, 5)), RNG.normal(size=(8, 5))
PROBABILITY, LABEL = RNG.uniform(0.05, 0.95, (8, 5)), RNG.integers(0, 5, 8)
WEIGHT = RNG.uniform(0.5, 2.0, 5)
IGNORING = np.where(np.arange(8) % 3 == 0, 2, LABEL)
LOG = np.log(PROBABILITY / PROBABILITY.sum(1, keepdims=True))

COSTS = {
    "MSELoss": (lambda m, t: m.MSELoss(), LOGITS, TARGET),
    "MSELoss sum": (lambda m, t: m.MSELoss(reduction="sum"), LOGITS, TARGET),
    "L1Loss none": (lambda m, t: m.L1Loss(reduction="none"), LOGITS, TARGET),
    "HuberLoss": (lambda m, t: m.HuberLoss(delta=0.5), LOGITS, TARGET),
    "SmoothL1Loss": (lambda m, t: m.SmoothL1Loss(beta=0.5), LOGITS, TARGET),
    "BCELoss": (lambda m, t: m.BCELoss(), PROBABILITY, PROBABILITY.T.reshape(8, 5)),
    "BCELoss weighted": (lambda m, t: m.BCELoss(weight=t(WEIGHT)), PROBABILITY, PROBABILITY),
    "BCEWithLogitsLoss": (
        lambda m, t: m.BCEWithLogitsLoss(weight=t(WEIGHT), pos_weight=t(2 * WEIGHT)),
        LOGITS,
        PROBABILITY,
    ),
    "CrossEntropyLoss": (lambda m, t: m.CrossEntropyLoss(), LOGITS, LABEL),
    "CrossEntropyLoss, every option": (
        lambda m, t: m.CrossEntropyLoss(t(WEIGHT), ignore_index=2, label_smoothing=0.1),
        LOGITS,
        IGNORING,
    ),
    "CrossEntropyLoss of probabilities": (
        lambda m, t: m.CrossEntropyLoss(reduction="sum"),
        LOGITS,
        np.exp(LOG),
    ),
    "NLLLoss": (lambda m, t: m.NLLLoss(t(WEIGHT), ignore_index=2), LOG, IGNORING),
    "KLDivLoss": (lambda m, t: m.KLDivLoss(reduction="batchmean"), LOG, np.exp(LOG[::-1])),
    "KLDivLoss of logarithms": (
        lambda m, t: m.KLDivLoss(reduction="sum", log_target=True),
        LOG,
        LOG[::-1],
    ),
}


@pytest.mark.parametrize(("make", "x", "target"), COSTS.values(), ids=COSTS)
def test_costs(make, x, target):
    target = np.ascontiguousarray(target)
    ours, theirs = make(nn, gb.tensor), make(torch.nn, torch.tensor)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    a, b = gb.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(a, gb.tensor(target)), theirs(b, torch.tensor(target))
    np.testing.assert_allclose(y.numpy(), z.detach().numpy(), rtol=1e-9)
    y.sum().backward()
    z.sum().backward()
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-8, atol=1e-12)


GAINS = [
    ("linear", None),
    ("conv2d", None),
    ("sigmoid", None),
    ("tanh", None),
    ("relu", None),
    ("leaky_relu", None),
    ("leaky_relu", 0.3),
    ("selu", None),
]


@pytest.mark.parametrize(("name", "param"), GAINS)
def test_gains(name, param):
    theirs = torch.nn.init.calculate_gain(name, param)
    assert init.calculate_gain(name, param) == pytest.approx(theirs, rel=1e-15)


FILLS = {
    "xavier_uniform_": {"gain": 1.5},
    "xavier_normal_": {"gain": 1.5},
    "kaiming_uniform_": {"a": 0.4, "mode": "fan_out"},
    "kaiming_normal_": {"mode": "fan_in", "nonlinearity": "relu"},
    "orthogonal_": {"gain": 2.0},
    "trunc_normal_": {"mean": 0.3, "std": 0.7, "a": -0.5, "b": 1.0},
    "uniform_": {"a": -0.3, "b": 0.2},
    "normal_": {"mean": 0.1, "std": 0.2},
    "constant_": {"val": 0.3},
    "eye_": {},
}


MATRIX, KERNEL = (120, 180), (60, 12, 5, 5)
DRAWS = [(n, s) for n in FILLS for s in (MATRIX, KERNEL) if (n, s) != ("eye_", KERNEL)]


@pytest.mark.parametrize(("name", "shape"), DRAWS, ids=str)
def test_initial_values_have_the_same_distribution(name, shape):
    ours = getattr(init, name)(
        nn.Parameter(np.zeros(shape)),
        **FILLS[name],
        **({} if name in ("constant_", "eye_") else {"generator": gb.Generator(3)}),
    ).numpy()
    torch.manual_seed(0)
    blank = torch.zeros(shape, dtype=torch.float64)
    theirs = getattr(torch.nn.init, name)(blank, **FILLS[name]).numpy()
    n = ours.size
    spread = float(theirs.std())
    assert ours.mean() == pytest.approx(theirs.mean(), abs=6 * spread / math.sqrt(n) + 1e-12)
    assert ours.std() == pytest.approx(spread, rel=0.03, abs=1e-12)
    # The 5 % quantiles of two normal samples of this size differ by about 0.02 deviations.
    at = [0.05, 0.25, 0.5, 0.75, 0.95]
    a, b = np.quantile(ours, at), np.quantile(theirs, at)
    np.testing.assert_allclose(a, b, rtol=0, atol=0.08 * spread + 1e-12)


def test_layers_start_with_the_same_distribution():
    torch.manual_seed(0)
    for make in (lambda m: m.Linear(300, 200), lambda m: m.Embedding(200, 50)):
        state = make(nn).state_dict()
        for key, value in make(torch.nn).state_dict().items():
            assert state[key].std() == pytest.approx(value.std().item(), rel=0.12), key
            assert np.abs(state[key]).mean() == pytest.approx(value.abs().mean().item(), rel=0.12)
