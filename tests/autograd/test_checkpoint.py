"""Gradient checkpointing: the same gradients, less memory."""

from __future__ import annotations

import gc
import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.autograd import STATE, Tensor
from gpubackprop.autograd.gradcheck import gradcheck, gradgradcheck
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError, GradientError, NonFiniteError, ShapeError
from gpubackprop.nn import functional as F


def leaf(*shape: int, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).standard_normal(shape)
    return gb.tensor(values, requires_grad=True)


def both(function, *leaves):
    """Gradients by the leaves of ``function(run)``, with run a plain and a checkpointing call."""
    found = []
    for run in (lambda fn, *a, **k: fn(*a, **k), gb.checkpoint):
        for t in leaves:
            t.grad = None
        function(run).backward()
        found.append([None if t.grad is None else t.grad.numpy().copy() for t in leaves])
    return found


def same(first, second) -> bool:
    return all(
        (a is None and b is None) or np.array_equal(a, b)
        for a, b in zip(first, second, strict=True)
    )


def mlp(depth: int = 4, width: int = 8, p: float = 0.0, dtype: str = "float32") -> nn.Sequential:
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.Tanh(), nn.Dropout(p)]
    return nn.Sequential(*layers).to(dtype=dtype)


# Values.
def test_gradients_by_inputs_and_parameters_have_the_same_bits():
    model, x = mlp(), leaf(5, 8).detach()
    x = gb.tensor(x.numpy().astype(np.float32), requires_grad=True)
    plain, kept = both(lambda run: (run(model, x) ** 2.0).sum(), x, *model.parameters())
    assert same(plain, kept)
    assert all(g is not None for g in kept)


def test_the_derivatives_are_right():
    w = leaf(3, 2, seed=1)

    def fn(x, w):
        return gb.checkpoint(lambda t: gb.tanh(t @ w) * gb.sin(t[:, :1]), x)

    gradcheck(fn, [leaf(4, 3), w])
    gradgradcheck(fn, [leaf(4, 3), w])


def test_grad_finds_what_a_closure_holds():
    x, w = leaf(3), leaf(3, seed=1)
    y = gb.checkpoint(lambda t: t * w, x)
    by_w, by_x = gb.grad(y.sum(), [w, x])
    assert np.array_equal(by_w.numpy(), x.numpy())
    assert np.array_equal(by_x.numpy(), w.numpy())
    assert w.grad is None


def test_results_of_older_calls_are_reached_through_a_closure():
    a, b = leaf(3), leaf(3, seed=1)

    def cost(run):
        h = gb.exp(a)  # made outside, read inside, together with what it was made from
        return run(lambda t: t * h + gb.sin(a) * h, b * h).sum()

    plain, kept = both(cost, a, b)
    assert all(np.allclose(p, k, rtol=1e-14) for p, k in zip(plain, kept, strict=True))


def test_inputs_that_were_computed_from_each_other_are_counted_once():
    a = leaf(3)

    def cost(run):
        h = gb.exp(a)
        return run(lambda s, t: s * t * t, a, h).sum()

    plain, kept = both(cost, a)
    assert same(plain, kept)

    def twice(a):
        h = gb.exp(a)
        return gb.checkpoint(lambda s, t: s * t * t * h, a, h)

    gradgradcheck(twice, [leaf(3)])


@pytest.mark.parametrize("depth", [2, 3])
def test_checkpoints_lie_inside_each_other(depth):
    model, x = mlp(p=0.3), gb.tensor(leaf(5, 8).numpy().astype(np.float32), requires_grad=True)
    places = model.random_state()

    def cost(run):
        model.load_random_state(places)
        fn = model
        for _ in range(depth):
            fn = (lambda inner: lambda t: run(inner, t) * 0.5)(fn)
        return fn(x).sum()

    plain, kept = both(cost, x, *model.parameters())
    assert same(plain, kept)


def test_second_derivatives_through_nested_checkpoints():
    w = leaf(3, seed=2)

    def inner(t):
        return gb.sin(t * w)

    def fn(x, w):
        return gb.checkpoint(lambda t: gb.checkpoint(inner, t) * t, x)

    gradgradcheck(fn, [leaf(3), w])


