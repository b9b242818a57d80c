"""State of optimizers: bit-identical resume, and errors that name what does not fit."""

import json

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.errors import CheckpointError
from gpubackprop.optim import schedules

MAKERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.2),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, momentum=0.5, centered=True),
    "adam": lambda p: optim.Adam(p, lr=0.1),
    "adamw": lambda p: optim.AdamW(p, lr=0.1),
}


def network(seed):
    gb.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.3), nn.Tanh(), nn.Linear(4, 3))


def train(net, optimizer, scheduler, steps):
    losses = []
    for step in steps:
        rng = np.random.default_rng(step)
        x = gb.tensor(rng.normal(size=(6, 5)).astype(np.float32))
        y = gb.tensor(rng.integers(0, 3, 6))
        optimizer.zero_grad()
        loss = nn.CrossEntropyLoss()(net(x), y)
        loss.backward()
        if step % 3 == 1:
            net[3].bias.grad = None  # its step count falls behind
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def through_files(state):
    """What a checkpoint keeps: arrays exactly, everything else as JSON."""
    arrays = {
        (n, k): v.copy() for n, s in state["state"].items() for k, v in s.items() if k != "step"
    }
    plain = json.loads(
        json.dumps({**state, "state": {n: {"step": s["step"]} for n, s in state["state"].items()}})
    )
    for (n, k), v in arrays.items():
        plain["state"][str(n)][k] = v
    return plain


@pytest.mark.parametrize("name", MAKERS)
def test_a_resumed_run_is_bit_identical(name):
    net = network(1)
    groups = [{"params": net[0].parameters()}, {"params": net[3].parameters(), "lr": 0.05}]
    optimizer = MAKERS[name](groups)
    scheduler = optim.Scheduler(optimizer, schedules.Cosine(20))
    train(net, optimizer, scheduler, range(5))
    saved = net.state_dict(), net.random_state(), through_files(optimizer.state_dict())
    place = scheduler.state_dict()
    expected = train(net, optimizer, scheduler, range(5, 10))

    again = network(2)
    optimizer = MAKERS[name]([{"params": again[0].parameters()}, {"params": again[3].parameters()}])
    again.load_state_dict(saved[0])
    again.load_random_state(saved[1])
    optimizer.load_state_dict(saved[2])
    scheduler = optim.Scheduler(optimizer, schedules.Cosine(20))
    scheduler.load_state_dict(place)
    assert train(again, optimizer, scheduler, range(5, 10)) == expected
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key], value)


def test_the_form_is_pytorchs():
    net = network(1)
    optimizer = optim.Adam(net.named_parameters(), lr=0.1)
    assert optimizer.state_dict()["state"] == {}
    train(net, optimizer, optim.Scheduler(optimizer, schedules.Constant()), range(2))
    state = optimizer.state_dict()
    assert state["optimizer"] == "Adam"
    assert state["param_groups"] == [
        {
            "lr": 0.1,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "maximize": False,
            "params": [0, 1, 2, 3],
            "names": ["0.weight", "0.bias", "3.weight", "3.bias"],
            "initial_lr": 0.1,
        }
    ]
    assert [state["state"][i]["step"] for i in range(4)] == [2, 2, 2, 1]
    assert state["state"][0]["exp_avg"].shape == (4, 5)
    before = state["state"][0]["exp_avg"].copy()
    train(net, optimizer, optim.Scheduler(optimizer, schedules.Constant()), [2])
    np.testing.assert_array_equal(state["state"][0]["exp_avg"], before)  # a copy


def saved_state():
    net = network(1)
    optimizer = optim.Adam(net.named_parameters(), lr=0.1)
    train(net, optimizer, optim.Scheduler(optimizer, schedules.Constant()), range(3))
    return optimizer


def drop(state, *path):
    *way, last = path
    for key in way:
        state = state[key]
    del state[last]


def put(state, value, *path):
    *way, last = path
    for key in way:
        state = state[key]
    state[last] = value


