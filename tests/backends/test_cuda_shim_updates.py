"""The CUDA kernels of the optimizers, executed on the CPU from the same source: the bits of the
definitions on NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.cuda import geometry
from gpubackprop.backends.updates import Updates
from tests.backends.support import shim
from tests.backends.support.shim_cases import (  # noqa: F401
    BFLOAT16,
    DTYPES,
    NUMPY,
    cpp,
    largest,
    launch,
    lying,
    random,
)  # noqa: F401

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

RULES = {
    "sgd": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
    ],
    "adagrad": [{}, {"lr_decay": 0.1, "weight_decay": 0.01, "eps": 1e-8}],
    "rmsprop": [
        {},
        {"centered": True, "weight_decay": 0.02},
        {"centered": True, "momentum": 0.9, "alpha": 0.95},
    ],
    "adam": [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled": True, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6},
    ],
}
EXACT = [np.float32, np.float64, np.float16]
CASES = [(rule, options) for rule, settings in RULES.items() for options in settings]


def for_dtype(rule, options, dtype):
    """Options whose smallest number float16 holds."""
    return options if dtype != np.float16 or rule == "sgd" else options | {"eps": 1e-3}


def update(launch, rule, options, param, grad, states, lr, step, on_device, scale=1.0, skip=None):  # noqa: F811
    """One step by the kernel; the numbers by value or by their place on the device."""
    places = (np.array(lr), np.array(float(step))) if on_device else (None, None)
    given = (0.0, -1.0) if on_device else (lr, step)  # with a place, the value must not matter
    rate, count = (places[0], given[0]), (places[1], given[1])
    factor = (np.array(scale, param.dtype), -1.0) if on_device else (None, scale)
    rate = (*factor, skip, *rate)
    get = {"weight_decay": 0.0, "momentum": 0.0, "eps": 1e-8} | options
    shape, n, decay = (
        geometry.over_packs(param.size, param.itemsize),
        param.size,
        get["weight_decay"],
    )
    if rule == "sgd":
        velocity = states[0] if get["momentum"] else None
        tail = (get["momentum"], get.get("dampening", 0.0), get.get("nesterov", False), decay)
        arguments = (velocity, n, *rate, *count, *tail)
    elif rule == "adagrad":
        arguments = (
            states[0],
            n,
            *rate,
            *count,
            get.get("lr_decay", 0.0),
            options.get("eps", 1e-10),
            decay,
        )
    elif rule == "rmsprop":
        mean_grad = states[1] if get.get("centered") else None
        velocity = states[2] if get["momentum"] else None
        tail = (get.get("alpha", 0.99), get["eps"], decay, get["momentum"])
        arguments = (states[0], mean_grad, velocity, n, *rate, *tail)
    else:
        betas = (get.get("beta1", 0.9), get.get("beta2", 0.999))
        tail = (*betas, get["eps"], decay, get.get("decoupled", False))
        arguments = (states[0], states[1], n, *rate, *count, *tail)
    launch(rule, (cpp(param.dtype),), shape, param, grad, *arguments)


def define_update(rule, options, param, grad, states, lr, step, **rest):
    """The same step by the definition."""
    options = dict(options)
    if rule == "sgd":
        arrays = (states[0] if options.get("momentum") else None,)
    elif rule == "adagrad":
        arrays = (states[0],)
    elif rule == "rmsprop":
        velocity = states[2] if options.get("momentum") else None
        arrays = (states[0], states[1] if options.pop("centered", False) else None, velocity)
    else:
        arrays = (states[0], states[1])
    numbers = {"lr": lr, "step": step, **rest}
    getattr(Updates, f"{rule}_update")(NUMPY, param, grad, *arrays, **numbers, **options)


@pytest.mark.parametrize("on_device", [False, True], ids=["by-value", "by-place"])
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize(
    ("rule", "options"), CASES, ids=[f"{r}-{'-'.join(o) or 'plain'}" for r, o in CASES]
)
def test_updates_equal_the_definitions_bit_for_bit(launch, rule, options, dtype, on_device):  # noqa: F811
    options = for_dtype(rule, options, dtype)
    param = random(2311, dtype, 1)
    states = [np.zeros_like(param) for _ in range(3)]
    other, other_states = param.copy(), [s.copy() for s in states]
    for step in range(1, 6):
        grad, lr = random(2311, dtype, 10 + step), 0.1 / step
        update(launch, rule, options, param, grad, states, lr, step, on_device)
        define_update(rule, options, other, grad, other_states, lr, step)
        assert np.array_equal(param, other)
        assert all(np.array_equal(a, b) for a, b in zip(states, other_states, strict=True))
    assert np.isfinite(param).all() and not np.array_equal(param, random(2311, dtype, 1))


@pytest.mark.parametrize("on_device", [False, True], ids=["by-value", "by-place"])
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("rule", RULES)
def test_updates_of_a_scaled_gradient(launch, rule, dtype, on_device):  # noqa: F811
    options = for_dtype(rule, RULES[rule][-1], dtype)
    param = random(700, dtype, 1)
    states = [np.zeros_like(param) for _ in range(3)]
    other, other_states = param.copy(), [s.copy() for s in states]
    go = np.array(False)
    for step, scale in ((1, 0.3), (2, 1 / 1024), (3, 7.0)):
        grad = random(700, dtype, 10 + step)
        before = grad.copy()
        update(launch, rule, options, param, grad, states, 0.1, step, on_device, scale, go)
        define_update(rule, options, other, grad, other_states, 0.1, step, scale=scale)
        assert np.array_equal(grad, before)
        assert np.array_equal(param, other)
        assert all(np.array_equal(a, b) for a, b in zip(states, other_states, strict=True))
    kept = [a.copy() for a in (param, *states)]
    grad[3] = np.inf
    update(launch, rule, options, param, grad, states, 0.1, 4, on_device, 1.0, np.array(True))
    assert all(np.array_equal(a, b) for a, b in zip(kept, (param, *states), strict=True))
    update(launch, rule, options, param, grad, states, 0.1, 4, on_device, 1.0, go)
    assert not np.array_equal(kept[0], param)


@pytest.mark.parametrize("offsets", [(1, 1, 1), (3, 3, 3), (0, 1, 0), (0, 0, 2), (5, 5, 1)])
@pytest.mark.parametrize("size", [1, 3, 9, 700])
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("rule", RULES)
def test_stretches_of_an_arena_wherever_they_begin(launch, rule, dtype, size, offsets):  # noqa: F811
    options = for_dtype(rule, RULES[rule][-1], dtype)
    made = [random(size + 2, dtype, 1), *(np.abs(random(size + 2, dtype, 3 + k)) for k in range(3))]
    around = [lying(a, o) for a, o in zip(made, (*offsets, *offsets), strict=False)]
    whole, *more = [a.copy() for a in made]
    grad = lying(random(size, dtype, 2), offsets[1] + 1)
    inner, *states = [a[1:-1] for a in around]
    for step in (1, 2):
        update(launch, rule, options, inner, grad, states, 0.1, step, False)
        define_update(rule, options, whole[1:-1], grad, [m[1:-1] for m in more], 0.1, step)
    for got, want in zip(around, (whole, *more), strict=True):
        assert np.array_equal(got, want), "an element is wrong, or a neighbour was touched"


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize(
    ("rule", "options"), CASES, ids=[f"{r}-{'-'.join(o) or 'plain'}" for r, o in CASES]
)
def test_bfloat16_is_computed_in_float_and_rounded_where_it_is_stored(launch, rule, options, scale):  # noqa: F811
    if BFLOAT16 is None:
        pytest.skip("ml_dtypes is not installed")
    param, states = random(700, BFLOAT16, 1), [np.zeros(700, BFLOAT16) for _ in range(3)]
    for step in range(1, 5):
        grad = random(700, BFLOAT16, 10 + step)
        wide = [a.astype(np.float32) for a in (param, grad, *states)]
        define_update(rule, options, wide[0], wide[1], wide[2:], 0.1, step, scale=scale)
        factor = 1.0 if scale is None else scale
        update(launch, rule, options, param, grad, states, 0.1, step, False, factor)
        for got, want in zip((param, *states), (wide[0], *wide[2:]), strict=True):
            assert np.array_equal(got, want.astype(BFLOAT16))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_centred_rmsprop_of_a_constant_gradient_stays_a_number(launch, dtype):  # noqa: F811
    param, grad = random(300, dtype, 1), random(300, dtype, 2)
    states = [np.zeros_like(param) for _ in range(3)]
    other, other_states = param.copy(), [s.copy() for s in states]
    options, below = {"centered": True, "alpha": 0.9}, 0
    for step in range(1, 400):
        update(launch, "rmsprop", options, param, grad, states, 1e-4, step, False)
        define_update("rmsprop", options, other, grad, other_states, 1e-4, step)
        below += int((states[0] - states[1] ** 2 < 0).sum())
    assert below, "rounding never went below 0: the test shows nothing"
    assert np.isfinite(param).all() and np.array_equal(param, other)
    grad[0] = np.nan
    update(launch, "rmsprop", options, param, grad, states, 1e-4, 400, False)
    assert np.isnan(param[0]) and np.isfinite(param[1:]).all()


# The norm of a gradient.


@pytest.mark.parametrize("size", [1, 3, 8, 1023, 40_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_square_norm(launch, dtype, size):  # noqa: F811
    whole = random(size + 1, dtype, size)
    lanes = 16 // whole.itemsize
    results = []
    for grad in (whole[:size].copy(), whole[1:]):  # the second begins within a pack
        grad[...] = whole[:size]
        shape = geometry.over(-(-size // lanes))
        sums, counts = np.empty(shape.grid), np.empty(shape.grid, np.int32)
        squares, bad = np.empty(()), np.empty((), np.bool_)

        def found(grad=grad, shape=shape, sums=sums, counts=counts, squares=squares, bad=bad):
            template = (cpp(dtype), geometry.BLOCK)
            launch("square_norm", template, shape, grad, sums, counts, size)
            total = (sums, counts, shape.grid, squares, bad)
            launch("square_norm_total", (geometry.BLOCK,), geometry.Launch(1), *total)
            return float(squares), bool(bad)

        value, nonfinite = found()
        exact = np.dot(grad.astype(np.float64), grad.astype(np.float64))
        assert value == pytest.approx(exact, rel=1e-13) and not nonfinite
        results.append(value)
        for place in {0, size // 2, size - 1}:
            for wrong in (np.inf, -np.inf, np.nan):
                before, grad[place] = grad[place], wrong
                value, nonfinite = found()
                assert nonfinite and not np.isfinite(value)
                grad[place] = before
        grad[:] = largest(dtype)
        value, nonfinite = found()
        assert not nonfinite, "finite elements whose squares are beyond their own type"
        assert np.isfinite(value) or dtype == np.float64
    assert results[0] == results[1], "the sum depends on where the array lies"