def test_a_penalty_on_a_gradient_trains_through_a_checkpoint():
    model = mlp(dtype="float64")

    def penalty(run):
        x = gb.tensor(np.ones((2, 8)), requires_grad=True)
        (g,) = gb.grad(run(model, x).sum(), x, create_graph=True)
        return (g * g).sum()

    plain, kept = both(penalty, *model.parameters())
    for p, k in zip(plain, kept, strict=True):
        assert (p is None) == (k is None)
        assert p is None or np.allclose(p, k, rtol=1e-12, atol=1e-15)


# Random draws.
def test_dropout_drops_the_same_elements_in_the_second_run():
    model = mlp(p=0.5)
    x = gb.tensor(np.ones((16, 8), np.float32), requires_grad=True)
    places = model.random_state()

    def cost(run):
        model.load_random_state(places)
        return run(model, x).sum()

    plain, kept = both(cost, x, *model.parameters())
    assert same(plain, kept)


def test_generators_stand_after_one_run_whatever_ran_again():
    model, x = mlp(p=0.5), gb.tensor(np.ones((4, 8), np.float32), requires_grad=True)
    places = model.random_state()
    model(x)
    once = model.random_state()
    model.load_random_state(places)
    gb.checkpoint(model, x).sum().backward()
    assert model.random_state() == once


@pytest.mark.parametrize("make", ["given", "split", "default"])
def test_draws_of_any_generator_are_repeated(make):
    x = gb.tensor(np.ones(64), requires_grad=True)
    generator = Generator(3)

    def fn(t):
        g = {"given": generator, "split": generator.split(), "default": None}[make]
        return F.dropout(t, 0.5, training=True, generator=g) * t

    y = gb.checkpoint(fn, x)
    y.sum().backward()
    assert np.array_equal(x.grad.numpy(), 2 * y.numpy())


def test_another_number_of_draws_in_the_second_run_is_an_error():
    x, calls = leaf(8), []

    def more(t):
        calls.append(1)
        for _ in calls:
            t = F.dropout(t, 0.5, training=True, generator=Generator(1))
        return t

    with pytest.raises(GradientError, match="random draw 2 .* no further one"):
        gb.checkpoint(more, x).sum().backward()

    def fewer(t):
        calls.pop()
        return F.dropout(t, 0.5, training=True, generator=Generator(1)) if calls else t * 1.0

    calls[:] = [1, 1]
    with pytest.raises(GradientError, match="1 random draw\\(s\\) fewer"):
        gb.checkpoint(fewer, x).sum().backward()


# Arguments and results.
def test_keywords_and_containers_may_hold_tensors():
    a, b, c = leaf(3), leaf(3, seed=1), leaf(3, seed=2)

    def fn(x, pair, *, scale, more):
        return x * pair[0] + pair[1] * scale * more["c"]

    plain, kept = both(lambda run: run(fn, a, (b, c), scale=3.0, more={"c": c}).sum(), a, b, c)
    assert same(plain, kept)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


def test_results_keep_their_containers():
    x = leaf(3)
    out, (pair, words) = gb.checkpoint(lambda t: (gb.sin(t), [Pair(t * 2.0, None), "words"]), x)
    assert words == "words" and isinstance(pair, Pair) and pair.second is None
    (out * pair.first).sum().backward()
    plain = leaf(3)
    (gb.sin(plain) * (plain * 2.0)).sum().backward()
    assert np.array_equal(x.grad.numpy(), plain.grad.numpy())


def test_a_result_that_nothing_uses_has_no_say():
    # The derivative of sqrt at 0 is infinite: times a cotangent of 0 it would be NaN.
    x = gb.tensor([0.0, 1.0], requires_grad=True)
    doubled, _ = gb.checkpoint(lambda t: (t * 2.0, gb.sqrt(t)), x)
    doubled.sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_a_result_may_be_an_input_or_a_tensor_from_outside():
    x, w = leaf(3), leaf(3, seed=1)
    h = gb.exp(w)
    a, b, c, d = gb.checkpoint(lambda t: (t, w, h, t * h), x)
    (a * b * c * d).sum().backward()
    by_x, by_w = x.grad.numpy().copy(), w.grad.numpy().copy()
    x.grad = w.grad = None
    h = gb.exp(w)
    (x * w * h * (x * h)).sum().backward()
    assert np.allclose(by_x, x.grad.numpy(), rtol=1e-14)
    assert np.allclose(by_w, w.grad.numpy(), rtol=1e-14)


