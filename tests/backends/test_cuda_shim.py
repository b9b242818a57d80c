"""The CUDA kernels, executed on the CPU from the same source, against NumPy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from gpubackprop.backends import philox, special
from gpubackprop.backends.composites import Composites
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import geometry, sources
from gpubackprop.backends.cuda.kernels import Kernels
from gpubackprop.backends.updates import Updates
from tests.backends.support import shim

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

# Definitions, not the NumPy backend's own faster versions of them.
NUMPY = NumPyBackend()
DTYPES = [np.float32, np.float64, np.float16]
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-14, np.float16: 3e-3}
SHAPES = [(1, 1), (5, 10), (9, 33), (3, 256), (2, 257), (2, 1000)]


def define(name: str, *arguments, **options):
    """A composite kernel by its definition, on NumPy arrays."""
    return getattr(Composites, name)(NUMPY, *arguments, **options)


def cpp(dtype) -> str:
    return (sources.FLOATS | sources.INDICES)[np.dtype(dtype).name]


@pytest.fixture(params=[False, True], ids=["forward", "reversed"])
def launch(request, monkeypatch):
    """Run a kernel, with a block's threads served in rising and in falling order."""
    monkeypatch.setattr(shim.RawModule, "reverse", request.param)
    return Kernels(SimpleNamespace(RawModule=shim.RawModule)).launch