FAULTS = {
    "other optimizer": (lambda s: put(s, "SGD", "optimizer"), "of the optimizer 'SGD'"),
    "missing key": (lambda s: drop(s, "state"), "missing: 'state'"),
    "unexpected key": (lambda s: put(s, 1, "stat"), "unexpected: 'stat'"),
    "state of no dictionary": (lambda s: put(s, [1], "state"), "state is not a dictionary"),
    "groups of no list": (lambda s: put(s, 3, "param_groups"), "param_groups is not a list"),
    "too many groups": (
        lambda s: s["param_groups"].append(s["param_groups"][0]),
        "2 parameter group",
    ),
    "too few parameters": (
        lambda s: put(s, [0, 1], "param_groups", 0, "params"),
        "2 parameters, the optimizer has 4",
    ),
    "parameters of no list": (lambda s: put(s, 4, "param_groups", 0, "params"), "group 0"),
    "other names": (
        lambda s: put(s, ["a", "b", "c", "d"], "param_groups", 0, "names"),
        "named",
    ),
    "missing option": (lambda s: drop(s, "param_groups", 0, "eps"), "missing: 'eps'"),
    "unknown option": (
        lambda s: put(s, True, "param_groups", 0, "amsgrad"),
        "unexpected: 'amsgrad'",
    ),
    "wrong option": (lambda s: put(s, -1.0, "param_groups", 0, "lr"), "lr must be"),
    "wrong first rate": (
        lambda s: put(s, "x", "param_groups", 0, "initial_lr"),
        "initial_lr must be",
    ),
    "missing slot": (lambda s: drop(s, "state", 1, "exp_avg"), "parameter 1: missing: 'exp_avg'"),
    "misspelt slot": (
        lambda s: put(s, s["state"][1].pop("exp_avg"), "state", 1, "exp_avgs"),
        "did you mean 'exp_avg'",
    ),
    "missing step": (lambda s: drop(s, "state", 1, "step"), "missing: 'step'"),
    "wrong step": (lambda s: put(s, -3, "state", 1, "step"), "step -3 is not a positive"),
    "step of text": (lambda s: put(s, "x", "state", 1, "step"), "step 'x' is not a positive"),
    "step of None": (lambda s: put(s, None, "state", 1, "step"), "step None is not a positive"),
    "wrong shape": (
        lambda s: put(s, np.zeros(9), "state", 1, "exp_avg"),
        r"parameter 1: exp_avg has shape \(9,\), expected \(4,\)",
    ),
    "wrong dtype": (
        lambda s: put(s, np.zeros(4, complex), "state", 1, "exp_avg"),
        "dtype complex128",
    ),
    "no such parameter": (
        lambda s: put(s, s["state"][1], "state", 9),
        "parameter 9, of which there are 4",
    ),
    "entry of no dictionary": (lambda s: put(s, 3, "state", 1), "parameter 1: not a dictionary"),
}


@pytest.mark.parametrize(("damage", "words"), FAULTS.values(), ids=FAULTS)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(damage, words):
    optimizer = saved_state()
    before = optimizer.state_dict()
    state = optimizer.state_dict()
    damage(state)
    with pytest.raises(CheckpointError, match=words) as error:
        optimizer.load_state_dict(state)
    assert "\n" not in str(error.value)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for n, entry in before["state"].items():
        assert entry["step"] == after["state"][n]["step"]
        for slot, array in entry.items():
            np.testing.assert_array_equal(after["state"][n][slot], array)


def test_no_dictionary_at_all():
    with pytest.raises(CheckpointError, match="not a dictionary"):
        saved_state().load_state_dict([1, 2])


def test_loading_an_early_state_forgets_the_later_one():
    net = network(1)
    optimizer = optim.Adagrad(net.parameters(), initial_accumulator_value=0.25)
    empty = optimizer.state_dict()
    train(net, optimizer, optim.Scheduler(optimizer, schedules.Constant()), range(2))
    optimizer.load_state_dict(empty)
    assert optimizer.state_dict()["state"] == {}
    net.zero_grad()
    net[0].bias.grad = gb.tensor(np.zeros(4, np.float32))
    optimizer.step()
    assert (optimizer.state_dict()["state"][1]["sum"] == 0.25).all()
