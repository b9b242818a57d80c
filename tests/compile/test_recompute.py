"""Values that are computed twice to save memory: the same results, in less of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends.live import LiveFloat
from gpubackprop.compile import recompute
from gpubackprop.compile.plan import lifetimes, peak_of
from gpubackprop.compile.recompute import recomputed
from gpubackprop.compile.trace import Call
from tests.compile.test_plan import Apart, Step, call, vector

X = vector(0, 1000, "input")


def peak(calls, results=(), inputs=(X,)) -> int:
    return peak_of(lifetimes(calls, results, inputs))[0]


def test_a_value_is_dropped_while_memory_is_full():
    y, small, big, end = vector(1, 1000), vector(3, 10), vector(6, 4000), vector(7, 1000)
    calls = [
        call("relu", y, X),
        call("matmul", small, y),
        call("matmul", big, small),
        call("matmul", vector(8, 10), big),
        call("add", end, y, X),
    ]
    found, count = recomputed(calls, [end], [X])
    assert count == 1
    assert [c.kernel for c in found] == ["relu", "matmul", "matmul", "matmul", "relu", "add"]
    assert found[-1].args[0].buffer is found[-2].outs[0].buffer is not y.buffer
    assert peak(calls, [end]) - peak(found, [end]) == y.nbytes


def test_a_value_in_use_where_memory_is_fullest_is_kept():
    """At the product itself it is read; only the few bytes of the next call would be gained."""
    y, big, small, end = vector(1, 1000), vector(2, 4000), vector(3, 10), vector(4, 1000)
    calls = [
        call("relu", y, X),
        call("matmul", big, y, y),
        call("matmul", small, big),
        call("add", end, y, X),
    ]
    assert recomputed(calls, [end], [X]) == (calls, 0)


@pytest.mark.parametrize("why", ["costly", "input gone", "input changed", "live", "too small"])
def test_what_is_kept(why, monkeypatch):
    y, big, small, end = vector(1, 1000), vector(2, 4000), vector(3, 10), vector(4, 1000)
    made = call("matmul" if why == "costly" else "relu", y, X)
    middle = [call("matmul", big, small), call("matmul", vector(5, 10), big)]
    if why == "input changed":
        other = vector(6, 1000)
        middle += [call("matmul", other, small), Call("copyto", (X, other), {}, (), (X,))]
    if why == "live":
        made = Call("relu", (X,), {"slope": LiveFloat(0.5)}, (y,))
    last = call("add", end, y, small if why == "input gone" else X)
    if why == "too small":
        monkeypatch.setattr(recompute, "LEAST", 10**6)
    calls = [made, call("matmul", small, y), *middle, last]
    found, count = recomputed(calls, [end], [X])
    assert count == 0 and found == calls


@pytest.mark.parametrize("seed", range(60))
def test_random_steps_give_the_same(seed, monkeypatch):
    monkeypatch.setattr(recompute, "CHEAP", frozenset({"mixed"}))
    monkeypatch.setattr(recompute, "LEAST", 1)
    step = Step(seed, 60)
    outside = {b for c in step.calls for r in [*c.outs, *c.reads] for b in [r.buffer]}
    outside = [b for b in outside if b.kind == "external"]

    def results(calls):
        for b in outside:
            b.array[...] = 0
        memory = Apart()
        for b in outside:
            memory.arrays[b] = b.array.view(np.uint8)
        return step.run(memory.view, calls)[-len(step.results) :], [b.array.copy() for b in outside]

    wanted = results(step.calls)
    found, count = recomputed(step.calls, step.results, step.inputs)
    assert len(found) == len(step.calls) + count
    for a, b in zip([*wanted[0], *wanted[1]], sum(results(found), []), strict=True):
        np.testing.assert_array_equal(a, b)
    before, after = (peak(c, step.results, step.inputs) for c in (step.calls, found))
    assert after < before if count else after == before


def train(recompute: bool, fast: bool | None) -> tuple[Any, list[np.ndarray]]:
    gb.manual_seed(0)
    layers: list[Any] = []
    for _ in range(4):
        layers += [nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)]
    model = nn.Sequential(*layers)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    rng = np.random.default_rng(0)
    x, y = (gb.tensor(rng.standard_normal((128, 64)).astype(np.float32)) for _ in range(2))

    @gb.compile(fast=fast, recompute=recompute)
    def step(x, y):
        optimizer.zero_grad()
        loss = ((model(x) - y) * (model(x) - y)).mean()
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(6):
        loss = step(x, y)
    return step, [loss.numpy(), *(p.numpy() for p in model.parameters())]


@pytest.mark.parametrize("fast", [False, None])
def test_a_training_step_needs_less_memory(fast):
    plain, wanted = train(False, fast)
    frugal, found = train(True, fast)
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    (before,), (after,) = plain.entries, frugal.entries
    assert after.replay.report.again >= 4
    assert after.replay.plan.nbytes < 0.8 * before.replay.plan.nbytes
    assert f"{after.replay.report.again} value(s) computed twice" in frugal.explain()
    assert "computed twice" not in plain.explain()