def random(shape, dtype=np.float32, seed=0, scale=2.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def close(got, expected, dtype, factor=1.0):
    tolerance = TOLERANCE[dtype] * factor
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


# Philox.

PLACES = [(0, 0, 0), (2**64 - 1, 2**32 - 1, 2**64 - 2), (0x123456789ABCDEF0, 7, 2**32 - 3)]


@pytest.mark.parametrize("n", [1, 3, 4, 5, 1025, 3001])
@pytest.mark.parametrize(("seed", "stream", "offset"), PLACES)
def test_random_bits_are_numpys(launch, n, seed, stream, offset):
    out = np.empty(n, np.uint32)
    launch("random_bits", (), geometry.over((n + 3) // 4), out, n, seed, stream, None, offset)
    assert np.array_equal(out, philox.random_bits(seed, stream, offset, n))


def test_the_offset_may_live_on_the_device(launch):
    out, place = np.empty(50, np.uint32), np.array(123, np.uint64)
    launch("random_bits", (), geometry.over(13), out, 50, 5, 6, place, 0)
    assert np.array_equal(out, philox.random_bits(5, 6, 123, 50))


def test_few_threads_cover_many_words(launch):
    out = np.empty(5001, np.uint32)
    launch("random_bits", (), geometry.Launch(2, 32), out, 5001, 1, 2, None, 3)
    assert np.array_equal(out, philox.random_bits(1, 2, 3, 5001))


def test_uniform_is_exact(launch):
    out = np.empty(1003, np.float32)
    launch("uniform", (), geometry.over(251), out, 1003, 9, 1, None, 4)
    assert np.array_equal(out, define("uniform", (1003,), 9, 1, 4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.99])
def test_dropout_has_the_mask_of_the_cpu(launch, dtype, p):
    x = random((37, 11), dtype)
    y, keep = np.empty_like(x), np.empty(x.shape, bool)
    threshold, scale = round((1 - p) * 2**32), 1 / (1 - p)
    shape = geometry.over((x.size + 3) // 4)
    launch("dropout", (cpp(dtype),), shape, x, y, keep, x.size, threshold, scale, 3, 4, None, 5)
    expected, mask = define("dropout", x, p, 3, 4, 5)
    assert np.array_equal(keep, mask)
    close(y, expected, dtype, 0 if dtype != np.float16 else 1)
    alone = np.empty_like(keep)
    launch("bernoulli", (), shape, alone, x.size, threshold, 3, 4, None, 5)
    assert np.array_equal(alone, mask)
    dx = np.empty_like(x)
    launch("dropout_backward", (cpp(dtype),), geometry.over(x.size), x, keep, dx, x.size, scale)
    assert np.array_equal(dx, y)


# Softmax family.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_and_its_derivative(launch, name, shape, dtype):
    x, dy = random(shape, dtype, 1, scale=8), random(shape, dtype, 2)
    y, dx = np.empty_like(x), np.empty_like(x)
    team, grid = geometry.over_rows(*shape)
    launch(name, (cpp(dtype), team), grid, x, y, *shape)
    wide = np.float32 if dtype == np.float16 else dtype
    expected = define(name, x.astype(wide))
    close(y, expected, dtype, 4)
    launch(f"{name}_backward", (cpp(dtype), team), grid, dy, y, dx, *shape)
    close(dx, define(f"{name}_backward", dy.astype(wide), y.astype(wide)), dtype, 40)


@pytest.mark.parametrize("team", [32, 256])
def test_softmax_neither_overflows_nor_hides_a_nan(launch, team):
    big = np.finfo(np.float32).max
    x = np.array(
        [[big, 0, -big], [-np.inf, 0, 0], [np.nan, 1, 2], [1, 2, np.nan], [-np.inf] * 3], np.float32
    )
    y = np.empty_like(x)
    launch("softmax", ("float", team), geometry.Launch(2), x, y, 5, 3)
    assert y[:2].tolist() == [[1, 0, 0], [0, 0.5, 0.5]]
    assert np.isnan(y[2:]).all()


def test_rows_beyond_the_grid_are_reached(launch):
    x = random((50, 20))
    y = np.empty_like(x)
    launch("softmax", ("float", 32), geometry.Launch(1, 64), x, y, 50, 20)
    close(y, define("softmax", x), np.float32)
    launch("softmax", ("float", 256), geometry.Launch(3), x, y, 50, 20)
    close(y, define("softmax", x), np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("shape", [(1, 1), (7, 10), (3, 300)])
def test_cross_entropy_and_its_derivative(launch, shape, index, weighted, smoothing):
    dtype = np.float64 if weighted else np.float32
    x, dy = random(shape, dtype, 3, scale=4), random(shape[:1], dtype, 4)
    target = np.random.default_rng(5).integers(0, shape[1], shape[0]).astype(index)
    target[-1] = -100 if shape[0] > 1 else target[-1]
    weight = np.abs(random(shape[1:], dtype, 6)) if weighted else None
    loss, logp, dx = np.empty(shape[0], dtype), np.empty_like(x), np.empty_like(x)
    team, grid = geometry.over_rows(*shape)
    template = (cpp(dtype), cpp(index), team)
    options = (*shape, -100, smoothing)
    launch("cross_entropy", template, grid, x, target, weight, loss, logp, *options)
    expected, expected_logp = define(
        "softmax_cross_entropy", x, target, weight, label_smoothing=smoothing
    )
    close(logp, expected_logp, dtype, 4)
    close(loss, expected, dtype, 20)
    launch("cross_entropy_backward", template, grid, dy, logp, target, weight, dx, *options)
    slope = define(
        "softmax_cross_entropy_backward", dy, logp, target, weight, label_smoothing=smoothing
    )
    close(dx, slope, dtype, 20)
    if shape[0] > 1:
        assert loss[-1] == 0 and not dx[-1].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_target_that_is_no_class_costs_nan(launch, smoothing):
    x, target = random((4, 3)), np.array([0, 3, -1, -7])
    loss, logp, dx = np.empty(4, np.float32), np.empty_like(x), np.empty_like(x)
    grid, options = geometry.Launch(1), (4, 3, -7, smoothing)
    launch("cross_entropy", ("float", "i64", 32), grid, x, target, None, loss, logp, *options)
    assert np.isnan(loss).tolist() == [False, True, True, False]
    dy = np.ones(4, np.float32)
    launch(
        "cross_entropy_backward", ("float", "i64", 32), grid, dy, logp, target, None, dx, *options
    )
    assert np.isnan(dx).all(axis=1).tolist() == [False, True, True, False]
    assert not dx[3].any()


def test_an_impossible_class_costs_nothing_where_it_is_not_the_target(launch):
    x, target = np.array([[0.0, -np.inf, 0.0]], np.float32), np.array([0])
    loss, logp, dx = np.empty(1, np.float32), np.empty_like(x), np.empty_like(x)
    options, template = (1, 3, -100, 0.0), ("float", "i64", 32)
    launch("cross_entropy", template, geometry.Launch(1), x, target, None, loss, logp, *options)
    close(loss, [np.log(2)], np.float32)
    one = np.ones(1, np.float32)
    launch(
        "cross_entropy_backward",
        template,
        geometry.Launch(1),
        one,
        logp,
        target,
        None,
        dx,
        *options,
    )
    close(dx, [[-0.5, 0, 0.5]], np.float32)


# Layer norm.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (6, 10), (100, 33), (3, 700)])
def test_layer_norm_and_its_derivative(launch, shape, affine, dtype):
    rows, cols = shape
    x, dy = random(shape, dtype, 1) + dtype(3), random(shape, dtype, 2)
    weight, bias = (random(cols, dtype, 3), random(cols, dtype, 4)) if affine else (None, None)
    y, dx = np.empty_like(x), np.empty_like(x)
    wide = np.float32 if dtype == np.float16 else dtype
    mean, rstd = np.empty((rows, 1), wide), np.empty((rows, 1), wide)
    team, grid = geometry.over_rows(rows, cols)
    launch("layer_norm", (cpp(dtype), team), grid, x, weight, bias, y, mean, rstd, rows, cols, 1e-5)
    up = [None if a is None else a.astype(wide) for a in (x, weight, bias)]
    expected = define("layer_norm", *up, 1, 1e-5)
    factor = 1 if cols > 1 else 1000  # a row of one element has no spread but rounding
    for got, want in zip((y, mean, rstd), expected, strict=True):
        close(got, want, dtype, 10 * factor)
    launch(
        "layer_norm_backward", (cpp(dtype), team), grid, dy, x, weight, mean, rstd, dx, rows, cols
    )
    span = geometry.row_span(rows)
    part = np.empty((-(-rows // span), cols), wide)
    dweight = np.empty(cols, dtype)
    launch(
        "layer_norm_weight",
        (cpp(dtype),),
        geometry.over(part.size),
        dy,
        x,
        mean,
        rstd,
        part,
        rows,
        cols,
        span,
    )
    launch("column_sum", (cpp(dtype),), geometry.over(cols), part, dweight, len(part), cols)
    up = [None if a is None else a.astype(wide) for a in (dy, x, weight, mean, rstd)]
    want_dx, want_dweight = define("layer_norm_backward", *up, 1)
    close(dx, want_dx, dtype, 30 * factor)
    close(dweight, want_dweight, dtype, 50)


# Optimizers: the same bits as the definitions on NumPy.

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
CASES = [(rule, options) for rule, settings in RULES.items() for options in settings]


def update(launch, rule, options, param, grad, states, lr, step, on_device, scale=1.0, skip=None):
    """One step by the kernel; the numbers by value or by their place on the device."""
    places = (np.array(lr), np.array(float(step))) if on_device else (None, None)
    given = (0.0, -1.0) if on_device else (lr, step)  # with a place, the value must not matter
    rate, count = (places[0], given[0]), (places[1], given[1])
    factor = (np.array(scale, param.dtype), -1.0) if on_device else (None, scale)
    rate = (*factor, skip, *rate)
    get = {"weight_decay": 0.0, "momentum": 0.0, "eps": 1e-8} | options
    shape, n, decay = geometry.over(param.size), param.size, get["weight_decay"]
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
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rule", "options"), CASES, ids=[f"{r}-{'-'.join(o) or 'plain'}" for r, o in CASES]
)
def test_updates_equal_the_definitions_bit_for_bit(launch, rule, options, dtype, on_device):
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
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES)
def test_updates_of_a_scaled_gradient(launch, rule, dtype, on_device):
    options = RULES[rule][-1]
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


# The norm of a gradient.


@pytest.mark.parametrize("size", [1, 3, 8, 1023, 40_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_square_norm(launch, dtype, size):
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
        grad[:] = np.finfo(dtype).max
        value, nonfinite = found()
        assert not nonfinite, "finite elements whose squares are beyond their own type"
        assert np.isfinite(value) or dtype == np.float64
    assert results[0] == results[1], "the sum depends on where the array lies"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_centred_rmsprop_of_a_constant_gradient_stays_a_number(launch, dtype):
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


# Indices.


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_take_and_take_along(launch, dtype, index):
    x = random((3, 7, 5), dtype)
    indices = np.array([6, 0, -1, -7, 3, 3], index)
    out = np.empty((3, 6, 5), dtype)
    template = (cpp(dtype), cpp(index))
    launch("take", template, geometry.over(out.size), x, indices, out, 3, 7, 6, 5)
    assert np.array_equal(out, np.take(x, indices, axis=1))
    along = np.random.default_rng(0).integers(-7, 7, (3, 6, 5)).astype(index)
    launch("take_along", template, geometry.over(out.size), x, along, out, 3, 7, 6, 5)
    assert np.array_equal(out, np.take_along_axis(x, along.astype(np.int64), 1))


def test_an_index_out_of_range_takes_nan(launch):
    x, out = random((4, 2)), np.zeros((3, 2), np.float32)
    indices = np.array([4, -5, 3])
    launch("take", ("float", "i64"), geometry.over(6), x, indices, out, 1, 4, 3, 2)
    assert np.isnan(out).all(axis=1).tolist() == [True, True, False]
    along = np.array([[4, 0], [1, -5], [0, 0]])
    launch("take_along", ("float", "i64"), geometry.over(6), x, along, out, 1, 4, 3, 2)
    assert np.isnan(out).tolist() == [[True, False], [False, True], [False, False]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("outer", "size", "count", "tail"),
    [(1, 1, 1, 1), (1, 5, 0, 3), (1, 6, 40, 1), (2, 3, 500, 4), (1, 300, 50, 40), (3, 1000, 7, 1)],
)
def test_segment_sum_adds_what_an_index_names_twice(launch, outer, size, count, tail, dtype):
    rng = np.random.default_rng(7)
    keys = rng.integers(-1, size + 1, count)  # -1 and size are out of range and go nowhere
    order = np.argsort(keys, kind="stable")
    dy = random((outer, count, tail), dtype, 8)
    bounds, out = np.full(size + 1, -9), np.full((outer, size, tail), 7, dtype)
    launch("segment_bounds", (), geometry.over(size + 1), keys, order, bounds, count, size)
    assert np.array_equal(bounds, np.searchsorted(keys[order], np.arange(size + 1)))
    width, depth, grid = geometry.over_segments(outer, size, count, tail)
    launch(
        "segment_sum",
        (cpp(dtype), geometry.BLOCK),
        grid,
        dy,
        order,
        bounds,
        out,
        outer,
        count,
        size,
        tail,
        width,
        depth,
    )
    expected = np.zeros((outer, size, tail))
    for k, key in enumerate(keys):
        if 0 <= key < size:
            expected[:, key] += dy[:, k]
    close(out, expected, dtype, 20)


def test_segment_sum_on_a_grid_smaller_than_its_tiles(launch):
    keys = np.arange(5000) % 1700
    order = np.argsort(keys, kind="stable")
    dy, out = random((5000, 3)), np.empty((1700, 3), np.float32)
    bounds = np.searchsorted(keys[order], np.arange(1701))
    width, depth, _ = geometry.over_segments(1, 1700, 5000, 3)
    launch(
        "segment_sum",
        ("float", geometry.BLOCK),
        geometry.Launch(3),
        dy,
        order,
        bounds,
        out,
        1,
        5000,
        1700,
        3,
        width,
        depth,
    )
    expected = np.zeros((1700, 3), np.float32)
    np.add.at(expected, keys, dy)
    close(out, expected, np.float32, 4)


# Activations.

ACTIVATIONS = {
    "Erf": ("erf", None),
    "Sigmoid": ("sigmoid", "y"),
    "Tanh": (None, "y"),
    "Relu": (None, "y"),
    "LeakyRelu": ("leaky_relu", "x"),
    "Elu": ("elu", "x"),
    "Gelu": ("gelu", "x"),
    "GeluTanh": ("gelu_tanh", "x"),
    "Silu": ("silu", "x"),
    "Softplus": ("softplus", None),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_slopes(launch, name, dtype):
    value, slope = ACTIVATIONS[name]
    x = np.concatenate(
        [random(601, dtype, 2, scale=3), np.array([0, -0.0, np.nan, np.inf, -20, 20], dtype)]
    )
    dy, out = random(x.shape, dtype, 3), np.empty_like(x)
    wide = np.float32 if dtype == np.float16 else dtype
    up, parameter = x.astype(wide), 0.7 if name in ("LeakyRelu", "Elu") else None
    options = () if parameter is None else (parameter,)
    shape = geometry.over(x.size)
    with np.errstate(all="ignore"):
        if value:
            template = (cpp(dtype), name)
            launch("activation", template, shape, x, out, x.size, parameter or 0.0)
            expected = special.erf(up) if name == "Erf" else define(value, up, *options)
            close(out, expected, dtype, 4)
        if slope:
            launch(
                "activation_backward",
                (cpp(dtype), name),
                shape,
                dy,
                x,
                out,
                x.size,
                parameter or 0.0,
            )
            rule = {"Tanh": "tanh", "Relu": "relu"}.get(name, value)
            expected = define(f"{rule}_backward", dy.astype(wide), up, *options)
            close(out, expected, dtype, 40)
