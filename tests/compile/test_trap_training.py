"""The shortest programs in which a compiled training step could go wrong. Each gives what the plain
step gives.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.compile.api import compile
from gpubackprop.errors import ShapeError
from gpubackprop.nn import functional as F
from tests.compile.support.steps import RNG, adam_step, agree, pair, replayed, same_networks, x_of


def test_training_is_the_same(fast) -> None:
    (net, step), (twin, compiled) = pair(fast, adam_step)
    for _ in range(12):
        x, y = x_of(), gb.tensor(RNG.integers(0, 3, 6))
        agree(step(x, y), compiled(x, y))
    same_networks(net, twin)
    assert replayed(compiled) >= 7


def test_learning_rate_is_read_at_each_call(fast) -> None:
    (net, step), (twin, compiled) = pair(fast, adam_step)
    inner = compiled.fn
    x, y = x_of(), gb.tensor(RNG.integers(0, 3, 6))
    for i in range(12):
        for optimizer in (step.optimizer, inner.optimizer):
            optimizer.param_groups[0]["lr"] = 0.001 * (i + 1)
            optimizer.param_groups[0]["betas"] = (0.8 + 0.01 * i, 0.99)
        agree(step(x, y), compiled(x, y))
    same_networks(net, twin)
    assert replayed(compiled) >= 7


def test_schedule_inside_the_step(fast) -> None:
    def make(net):
        optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        scheduler = optim.Scheduler(optimizer, optim.schedules.Cosine(steps=30))

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optim.clip_grad_norm_(optimizer, 0.5)
            optimizer.step()
            scheduler.step()
            return loss

        step.scheduler = scheduler
        return step

    (net, step), (twin, compiled) = pair(fast, make)
    x, y = x_of(), gb.tensor(RNG.integers(0, 3, 6))
    for _ in range(12):
        agree(step(x, y), compiled(x, y))
    same_networks(net, twin)
    assert compiled.fn.scheduler.last_step == step.scheduler.last_step == 12


def test_dropout_draws_new_bits_at_each_call(fast) -> None:
    (net, step), (twin, compiled) = pair(fast, adam_step, dropout=0.5)
    x, y = x_of(), gb.tensor(RNG.integers(0, 3, 6))
    for _ in range(12):
        agree(step(x, y), compiled(x, y))
    same_networks(net, twin)
    assert net.drop.generator.state() == twin.drop.generator.state()


def test_accumulation_of_gradients_over_calls(fast) -> None:
    def make(net):
        optimizer = optim.SGD(net.parameters(), lr=0.1)

        def step(x, y):
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            return loss

        step.optimizer = optimizer
        return step

    (net, step), (twin, compiled) = pair(fast, make)
    for i in range(24):
        x, y = x_of(), gb.tensor(RNG.integers(0, 3, 6))
        agree(step(x, y), compiled(x, y))
        if i % 3 == 2:
            for f in (step, compiled.fn):
                f.optimizer.step()
                f.optimizer.zero_grad()
    same_networks(net, twin)
    assert replayed(compiled) > 6


def test_gradients_of_plain_leaves_are_left_where_they_were(fast) -> None:
    w = gb.tensor([1.0, 2.0, 3.0], requires_grad=True)

    def step(x):
        w.zero_grad()
        loss = (w * x).sum()
        loss.backward()
        return loss

    compiled = compile(step, fast=fast)
    held = None
    for i in range(8):
        compiled(gb.tensor([1.0, i, 2.0]))
        assert w.grad.tolist() == [1.0, i, 2.0]
        if held is not None:
            assert held.tolist() == [1.0, i - 1, 2.0]
        held = w.grad


def test_derivatives_of_derivatives(fast) -> None:
    def curvature(x):
        x = x.detach().requires_grad_()
        (first,) = gb.grad((x * x * x).sum(), x, create_graph=True)
        (second,) = gb.grad(first.sum(), x)
        return second

    compiled = compile(curvature, fast=fast)
    for _ in range(6):
        x = x_of()
        agree(compiled(x), x * 6.0)


def test_gradient_by_an_argument(fast) -> None:
    def loss(x):
        value = (x * x).sum()
        value.backward()
        return value

    compiled = compile(loss, fast=fast)
    for _ in range(6):
        x = x_of()
        x.requires_grad_()
        compiled(x)
        agree(x.grad, x.detach() * 2.0)


def test_checkpoint_inside(fast) -> None:
    def make(net):
        optimizer = optim.SGD(net.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(gb.checkpoint(net, x), y)
            loss.backward()
            optimizer.step()
            return loss

        return step

    (net, step), (twin, compiled) = pair(fast, make, dropout=0.5)
    x, y = x_of(), gb.tensor(RNG.integers(0, 3, 6))
    for _ in range(8):
        agree(step(x, y), compiled(x, y))
    same_networks(net, twin)
    assert replayed(compiled) >= 3


def test_exception_half_way_leaves_everything_as_it_was(fast) -> None:
    (_, _), (net, compiled) = pair(fast, adam_step, dropout=0.5)
    good = gb.tensor(RNG.integers(0, 3, 6))
    x = x_of()
    for _ in range(5):
        compiled(x, good)
    before = {name: p.numpy().copy() for name, p in net.named_parameters()}
    place = net.drop.generator.state()
    steps = [list(s) for s in compiled.fn.optimizer._steps]
    bad = gb.tensor(np.array([0, 1, 2, 7, 1, 0]))
    with pytest.raises(ShapeError, match=r"softmax_cross_entropy: target\[3\] = 7 is not a class"):
        compiled(x, bad)
    for name, p in net.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name])
    assert net.drop.generator.state() == place
    assert [list(s) for s in compiled.fn.optimizer._steps] == steps
    assert np.isfinite(compiled(x, good).item())


def test_a_derivative_that_is_zero_but_for_rounding(fast) -> None:
    # A bias in front of batch normalisation: its derivative is a sum of terms that cancel.
    generator = gb.Generator(4)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, generator=generator), nn.BatchNorm2d(8), nn.Tanh())
    parameters = list(net.parameters())
    x = gb.tensor(RNG.standard_normal((16, 3, 8, 8)).astype(np.float32))
    weights = gb.tensor(RNG.standard_normal((16, 8, 6, 6)).astype(np.float32))
    compiled = compile(lambda x: gb.grad((net(x) * weights).sum(), parameters), fast=fast)
    for _ in range(5):
        found = compiled(x)
    assert replayed(compiled) > 0
    assert abs(found[1].numpy()).max() < 1e-3 < abs(found[0].numpy()).max()


FIRST = """
import numpy as np
import gpubackprop as gb

def made():
    x = np.linspace(-1, 1, 4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
    by = np.linspace(1, 2, 32, dtype=np.float32).reshape(4, 1, 8)
    step = gb.compile(lambda x, by: gb.grad(gb.sum(gb.tanh(gb.exp(x)) * by), [x])[0], fast=True)
    for _ in range(4):
        found = step(gb.tensor(x, requires_grad=True), gb.tensor(by)).numpy()
    y = np.tanh(np.exp(x))
    np.testing.assert_allclose(found, (1 - y * y) * by * np.exp(x), rtol=1e-4, atol=1e-6)
    lines = step.explain(calls=True).splitlines()
    return found.tobytes(), [line for line in lines if "built in" not in line]

first, second = made(), made()
assert first == second, (first[1], second[1])
assert any("(0 written in place)" not in line for line in first[1] if "memory:" in line), first[1]
assert not any("own kernels" in line for line in first[1]), first[1]
"""


def test_the_first_step_of_a_process_is_that_of_every_later_one() -> None:
    # Otherwise a run that is resumed where something was compiled before has other last bits.
    pytest.importorskip("numba")
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
