"""Optimizers: their steps against formulas, groups, missing gradients, the arena under them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.errors import ConfigError, DTypeError, GradientError

MAKERS = {
    "sgd": lambda p, **o: optim.SGD(p, lr=0.1, **o),
    "momentum": lambda p, **o: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, **o),
    "nesterov": lambda p, **o: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, **o),
    "adagrad": lambda p, **o: optim.Adagrad(
        p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.5, **o
    ),
    "rmsprop": lambda p, **o: optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True, **o),
    "adam": lambda p, **o: optim.Adam(p, lr=0.1, **o),
    "adamw": lambda p, **o: optim.AdamW(p, lr=0.1, **o),
}


def parameters(*shapes, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [nn.Parameter(rng.normal(size=s).astype(dtype)) for s in shapes]


def give_gradients(ps, step, skip=()):
    rng = np.random.default_rng(1000 + step)
    for i, p in enumerate(ps):
        g = rng.normal(size=p.shape).astype(p.dtype)
        p.grad = None
        if i not in skip:
            p.accumulate(g, p.backend)


# The formulas once more, in plain NumPy, one parameter and one step at a time.
def sgd(w, g, s, t, lr, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0):
    g = g + weight_decay * w
    if momentum:
        s["v"] = g if t == 1 else momentum * s["v"] + (1 - dampening) * g
        g = g + momentum * s["v"] if nesterov else s["v"]
    return w - lr * g


def adagrad(w, g, s, t, lr, lr_decay, initial, weight_decay=0.0, eps=1e-10):
    g = g + weight_decay * w
    s["sum"] = s.get("sum", initial) + g * g
    return w - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(s["sum"]) + eps)


def rmsprop(w, g, s, t, lr, momentum, weight_decay=0.0, alpha=0.99, eps=1e-8):
    g = g + weight_decay * w
    s["sq"] = alpha * s.get("sq", 0) + (1 - alpha) * g * g
    s["mean"] = alpha * s.get("mean", 0) + (1 - alpha) * g
    s["v"] = momentum * s.get("v", 0) + g / (np.sqrt(s["sq"] - s["mean"] ** 2) + eps)
    return w - lr * s["v"]


def adam(w, g, s, t, lr, decay=0.0, weight_decay=0.0, b1=0.9, b2=0.999, eps=1e-8):
    w = w * (1 - lr * decay)
    g = g + weight_decay * w
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
    m, v = s["m"] / (1 - b1**t), s["v"] / (1 - b2**t)
    return w - lr * m / (np.sqrt(v) + eps)


FORMULAS = {
    "sgd": lambda *a, **o: sgd(*a, lr=0.1, **o),
    "momentum": lambda *a, **o: sgd(*a, lr=0.1, momentum=0.9, dampening=0.1, **o),
    "nesterov": lambda *a, **o: sgd(*a, lr=0.1, momentum=0.9, nesterov=True, **o),
    "adagrad": lambda *a, **o: adagrad(*a, lr=0.1, lr_decay=0.1, initial=0.5, **o),
    "rmsprop": lambda *a, **o: rmsprop(*a, lr=0.1, momentum=0.5, **o),
    "adam": lambda *a, **o: adam(*a, lr=0.1, **o),
    "adamw": lambda *a, weight_decay=0.01: adam(*a, lr=0.1, decay=weight_decay),
}


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.2}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_steps_follow_the_formulas_also_where_gradients_are_missing(name, options):
    ps = parameters((3, 5), (5,), (), (2, 2, 2), (7,))
    expected = [p.numpy().copy() for p in ps]
    state = [{} for _ in ps]
    counts = [0] * len(ps)
    optimizer = MAKERS[name](ps, **options)
    formula = {k: v for k, v in options.items() if k != "maximize"}
    for step in range(6):
        skip = {0: (), 1: (1,), 2: (0, 3, 4), 3: (1, 2), 4: (4,), 5: ()}[step]
        give_gradients(ps, step, skip)
        for i, p in enumerate(ps):
            if i not in skip:
                g = p.grad.numpy().copy() * (-1 if "maximize" in options else 1)
                counts[i] += 1
                expected[i] = FORMULAS[name](expected[i], g, state[i], counts[i], **formula)
        optimizer.step()
        for p, e in zip(ps, expected, strict=True):
            np.testing.assert_allclose(p.numpy(), e, rtol=1e-10, atol=1e-12)


@given(st.lists(st.booleans(), min_size=4, max_size=4), st.sampled_from(sorted(MAKERS)))
def test_a_parameter_without_gradient_keeps_its_bits_and_its_state(mask, name):
    ps = parameters((3,), (17,), (2, 2), ())
    optimizer = MAKERS[name](ps, weight_decay=0.1)
    give_gradients(ps, 0)
    optimizer.step()
    before = [p.numpy().copy() for p in ps]
    old = optimizer.state_dict()["state"]
    skip = [i for i, has in enumerate(mask) if not has]
    give_gradients(ps, 1, skip)
    if len(skip) == len(ps):
        with pytest.raises(GradientError):
            optimizer.step()
        return
    optimizer.step()
    new = optimizer.state_dict()["state"]
    for i, p in enumerate(ps):
        assert (p.numpy() == before[i]).all() == (i in skip)
        assert new[i]["step"] == (1 if i in skip else 2)
        for slot, array in new[i].items():
            if i in skip:
                np.testing.assert_array_equal(array, old[i][slot])


@pytest.mark.parametrize("name", MAKERS)
def test_padding_stays_zero(name):
    ps = parameters((3,), (5,), dtype=np.float32)
    optimizer = MAKERS[name](ps, weight_decay=0.1)
    for step in range(3):
        give_gradients(ps, step)
        optimizer.step()
    (section,) = optimizer.arena.sections
    outside = np.ones(section.size, bool)
    for start, p in zip(section.starts, ps, strict=False):
        outside[start : start + p.size] = False
    assert outside.any()
    assert not section.values[outside].any() and not section.grads[outside].any()
    for slot, buffer in section.slots.items():
        fill = 0.5 if slot == "sum" else 0.0
        assert (buffer[outside] == fill).all()


@pytest.mark.parametrize("make", [optim.Adam, optim.RMSprop, optim.Adagrad])
def test_an_eps_of_zero_makes_no_nan_in_the_padding(make):
    ps = parameters((3,), (5,))
    optimizer = make(ps, eps=0.0)
    give_gradients(ps, 0)
    with np.errstate(all="raise"):
        optimizer.step()
    assert np.isfinite(optimizer.arena.values[0]).all()


def test_one_kernel_call_per_group_and_buffer(monkeypatch):
    calls = []
    kernel = NumPyBackend.adam_update

    def counted(self, param, *args, **options):
        calls.append((param.shape, options["lr"], options["step"]))
        return kernel(self, param, *args, **options)

    monkeypatch.setattr(NumPyBackend, "adam_update", counted)
    a, b = parameters((16,), (8,), (8,)), parameters((8,), (8,))
    optimizer = optim.Adam([{"params": a}, {"params": b, "lr": 0.5}], lr=0.1)
    give_gradients([*a, *b], 0)
    optimizer.step()
    assert calls == [((32,), 0.1, 1), ((16,), 0.5, 1)]
    calls.clear()
    give_gradients([*a, *b], 1, skip=[1])
    optimizer.step()
    assert calls == [((16,), 0.1, 2), ((8,), 0.1, 2), ((16,), 0.5, 2)]
    calls.clear()
    give_gradients([*a, *b], 2)
    optimizer.step()  # now parameter 1 has had one update less
    assert calls == [((16,), 0.1, 3), ((8,), 0.1, 2), ((8,), 0.1, 3), ((16,), 0.5, 3)]


def test_groups_have_their_own_options_and_rates_may_change():
    a, b = parameters((3,)), parameters((4,), seed=1)
    optimizer = optim.SGD([{"params": a, "lr": 1.0}, {"params": b}], lr=0.5)
    w = [p.numpy().copy() for p in (*a, *b)]
    for p in (*a, *b):
        p.accumulate(np.ones(p.shape), p.backend)
    optimizer.step()
    np.testing.assert_allclose(a[0].numpy(), w[0] - 1.0)
    np.testing.assert_allclose(b[0].numpy(), w[1] - 0.5)
    optimizer.param_groups[1]["lr"] = 0.0
    optimizer.step()
    np.testing.assert_allclose(a[0].numpy(), w[0] - 2.0)
    np.testing.assert_allclose(b[0].numpy(), w[1] - 0.5)


def test_a_group_added_later_leaves_the_state_of_the_others():
    a, b = parameters((3,), (2, 2)), parameters((4,), seed=1)
    twin_a, twin_b = parameters((3,), (2, 2)), parameters((4,), seed=1)
    late = optim.Adagrad(a, initial_accumulator_value=0.5)
    early = optim.Adagrad(
        [{"params": twin_a}, {"params": twin_b, "initial_accumulator_value": 2.0}],
        initial_accumulator_value=0.5,
    )
    give_gradients(a, 0)
    give_gradients([*twin_a, *twin_b], 0, skip=[2])
    late.step()
    early.step()
    late.add_param_group({"params": b, "initial_accumulator_value": 2.0})
    for step in (1, 2):
        give_gradients([*a, *b], step)
        give_gradients([*twin_a, *twin_b], step)
        late.step()
        early.step()
    for p, q in zip([*a, *b], [*twin_a, *twin_b], strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_mixed_dtypes_in_one_group():
    wide, narrow = parameters((3,))[0], parameters((3,), dtype=np.float32)[0]
    optimizer = optim.Adam([wide, narrow], lr=0.1)
    assert len(optimizer.arena.sections) == 2
    for p in (wide, narrow):
        p.accumulate(np.ones(3, p.dtype), p.backend)
    before = wide.numpy().copy(), narrow.numpy().copy()
    optimizer.step()
    for p, w in zip((wide, narrow), before, strict=True):
        np.testing.assert_allclose(p.numpy(), w - 0.1, rtol=1e-6)


def test_no_gradient_at_all_is_an_error_that_names_the_optimizer():
    optimizer = optim.AdamW(parameters((3,)))
    with pytest.raises(GradientError, match=r"AdamW\.step: no parameter has a gradient.*backward"):
        optimizer.step()


def test_zero_grad():
    ps = parameters((3,), (2,))
    optimizer = optim.SGD(ps, lr=0.1)
    give_gradients(ps, 0, skip=[1])
    optimizer.zero_grad(set_to_none=False)
    assert (ps[0].grad.numpy() == 0).all() and ps[1].grad is None
    optimizer.zero_grad()
    assert ps[0].grad is None


def test_a_closure_is_called_with_recording_on_and_its_loss_returned():
    x = gb.tensor(np.array([1.0, 2.0]), requires_grad=True)
    optimizer = optim.SGD([x], lr=0.25)

    def closure():
        optimizer.zero_grad()
        loss = (x * x).sum()
        loss.backward()
        return loss

    with gb.no_grad():
        assert optimizer.step(closure).item() == 5.0
    np.testing.assert_array_equal(x.numpy(), [0.5, 1.0])


def test_parameters_replaced_between_steps_are_updated_too():
    (p,) = parameters((3,))
    optimizer = optim.SGD([p], lr=1.0)
    p.array = np.array([1.0, 2.0, 3.0])
    p.grad = gb.tensor(np.array([1.0, 1.0, 1.0]))
    optimizer.step()
    np.testing.assert_array_equal(p.numpy(), [0.0, 1.0, 2.0])


def test_state_follows_a_network_that_moves():
    here, there = (nn.Linear(3, 2, generator=gb.Generator(1)) for _ in range(2))
    optimizers = [optim.Adam(m.parameters(), lr=0.1) for m in (here, there)]
    for step in range(4):
        if step == 2:
            there.to(NumPyBackend())
        for m, o in zip((here, there), optimizers, strict=True):
            give_gradients(list(m.parameters()), step)
            o.step()
    np.testing.assert_array_equal(here.weight.numpy(), there.weight.numpy())


def test_it_trains_a_network():
    gb.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    x = gb.tensor(np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32))
    y = gb.tensor(np.array([[0], [1], [1], [0]], np.float32))
    optimizer = optim.Adam(net.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = nn.MSELoss()(net(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda p: optim.SGD(p, lr=-1.0), ConfigError, "SGD: lr must be .* not -1.0"),
        (lambda p: optim.SGD(p, lr=math.inf), ConfigError, "lr must be"),
        (lambda p: optim.SGD(p, lr=math.nan), ConfigError, "lr must be"),
        (lambda p: optim.SGD(p, lr="0.1"), ConfigError, "lr must be"),
        (lambda p: optim.SGD(p, nesterov=True), ConfigError, "nesterov needs momentum"),
        (lambda p: optim.SGD(p, momentum=-0.1), ConfigError, "momentum must be"),
        (lambda p: optim.Adam(p, betas=(0.9, 1.0)), ConfigError, r"betas must be 2 numbers in"),
        (lambda p: optim.Adam(p, betas=0.9), ConfigError, "betas"),
        (lambda p: optim.RMSprop(p, eps=-1e-8), ConfigError, "RMSprop: eps"),
        (lambda p: optim.Adagrad(p, lr_decay=-1.0), ConfigError, "lr_decay"),
        (lambda p: optim.SGD([]), ConfigError, "no parameters .* use nn.ModuleList"),
        (lambda p: optim.SGD(nn.Linear(1, 1)), ConfigError, r"model.parameters\(\)"),
        (lambda p: optim.SGD(p[0]), ConfigError, "a list of tensors"),
        (lambda p: optim.SGD([np.ones(3)]), DTypeError, "ndarray, not a tensor"),
        (lambda p: optim.SGD([p[0] * 2.0]), GradientError, "result of multiply"),
        (
            lambda p: optim.SGD([{"params": p}, {"params": p}]),
            ConfigError,
            r"shape \(3,\) stands in two groups",
        ),
        (
            lambda p: optim.SGD([{"params": p, "momentun": 0.9}]),
            ConfigError,
            "did you mean 'momentum'",
        ),
        (lambda p: optim.SGD([{"lr": 0.9}]), ConfigError, "'params'"),
    ],
)
def test_wrong_arguments(make, error, words):
    with pytest.raises(error, match=words):
        make(parameters((3,)))


def test_defaults_are_pytorchs():
    p = parameters((1,))
    assert optim.SGD(p).defaults["lr"] == 1e-3
    assert optim.Adagrad(p).defaults["lr"] == optim.RMSprop(p).defaults["lr"] == 1e-2
    assert optim.Adam(p).defaults["weight_decay"] == 0
    assert optim.AdamW(p).defaults["weight_decay"] == 1e-2


def test_the_printed_form_names_the_options():
    text = repr(optim.SGD(parameters((3,), (2,)), lr=0.5))
    assert "SGD(" in text and "group 0: 2 parameters, lr=0.5" in text


@pytest.mark.gpu
@pytest.mark.parametrize("name", MAKERS)
def test_steps_on_the_gpu_are_those_on_the_cpu(name):
    shapes = [(33, 17), (17,), (1,), (5, 2)]
    cpu = parameters(*shapes, dtype=np.float32)
    gpu = [nn.Parameter(p.numpy(), device="cuda") for p in cpu]
    optimizers = [MAKERS[name](ps, weight_decay=0.1) for ps in (cpu, gpu)]
    for step in range(5):
        rng = np.random.default_rng(step)
        for p, q in zip(cpu, gpu, strict=True):
            g = rng.normal(size=p.shape).astype(np.float32)
            p.grad, q.grad = gb.tensor(g), gb.tensor(g, device="cuda")
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(cpu, gpu, strict=True):
            np.testing.assert_allclose(q.numpy(), p.numpy(), rtol=2e-5, atol=2e-6)


def test_centred_rmsprop_survives_a_constant_gradient():
    (w,) = parameters((200,), dtype=np.float32)
    optimizer = optim.RMSprop([w], lr=1e-4, alpha=0.9, centered=True)
    g = np.random.default_rng(1).normal(size=w.shape).astype(np.float32)
    for _ in range(300):
        w.grad = None
        w.accumulate(g, w.backend)
        optimizer.step()
    assert np.isfinite(w.numpy()).all()
