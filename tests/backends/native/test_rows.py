"""Native softmax, cross-entropy and normalisation by layers against their definition in float64."""

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends import get_backend
from gpubackprop.backends.cpu.native.lowering import Site
from gpubackprop.backends.norms import NormKernels
from tests.backends.support.native import TABLE, executed

SMALL_TOO = ("rows",)
NUMPY = get_backend("cpu")
RNG = np.random.default_rng(2)
PARTS = [1, 2, 3]
SHAPES = [(1, 1), (3,), (7, 2), (5, 10), (33, 15), (4, 6, 16), (129, 65), (3, 5000)]


def wide(a):
    return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == np.float32 else a


def defined(kernel, *args):
    with np.errstate(all="ignore"):
        found = getattr(NormKernels, kernel)(NUMPY, *map(wide, args))
    return found if isinstance(found, tuple) else (found,)


def computed(kernel, expected, parts, *args, first=None):
    """A native kernel's results, in memory that held no numbers; the first one in `first`."""
    outs = [np.full(e.shape, np.nan, np.float32) for e in expected]
    if first is not None:
        outs[0] = first
    return executed(kernel, outs, parts, *args)


def agree(kernel, parts, *args, rtol=2e-5, atol=2e-6):
    expected = defined(kernel, *args)
    found = computed(kernel, expected, parts, *args)
    for f, e in zip(found, expected, strict=True):
        finite = np.abs(e[np.isfinite(e)])
        scale = max(float(finite.max(initial=0.0)), 1.0)
        np.testing.assert_allclose(f, e, rtol=rtol, atol=atol * scale)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax(shape, parts):
    x, dy = normal(*shape) * 5, normal(*shape)
    for kernel in ("softmax", "log_softmax"):
        agree(kernel, parts, x)
        y = defined(kernel, x)[0].astype(np.float32)
        agree(kernel + "_backward", parts, dy, y)


@pytest.mark.parametrize("kernel", ["softmax", "log_softmax"])
def test_softmax_of_what_is_not_finite(kernel):
    x = normal(9, 21)
    x[0, 3], x[1, 4], x[2, 5] = np.nan, np.inf, -np.inf
    x[3], x[4], x[5] = -np.inf, np.nan, 3e38
    x[6, 20], x[7, 0], x[7, 1] = -np.nan, np.inf, np.inf
    agree(kernel, 2, x)


def test_large_logits_keep_their_digits():
    x = normal(6, 30) + np.float32(3e4)
    expected = defined("log_softmax", x)
    np.testing.assert_allclose(computed("log_softmax", expected, 1, x)[0], expected[0], atol=2e-6)


def test_rows_of_wider_arrays():
    x = normal(8, 5, 40)[..., 3:20]
    agree("softmax", 2, x)
    out = np.full((8, 5, 30), np.nan, np.float32)
    computed("softmax", [x], 2, x, first=out[..., 2:19])
    np.testing.assert_allclose(out[..., 2:19], defined("softmax", x)[0], rtol=2e-5)
    assert np.isnan(out[..., :2]).all() and np.isnan(out[..., 19:]).all()


@pytest.mark.parametrize("name", ["x", "dy", "y"])
def test_softmax_in_the_memory_of_an_argument(name):
    kernel = "softmax" if name == "x" else "softmax_backward"
    args = [normal(17, 37)] if name == "x" else [normal(17, 37), abs(normal(17, 37))]
    expected = defined(kernel, *args)
    place = args[1] if name == "y" else args[0]
    assert name in TABLE[kernel].inplace
    computed(kernel, expected, 3, *args, first=place)
    np.testing.assert_allclose(place, expected[0], rtol=2e-5, atol=2e-6)


OPTIONS = [(False, -100, 0.0), (True, -100, 0.0), (False, 1, 0.1), (True, -1, 0.3), (False, 0, 1.0)]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("weighted", "ignored", "smoothing"), OPTIONS)
@pytest.mark.parametrize("shape", [(1, 2), (5, 10), (130, 65), (4, 3000)])
def test_cross_entropy(shape, weighted, ignored, smoothing, parts):
    x, (rows, classes) = normal(*shape) * 3, shape
    target = RNG.integers(0, classes, rows)
    if rows > 1:
        target[1] = ignored
    weight = None
    if weighted:
        weight = abs(normal(classes))
        weight[0] = 0
    options = (target, weight, ignored, smoothing)
    agree("softmax_cross_entropy", parts, x, *options, atol=1e-5)
    agree("softmax_cross_entropy_backward", parts, normal(rows), x, *spread(x), *options)


def spread(x):
    """Each row's largest logit, and the sum of the exponentials beside it."""
    top = x.max(axis=1)
    return top, np.exp(x - top[:, None]).sum(axis=1)


def test_cross_entropy_with_impossible_classes():
    x = normal(4, 12)
    x[0, 3], x[1, 3], x[2] = -np.inf, -np.inf, np.nan
    target = np.array([0, 3, -100, 1])
    agree("softmax_cross_entropy", 2, x, target)
    weight = np.ones(12, np.float32)
    weight[3] = 0
    agree("softmax_cross_entropy", 2, x, target, weight, -100, 0.1)
    dy = np.full(4, np.nan, np.float32)
    agree("softmax_cross_entropy_backward", 2, dy, x, *spread(x), target)


