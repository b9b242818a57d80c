"""Native lookups and parts of arrays, and their gradients, against the NumPy backend."""

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends import get_backend
from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.cpu.native.lowering import Site
from tests.backends.support.native import TABLE, executed

SMALL_TOO = ("indexing",)
NUMPY = get_backend("cpu")
RNG = np.random.default_rng(3)
PARTS = [1, 2, 3]
# Shape of the table, axis, shape of the indices.
LOOKUPS = [
    ((1,), 0, (1,)),
    ((5,), 0, (2, 3)),
    ((65, 128), 0, (12, 64)),
    ((7, 33), 0, (200,)),
    ((4, 9, 6), 1, (5,)),
    ((40, 3, 7), 2, (4, 2)),
    ((2, 3, 50), -2, (8,)),
    ((300, 40), 1, (90,)),
    ((900, 40), 0, (60,)),
]


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def numbers(size, shape):
    return RNG.integers(-size, size, shape)


def computed(kernel, expected, parts, *args):
    out = np.full(expected.shape, 99, expected.dtype)
    executed(kernel, (out,), parts, *args)
    return out


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("shape", "axis", "indices"), LOOKUPS)
def test_take(shape, axis, indices, parts):
    index = numbers(shape[axis], indices)
    for x in (normal(*shape), RNG.integers(-(2**40), 2**40, shape), normal(*shape[::-1]).T):
        expected = NUMPY.take(x, index, axis)
        np.testing.assert_array_equal(
            computed("take", expected, parts, x, index, axis), expected, strict=True
        )


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("shape", "axis", "indices"), LOOKUPS)
def test_scatter_take(shape, axis, indices, parts):
    index = numbers(shape[axis], indices)
    at = axis % len(shape)
    dy = normal(*shape[:at], *indices, *shape[at + 1 :])
    for given in (dy, np.asfortranarray(dy)):
        wide = given.astype(np.float64)
        expected = NUMPY.scatter_take(wide, index, axis, shape[axis]).astype(np.float32)
        found = computed("scatter_take", expected, parts, given, index, axis, shape[axis])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", PARTS)
def test_scatter_take_of_a_batch_whose_axes_are_swapped(parts):
    dy, index = normal(64, 32, 48).transpose(1, 0, 2), numbers(65, (32, 64))
    expected = NUMPY.scatter_take(dy.astype(np.float64), index, 0, 65).astype(np.float32)
    found = computed("scatter_take", expected, parts, dy, index, 0, 65)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 8, 64])
def test_sums_are_taken_in_one_order(columns):
    count = 200_000 // columns
    dy, index = normal(count, columns), numbers(11, count)
    expected = NUMPY.scatter_take(dy.astype(np.float64), index, 0, 11).astype(np.float32)
    found = [computed("scatter_take", expected, parts, dy, index, 0, 11) for parts in PARTS]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-2)
    assert all((f == found[0]).all() for f in found)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_along_an_axis(axis):
    x = normal(6, 7, 200)
    shape = list(x.shape)
    shape[axis] = 4
    index = numbers(x.shape[axis], shape)
    expected = NUMPY.take_along_axis(x, index, axis)
    found = computed("take_along_axis", expected, PARTS[-1], x, index, axis)
    np.testing.assert_array_equal(found, expected)
    dy = normal(*shape)
    size = x.shape[axis]
    expected = NUMPY.scatter_along_axis(dy, index, axis, size)
    found = computed("scatter_along_axis", expected, PARTS[-1], dy, index, axis, size)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [5, -6, 2**40])
@pytest.mark.parametrize("parts", PARTS)
def test_numbers_out_of_range(wrong, parts):
    x, index = normal(5, 64), np.zeros(400, np.int64)
    index[399] = wrong
    like, y = np.empty_like(x), np.empty((400, 64), np.float32)
    along = np.zeros((5, 2), np.int64)
    along[4, 1] = wrong if wrong == 2**40 else 64 if wrong > 0 else -65
    for kernel, expected, args in [
        ("take", y, (x, index, 0)),
        ("scatter_take", like, (y, index, 0, 5)),
        ("scatter_take", x[:, :1], (y[:, :1].copy(), index, 0, 5)),
        ("take_along_axis", like[:, :2], (x, along, 1)),
        ("scatter_along_axis", like, (like[:, :2].copy(), along, 1, 64)),
    ]:
        with pytest.raises(IndexError, match="out of range"):
            computed(kernel, expected, parts, *args)


KEYS = [
    1,
    (0, 1, 2),
    (slice(None), -1),
    (slice(None, None, -1), None, slice(1, 3)),
    (..., slice(0, 6, 2)),
    (slice(None), slice(None), slice(None)),
    (..., 0),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_parts_of_an_array(key):
    x = normal(5, 4, 7)
    for given in (x, x.astype(np.float64), np.asfortranarray(x)):
        expected = np.asarray(given[key])
        found = computed("getitem", expected, 1, given, key)
        np.testing.assert_array_equal(found, expected)
        expected = ArrayBackend.scatter_getitem(NUMPY, given[key], key, x.shape)
        dy = np.asarray(given[key])
        found = computed("scatter_getitem", expected, PARTS[-1], dy, key, x.shape)
        np.testing.assert_array_equal(found, expected)


def test_parts_of_a_large_array():
    dy = normal(200, 300)
    key = (slice(None), 3)
    expected = ArrayBackend.scatter_getitem(NUMPY, dy, key, (200, 5, 300))
    found = computed("scatter_getitem", expected, PARTS[-1], dy, key, (200, 5, 300))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_by_number(axis):
    x, index = normal(5, 4, 7), numbers(4, 9)
    key = index if axis == 0 else (slice(None), index)
    expected = x[key]
    np.testing.assert_array_equal(computed("getitem", expected, 1, x, key), expected)
    dy = normal(*expected.shape)
    expected = NUMPY.scatter_getitem(dy, key, x.shape)
    found = computed("scatter_getitem", expected, 1, dy, key, x.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_is_not_served():
    x, index = normal(4, 6), numbers(4, 3)
    y = np.empty((3, 6), np.float32)

    def lower(kernel, out, *args):
        return TABLE[kernel].lower(Site(1), (out,), *args)

    assert lower("take", y, x, index, 0) is not None
    assert lower("take", y, x, index.astype(np.int32), 0) is None
    assert lower("take", y.astype(bool), x.astype(bool), index, 0) is None
    assert lower("take", y[:0], x, index[:0], 0) is None
    assert lower("scatter_take", x.astype(np.float64), y.astype(np.float64), index, 0, 4) is None
    assert lower("getitem", x[x > 0], x, x > 0) is None
    assert lower("getitem", y, x, (index, index)) is None
    assert lower("take_along_axis", y, x, numbers(4, (1, 6)), 1) is None
