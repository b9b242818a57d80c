"""The scale of the loss: its rule, what a skipped step leaves as it is, and that nobody waits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends import get_backend
from gpubackprop.errors import CheckpointError, ConfigError, DeviceError
from gpubackprop.optim import GradScaler
from gpubackprop.testing import StandInBackend

OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.1),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "Adam": lambda p: optim.Adam(p, lr=0.1),
    "AdamW": lambda p: optim.AdamW(p, lr=0.1),
}
EVERY = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=list(OPTIMIZERS))


def parameters(*shapes, device=None):
    rng = np.random.default_rng(3)
    return [
        nn.Parameter(rng.standard_normal(s).astype(np.float32), device=device)
        for s in shapes or ((3, 2), (2,))
    ]


def give(params, scale, seed, wrong=False):
    """Scaled gradients; with `wrong` one of their elements is infinite."""
    rng = np.random.default_rng(seed)
    for p in params:
        g = rng.standard_normal(p.shape).astype(np.float32) * np.float32(scale)
        if wrong:
            g.reshape(-1)[0] = np.inf if seed % 2 else np.nan
            wrong = False
        p.grad = gb.tensor(g, device=p.backend)


def state(optimizer):
    saved = optimizer.state_dict()["state"]
    values = [p.numpy().copy() for p in optimizer.param_groups[0]["params"]]
    return values, {
        (number, name): np.array(value)
        for number, entry in saved.items()
        for name, value in entry.items()
    }


def assert_same(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert one[1].keys() == other[1].keys()
    for key in one[1]:
        np.testing.assert_array_equal(one[1][key], other[1][key], err_msg=str(key))


def pytorch_rule(scale, tracker, wrong, growth=2.0, backoff=0.5, interval=2000):
    """``amp_update_scale_`` of PyTorch, in Python."""
    if wrong:
        return scale * backoff, 0
    if tracker + 1 == interval:
        larger = np.float32(scale) * np.float32(growth)
        return (float(larger) if math.isfinite(larger) else scale), 0
    return scale, tracker + 1


@pytest.mark.parametrize("device", ["cpu", "stand-in"])
def test_the_rule_is_pytorchs(device):
    backend = get_backend("cpu") if device == "cpu" else StandInBackend("scaled")
    params = parameters(device=backend)
    optimizer = optim.SGD(params, lr=0.0)
    options = {"growth_factor": 4.0, "backoff_factor": 0.25, "growth_interval": 3}
    scaler = GradScaler(backend, init_scale=1024.0, **options)
    scale, tracker, skipped = 1024.0, 0, 0
    for step, wrong in enumerate([0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1]):
        give(params, scaler.get_scale(), step, bool(wrong))
        scaler.step(optimizer)
        scaler.update()
        scale, tracker = pytorch_rule(scale, tracker, wrong, 4.0, 0.25, 3)
        skipped += wrong
        found = scaler.state_dict()
        assert (found["scale"], found["growth_tracker"]) == (scale, tracker), step
        assert scaler.skipped == skipped
        optimizer.zero_grad()


def test_a_scale_that_would_be_infinite_stays():
    params = parameters()
    optimizer = optim.SGD(params, lr=0.0)
    scaler = GradScaler("cpu", init_scale=2.0**126, growth_interval=1)
    for expected in (2.0**127, 2.0**127):
        give(params, 1.0, 0)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == expected


@EVERY
def test_skipped_steps_are_as_if_they_had_never_been(make):
    params, others = parameters(), parameters()
    scaled, plain = make(params), make(others)
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for step, wrong in enumerate([1, 1, 0, 0, 1, 0, 1, 1, 0]):
        give(params, scaler.get_scale(), step, bool(wrong))
        scaler.step(scaled)
        scaler.update()
        if not wrong:
            give(others, 1.0, step)
            plain.step()
        assert_same(state(scaled), state(plain))


def test_parameters_that_have_gradients_at_different_steps():
    """Counts of skipped steps are each parameter's own."""
    params, others = parameters((2,), (2,), (2,)), parameters((2,), (2,), (2,))
    scaled, plain = optim.Adam(params, lr=0.1), optim.Adam(others, lr=0.1)
    scaler = GradScaler("cpu", init_scale=4.0)
    plan = [("011", 0), ("110", 1), ("111", 0), ("101", 1), ("001", 1), ("111", 0), ("110", 0)]
    for step, (present, wrong) in enumerate(plan):
        for group, scale in ((params, scaler.get_scale()), (others, 1.0)):
            chosen = [p for p, has in zip(group, present, strict=True) if has == "1"]
            for p in group:
                p.grad = None
            give(chosen, scale, step, bool(wrong) and group is params)
        scaler.step(scaled)
        scaler.update()
        if not wrong:
            plain.step()
        assert_same(state(scaled), state(plain))
    assert len({e["step"] for e in scaled.state_dict()["state"].values()}) > 1


