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
@pytest.mark.parametrize("shape", [(1, 1), (7, 10), (3, 304), (2, 1003), (2, 4099)])
def test_cross_entropy_and_its_derivative(launch, shape, dtype, index, weighted, smoothing):  # noqa: F811
    wide, rows = wide_of(dtype), shape[0]
    x, dy = random(shape, dtype, 3, scale=4), random(shape[:1], wide, 4)
    target = np.random.default_rng(5).integers(0, shape[1], rows).astype(index)
    target[-1] = -100 if rows > 1 else target[-1]
    weight = np.abs(random(shape[1:], wide, 6)) if weighted else None
    options, given = (*shape, -100, smoothing), {"label_smoothing": smoothing}
    up = [None if a is None else a.astype(np.float64) for a in (x, weight, dy)]
    expected = define("softmax_cross_entropy", up[0], target, up[1], **given)
    slope = define(
        "softmax_cross_entropy_backward", up[2], up[0], *expected[1:], target, up[1], **given
    )
    for share in shares(*shape, dtype):
        found, dx = [np.empty(rows, wide) for _ in range(3)], np.empty_like(x)
        costs(launch, x, target, weight, found, share, *options)
        for got, want in zip(found, expected, strict=True):
            close(got, want, wide, 10)
        slopes(launch, dy, x, found[1:], target, weight, dx, share, *options)
        close(dx, slope, dtype, 4)
        if rows > 1:
            assert found[0][-1] == 0 and not dx[-1].any()


def costs(launch, x, target, weight, found, share, *options):  # noqa: F811
    """Run the kernel forwards."""
    stages, arrays = (1, 2, 3) if options[-1] else (1, 2), (x, target, weight, *found)
    template = (cpp(x.dtype), cpp(target.dtype))
    run_rows(launch, "cross_entropy", template, arrays, share, *options, kept=3, stages=stages)


def slopes(launch, dy, x, spread, target, weight, dx, share, *options):  # noqa: F811
    """Run the kernel backwards."""
    stages = (1, 2) if options[-1] and weight is not None else (2,)
    arrays = (dy, x, *spread, target, weight, dx)
    template = (cpp(x.dtype), cpp(target.dtype))
    run_rows(launch, "cross_entropy_backward", template, arrays, share, *options, stages=stages)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_target_that_is_no_class_costs_nan(launch, smoothing):  # noqa: F811
    x, target = random((4, 8)), np.array([0, 8, -1, -7])
    for share in shares(4, 8, np.float32):
        found, dx = [np.empty(4, np.float32) for _ in range(3)], np.empty_like(x)
        options = (4, 8, -7, smoothing)
        costs(launch, x, target, None, found, share, *options)
        assert np.isnan(found[0]).tolist() == [False, True, True, False]
        slopes(launch, np.ones(4, np.float32), x, found[1:], target, None, dx, share, *options)
        assert np.isnan(dx).all(axis=1).tolist() == [False, True, True, False]
        assert not dx[3].any()


def test_an_impossible_class_costs_nothing_where_it_is_not_the_target(launch):  # noqa: F811
    x, target = np.array([[0.0, -np.inf, 0.0]], np.float32), np.array([0])
    for share in shares(1, 3, np.float32):
        found, dx = [np.empty(1, np.float32) for _ in range(3)], np.empty_like(x)
        options = (1, 3, -100, 0.0)
        costs(launch, x, target, None, found, share, *options)
        close(found, [[np.log(2)], [0], [2]], np.float32)
        slopes(launch, np.ones(1, np.float32), x, found[1:], target, None, dx, share, *options)
        close(dx, [[-0.5, 0, 0.5]], np.float32)


# Rows that are no whole number of packs.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [2, 9, 1003, 2051])
def test_uneven_rows_give_the_same_bits_wherever_they_lie(launch, cols, dtype):  # noqa: F811
    """And write nothing before, between or behind them."""
    shape, wide = (3, cols), wide_of(dtype)
    lanes = geometry.PACK_BYTES // np.dtype(dtype).itemsize
    x, dy = random(shape, dtype, 1, scale=4), random(shape[:1], wide, 2)
    other, weight = random(shape, dtype, 3), np.abs(random(cols, wide, 4))
    target, options = np.array([0, cols - 1, cols // 2]), (*shape, -100, 0.1)
    for pieces in (1, 3):
        share = geometry.RowShare(geometry.BLOCK, 0, 0, pieces, geometry.Launch(2))
        found = []
        for offset in range(lanes):
            given, results = lying(x, offset), [np.empty(3, wide) for _ in range(3)]
            dx, y, dz = made = [lying(x, (offset + k) % lanes) for k in range(3)]
            for array in made:
                array.base.view(np.uint8)[...] = 0x5A
            costs(launch, given, target, weight, results, share, *options)
            slopes(launch, dy, given, results[1:], target, weight, dx, share, *options)
            run_rows(launch, "softmax", (cpp(dtype),), (given, y), share, *shape, kept=2)
            arrays = (lying(other, lanes - 1 - offset), given, dz)
            run_rows(launch, "softmax_backward", (cpp(dtype),), arrays, share, *shape)
            found.append([a.tobytes() for a in (*results, *made)])
            for array in made:
                array.view(np.uint8)[...] = 0x5A
                assert (array.base.view(np.uint8) == 0x5A).all(), "it wrote beside its array"
        assert all(f == found[0] for f in found)


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
