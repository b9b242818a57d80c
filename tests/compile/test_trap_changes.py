"""The shortest programs in which something changes between two calls of a compiled function. Each
gives what the plain function gives.
"""

from __future__ import annotations

import numpy as np

import gpubackprop as gb
from gpubackprop.compile.api import compile
from tests.compile.support.steps import (
    RNG,
    Net,
    adam_step,
    agree,
    pair,
    replayed,
    same_networks,
    x_of,
)


def test_short_last_batch_and_another_shape(fast) -> None:
    (net, step), (twin, compiled) = pair(fast, adam_step)
    for i in range(30):
        n = (6, 6, 6, 2)[i % 4]
        x, y = x_of(n), gb.tensor(RNG.integers(0, 3, n))
        agree(step(x, y), compiled(x, y))
    same_networks(net, twin)
    assert len(compiled.entries) == 2


def test_training_and_evaluation_mode(fast) -> None:
    net = Net(dropout=0.5)
    forward = compile(net, fast=fast)
    x = x_of()
    for i in range(24):
        net.train(i % 2 == 0)
        y = forward(x)
        if i % 2:
            agree(y, net(x))
    net.eval()
    agree(forward(x), net(x))
    assert replayed(forward) > 8


def test_another_dtype(fast) -> None:
    compiled = compile(lambda x: gb.exp(x) * 2.0, fast=fast)
    for dtype in ("float32", "float64", "float16", "float32", "float64"):
        for _ in range(5):
            x = gb.tensor(RNG.standard_normal(5), dtype=dtype)
            y = compiled(x)
            assert y.dtype == dtype
            np.testing.assert_allclose(y.numpy(), np.exp(x.numpy()) * 2, rtol=1e-3)


def test_module_setting_that_changes(fast) -> None:
    net = Net(dropout=0.0)
    compiled = compile(net, fast=fast)
    x = x_of()
    for _ in range(5):
        agree(compiled(x), net(x))
    net.drop.p = 1.0
    for _ in range(5):
        agree(compiled(x), net.second.bias + gb.zeros((6, 3)))


def test_parameter_set_that_changes(fast) -> None:
    (net, step), (twin, compiled) = pair(fast, adam_step)
    x, y = x_of(), gb.tensor(RNG.integers(0, 3, 6))
    for i in range(15):
        if i == 5:
            for n in (net, twin):
                n.first.weight.requires_grad_(False)
        if i == 10:
            for n in (net, twin):
                n.first.weight.requires_grad_(True)
                n.second.bias.array = n.second.bias.array + 1.0
        agree(step(x, y), compiled(x, y))
    same_networks(net, twin)


def test_weights_that_are_loaded_between_calls(fast) -> None:
    (net, step), (twin, compiled) = pair(fast, adam_step)
    state = net.state_dict()
    x, y = x_of(), gb.tensor(RNG.integers(0, 3, 6))
    for i in range(10):
        if i == 6:
            net.load_state_dict(state)
            twin.load_state_dict(state)
        agree(step(x, y), compiled(x, y))
    same_networks(net, twin)


def test_number_of_the_closure_that_changes(fast) -> None:
    scale = 2.0
    compiled = compile(lambda x: x * scale, fast=fast)
    x = x_of()
    for _ in range(5):
        agree(compiled(x), x * 2.0)
    scale = 3.0
    for _ in range(5):
        agree(compiled(x), x * 3.0)


def test_array_of_the_closure_that_is_replaced_after_a_while(fast) -> None:
    mask = gb.tensor(np.ones((6, 4), np.float32))
    compiled = compile(lambda x: x * mask, fast=fast)
    x = x_of()
    for _ in range(5):
        agree(compiled(x), x)
    mask = gb.tensor(np.zeros((6, 4), np.float32))
    for _ in range(5):
        assert not compiled(x).numpy().any()


def test_array_of_the_closure_that_is_written_in_place(fast) -> None:
    mask = gb.tensor(np.ones((6, 4), np.float32))
    compiled = compile(lambda x: x * mask, fast=fast)
    x = x_of()
    for i in range(6):
        mask.array[:] = i
        agree(compiled(x), x * float(i))


def test_constant_made_anew_inside(fast) -> None:
    compiled = compile(lambda x: x + gb.tensor(np.arange(4, dtype=np.float32)), fast=fast)
    x = x_of()
    for _ in range(6):
        agree(compiled(x), x + gb.tensor(np.arange(4, dtype=np.float32)))


def test_empty_batch(fast) -> None:
    compiled = compile(lambda x: gb.exp(x).sum(), fast=fast)
    for n in (6, 0, 6, 0, 6, 0, 6, 0, 6, 0):
        x = x_of(n)
        agree(compiled(x), gb.exp(x).sum())


def test_cache_is_bounded() -> None:
    compiled = compile(lambda x: x * 2.0, cache=3)
    for n in range(1, 9):
        for _ in range(4):
            x = x_of(n)
            agree(compiled(x), x * 2.0)
    assert len(compiled.entries) == 3
    assert "used longest ago" in compiled.explain()