def test_cross_entropy_in_the_memory_of_the_logits():
    x, target = normal(50, 33), np.arange(50) % 33
    given = (np.full(50, 0.25, np.float32), x, *spread(x), target)
    expected = defined("softmax_cross_entropy_backward", *given)
    computed("softmax_cross_entropy_backward", expected, 3, *given, first=x)
    np.testing.assert_allclose(x, expected[0], rtol=2e-5, atol=2e-6)


def test_a_slope_that_is_one_number_for_all_rows():
    x, dy = normal(6, 9), np.broadcast_to(np.float32(0.5), (6,))
    agree("softmax_cross_entropy_backward", 2, dy, x, *spread(x), np.arange(6))


@pytest.mark.parametrize("wrong", [10, -1, -101, 2**40])
@pytest.mark.parametrize("parts", PARTS)
def test_a_target_that_is_no_class(wrong, parts):
    x, target = normal(20, 10), np.zeros(20, np.int64)
    target[17] = wrong
    like = (np.empty(20),) * 3
    with pytest.raises(IndexError, match="no class"):
        computed("softmax_cross_entropy", like, parts, x, target)
    with pytest.raises(IndexError, match="no class"):
        computed("softmax_cross_entropy_backward", [x], parts, normal(20), x, *spread(x), target)


NORMED = [
    ((1, 1), 1),
    ((7,), 1),
    ((5, 3), 1),
    ((4, 6, 20), 1),
    ((6, 5, 7), 2),
    ((3, 4, 5), 3),
    ((200, 130), 1),
    ((2, 4000), 1),
]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("given", ["weight and bias", "weight", "bias", "nothing"])
@pytest.mark.parametrize(("shape", "axes"), NORMED)
def test_norms(shape, axes, given, parts):
    x, last = normal(*shape) * 3 + 1, shape[len(shape) - axes :]
    weight = normal(*last) if "weight" in given else None
    bias = normal(*last) if "bias" in given else None
    agree("layer_norm", parts, x, weight, bias, axes, 1e-2)
    if "bias" not in given:
        agree("rms_norm", parts, x, weight, axes, 1e-2)
        dy = normal(*shape)
        _, mean, rstd = (
            a.astype(np.float32) for a in defined("layer_norm", x, *[None] * 2, axes, 0.1)
        )
        agree("layer_norm_backward", parts, dy, x, weight, mean, rstd, axes, atol=5e-6)
        _, rstd = (a.astype(np.float32) for a in defined("rms_norm", x, None, axes, 0.1))
        agree("rms_norm_backward", parts, dy, x, weight, rstd, axes, atol=5e-6)


def test_norms_of_a_far_mean_keep_their_digits():
    x = normal(30, 64) + np.float32(1000)
    expected = defined("layer_norm", x, None, None, 1, 1e-5)
    found = computed("layer_norm", expected, 2, x, None, None, 1, 1e-5)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-4)


def test_norms_of_a_row_with_nan_leave_the_others_alone():
    x = normal(9, 33)
    x[4, 2] = np.nan
    agree("layer_norm", 2, x, normal(33), normal(33), 1, 1e-5)


@pytest.mark.parametrize("place", ["dy", "x"])
def test_norms_in_the_memory_of_an_argument(place):
    dy, x, weight = normal(40, 37), normal(40, 37), normal(37)
    _, mean, rstd = (a.astype(np.float32) for a in defined("layer_norm", x, weight, weight, 1, 0.1))
    args = (dy, x, weight, mean, rstd, 1)
    expected = defined("layer_norm_backward", *args)
    memory = dy if place == "dy" else x
    _, *sums = computed("layer_norm_backward", expected, 3, *args, first=memory)
    for found, want in zip((memory, *sums), expected, strict=True):
        np.testing.assert_allclose(found, want, rtol=2e-5, atol=1e-5)


def test_the_same_bits_with_any_number_of_parts():
    dy, x, weight = normal(400, 37), normal(400, 37), normal(37)
    _, mean, rstd = (a.astype(np.float32) for a in defined("layer_norm", x, weight, weight, 1, 0.1))
    args = (dy, x, weight, mean, rstd, 1)
    like = (x, weight, weight)
    found = [computed("layer_norm_backward", like, parts, *args) for parts in PARTS]
    for other in found[1:]:
        assert all((a == b).all() for a, b in zip(found[0], other, strict=True))


def test_what_is_not_served():
    x = normal(4, 6)

    def lower(kernel, *args, outs=None):
        return TABLE[kernel].lower(Site(1), outs or (x.copy(),), *args)

    assert lower("softmax", x) is not None
    assert lower("softmax", x, 0) is None
    assert lower("softmax", x.astype(np.float64)) is None
    assert lower("softmax", np.asfortranarray(x)) is None
    assert lower("softmax", x[:0]) is None
    outs = tuple(np.empty(4, np.float32) for _ in range(3))
    target = np.zeros(4, np.int64)
    assert lower("softmax_cross_entropy", x, target, outs=outs) is not None
    assert lower("softmax_cross_entropy", x, target.astype(np.int32), outs=outs) is None
    assert lower("softmax_cross_entropy", x, target, np.ones(6), outs=outs) is None
