"""The shortest program for each way in which a compiled step can go wrong.

Each gives what the plain function gives, or an error that says how to write it instead.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.compile.api import compile
from gpubackprop.compile.compiled import Compiled
from gpubackprop.errors import CompileError, ShapeError
from gpubackprop.nn import functional as F

RNG = np.random.default_rng(5)


def x_of(n: int = 6, width: int = 4) -> gb.Tensor:
    return gb.tensor(RNG.standard_normal((n, width)).astype(np.float32))


def replayed(c: Compiled) -> int:
    return sum(e.calls for e in c.entries)


@pytest.fixture(params=[False, None], ids=["plain", "fast"])
def fast(request: pytest.FixtureRequest) -> bool | None:
    if request.param is None:
        pytest.importorskip("numba")
    return request.param


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0, seed: int = 1) -> None:
        generator = gb.Generator(seed)
        self.first = nn.Linear(4, 8, generator=generator)
        self.drop = nn.Dropout(dropout, generator=generator.split())
        self.second = nn.Linear(8, 3, generator=generator)

    def forward(self, x: gb.Tensor) -> gb.Tensor:
        return self.second(self.drop(gb.tanh(self.first(x))))


def pair(fast, make_step, **options):
    """The same training step twice: as it is, and compiled; each with its own network."""
    plain_net, fast_net = Net(**options), Net(**options)
    return (plain_net, make_step(plain_net)), (
        fast_net,
        compile(make_step(fast_net), fast=fast),
    )


def adam_step(net: nn.Module):
    optimizer = optim.Adam(net.parameters(), lr=0.01)

    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    step.optimizer = optimizer
    return step


def agree(a, b, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=tolerance, atol=tolerance)


def same_networks(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        agree(p.detach(), q.detach())


# What must be right.


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


def test_results_do_not_alias_the_next_call(fast) -> None:
    compiled = compile(lambda x: (x * 2.0, x.T), fast=fast)
    results, given = [], []
    for _ in range(6):
        x = x_of()
        given.append(x.numpy().copy())
        results.append(compiled(x))
    for a, (double, transposed) in zip(given, results, strict=True):
        np.testing.assert_array_equal(double.numpy(), 2 * a)
        np.testing.assert_array_equal(transposed.numpy(), a.T)


def test_argument_that_is_changed_by_the_caller_later(fast) -> None:
    compiled = compile(lambda x: x, fast=fast)
    for _ in range(6):
        x = x_of()
        assert compiled(x) is x


def test_results_in_containers_and_arguments_by_name(fast) -> None:
    compiled = compile(lambda x, *, y: {"sum": x + y, "both": [x * y, None, 7]}, fast=fast)
    for _ in range(6):
        x, y = x_of(), x_of()
        found = compiled(x, y=y)
        agree(found["sum"], x + y)
        agree(found["both"][0], x * y)
        assert found["both"][1:] == [None, 7]


def test_views_and_broadcast_arguments(fast) -> None:
    compiled = compile(lambda x, y: (x + y).sum(axis=0), fast=fast)
    base = x_of(12, 8)
    for i in range(6):
        x = base[i : i + 6, ::2]
        y = x_of(1, 4)
        agree(compiled(x.detach(), y), (x + y).sum(axis=0))


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


def test_not_a_number_is_not_hidden(fast) -> None:
    compiled = compile(lambda x: gb.maximum(x, 0.0).sum(), fast=fast)
    for _ in range(5):
        compiled(x_of())
    x = x_of()
    x.array[2, 1] = np.nan
    assert np.isnan(compiled(x).item())


def test_empty_batch(fast) -> None:
    compiled = compile(lambda x: gb.exp(x).sum(), fast=fast)
    for n in (6, 0, 6, 0, 6, 0, 6, 0, 6, 0):
        x = x_of(n)
        agree(compiled(x), gb.exp(x).sum())


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


def test_compiled_within_compiled(fast) -> None:
    inner = compile(lambda x: x * 2.0, fast=fast)
    outer = compile(lambda x: inner(x) + 1.0, fast=fast)
    for _ in range(6):
        x = x_of()
        agree(outer(x), x * 2.0 + 1.0)
    assert replayed(inner) == 0


def test_two_threads(fast) -> None:
    compiled = compile(lambda x: (x * x).sum(axis=1), fast=fast)
    wrong = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            a = rng.standard_normal((6, 4)).astype(np.float32)
            y = compiled(gb.tensor(a))
            if not np.allclose(y.numpy(), (a * a).sum(1), rtol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert replayed(compiled) > 700


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


def test_exception_while_recording(fast) -> None:
    calls = []

    def step(x):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("a hiccup")
        return x * 2.0

    compiled = compile(step, fast=fast)
    x = x_of()
    compiled(x)
    with pytest.raises(RuntimeError, match="hiccup"):
        compiled(x)
    for _ in range(5):
        agree(compiled(x), x * 2.0)
    agree(gb.exp(x), gb.exp(x))  # the kernels are in their places again
    assert replayed(compiled) >= 2


# What must be an error, in words that say what to do.


@pytest.mark.parametrize(
    "look",
    [
        lambda y: float(y.sum()),
        lambda y: y.sum().item(),
        lambda y: y.numpy(),
        lambda y: 1 if y.sum() > 0 else 2,
        lambda y: f"{y.sum():.3f}",
    ],
    ids=["float", "item", "numpy", "if", "format"],
)
def test_looking_at_a_number(look) -> None:
    def step(x):
        y = x * 2.0
        look(y)
        return y

    with pytest.raises(CompileError, match=r"gb\.where"):
        compile(step)(x_of())


def test_looking_at_a_number_without_strictness() -> None:
    compiled = compile(lambda x: x * float(x.sum()), strict=False)
    x = x_of()
    with pytest.warns(RuntimeWarning, match="not compiled"):
        agree(compiled(x), x * float(x.sum()))
    agree(compiled(x), x * float(x.sum()))


def test_random_numbers_of_numpy() -> None:
    rng = np.random.default_rng(0)
    compiled = compile(lambda x: x + gb.tensor(rng.standard_normal(4).astype(np.float32)))
    compiled(x_of())
    with pytest.raises(CompileError, match="argument"):
        compiled(x_of())


def test_batch_that_is_no_argument() -> None:
    batches = iter([x_of() for _ in range(5)])
    compiled = compile(lambda: next(batches) * 2.0)
    compiled()
    with pytest.raises(CompileError, match="argument"):
        compiled()


def test_python_number_that_changes() -> None:
    state = {"beta": 0.0}

    def step(x):
        state["beta"] += 0.1
        return x * state["beta"]

    compiled = compile(step)
    compiled(x_of())
    with pytest.raises(CompileError, match="tensor"):
        compiled(x_of())


def test_tensor_left_in_a_list() -> None:
    history = []

    def step(x):
        y = (x * x).sum()
        history.append(y)
        return y

    compiled = compile(step)
    compiled(x_of())
    with pytest.raises(CompileError, match="Return it"):
        compiled(x_of())


def test_argument_with_a_history() -> None:
    w = gb.tensor([1.0, 2.0], requires_grad=True)
    compiled = compile(lambda x: x * 2.0)
    with pytest.raises(CompileError, match="detach"):
        compiled(w * 3.0)


def test_backward_after_the_call() -> None:
    net = Net()
    compiled = compile(lambda x: net(x).sum())
    for _ in range(4):
        loss = compiled(x_of())
        with pytest.raises(RuntimeError, match="depend"):
            loss.backward()


def test_numpy_result() -> None:
    compiled = compile(lambda x: np.zeros(3))
    with pytest.raises(CompileError, match="NumPy array"):
        compiled(x_of())


def test_function_that_never_does_the_same_twice() -> None:
    count = [0]

    def step(x):
        count[0] += 1
        for _ in range(count[0] % 7):
            x = gb.tanh(x)
        return x

    compiled = compile(step)
    with pytest.warns(RuntimeWarning, match="no two agreed"):
        for _ in range(12):
            compiled(x_of())
    x = x_of()
    count[0] = 1
    agree(compiled(x), gb.tanh(gb.tanh(x)))
    assert "runs as it is" in compiled.explain()


def test_re_entrance() -> None:
    compiled: Compiled

    class Schedule:
        def __call__(self, step: int) -> float:
            if step > 4:
                compiled(x)
            return 1.0

    x = x_of()
    w = nn.Parameter(np.ones(4, np.float32))
    optimizer = optim.SGD([w], lr=0.1)
    scheduler = optim.Scheduler(optimizer, Schedule())

    def step(x):
        scheduler.step()
        return x * 2.0

    compiled = compile(step)
    with pytest.raises(CompileError, match="while it runs"):
        for _ in range(8):
            compiled(x)


def test_cache_is_bounded() -> None:
    compiled = compile(lambda x: x * 2.0, cache=3)
    for n in range(1, 9):
        for _ in range(4):
            x = x_of(n)
            agree(compiled(x), x * 2.0)
    assert len(compiled.entries) == 3
    assert "used longest ago" in compiled.explain()


def test_not_a_function() -> None:
    with pytest.raises(CompileError, match="function"):
        compile(3)


def test_decorator() -> None:
    @compile(check=False)
    def double(x):
        """Twice."""
        return x * 2.0

    assert double.__doc__ == "Twice."
    for _ in range(4):
        x = x_of()
        agree(double(x), x * 2.0)
    assert "recorded" in double.explain(calls=True)
