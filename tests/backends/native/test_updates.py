"""Native optimizer updates against their definitions in float64."""

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends import get_backend
from gpubackprop.backends.cpu.native.abi import slot
from gpubackprop.backends.cpu.native.engine import Program
from gpubackprop.backends.cpu.native.lowering import Site, load
from gpubackprop.backends.live import marked
from gpubackprop.backends.updates import Updates

SMALL_TOO = ("updates",)
TABLE = load()
NUMPY = get_backend("cpu")
RNG = np.random.default_rng(5)

# Kernel, how many arrays of state, options. A state of -1 is absent.
UPDATES = {
    "sgd": ("sgd_update", [-1], {}),
    "sgd, decay": ("sgd_update", [-1], {"weight_decay": 0.1}),
    "sgd, unused velocity": ("sgd_update", [1], {"momentum": 0.0}),
    "momentum": ("sgd_update", [1], {"momentum": 0.9}),
    "damped": ("sgd_update", [1], {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.02}),
    "nesterov": ("sgd_update", [1], {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": ("adam_update", [1, 1], {}),
    "adam, options": (
        "adam_update",
        [1, 1],
        {"beta1": 0.8, "beta2": 0.99, "eps": 1e-4, "weight_decay": 0.1},
    ),
    "adamw": ("adam_update", [1, 1], {"weight_decay": 0.3, "decoupled": True}),
    "adagrad": ("adagrad_update", [1], {}),
    "adagrad, options": ("adagrad_update", [1], {"lr_decay": 0.1, "eps": 1e-3, "weight_decay": 1}),
    "rmsprop": ("rmsprop_update", [1, -1, -1], {}),
    "rmsprop, centred": ("rmsprop_update", [1, 1, -1], {"alpha": 0.9, "weight_decay": 0.1}),
    "rmsprop, momentum": ("rmsprop_update", [1, -1, 1], {"momentum": 0.5, "eps": 1e-3}),
    "rmsprop, both": ("rmsprop_update", [1, 1, 1], {"momentum": 0.9}),
}


def normal(n):
    return RNG.standard_normal(n).astype(np.float32)


def lowered(kernel, parts, arrays, **options):
    return TABLE[kernel].lower(Site(parts), (), *arrays, **options)


def states(pattern, n):
    return [None if p < 0 else np.zeros(n, np.float32) for p in pattern]


def wide(arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 63, 64, 1000])
@pytest.mark.parametrize("case", UPDATES)
def test_three_steps(case, n, parts):
    kernel, pattern, options = UPDATES[case]
    param, state = normal(n), states(pattern, n)
    wanted = wide([param, *state])
    for step in (1, 2, 3):
        grad = normal(n)
        numbers = {"lr": 0.05, "step": step, **options}
        getattr(Updates, kernel)(NUMPY, wanted[0], grad.astype(np.float64), *wanted[1:], **numbers)
        Program(lowered(kernel, parts, [param, grad, *state], **numbers), parts).run()
    for found, expected in zip([param, *state], wanted, strict=True):
        if found is not None:
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", sorted({k for k, _, _ in UPDATES.values()}))
def test_rates_and_step_counts_are_read_anew(kernel):
    """One program serves every step: the numbers in its frame change."""
    pattern, options = next(
        (p, o) for k, p, o in reversed(UPDATES.values()) if k == kernel and -1 not in p
    )
    param, grad, state = normal(50), np.empty(50, np.float32), states(pattern, 50)
    wanted = wide([param, *state])
    program = Program(
        lowered(kernel, 2, [param, grad, *state], lr=marked(0.5, 0), step=marked(7, 1), **options),
        2,
    )
    assert {v.live for v, _ in program.live} >= {0}
    for step, lr in ((1, 0.1), (2, 0.03), (3, 0.7)):
        for value, at in program.live:
            program.frames[at] = slot([lr, step][value.live])
        grad[:] = normal(50)
        getattr(Updates, kernel)(
            NUMPY, wanted[0], grad.astype(np.float64), *wanted[1:], lr=lr, step=step, **options
        )
        program.run()
    for found, expected in zip([param, *state], wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "scale", [0.25, np.array(0.25, np.float32), np.array(0.25), marked(0.25, 0)], ids=repr
)
@pytest.mark.parametrize("kernel", sorted({k for k, _, _ in UPDATES.values()}))
def test_a_scaled_gradient_and_a_step_that_is_skipped(kernel, scale):
    pattern, options = next(
        (p, o) for k, p, o in reversed(UPDATES.values()) if k == kernel and -1 not in p
    )
    param, grad, state = normal(200), normal(200), states(pattern, 200)
    wanted, skip = wide([param, *state]), np.array(False)
    numbers = {"lr": 0.05, "step": 2, "scale": scale, "skip": skip, **options}
    program = Program(lowered(kernel, 2, [param, grad, *state], **numbers), 2)
    for value, at in program.live:
        program.frames[at] = slot(float(value))
    definition = getattr(Updates, kernel)
    definition(NUMPY, wanted[0], grad.astype(np.float64), *wanted[1:], **numbers)
    program.run()
    for found, expected in zip([param, *state], wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    before = [a.copy() for a in [param, *state]]
    skip[...] = True
    grad[7] = np.nan
    program.run()
    definition(NUMPY, param, grad, *state, **numbers)
    for found, expected in zip([param, *state], before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert lowered(kernel, 2, [param, grad, *state], **{**numbers, "skip": True}) == []
    assert (
        lowered(kernel, 2, [param, grad, *state], **{**numbers, "skip": np.zeros(2, bool)}) is None
    )
    assert lowered(kernel, 2, [param, grad, *state], **{**numbers, "scale": np.array(2)}) is None


@pytest.mark.parametrize("case", UPDATES)
def test_infinity_and_nan_keep_their_meaning(case):
    kernel, pattern, options = UPDATES[case]
    special = np.array([np.inf, -np.inf, np.nan, 0.0, 1e10, 1.0], np.float32)
    grads = np.array([1.0, 0.0, np.inf, np.nan, -np.inf], np.float32)
    param, grad = (a.ravel().copy() for a in np.meshgrid(special, grads))
    state = states(pattern, param.size)
    wanted = [None if a is None else a.copy() for a in [param, *state]]
    with np.errstate(all="ignore"):
        getattr(Updates, kernel)(NUMPY, wanted[0], grad, *wanted[1:], lr=0.1, step=2, **options)
    Program(lowered(kernel, 2, [param, grad, *state], lr=0.1, step=2, **options), 2).run()
    np.testing.assert_allclose(param, wanted[0], rtol=1e-5, atol=1e-5)


def test_ten_thousand_steps_of_adam_are_corrected_in_double_precision():
    param, grad, state = normal(64), normal(64), states([1, 1], 64)
    wanted = wide([param, *state])
    numbers = {"lr": 0.01, "step": 10_000, "beta2": 0.99999}
    Updates.adam_update(NUMPY, wanted[0], grad.astype(np.float64), *wanted[1:], **numbers)
    Program(lowered("adam_update", 1, [param, grad, *state], **numbers), 1).run()
    np.testing.assert_allclose(param, wanted[0], rtol=1e-6, atol=1e-7)


def test_what_is_not_served():
    p, g, v = (np.zeros(8, np.float32) for _ in range(3))
    double = np.zeros(8)
    assert lowered("sgd_update", 1, [double, double, None], lr=0.1) is None
    assert lowered("sgd_update", 1, [p[::2], g[::2], None], lr=0.1) is None
    assert lowered("sgd_update", 1, [p, g, None], lr=np.array(0.1)) is None
    assert lowered("sgd_update", 1, [p, g, None], lr=marked(1, 0)) is None
    assert lowered("sgd_update", 1, [p, g, v], lr=0.1, momentum=marked(0.9, 0)) is None
    assert lowered("adam_update", 1, [p, g, v, v.copy()], lr=0.1, step=1.0) is None
    rms = [p, g, v, None, v.copy()]
    assert lowered("rmsprop_update", 1, rms, lr=0.1, momentum=marked(0.9, 0)) is None


def test_a_spread_below_zero_counts_as_zero():
    """What rounding leaves of mean square less squared mean may be negative."""
    n = 70
    param, grad, ones = normal(n), np.ones(n, np.float32), np.ones(n, np.float32)
    square = np.linspace(0.9, 1.1, n, dtype=np.float32)
    wanted = wide([param, square, ones])
    options = {"lr": 1e-3, "eps": 0.01}
    Updates.rmsprop_update(
        NUMPY, wanted[0], grad.astype(np.float64), wanted[1], wanted[2], None, **options
    )
    Program(lowered("rmsprop_update", 2, [param, grad, square, ones, None], **options), 2).run()
    np.testing.assert_allclose(param, wanted[0], rtol=1e-4, atol=1e-4)
