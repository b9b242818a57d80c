"""Native reductions, copies and fills against the NumPy backend."""

import math

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends import get_backend
from gpubackprop.backends.cpu.native.engine import Program
from gpubackprop.backends.cpu.native.lowering import Site, load

SMALL_TOO = ("chains", "reductions", "copies")
TABLE = load()
NUMPY = get_backend("cpu")
RNG = np.random.default_rng(11)
PARTS = [1, 2, 3]
# Shape and axes: over all, the first, the last, the middle, none, several.
REDUCTIONS = [
    ((), None),
    ((1,), None),
    ((1,), 0),
    ((5000,), None),
    ((3, 7), None),
    ((3, 7), 0),
    ((3, 7), -1),
    ((3, 7), (0, 1)),
    ((400, 65), 0),
    ((400, 65), 1),
    ((2, 9000), 0),
    ((2, 9000), 1),
    ((12, 64, 33), (0, 1)),
    ((12, 64, 33), 1),
    ((6, 1, 5, 7), (0, 2)),
    ((6, 1, 5, 7), (1, 3)),
    ((4, 8, 5, 3), (0, 2, 3)),
]


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def layouts(x):
    """The same values in order, with reversed axes, channels last, with gaps, backwards."""
    x = np.asarray(x)
    yield x
    yield x.copy(order="F")
    if x.ndim == 4:
        yield np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if x.ndim:
        wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
        wide[..., ::2] = x
        yield wide[..., ::2]
        yield np.ascontiguousarray(x[::-1])[::-1]


def run(kernel, out, parts, *args, **kwargs):
    instructions = TABLE[kernel].lower(Site(parts), (out,), *args, **kwargs)
    assert instructions is not None
    Program(instructions, parts).run()
    return out


def blank(like, dtype=None):
    like = np.asarray(like)
    return np.full(like.shape, 99, dtype or like.dtype)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(("shape", "axis"), REDUCTIONS)
def test_sum_and_mean(shape, axis, keepdims, parts):
    for x in layouts(normal(*shape)):
        for name in ("sum", "mean"):
            wanted = getattr(NUMPY, name)(x.astype(np.float64), axis, keepdims)
            out = blank(wanted, np.float32)
            found = run(name, out, parts, x, axis=axis, keepdims=keepdims)
            count = max(x.size // max(out.size, 1), 1)
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6 * math.sqrt(count))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("shape", "axis"), REDUCTIONS)
def test_max_and_min(shape, axis, parts):
    values = normal(*shape)
    spoilt = values.copy()
    spoilt.reshape(-1)[:: max(spoilt.size // 3, 2)] = np.nan
    endless = np.where(values > 0.5, np.float32(np.inf), np.where(values < -1, -np.inf, values))
    for given in (values, spoilt, endless.astype(np.float32)):
        for x in layouts(given):
            for name in ("max", "min"):
                wanted = getattr(NUMPY, name)(x, axis)
                np.testing.assert_array_equal(run(name, blank(wanted), parts, x, axis), wanted)


def test_infinity_and_nan_of_sums():
    x = np.ones((6, 40), np.float32)
    x[1, 3], x[2, 5], x[4, 5], x[5, 7] = np.nan, np.inf, -np.inf, np.inf
    with np.errstate(invalid="ignore"):
        for axis in (None, 0, 1):
            wanted = np.asarray(NUMPY.sum(x, axis))
            np.testing.assert_array_equal(run("sum", blank(wanted), 2, x, axis), wanted)


@pytest.mark.parametrize("shape", [(300_000,), (300_000, 3), (3, 300_000)])
def test_long_sums_keep_their_digits(shape):
    """0.1 summed one after the other in single precision is wrong by one part in a thousand."""
    x = np.full(shape, 0.1, np.float32)
    axis = int(np.argmax(shape))
    wanted = np.full(x.sum(axis).shape, 300_000 * np.float64(np.float32(0.1)))
    for parts in PARTS:
        found = run("sum", blank(wanted, np.float32), parts, x, axis)
        # Over rows, blocks of 32 are added one after the other.
        np.testing.assert_allclose(found, wanted, rtol=1e-4 if axis == 0 and x.ndim > 1 else 1e-6)


@pytest.mark.parametrize("parts", PARTS)
def test_counts(parts):
    x = RNG.random((40, 50)) > 0.3
    for given in (x, x.T, x[:, ::2]):
        out = run("sum", np.empty((), np.int64), parts, given)
        assert out == given.sum()


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(
    ("shape", "target"),
    [
        ((5, 4), (4,)),
        ((5, 4), (1, 4)),
        ((5, 4), (5, 1)),
        ((5, 4), ()),
        ((5, 4), (1, 1)),
        ((5, 4), (5, 4)),
        ((3, 5, 4), (5, 1)),
        ((3, 5, 4), (3, 1, 4)),
        ((12, 64, 128), (64, 128)),
        ((12, 64, 128), (128,)),
        ((1, 4), (1, 4)),
    ],
)
def test_sum_to(shape, target, parts):
    for x in layouts(normal(*shape)):
        wanted = NUMPY.sum_to(x.astype(np.float64), target)
        found = run("sum_to", blank(wanted, np.float32), parts, x, target)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-5)


COPIES = [(), (1,), (1000,), (3, 7), (70, 130), (2, 3, 4), (3, 20, 17, 5), (2, 3, 2, 3, 2)]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, bool, np.int8])
def test_copies_between_layouts(dtype, parts):
    for shape in COPIES:
        values = RNG.integers(0, 2 if dtype is bool else 100, shape).astype(dtype)
        for x in layouts(values):
            for target in layouts(np.zeros(shape, dtype)):
                run("copy", target, parts, x)
                np.testing.assert_array_equal(target, values)
                target[...] = 0
                instructions = TABLE["copyto"].lower(Site(parts), (), target, x)
                Program(instructions, parts).run()
                np.testing.assert_array_equal(target, values)