def test_results_without_a_derivative_are_constants():
    x = leaf(4)
    largest, place, fixed = gb.checkpoint(lambda t: (t.max(), t.argmax(), (t * 2.0).detach()), x)
    assert largest.requires_grad and not place.requires_grad and not fixed.requires_grad
    largest.backward()
    assert x.grad.numpy().sum() == 1


def test_without_anything_to_differentiate_there_is_no_record():
    y = gb.checkpoint(lambda t: t * 2.0, gb.tensor([1.0]))
    assert not y.requires_grad and y.node is None


def test_under_no_grad_it_is_a_plain_call():
    x, runs = leaf(3), []
    with gb.no_grad():
        y = gb.checkpoint(lambda t: (runs.append(t), t * 2.0)[1], x)
    assert runs == [x] and not y.requires_grad


def test_only_what_wants_a_gradient_gets_one():
    model = mlp(2)
    first = next(iter(model.parameters()))
    first.requires_grad_(False)
    gb.checkpoint(model, gb.tensor(np.ones((2, 8), np.float32))).sum().backward()
    assert first.grad is None
    assert all(p.grad is not None for p in list(model.parameters())[1:])


# Errors.
def test_errors_of_the_function_pass_and_leave_no_trace():
    x = leaf(3)

    def fails(t):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        gb.checkpoint(fails, x)
    runs = []

    def fails_later(t):
        runs.append(1)
        if len(runs) == 2:
            assert STATE.recomputing
            raise KeyError("mine")
        return F.dropout(t, 0.5, training=True, generator=Generator(1))

    with pytest.raises(KeyError, match="mine") as caught:
        gb.checkpoint(fails_later, x).sum().backward()
    assert "checkpoint ran fails_later again" in caught.value.__notes__[0]
    assert not STATE.recomputing and STATE.recording
    generator = Generator(5)
    assert generator.take(1) == (5, 0, 0) and generator.take(1) == (5, 0, 1)


def test_other_shapes_in_the_second_run_are_an_error():
    runs = []

    def fn(t):
        runs.append(1)
        return t[: len(runs)] * 2.0

    y = gb.checkpoint(fn, leaf(3))
    with pytest.raises(GradientError, match=r"fn gave float64\[2\]; the first time .*float64\[1\]"):
        y.sum().backward()


def test_a_second_pass_needs_the_graph_kept():
    x = leaf(3)
    y = gb.checkpoint(gb.sin, x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert np.array_equal(x.grad.numpy(), 2 * np.cos(x.numpy()))
    with pytest.raises(GradientError, match="released"):
        y.backward()


@pytest.mark.parametrize("through", ["input", "closure"])
def test_values_that_were_changed_before_the_backward_pass_are_refused(through):
    w = leaf(3)
    fn = (lambda t: t * w) if through == "closure" else (lambda t: t * t)
    y = gb.checkpoint(fn, w if through == "input" else gb.tensor(np.ones(3)))
    w.array += 1.0
    w.mark_changed()
    with pytest.raises(GradientError, match="changed in place"):
        y.sum().backward()


def test_fn_must_be_callable():
    with pytest.raises(ConfigError, match="fn is a Tensor"):
        gb.checkpoint(leaf(3), leaf(3))
    with pytest.raises(ShapeError):
        gb.checkpoint(lambda t: t @ t, leaf(3, 2))


# With the rest of the library.
def test_memory_falls():
    depth, width, n = 32, 64, 256
    layers = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)]
    parts = [nn.Sequential(*layers[i : i + 6]) for i in range(0, depth, 6)]
    parameters = [p for part in parts for p in part.parameters()]
    peaks = {}
    for name, run in (("plain", lambda fn, x: fn(x)), ("checkpoint", gb.checkpoint)):
        x = gb.tensor(np.ones((n, width), np.float32))
        for p in parameters:
            p.grad = gb.tensor(np.zeros(p.shape, np.float32))
        gc.collect()
        tracemalloc.start()
        for part in parts:
            x = run(part, x)
        x.sum().backward()
        peaks[name] = tracemalloc.get_traced_memory()[1] / (n * width * 4)
        tracemalloc.stop()
        del x
    # In arrays of (n, width): one a layer, against one a part and one a layer of a single part.
    assert peaks["plain"] > depth
    assert peaks["checkpoint"] < 0.55 * peaks["plain"], peaks


