"""The CUDA kernels of softmax and cross-entropy, executed on the CPU from the same source, against
NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.cuda import geometry, sources
from tests.backends.support import shim
from tests.backends.support.shim_cases import (  # noqa: F401
    DTYPES,
    close,
    cpp,
    define,
    launch,
    lying,
    random,
    run_rows,
    shares,
    wide_of,
)

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

# Of one column, a few, as many as a warp or a block keeps, more; with and without whole packs.
SHAPES = [(1, 1), (5, 10), (9, 32), (3, 257), (2, 1000), (2, 2048), (3, 2056), (1, 9000)]
FAMILY = ["softmax", "log_softmax"]


def given(name):
    """Of the share in ``part``: how many numbers of each piece."""
    return {"kept": 1 if name.endswith("backward") else 2}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILY)
def test_softmax_and_its_derivative(launch, name, shape, dtype):  # noqa: F811
    x, dy = random(shape, dtype, 1, scale=8), random(shape, dtype, 2)
    wide = wide_of(dtype)
    expected = define(name, x.astype(wide))
    for share in shares(*shape, dtype):
        y, dx = np.empty_like(x), np.empty_like(x)
        run_rows(launch, name, (cpp(dtype),), (x, y), share, *shape, **given(name))
        close(y, expected, dtype, 6)
        run_rows(launch, f"{name}_backward", (cpp(dtype),), (dy, y, dx), share, *shape)
        close(dx, define(f"{name}_backward", dy.astype(wide), y.astype(wide)), dtype, 40)


@pytest.mark.parametrize("name", FAMILY)
def test_neither_an_overflow_nor_a_hidden_nan(launch, name):  # noqa: F811
    """As the definition has it, in every share: rows of -infinity, infinities, NaNs anywhere."""
    big, inf, nan, cols = np.finfo(np.float32).max, np.inf, np.nan, 24
    rows = [[big, 0, -big], [-inf, 0, 0], [nan, 1, 2], [1, 2, nan], [-inf] * 3, [inf, 0, 0]]
    rows += [[-inf, -inf, 3], [inf, -inf, inf], [nan] * 3, [inf, nan, -inf]]
    x = np.repeat(np.array(rows, np.float32), cols // 3, axis=1)
    with np.errstate(all="ignore"):
        expected = define(name, x)
    for share in shares(*x.shape, np.float32):
        y = np.empty_like(x)
        run_rows(launch, name, ("float",), (x, y), share, *x.shape, **given(name))
        np.testing.assert_allclose(y, expected, rtol=4e-6, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILY)
def test_bits_do_not_depend_on_where_an_array_lies(launch, name, dtype):  # noqa: F811
    shape = (3, 80)
    x, dy = random(shape, dtype, 1, scale=4), random(shape, dtype, 2)
    for share in shares(*shape, dtype):
        found = []
        for offset in (0, 1, 3):
            y, dx = lying(np.zeros_like(x), offset), lying(np.zeros_like(x), offset)
            arrays = (lying(x, offset), y)
            run_rows(launch, name, (cpp(dtype),), arrays, share, *shape, **given(name))
            arrays = (lying(dy, 1 - offset % 2), y, dx)
            run_rows(launch, f"{name}_backward", (cpp(dtype),), arrays, share, *shape)
            found.append((y.tobytes(), dx.tobytes()))
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 10), (3, 304)])
def test_cross_entropy_and_its_derivative(launch, shape, dtype, index, weighted, smoothing):  # noqa: F811
    x, dy = random(shape, dtype, 3, scale=4), random(shape[:1], dtype, 4)
    target = np.random.default_rng(5).integers(0, shape[1], shape[0]).astype(index)
    target[-1] = -100 if shape[0] > 1 else target[-1]
    weight = np.abs(random(shape[1:], dtype, 6)) if weighted else None
    template, options = (cpp(dtype), cpp(index)), (*shape, -100, smoothing)
    wide = wide_of(dtype)
    up = [None if a is None else a.astype(wide) for a in (x, dy, weight)]
    expected, expected_logp = define(
        "softmax_cross_entropy", up[0], target, up[2], label_smoothing=smoothing
    )
    for share in shares(*shape, dtype):
        loss, logp, dx = np.empty(shape[0], dtype), np.empty_like(x), np.empty_like(x)
        arrays = (x, target, weight, loss, logp)
        run_rows(
            launch, "cross_entropy", template, arrays, share, *options, kept=3, stages=(1, 2, 3)
        )
        close(logp, expected_logp, dtype, 4)
        close(loss, expected, dtype, 20)
        arrays, stages = (dy, logp, target, weight, dx), (1, 2) if smoothing else (2,)
        run_rows(launch, "cross_entropy_backward", template, arrays, share, *options, stages=stages)
        rest = (target, up[2])
        slope = define(
            "softmax_cross_entropy_backward",
            up[1],
            logp.astype(wide),
            *rest,
            label_smoothing=smoothing,
        )
        close(dx, slope, dtype, 20)
        if shape[0] > 1:
            assert loss[-1] == 0 and not dx[-1].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_target_that_is_no_class_costs_nan(launch, smoothing):  # noqa: F811
    x, target = random((4, 8)), np.array([0, 8, -1, -7])
    for share in shares(4, 8, np.float32):
        loss, logp, dx = np.empty(4, np.float32), np.empty_like(x), np.empty_like(x)
        template, options = ("float", "i64"), (4, 8, -7, smoothing)
        arrays = (x, target, None, loss, logp)
        run_rows(
            launch, "cross_entropy", template, arrays, share, *options, kept=3, stages=(1, 2, 3)
        )
        assert np.isnan(loss).tolist() == [False, True, True, False]
        arrays = (np.ones(4, np.float32), logp, target, None, dx)
        run_rows(launch, "cross_entropy_backward", template, arrays, share, *options)
        assert np.isnan(dx).all(axis=1).tolist() == [False, True, True, False]
        assert not dx[3].any()


def test_an_impossible_class_costs_nothing_where_it_is_not_the_target(launch):  # noqa: F811
    x, target = np.array([[0.0, -np.inf, 0.0]], np.float32), np.array([0])
    for share in shares(1, 3, np.float32):
        loss, logp, dx = np.empty(1, np.float32), np.empty_like(x), np.empty_like(x)
        options, template = (1, 3, -100, 0.0), ("float", "i64")
        arrays = (x, target, None, loss, logp)
        run_rows(
            launch, "cross_entropy", template, arrays, share, *options, kept=3, stages=(1, 2, 3)
        )
        close(loss, [np.log(2)], np.float32)
        arrays = (np.ones(1, np.float32), logp, target, None, dx)
        run_rows(launch, "cross_entropy_backward", template, arrays, share, *options, stages=(2,))
        close(dx, [[-0.5, 0, 0.5]], np.float32)


# How rows are shared.


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("rows", [0, 1, 8, 255, 2048, 10**6, 2**33])
@pytest.mark.parametrize("cols", [1, 10, 64, 768, 1024, 8192, 50257, 5 * 10**7, 2**31 + 7])
def test_shares_fit_their_rows(rows, cols, itemsize):
    for passes in (1, 2):
        share = geometry.by_rows(rows, cols, itemsize, passes)
        packs = cols * itemsize // 16 if share.packed else cols
        assert not share.packed or cols * itemsize % 16 == 0
        assert not share.held or packs <= share.team * share.held, "a row would lose its end"
        assert (str(share.team), str(share.held)) in sources.SHARES
        assert share.pieces == 1 or (share.held == 0 and share.team == geometry.BLOCK)
        assert 0 <= share.launch.grid <= 65536 and rows * share.pieces <= max(rows, 1024)
        assert share.launch.grid >= min(rows, 1)


def test_shapes_of_the_benchmarks_are_read_once_in_whole_packs():
    for rows, cols, itemsize in ((131072, 1024, 4), (16384, 768, 2), (16384, 8192, 4)):
        share = geometry.by_rows(rows, cols, itemsize)
        assert share.held and share.packed and share.pieces == 1
        assert share.launch.grid * geometry.BLOCK // share.team >= 4 * 132, (
            "fewer than 4 a GPU's core"
        )


def test_few_long_rows_occupy_a_whole_gpu():
    for rows in (1, 8, 100):
        assert geometry.by_rows(rows, 5 * 10**7, 4).launch.grid >= 132 * 4
