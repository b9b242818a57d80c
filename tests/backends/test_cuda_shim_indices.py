"""The CUDA kernels that take and add back by index, executed on the CPU from the same source,
against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.cuda import geometry
from tests.backends.support import shim
from tests.backends.support.shim_cases import DTYPES, close, cpp, launch, random  # noqa: F401

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_take_and_take_along(launch, dtype, index):  # noqa: F811
    x = random((3, 7, 5), dtype)
    indices = np.array([6, 0, -1, -7, 3, 3], index)
    out = np.empty((3, 6, 5), dtype)
    template = (cpp(dtype), cpp(index))
    launch("take", template, geometry.over(out.size), x, indices, out, 3, 7, 6, 5)
    assert np.array_equal(out, np.take(x, indices, axis=1))
    along = np.random.default_rng(0).integers(-7, 7, (3, 6, 5)).astype(index)
    launch("take_along", template, geometry.over(out.size), x, along, out, 3, 7, 6, 5)
    assert np.array_equal(out, np.take_along_axis(x, along.astype(np.int64), 1))


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_whole_packs_are_taken_wherever_they_begin(launch, dtype, start):  # noqa: F811
    indices = np.array([6, 0, 7, -1, -7, 3, 3])
    x, out = random((2 * 7 * 16 + 1,), dtype), np.empty(2 * 7 * 16 + 1, dtype)
    x, out = (a[start:][: 2 * 7 * 16].reshape(2, 7, 16) for a in (x, out))
    launch("take", (cpp(dtype), "i64"), geometry.Launch(1), x, indices, out, 2, 7, 7, 16)
    there = [0, 1, 3, 4, 5, 6]
    assert np.array_equal(out[:, there], np.take(x, indices[there], axis=1))
    assert (out[:, 2] != out[:, 2]).all()


def test_an_index_out_of_range_takes_nan(launch):  # noqa: F811
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
def test_segment_sum_adds_what_an_index_names_twice(launch, outer, size, count, tail, dtype):  # noqa: F811
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


def test_segment_sum_on_a_grid_smaller_than_its_tiles(launch):  # noqa: F811
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