def test_state_that_was_saved_in_between_goes_on():
    params = parameters()
    first = optim.Adam(params, lr=0.1)
    scaler = GradScaler("cpu", init_scale=2.0, growth_interval=2)

    def train(optimizer, scaler, steps):
        group = optimizer.param_groups[0]["params"]
        for step in steps:
            give(group, scaler.get_scale(), step, step % 3 == 1)
            scaler.step(optimizer)
            scaler.update()

    train(first, scaler, range(5))
    values, saved = [p.numpy().copy() for p in params], first.state_dict()
    kept = json.loads(json.dumps(scaler.state_dict()))
    train(first, scaler, range(5, 9))
    again = parameters()
    for p, v in zip(again, values, strict=True):
        p.copy_(v)
    second, other = optim.Adam(again, lr=0.1), GradScaler("cpu")
    train(second, other, range(1))  # state that has to go
    second.load_state_dict(saved)
    for p, v in zip(again, values, strict=True):
        p.copy_(v)
    other.load_state_dict(kept)
    train(second, other, range(5, 9))
    assert_same(state(second), state(first))
    assert other.state_dict() == scaler.state_dict()


def test_a_further_group_and_another_device_keep_the_counts():
    params = parameters()
    optimizer, scaler = optim.Adam(params, lr=0.1), GradScaler("cpu", init_scale=2.0)
    for step, wrong in enumerate([1, 0, 1]):
        give(params, scaler.get_scale(), step, bool(wrong))
        scaler.step(optimizer)
        scaler.update()
    optimizer.add_param_group({"params": parameters((4,))})
    assert [e["step"] for e in optimizer.state_dict()["state"].values()] == [1, 1]
    device = StandInBackend("elsewhere")
    optimizer.arena.to(device)
    moved = GradScaler(device, init_scale=2.0)
    give(params, 2.0, 9)
    moved.step(optimizer)
    moved.update()
    assert [e["step"] for e in optimizer.state_dict()["state"].values()] == [2, 2]


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("unscaled", [False, True])
def test_clipping_is_that_of_the_unscaled_gradients(max_norm, unscaled):
    params, others = parameters(), parameters()
    scaled, plain = optim.SGD(params, lr=0.1), optim.SGD(others, lr=0.1)
    scaler = GradScaler("cpu", init_scale=2.0**20)
    give(params, 2.0**20, 0)
    give(others, 1.0, 0)
    if unscaled:
        scaler.unscale_(scaled)
        for p, q in zip(params, others, strict=True):
            np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())
    scaler.step(scaled, max_norm=max_norm)
    optim.clip_grad_norm_(plain, max_norm)
    plain.step()
    for p, q in zip(params, others, strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("tensors", [True, False], ids=["parameters", "optimizer"])
@pytest.mark.parametrize("clip", [optim.clip_grad_norm_, optim.clip_grad_value_])
def test_clipping_scaled_gradients_is_refused(clip, tensors):
    """They would end up smaller than was asked for, by the scale."""
    params = parameters()
    optimizer, scaler = optim.SGD(params, lr=0.1), GradScaler("cpu")
    source = params if tensors else optimizer
    before = [p.numpy().copy() for p in params]

    def backward():
        optimizer.zero_grad()
        scaler.scale(sum((p * p).sum() for p in params)).backward()

    for end in (scaler.step, scaler.unscale_):
        backward()
        clip(source, 1.0)
        with pytest.raises(ConfigError, match=r"clipped while.*max_norm=.*unscale_\(optimizer\)"):
            end(optimizer)
        scaler.update()
    for p, value in zip(params, before, strict=True):
        np.testing.assert_array_equal(p.numpy(), value)
    clip(source, 1.0)  # of an earlier step, or of a loop without a scale
    for _ in range(2):
        backward()
        scaler.unscale_(optimizer)
        clip(source, 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert not np.array_equal(params[0].numpy(), before[0])


def test_squares_that_float32_cannot_hold():
    """Norms of gradients at a large scale are neither infinite nor zero."""
    for factor in (2.0**100, 2.0**-100):
        params = parameters()
        optimizer = optim.SGD(params, lr=1.0)
        give(params, factor, 0)
        before = [p.numpy().copy() for p in params]
        scaler = GradScaler("cpu", init_scale=factor)
        scaler.step(optimizer, max_norm=1.0)
        moves = [p.numpy() - b for p, b in zip(params, before, strict=True)]
        assert math.sqrt(sum(float((m * m).sum()) for m in moves)) == pytest.approx(1.0, rel=1e-4)


def test_one_optimizer_of_two_is_skipped_and_the_scale_is_halved():
    a, b = parameters((2,)), parameters((3,))
    first, second = optim.SGD(a, lr=0.1), optim.SGD(b, lr=0.1)
    scaler = GradScaler("cpu", init_scale=8.0)
    before = [p.numpy().copy() for p in (*a, *b)]
    give(a, 8.0, 0, wrong=True)
    give(b, 8.0, 1)
    scaler.step(first)
    scaler.step(second)
    scaler.update()
    assert (a[0].numpy() == before[0]).all() and (b[0].numpy() != before[1]).all()
    assert scaler.get_scale() == 4.0 and scaler.skipped == 1
    give(a, 4.0, 0)
    scaler.step(first)
    scaler.update()  # what was found is forgotten
    assert scaler.get_scale() == 4.0 and scaler.skipped == 1


def training(compiled, fast=None, device=None, steps=14):
    generator, rng = gb.Generator(3), np.random.default_rng(0)
    net = nn.Sequential(
        nn.Linear(8, 16, generator=generator),
        nn.GELU(),
        nn.LayerNorm(16),
        nn.Linear(16, 5, generator=generator),
    )
    if device is not None:
        net.to(device)
    optimizer = optim.Adam(net.parameters(), lr=1e-2)
    scaler = GradScaler(device, init_scale=2.0**24, growth_interval=3)
    x = gb.tensor(rng.standard_normal((6, 8)).astype(np.float32), device=device)
    y = gb.tensor(rng.integers(0, 5, 6), device=device)

    def step(x, y):
        optimizer.zero_grad()
        with gb.precision("fp16-mixed"):
            loss = nn.functional.cross_entropy(net(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer, max_norm=1.0)
        scaler.update()
        return loss

    run = gb.compile(step, fast=fast) if compiled else step
    found = [(run(x, y).item(), scaler.get_scale(), scaler.skipped) for _ in range(steps)]
    if compiled:
        assert sum(e.calls for e in run.entries) >= 9, run.explain()
    return found, [p.numpy() for p in net.parameters()], optimizer.state_dict()["state"][0]["step"]


@pytest.mark.parametrize("fast", [False, None], ids=["plain", "native"])
def test_a_whole_step_is_compiled(fast):
    """Nothing in it waits for the device or chooses by what it finds, or this would be an error."""
    found, values, count = training(True, fast)
    expected, wanted, steps = training(False)
    assert [f[1:] for f in found] == [f[1:] for f in expected]
    np.testing.assert_allclose([f[0] for f in found], [f[0] for f in expected], rtol=1e-4)
    assert count == steps == len(found) - found[-1][2]
    assert 0 < found[-1][2] < len(found)  # there were steps of both kinds
    for a, b in zip(values, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_step_reads_nothing_back():
    """On a device that cannot be read, as while a stream is captured."""

    class Deaf(StandInBackend):
        reads = 0

        def to_numpy(self, x):
            self.reads += 1
            return super().to_numpy(x)

    device = Deaf("deaf")
    params = parameters(device=device)
    optimizer, scaler = optim.Adam(params, lr=0.1), GradScaler(device)
    give(params, 2.0, 0, wrong=True)
    device.reads = 0
    scaler.step(optimizer, max_norm=1.0)
    scaler.update()
    assert device.reads == 0
    assert scaler.skipped == 1


def test_a_loss_of_half_precision_is_scaled_in_float32():
    scaler = GradScaler("cpu")
    loss = gb.tensor(np.array(3.0, np.float16), requires_grad=True)
    scaled = scaler.scale(loss)
    assert scaled.dtype == np.float32 and scaled.item() == 3.0 * 2.0**16


@pytest.mark.parametrize(
    "options",
    [
        {"init_scale": 0.0},
        {"init_scale": math.nan},
        {"init_scale": True},
        {"growth_factor": 1.0},
        {"backoff_factor": 1.0},
        {"backoff_factor": "half"},
        {"growth_interval": 0},
        {"growth_interval": 2.5},
    ],
)
def test_arguments_out_of_range(options):
    with pytest.raises(ConfigError, match=f"GradScaler: {next(iter(options))} must be"):
        GradScaler("cpu", **options)


def test_errors():
    params, device = parameters(), StandInBackend("other")
    optimizer, scaler = optim.SGD(params, lr=0.1), GradScaler("cpu")
    give(params, 1.0, 0)
    scaler.unscale_(optimizer)
    with pytest.raises(ConfigError, match="unscaled already"):
        scaler.unscale_(optimizer)
    with pytest.raises(ConfigError, match="max_norm must not be negative"):
        scaler.step(optimizer, max_norm=-1.0)
    with pytest.raises(DeviceError, match="make it with device='cpu'"):
        GradScaler(device).step(optimizer)
    with pytest.raises(DeviceError, match="make it with device='other'"):
        scaler.scale(gb.tensor(np.array(1.0, np.float32), device=device))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": None}, "init_scale must be"),
        ({"scale": -1.0}, "init_scale must be"),
        ({"growth_tracker": 1.5}, "growth_tracker must be a count"),
        ({"skipped": -1}, "skipped must be a count"),
        ({"more": 1}, "and nothing else"),
    ],
)
def test_a_saved_state_that_does_not_fit(change, words):
    scaler = GradScaler("cpu")
    before = scaler.state_dict()
    with pytest.raises(CheckpointError, match=words):
        scaler.load_state_dict({**before, **change})
    with pytest.raises(CheckpointError, match="and nothing else"):
        scaler.load_state_dict({"scale": 2.0})
    assert scaler.state_dict() == before
