"""The CUDA kernels of softmax and cross-entropy, executed on the CPU from the same source, against
NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.cuda import geometry
from tests.backends.support import shim
from tests.backends.support.shim_cases import DTYPES, close, cpp, define, launch, random, wide_of  # noqa: F401

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")


SHAPES = [(1, 1), (5, 10), (9, 33), (3, 256), (2, 257), (2, 1000)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_and_its_derivative(launch, name, shape, dtype):  # noqa: F811
    x, dy = random(shape, dtype, 1, scale=8), random(shape, dtype, 2)
    y, dx = np.empty_like(x), np.empty_like(x)
    team, grid = geometry.over_rows(*shape)
    launch(name, (cpp(dtype), team), grid, x, y, *shape)
    wide = wide_of(dtype)
    expected = define(name, x.astype(wide))
    close(y, expected, dtype, 4)
    launch(f"{name}_backward", (cpp(dtype), team), grid, dy, y, dx, *shape)
    close(dx, define(f"{name}_backward", dy.astype(wide), y.astype(wide)), dtype, 40)


@pytest.mark.parametrize("team", [32, 256])
def test_softmax_neither_overflows_nor_hides_a_nan(launch, team):  # noqa: F811
    big = np.finfo(np.float32).max
    x = np.array(
        [[big, 0, -big], [-np.inf, 0, 0], [np.nan, 1, 2], [1, 2, np.nan], [-np.inf] * 3], np.float32
    )
    y = np.empty_like(x)
    launch("softmax", ("float", team), geometry.Launch(2), x, y, 5, 3)
    assert y[:2].tolist() == [[1, 0, 0], [0, 0.5, 0.5]]
    assert np.isnan(y[2:]).all()


def test_rows_beyond_the_grid_are_reached(launch):  # noqa: F811
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
def test_cross_entropy_and_its_derivative(launch, shape, index, weighted, smoothing):  # noqa: F811
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
def test_a_target_that_is_no_class_costs_nan(launch, smoothing):  # noqa: F811
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


def test_an_impossible_class_costs_nothing_where_it_is_not_the_target(launch):  # noqa: F811
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
