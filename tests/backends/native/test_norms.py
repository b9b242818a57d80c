"""Normalisation over a batch and over groups of channels against its definition in float64."""

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends import get_backend
from gpubackprop.backends.cpu.native.lowering import Site
from gpubackprop.backends.cpu.native.norms import strip
from tests.backends.support.native import TABLE, executed

SMALL_TOO = ("norms",)
NUMPY = get_backend("cpu")
RNG = np.random.default_rng(11)
SHAPES = [
    (1, 1),
    (7, 1),
    (6, 5),
    (2, 3, 4),
    (67, 3, 1, 6),
    (33, 5, 7, 16),
    (3, 4, 4, 130),
    (1, 1, 9),
]
PARTS = [1, 2, 3]


def wide(a):
    return a.astype(np.float64) if isinstance(a, np.ndarray) else a


def defined(kernel, *args):
    return getattr(NUMPY, kernel)(*map(wide, args))


def computed(kernel, expected, parts, *args, **options):
    """A native kernel's results, in memory that held no numbers."""
    expected = expected if isinstance(expected, tuple) else (expected,)
    outs = tuple(np.full(e.shape, np.nan, np.float32) for e in expected)
    return executed(kernel, outs, parts, *args, **options)


def agree(kernel, parts, *args, tolerance=2e-6):
    expected = defined(kernel, *args)
    found = computed(kernel, expected, parts, *args)
    for f, e in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        scale = max(float(np.abs(e).max()), 1.0)
        np.testing.assert_allclose(f, e, rtol=2e-5, atol=tolerance * scale)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(shape, affine, parts):
    x = normal(*shape) * 3 + normal(shape[-1])
    weight, bias = (normal(shape[-1]), normal(shape[-1])) if affine else (None, None)
    agree("batch_norm", parts, x, weight, bias, 1e-2)


def test_batch_norm_keeps_the_digits_of_a_far_mean():
    x = normal(300, 4, 4, 8) + np.float32(1000)
    expected = defined("batch_norm", x, None, None, 1e-5)
    _, mean, var, _ = computed("batch_norm", expected, PARTS[-1], x, None, None, 1e-5)
    np.testing.assert_allclose(mean, expected[1], rtol=2e-7)
    np.testing.assert_allclose(var, expected[2], rtol=1e-5)


@pytest.mark.parametrize("parts", PARTS)
def test_batch_norm_of_a_channel_with_nan_leaves_the_others_alone(parts):
    x = normal(50, 6)
    x[3, 2] = np.nan
    expected = defined("batch_norm", x, None, None, 1e-5)
    for f, e in zip(
        computed("batch_norm", expected, parts, x, None, None, 1e-5), expected, strict=True
    ):
        np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("moments", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_backward(shape, affine, moments, parts):
    x, dy, c = normal(*shape) + normal(shape[-1]), normal(*shape), shape[-1]
    weight = normal(c) if affine else None
    mean = x.reshape(-1, c).mean(0)
    rstd = (1 / np.sqrt(x.reshape(-1, c).var(0) + 0.1)).astype(np.float32)
    more = (normal(c), normal(c)) if moments else (None, None)
    agree("batch_norm_backward", parts, dy, x, weight, mean, rstd, *more, tolerance=5e-6)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_scale_shift(shape, shift):
    c = shape[-1]
    agree("scale_shift", PARTS[-1], normal(*shape), normal(c), normal(c) if shift else None)


GROUPED = [((3, 5, 4), 2), ((4, 9, 7, 6), 3), ((2, 6), 6), ((9, 8, 8, 32), 1), ((1, 1, 1, 4), 2)]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("shape", "groups"), GROUPED)
def test_group_norm(shape, groups, affine, parts):
    x, c = normal(*shape) + normal(shape[-1]), shape[-1]
    weight, bias = (normal(c), normal(c)) if affine else (None, None)
    agree("group_norm", parts, x, weight, bias, groups, 1e-2)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("shape", "groups"), GROUPED)
def test_group_norm_backward(shape, groups, affine, parts):
    x, dy, c = normal(*shape) + normal(shape[-1]), normal(*shape), shape[-1]
    weight = normal(c) if affine else None
    _, mean, rstd = NUMPY.group_norm(x, None, None, groups, 1e-1)
    agree("group_norm_backward", parts, dy, x, weight, mean, rstd, groups, tolerance=5e-6)


def test_strips_cover_whole_rows():
    for shape in SHAPES:
        rows, columns = strip(np.empty(shape, np.float32))
        assert rows * columns == np.prod(shape) and columns % shape[-1] == 0


def test_what_is_not_served():
    x = normal(4, 6)
    outs = tuple(np.empty(s, np.float32) for s in [(4, 6), 6, 6, 6])

    def lower(a, weight=None):
        return TABLE["batch_norm"].lower(Site(1), outs, a, weight, None, 1e-5)

    assert lower(x) is not None
    assert lower(x.astype(np.float64)) is None
    assert lower(np.asfortranarray(x)) is None
    assert lower(x, normal(12)[::2]) is None
    assert lower(x[:0]) is None