def test_the_function_runs_once_forwards_and_once_backwards():
    x, seen = leaf(3), []

    def fn(t):
        seen.append((STATE.recomputing, t.node is None))
        return t * 2.0

    y = gb.checkpoint(fn, gb.exp(x)).sum()
    assert seen == [(False, True)]
    y.backward()
    assert seen == [(False, True), (True, True)]


class Blocks(nn.Module):
    """A network that checkpoints its hidden layers where it is told to."""

    def __init__(self, checkpointing: bool) -> None:
        self.inside = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(16, 3)
        self.checkpointing = checkpointing

    def forward(self, x):
        hidden = gb.checkpoint(self.inside, x) if self.checkpointing else self.inside(x)
        return self.head(hidden)


def trained(checkpointing: bool) -> dict[str, np.ndarray]:
    from gpubackprop.data import ArrayDataset, DataLoader
    from gpubackprop.optim import Adam
    from gpubackprop.training import Trainer

    gb.manual_seed(1)
    model = Blocks(checkpointing)
    rng = np.random.default_rng(0)
    data = ArrayDataset(rng.standard_normal((50, 4)).astype(np.float32), rng.integers(0, 3, 50))
    optimizer = Adam(model.parameters(), lr=0.01)
    Trainer(model, F.cross_entropy, optimizer, loader=DataLoader(data, 16)).fit(3)
    return model.state_dict()


def test_a_trained_network_has_the_same_bits():
    plain, kept = trained(False), trained(True)
    assert all(np.array_equal(plain[k], kept[k]) for k in plain)


def test_observers_see_both_runs_under_the_same_modules():
    from gpubackprop.backends import get_backend
    from gpubackprop.inspect import Tracer

    model = Blocks(True)
    tracer = Tracer(get_backend("cpu"), {id(m): path for path, m in model.named_modules()})
    STATE.observer = tracer
    try:
        model(gb.tensor(np.ones((2, 4), np.float32))).sum().backward()
    finally:
        STATE.observer = None
    linear = [r.path for r in tracer.records if r.op == "linear" and r.kind == "value"]
    assert linear == ["inside.0", "head", "inside.0"]
    assert "linear d(weight)" in {r.op for r in tracer.records if r.path == "inside.0"}


def test_the_first_nan_is_found_inside_a_checkpoint():
    from gpubackprop.data import ArrayDataset, DataLoader
    from gpubackprop.optim import SGD
    from gpubackprop.training import Trainer

    class Bad(Blocks):
        def forward(self, x):
            return gb.checkpoint(lambda t: gb.log(self.head(self.inside(t)) * 0.0 - 1.0), x)

    model = Bad(True)
    data = ArrayDataset(np.ones((4, 4), np.float32), np.zeros(4, np.int64))
    trainer = Trainer(
        model, F.cross_entropy, SGD(model.parameters(), lr=0.1), loader=DataLoader(data, 4)
    )
    with pytest.raises(NonFiniteError, match="log in .* gave"):
        trainer.fit(1)


def test_batch_statistics_are_counted_once():
    x = gb.tensor(np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32))
    plain, kept = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    (plain(x) ** 2.0).sum().backward()
    (gb.checkpoint(kept, x) ** 2.0).sum().backward()
    for name, value in plain.state_dict().items():
        assert np.array_equal(kept.state_dict()[name], value), name
    assert kept.state_dict()["num_batches_tracked"] == 1
    assert np.array_equal(kept.weight.grad.numpy(), plain.weight.grad.numpy())


@pytest.mark.parametrize("kind", ["convnet", "recurrent", "transformer"])
def test_layers_with_more_in_them(kind):
    gb.manual_seed(4)
    rng = np.random.default_rng(0)
    if kind == "convnet":
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        x = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    elif kind == "recurrent":
        model, x = nn.LSTM(4, 3, 2, dropout=0.5), rng.standard_normal((5, 2, 4)).astype(np.float32)
    else:
        model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True)
        x = rng.standard_normal((2, 5, 4)).astype(np.float32)
    x = gb.tensor(x, requires_grad=True)
    places = model.random_state()

    def cost(run):
        model.load_random_state(places)
        y = run(model, x)
        return ((y[0] if isinstance(y, tuple) else y) ** 2.0).sum()

    plain, kept = both(cost, x, *model.parameters())
    assert same(plain, kept)