def test_a_copy_leaves_the_gaps_alone():
    wide = np.full((40, 50), 7, np.float32)
    run("copy", wide[3:33:2, 1:41:3], 2, np.zeros((15, 14), np.float32))
    assert wide.sum() == 7 * (2000 - 15 * 14)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(
    ("target", "source"), [((4, 5), (5,)), ((4, 5), (4, 1)), ((4, 5), ()), ((3, 4, 5), (4, 1))]
)
def test_copyto_repeats_and_casts(target, source, parts):
    for dtype, of in [(np.float32, np.float32), (np.float32, np.int64), (np.float32, bool)]:
        out, x = np.zeros(target, dtype), RNG.integers(0, 2, source).astype(of)
        Program(TABLE["copyto"].lower(Site(parts), (), out, x), parts).run()
        np.testing.assert_array_equal(out, np.broadcast_to(x, target))


@pytest.mark.parametrize("parts", PARTS)
def test_concatenate(parts):
    for axis in (0, 1, 2, -1):
        shapes = [[3, 4, 5] for _ in range(4)]
        for shape, n in zip(shapes, (1, 6, 0, 2), strict=True):
            shape[axis] = n
        for dtype in (np.float32, np.int64):
            arrays = [RNG.integers(0, 99, s).astype(dtype) for s in shapes]
            arrays[1] = np.asfortranarray(arrays[1])
            wanted = np.concatenate(arrays, axis)
            found = run("concatenate", blank(wanted), parts, arrays, axis=axis)
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("parts", PARTS)
def test_fills(parts):
    for shape in ((), (1,), (7, 300)):
        for dtype in (np.float32, np.int64, bool):
            for name, args in (("zeros", ()), ("ones", ()), ("full", (1,))):
                out = np.full(shape, 0 if name == "ones" else 1, dtype)
                run(name, out, parts, shape, *args, np.dtype(dtype))
                np.testing.assert_array_equal(out, np.full(shape, name != "zeros", dtype))
    out = run("full", np.zeros((3, 5), np.float32), parts, (3, 5), -2.5, np.dtype(np.float32))
    assert (out == -2.5).all()


@pytest.mark.parametrize("parts", PARTS)
def test_pad_and_flip(parts):
    x = normal(3, 40, 5)
    for widths in (((0, 0), (1, 2), (3, 0)), ((2, 1), (0, 0), (0, 0))):
        wanted = NUMPY.pad(x, widths, -1.5)
        np.testing.assert_array_equal(run("pad", blank(wanted), parts, x, widths, -1.5), wanted)
    for axis in (None, 0, -1, (0, 2)):
        wanted = NUMPY.flip(x, axis)
        out = np.empty(wanted.shape, wanted.dtype)
        np.testing.assert_array_equal(run("flip", out, parts, x, axis), wanted)


def test_what_is_not_served():
    lower = TABLE["sum"].lower
    double = np.ones((3, 4))
    assert lower(Site(1), (np.empty(4),), double, 0) is None
    assert lower(Site(1), (np.empty(4, np.float32),), np.empty((0, 4), np.float32), 0) is None
    half = np.ones(4, np.float16)
    assert TABLE["copy"].lower(Site(1), (half.copy(),), half) is None
