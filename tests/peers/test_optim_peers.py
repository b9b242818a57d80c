"""Optimizers, schedules and clipping against PyTorch, step by step."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gpubackprop as gb  # noqa: E402
from gpubackprop import nn, optim  # noqa: E402
from gpubackprop.optim import schedules  # noqa: E402

pytestmark = pytest.mark.peers

SHAPES = [(7, 5), (5,), (), (3, 2, 2), (33,)]
STEPS = 20


def product(**choices):
    return [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]


OPTIONS = {
    "SGD": product(
        momentum=[0.0, 0.9], dampening=[0.0, 0.3], weight_decay=[0.0, 0.1], maximize=[False, True]
    )
    + product(momentum=[0.9], nesterov=[True], weight_decay=[0.0, 0.1], maximize=[False, True]),
    "Adagrad": product(
        lr_decay=[0.0, 0.1],
        weight_decay=[0.0, 0.1],
        initial_accumulator_value=[0.0, 0.5],
        eps=[1e-10, 1e-2],
        maximize=[False, True],
    ),
    "RMSprop": product(
        alpha=[0.99, 0.7],
        eps=[1e-8, 1e-2],
        weight_decay=[0.0, 0.1],
        momentum=[0.0, 0.9],
        centered=[False, True],
        maximize=[False, True],
    ),
    "Adam": product(
        betas=[(0.9, 0.999), (0.5, 0.6)],
        eps=[1e-8, 1e-2],
        weight_decay=[0.0, 0.1],
        maximize=[False, True],
    ),
    "AdamW": product(
        betas=[(0.9, 0.999), (0.0, 0.5)],
        eps=[1e-8, 1e-2],
        weight_decay=[0.0, 0.1],
        maximize=[False, True],
    ),
}
CASES = [(name, options) for name, each in OPTIONS.items() for options in each]


def pair(shapes=SHAPES, dtype=np.float64):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype(dtype) for s in shapes]
    ours = [nn.Parameter(a) for a in arrays]
    theirs = [torch.nn.Parameter(torch.tensor(a)) for a in arrays]
    return ours, theirs


def give_gradients(ours, theirs, step, missing=True):
    """The same gradients to both; at some steps some parameters get none."""
    rng = np.random.default_rng(step)
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        g = rng.normal(size=p.shape).astype(p.dtype)
        p.grad, q.grad = None, None
        if missing and (step + 2 * i) % 5 == 3:
            continue
        p.accumulate(g, p.backend)
        q.grad = torch.tensor(g)


def compare(ours, theirs, dtype):
    rtol, atol = (1e-9, 1e-11) if dtype == np.float64 else (3e-5, 3e-6)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)]
)
def test_every_optimizer_with_every_option(name, options, dtype):
    ours, theirs = pair(dtype=dtype)
    a = getattr(optim, name)(ours, lr=0.01, **options)
    b = getattr(torch.optim, name)(theirs, lr=0.01, foreach=False, **options)
    for step in range(STEPS):
        give_gradients(ours, theirs, step)
        a.step()
        b.step()
        compare(ours, theirs, dtype)


@pytest.mark.parametrize("name", OPTIONS)
def test_defaults(name):
    ours, theirs = pair()
    a, b = getattr(optim, name)(ours), getattr(torch.optim, name)(theirs)
    for key, value in a.defaults.items():
        assert b.defaults[key] == value, key
    for step in range(STEPS):
        give_gradients(ours, theirs, step)
        a.step()
        b.step()
    compare(ours, theirs, np.float64)


@pytest.mark.parametrize("name", OPTIONS)
def test_parameter_groups_that_change(name):
    ours, theirs = pair()

    def groups(ps):
        return [{"params": ps[:2], "lr": 0.05, "weight_decay": 0.3}, {"params": ps[2:4]}]

    a = getattr(optim, name)(groups(ours), lr=0.01)
    b = getattr(torch.optim, name)(groups(theirs), lr=0.01)
    for step in range(STEPS):
        if step == 6:
            a.param_groups[0]["lr"] = b.param_groups[0]["lr"] = 0.002
        if step == 9:
            a.add_param_group({"params": ours[4:], "lr": 0.1})
            b.add_param_group({"params": theirs[4:], "lr": 0.1})
        give_gradients(ours, theirs, step)
        a.step()
        b.step()
        compare(ours, theirs, np.float64)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_state_has_the_same_names_and_values(name):
    options = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9, "centered": True}}
    ours, theirs = pair()
    a = getattr(optim, name)(ours, lr=0.01, **options.get(name, {}))
    b = getattr(torch.optim, name)(theirs, lr=0.01, **options.get(name, {}))
    for step in range(5):
        give_gradients(ours, theirs, step)
        a.step()
        b.step()
    mine, other = a.state_dict(), b.state_dict()
    for i, entry in other["state"].items():
        assert set(entry) | {"step"} == set(mine["state"][i])
        for key, value in entry.items():
            np.testing.assert_allclose(mine["state"][i][key], value.numpy(), rtol=1e-12)
    assert [g["params"] for g in mine["param_groups"]] == [
        g["params"] for g in other["param_groups"]
    ]


T = 30
SCHEDULES = {
    "step": (schedules.StepDecay(4, 0.3), lambda s, o: s.StepLR(o, 4, 0.3)),
    "multistep": (
        schedules.MultiStepDecay((3, 9), 0.3),
        lambda s, o: s.MultiStepLR(o, [3, 9], 0.3),
    ),
    "exponential": (schedules.Exponential(0.9), lambda s, o: s.ExponentialLR(o, 0.9)),
    "cosine": (schedules.Cosine(T), lambda s, o: s.CosineAnnealingLR(o, T)),
    "cosine with floor": (
        schedules.Cosine(T, floor=0.25),
        lambda s, o: s.CosineAnnealingLR(o, T, eta_min=0.05),
    ),
    "polynomial": (schedules.Polynomial(12, 2.0), lambda s, o: s.PolynomialLR(o, 12, 2.0)),
    "warm-up": (
        schedules.LinearWarmup(5, start=0.1),
        lambda s, o: s.LinearLR(o, start_factor=0.1, total_iters=5),
    ),
    "warm-up, then cosine": (
        schedules.LinearWarmup(5, schedules.Cosine(T - 5), start=0.1),
        lambda s, o: s.SequentialLR(
            o,
            [s.LinearLR(o, start_factor=0.1, total_iters=5), s.CosineAnnealingLR(o, T - 5)],
            milestones=[5],
        ),
    ),
}
CYCLES = product(
    pct_start=[0.3, 0.17], anneal_strategy=["cos", "linear"], three_phase=[False, True]
)


def walk(ours, theirs, schedule, make):
    """Rates and momenta of both over T steps."""
    a = optim.SGD(ours, lr=0.2, momentum=0.9)
    b = torch.optim.SGD(theirs, lr=0.2, momentum=0.9)
    x, y = optim.Scheduler(a, schedule), make(torch.optim.lr_scheduler, b)
    rates = []
    for step in range(T):
        rates.append([(o.param_groups[0]["lr"], o.param_groups[0]["momentum"]) for o in (a, b)])
        give_gradients(ours, theirs, step)
        a.step()
        b.step()
        if step < T - 1:
            x.step()
            y.step()
    compare(ours, theirs, np.float64)
    return np.array(rates)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize(("schedule", "make"), SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(schedule, make):
    rates = walk(*pair(), schedule, make)
    np.testing.assert_allclose(rates[:, 0], rates[:, 1], rtol=1e-10)


@pytest.mark.parametrize("options", CYCLES, ids=str)
def test_one_cycle(options):
    mine = schedules.OneCycle(T, **options, base_momentum=0.8, max_momentum=0.93)
    rates = walk(
        *pair(),
        mine,
        lambda s, o: s.OneCycleLR(
            o, max_lr=0.2, total_steps=T, **options, base_momentum=0.8, max_momentum=0.93
        ),
    )
    np.testing.assert_allclose(rates[:, 0], rates[:, 1], rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_by_norm(norm_type, max_norm):
    ours, theirs = pair()
    give_gradients(ours, theirs, 3)
    a = optim.clip_grad_norm_(optim.SGD(ours), max_norm, norm_type)
    b = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    assert a.item() == pytest.approx(b.item(), rel=1e-12)
    for p, q in zip(ours, theirs, strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-12)


def test_clipping_by_value():
    ours, theirs = pair()
    give_gradients(ours, theirs, 3)
    optim.clip_grad_value_(ours, 0.4)
    torch.nn.utils.clip_grad_value_(theirs, 0.4)
    for p, q in zip(ours, theirs, strict=True):
        if p.grad is not None:
            np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())


def test_a_network_trains_along_the_same_path():
    ours = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype=np.float64)
    theirs = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    ).double()
    ours.load_state_dict(theirs.state_dict())
    a = optim.AdamW(ours.parameters(), lr=0.01)
    b = torch.optim.AdamW(theirs.parameters(), lr=0.01)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        x, y = rng.normal(size=(10, 6)), rng.integers(0, 3, 10)
        a.zero_grad()
        b.zero_grad()
        mine = nn.CrossEntropyLoss()(ours(gb.tensor(x)), gb.tensor(y))
        other = torch.nn.CrossEntropyLoss()(theirs(torch.tensor(x)), torch.tensor(y))
        mine.backward()
        other.backward()
        optim.clip_grad_norm_(a, 0.5)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        a.step()
        b.step()
        assert mine.item() == pytest.approx(other.item(), rel=1e-9)
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name], value.numpy(), rtol=1e-8)
