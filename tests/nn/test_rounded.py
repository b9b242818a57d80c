"""The half-precision copy of an arena: made in one pass, and never older than its masters."""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends import get_backend
from gpubackprop.backends.interception import intercepted
from gpubackprop.errors import GradientError
from gpubackprop.nn import functional as F
from gpubackprop.testing import StandInBackend

HALF = np.dtype(np.float16)


def network():
    g = gb.Generator(2)
    return nn.Sequential(nn.Linear(4, 5, generator=g), nn.ReLU(), nn.Linear(5, 3, generator=g))


def data():
    return gb.tensor(np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32))


def forward(net, x):
    with gb.precision("fp16-mixed"):
        return net(x)


def expected(net, x):
    """The network on parameters that were rounded one by one."""
    first, second = net[0], net[2]
    parts = [p.numpy().astype(HALF) for p in (first.weight, first.bias, second.weight, second.bias)]
    kernels, w1, b1, w2, b2 = get_backend("cpu"), *parts
    h = kernels.relu(kernels.linear(x.numpy().astype(HALF), w1, b1))
    return kernels.linear(h, w2, b2)


def roundings(run):
    """How many kernel calls rounded parameters while `run` ran: sizes of what they wrote."""
    found = []

    def call(name, kernel, args, kwargs):
        result = kernel(*args, **kwargs)
        target = args[0] if name == "copyto" else result
        if name in ("copyto", "astype") and target.dtype == HALF:
            found.append(target.size)
        return result

    with intercepted(get_backend("cpu"), call):
        run()
    return found


def test_one_pass_over_all_parameters_serves_until_an_update():
    net, x = network(), data()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    (section,) = optimizer.arena.sections
    x = x.astype(HALF)  # only parameters are left to round
    assert roundings(lambda: forward(net, x)) == [section.size]
    assert roundings(lambda: forward(net, x)) == []
    forward(net, x).sum().backward()
    optimizer.step()
    assert roundings(lambda: (forward(net, x), forward(net, x))) == [section.size]


def test_what_products_take_is_a_view_of_the_copy():
    net = network()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    (section,) = optimizer.arena.sections
    for p in net.parameters():
        rounded = p.rounded(HALF)
        assert rounded.shape == p.shape and rounded.dtype == HALF
        assert np.shares_memory(rounded.numpy(), section.rounded(HALF).buffer.numpy())
        np.testing.assert_array_equal(rounded.numpy(), p.numpy().astype(HALF))


def moved(net, optimizer):
    forward(net, data()).sum().backward()
    optimizer.step()


def replaced(net, optimizer):
    net[0].weight.array = np.full((5, 4), 0.5, np.float32)
    optimizer.arena.gather()


def replaced_and_not_gathered(net, optimizer):
    net[0].weight.array = np.full((5, 4), 0.5, np.float32)


def put_back(net, optimizer):
    before = optimizer.snapshot()
    moved(net, optimizer)
    forward(net, data())
    before()


CHANGES = {
    "an update": moved,
    "copy_": lambda net, optimizer: net[0].weight.copy_(np.ones((5, 4), np.float32)),
    "load_state_dict": lambda net, o: net.load_state_dict(
        {k: v + 1.0 for k, v in net.state_dict().items()}
    ),
    "another array": replaced,
    "another array, outside of the arena": replaced_and_not_gathered,
    "a snapshot": put_back,
    "a parameter added": lambda net, optimizer: optimizer.add_param_group(
        {"params": [nn.Parameter(np.zeros(3, np.float32))]}
    ),
    "another optimizer": lambda net, optimizer: moved(net, optim.SGD(net.parameters(), lr=0.3)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_the_copy_follows_its_masters(change):
    net, x = network(), data()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    np.testing.assert_array_equal(forward(net, x).numpy(), expected(net, x))
    optimizer.zero_grad()
    change(net, optimizer)
    np.testing.assert_array_equal(forward(net, x).numpy(), expected(net, x))


def test_on_another_device():
    net, x, device = network(), data(), StandInBackend("rounded")
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    want = forward(net, x).numpy()
    optimizer.arena.to(device)
    y = forward(net, gb.tensor(x.numpy(), device=device))
    np.testing.assert_allclose(
        y.numpy(), want, rtol=2e-3
    )  # there the bias is added after a rounding
    optimizer.arena.to("cpu")
    np.testing.assert_array_equal(forward(net, x).numpy(), want)


def test_outside_of_an_arena():
    net, x = network(), data()
    y = forward(net, x)
    np.testing.assert_array_equal(y.numpy(), expected(net, x))
    y.sum().backward()
    assert all(p.grad.dtype == np.float32 for p in net.parameters())


def test_gradients_of_several_uses_add_up_in_float32():
    # 1 + 2**-12 is not a float16: the cotangents of two uses must meet behind the cast.
    w = nn.Parameter(np.ones((1, 1), np.float32))
    optimizer = optim.SGD([w], lr=0.0)
    one, small = (gb.tensor(np.array([[v]], np.float32)) for v in (1.0, 2.0**-12))
    with gb.precision("fp16-mixed"):
        loss = F.linear(one, w).sum() + F.linear(small, w).sum()
    loss.backward()
    assert w.grad.item() == 1.0 + 2.0**-12
    assert w.grad.array is optimizer.arena.sections[0].grad_views[0]


def test_a_frozen_parameter_and_no_grad():
    net, x = network(), data()
    optim.SGD(net.parameters(), lr=0.1)
    net[0].weight.requires_grad_(False)
    forward(net, x).sum().backward()
    assert net[0].weight.grad is None and net[0].bias.grad is not None
    with gb.no_grad():
        assert forward(net, x).node is None


def test_a_derivative_whose_rounded_weights_are_gone_is_refused():
    net, x = network(), data()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    old = forward(net, x).sum()
    moved(net, optimizer)
    forward(net, x)  # the copy is made anew, over what `old` was computed from
    with pytest.raises(GradientError, match="changed in place"):
        old.backward()


def test_the_memory_of_the_copy_has_a_name():
    net = network()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    forward(net, data())
    (section,) = optimizer.arena.sections
    names = dict(section.holdings())
    assert names["parameters in half precision"].dtype == HALF


@pytest.mark.parametrize("fast", [False, None], ids=["plain", "native"])
def test_compiled_functions_that_never_meet_an_update(fast):
    """Forward passes that are compiled by themselves make the copy anew at every call."""
    net, x = network(), data()
    optimizer = optim.SGD(net.parameters(), lr=0.5)
    run = gb.compile(lambda x: forward(net, x), fast=fast)
    for step in range(12):
        np.testing.assert_allclose(
            run(x).numpy().astype(np.float32), expected(net, x).astype(np.float32), rtol=2e-3
        )
        if step < 4:
            continue  # recorded while the copy was right all the time
        if step % 2:
            net[0].weight.copy_(net[0].weight.numpy() + 0.25)
        else:
            optimizer.zero_grad()
            moved(net, optimizer)
            optimizer.zero_grad()
    assert sum(e.calls for e in run.entries) >= 8
