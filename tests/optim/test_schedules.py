"""Schedules: pure functions of the step, and the scheduler that applies them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubackprop import nn, optim
from gpubackprop.errors import CheckpointError, ConfigError
from gpubackprop.optim.schedules import (
    Constant,
    Cosine,
    Exponential,
    LinearWarmup,
    MultiStepDecay,
    OneCycle,
    Polynomial,
    StepDecay,
)

ALL = [
    Constant(0.5),
    StepDecay(3, 0.5),
    MultiStepDecay((7, 2), 0.1),
    Exponential(0.9),
    Cosine(10, floor=0.1),
    Polynomial(10, power=2.0, floor=0.2),
    LinearWarmup(4, Cosine(6)),
    OneCycle(10),
    OneCycle(10, three_phase=True, anneal_strategy="linear"),
]


def test_values():
    assert [StepDecay(3, 0.5)(s) for s in (0, 2, 3, 6)] == [1, 1, 0.5, 0.25]
    assert [MultiStepDecay((7, 2), 0.1)(s) for s in (1, 2, 7)] == pytest.approx([1, 0.1, 0.01])
    assert Exponential(0.5)(3) == 0.125
    assert [Cosine(10)(s) for s in (0, 5, 10, 99)] == pytest.approx([1, 0.5, 0, 0])
    assert [Cosine(10, 0.2)(s) for s in (0, 5, 10)] == pytest.approx([1, 0.6, 0.2])
    assert [Polynomial(10)(s) for s in (0, 5, 10, 11)] == pytest.approx([1, 0.5, 0, 0])
    assert [Polynomial(10, 2.0, 0.2)(s) for s in (0, 5, 10)] == pytest.approx([1, 0.4, 0.2])
    warm = LinearWarmup(4, Constant(0.5))
    assert [warm(s) for s in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])
    assert [LinearWarmup(4, start=0.0)(s) for s in range(5)] == pytest.approx(
        [0, 0.25, 0.5, 0.75, 1]
    )
    assert LinearWarmup(0, Cosine(4))(2) == Cosine(4)(2)
    assert LinearWarmup(3, Cosine(4))(5) == Cosine(4)(2)  # its steps begin after the warm-up
    one = OneCycle(11, pct_start=4 / 11, div_factor=10, final_div_factor=100)
    assert [one(s) for s in (0, 3, 10, 50)] == pytest.approx([0.1, 1.0, 0.001, 0.001])


@given(st.sampled_from(ALL), st.integers(0, 30))
def test_they_are_pure_positive_and_comparable(schedule, step):
    first = schedule(step)
    schedule(step + 7)
    assert schedule(step) == first and math.isfinite(first) and 0 <= first <= 1
    assert schedule == type(schedule)(**vars(schedule)) and hash(schedule) == hash(schedule)


@given(st.integers(1, 40), st.sampled_from([Cosine, Polynomial]))
def test_ways_down_never_rise(steps, kind):
    factors = [kind(steps, floor=0.1)(s) for s in range(steps + 3)]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 1.0 and factors[steps] == pytest.approx(0.1)


@given(st.integers(2, 60), st.floats(0.05, 0.45), st.booleans())
def test_one_cycle_goes_up_to_one_and_down(steps, share, three_phase):
    cycle = OneCycle(steps, share, three_phase=three_phase)
    factors = [cycle(s) for s in range(steps)]
    assert max(factors) <= 1.0 + 1e-12 and min(factors) > 0
    assert factors[-1] == pytest.approx(1 / 25e4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: StepDecay(0),
        lambda: Cosine(0),
        lambda: Polynomial(5, power=0),
        lambda: LinearWarmup(-1),
        lambda: OneCycle(1),
        lambda: OneCycle(10, pct_start=0.0),
        lambda: OneCycle(10, pct_start=0.6, three_phase=True),
        lambda: OneCycle(10, anneal_strategy="cosine"),
        lambda: OneCycle(10, div_factor=0),
        lambda: OneCycle(10, base_momentum=0.8),
    ],
)
def test_wrong_arguments(make):
    with pytest.raises(ConfigError):
        make()


def optimizer(make=optim.SGD, **options):
    groups = [{"params": [nn.Parameter(np.ones(2))]}, {"params": [nn.Parameter(np.ones(2))]}]
    groups[1]["lr"] = 0.3
    return make(groups, lr=1.0, **options)


def test_the_scheduler_multiplies_the_rates_of_the_groups():
    o = optimizer()
    scheduler = optim.Scheduler(o, StepDecay(2, 0.5))
    seen = []
    for _ in range(4):
        seen.append(scheduler.get_last_lr())
        scheduler.step()
    assert seen == [[1.0, 0.3], [1.0, 0.3], [0.5, 0.15], [0.5, 0.15]]
    scheduler.set_step(0)
    assert [g["lr"] for g in o.param_groups] == [1.0, 0.3]


def test_any_function_of_the_step_is_a_schedule():
    scheduler = optim.Scheduler(optimizer(), lambda step: 1 / (1 + step))
    scheduler.step()
    assert scheduler.get_last_lr() == [0.5, 0.15]
    with pytest.raises(ConfigError, match="optimizer must be an Optimizer, not Linear"):
        optim.Scheduler(nn.Linear(1, 1), lambda step: 1.0)
    with pytest.raises(ConfigError, match="not a schedule"):
        optim.Scheduler(optimizer(), 0.5)


def test_one_cycle_moves_the_momentum_too():
    cycle = OneCycle(10, base_momentum=0.8, max_momentum=0.9)
    sgd, adam = optimizer(momentum=0.5), optimizer(optim.Adam)
    for o in (sgd, adam):
        scheduler = optim.Scheduler(o, cycle)
        scheduler.set_step(2)
    assert sgd.param_groups[0]["momentum"] == pytest.approx(0.8)
    assert adam.param_groups[0]["betas"] == (pytest.approx(0.8), 0.999)
    assert OneCycle(10).momentum(3) is None
    with pytest.raises(ConfigError, match="Adagrad has no momentum"):
        optim.Scheduler(optimizer(optim.Adagrad), cycle)


def test_the_step_is_the_whole_state():
    scheduler = optim.Scheduler(optimizer(), Cosine(10))
    for _ in range(3):
        scheduler.step()
    other = optim.Scheduler(optimizer(), Cosine(10))
    other.load_state_dict(scheduler.state_dict())
    assert other.get_last_lr() == scheduler.get_last_lr() and other.last_step == 3


@pytest.mark.parametrize("state", [{}, {"step": -1}, {"step": 1.5}, {"step": 1, "x": 2}, None, 3])
def test_a_wrong_state_is_refused(state):
    with pytest.raises(CheckpointError, match="Scheduler"):
        optim.Scheduler(optimizer(), Cosine(10)).load_state_dict(state)
