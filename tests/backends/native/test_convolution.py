"""Convolutions against their definition in float64."""

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends import get_backend
from gpubackprop.backends.convolution import ConvolutionKernels
from gpubackprop.backends.cpu.native import convolution, convolution_sizes, tiles
from gpubackprop.backends.cpu.native.lowering import Site
from tests.backends.support.native import TABLE, executed

SMALL_TOO = ("convolution_sizes", "pooling")
NUMPY = get_backend("cpu")
RNG = np.random.default_rng(13)
PARTS = [1, 2, 3]
ONE = ((1, 1), ((0, 0), (0, 0)), (1, 1))

# image, outputs, kernel, (stride, padding, dilation)
CASES = {
    "first": ((9, 12, 11, 1), 32, (3, 3), ONE),
    "second": ((5, 13, 13, 32), 64, (3, 3), ONE),
    "padded": ((4, 8, 8, 16), 16, (3, 3), ((1, 1), ((1, 1), (1, 1)), (1, 1))),
    "strided": ((3, 9, 8, 16), 48, (3, 3), ((2, 2), ((1, 1), (1, 1)), (1, 1))),
    "odd": ((5, 13, 11, 10), 7, (3, 2), ((2, 1), ((1, 0), (2, 1)), (1, 2))),
    "three": ((6, 9, 9, 3), 130, (3, 3), ((1, 1), ((1, 1), (1, 1)), (1, 1))),
    "one": ((1, 1, 1, 1), 1, (1, 1), ONE),
    "pixel": ((3, 7, 7, 24), 40, (1, 1), ONE),
    "sparse": ((3, 7, 7, 20), 17, (1, 1), ((3, 2), ((0, 0), (0, 0)), (1, 1))),
    "apart": ((2, 9, 10, 8), 16, (2, 2), ((3, 4), ((2, 0), (0, 1)), (1, 1))),
    "line": ((4, 19, 12), 20, (5,), ((2,), ((2, 1),), (2,))),
    "tiny": ((70, 2, 2, 16), 16, (2, 2), ONE),
}


def run(kernel, outs, parts, *args):
    return executed(kernel, outs, parts, *args)


def defined(kernel, *args):
    """By the definition, not by what overrides it."""
    wide = [a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in args]
    return getattr(ConvolutionKernels, kernel)(NUMPY, *wide)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def blank(shape):
    return np.full(shape, 77, np.float32)


def close(found, expected):
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-6 * scale)


def arrays(case):
    shape, outputs, kernel, options = CASES[case]
    return normal(*shape), normal(outputs, shape[-1], *kernel), normal(outputs), (*options, 1)


@pytest.fixture(params=["tiles", "columns"])
def way(request, monkeypatch):
    """Each of the two ways to multiply."""
    if request.param == "columns":
        monkeypatch.setattr(convolution, "CACHED", 0)
        # Two images a block, so that there are several, and a smaller last one.
        monkeypatch.setattr(convolution_sizes.Sizes, "block", 2)
    return request.param


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_conv(case, biased, parts, way):
    x, weight, bias, options = arrays(case)
    bias = bias if biased else None
    expected = defined("conv", x, weight, bias, *options)
    (y,) = run("conv", (blank(expected.shape),), parts, x, weight, bias, *options)
    close(y, expected)
    (y,) = run("conv_relu", (blank(expected.shape),), parts, x, weight, bias, *options)
    close(y, np.maximum(expected, 0))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("case", CASES)
def test_conv_transpose(case, parts, way):
    x, weight, _, options = arrays(case)
    dy = normal(*defined("conv", x, weight, None, *options).shape)
    expected = defined("conv_transpose", dy, weight, x.shape[1:-1], *options)
    args = (dy, weight, x.shape[1:-1], *options)
    (dx,) = run("conv_transpose", (blank(x.shape),), parts, *args)
    close(dx, expected)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("case", CASES)
def test_conv_weight(case, parts, way):
    x, weight, _, options = arrays(case)
    dy = normal(*defined("conv", x, weight, None, *options).shape)
    expected = defined("conv_weight", x, dy, weight.shape[2:], *options)
    (dw,) = run("conv_weight", (blank(weight.shape),), parts, x, dy, weight.shape[2:], *options)
    close(dw, expected)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(
    "windows",
    [((2, 2), (2, 2), (0, 0), (1, 1), False), ((3, 3), (2, 2), (1, 1), (1, 1), True)],
)
@pytest.mark.parametrize("case", ["first", "second", "padded", "odd", "three", "tiny"])
def test_conv_relu_pool(case, windows, parts, way):
    x, weight, bias, options = arrays(case)
    if case == "tiny":
        x = normal(70, 4, 4, 16)
    # Whole numbers: sums have no rounding, and many windows have several largest numbers.
    x, weight, bias = (np.round(a).astype(np.float32) for a in (x, weight, bias))
    between = NUMPY.relu(defined("conv", x, weight, bias, *options))
    y, winner = NUMPY.max_pool(between, *windows)
    outs = (blank(y.shape), np.full(winner.shape, 77, np.uint8))
    found = run("conv_relu_pool", outs, parts, x, weight, bias, *options, *windows)
    np.testing.assert_array_equal(found[0], y)
    np.testing.assert_array_equal(found[1], winner)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(
    "windows",
    [((2, 2), (2, 2), (0, 0), (1, 1), False), ((3, 3), (2, 2), (1, 1), (1, 1), True)],
)
@pytest.mark.parametrize("case", ["first", "second", "odd", "three", "tiny"])
def test_pool_relu_conv_weight(case, windows, parts, way):
    x, weight, bias, options = arrays(case)
    if case == "tiny":
        x = normal(70, 4, 4, 16)
    z = NUMPY.relu(NUMPY.conv(x, weight, bias, *options))
    pooled, winner = NUMPY.max_pool(z, *windows)
    dy, spatial = normal(*pooled.shape), z.shape[1:-1]
    dz = NUMPY.relu_backward(NUMPY.max_pool_backward(dy, winner, spatial, *windows[:4]), z)
    expected = defined("conv_weight", x, dz, weight.shape[2:], *options)
    args = (x, dy, winner, pooled, spatial, *windows[:4], weight.shape[2:], *options)
    outs = (blank(weight.shape), blank(bias.shape))
    dw, dbias = run("pool_relu_conv_weight", outs, parts, *args)
    close(dw, expected)
    close(dbias, dz.astype(np.float64).sum((0, 1, 2)))


@pytest.mark.parametrize("kernel", ["conv", "conv_relu"])
def test_what_is_no_number_stays(kernel):
    x, weight, bias, options = arrays("padded")
    x[1, 2, 3, 4], x[2, 0, 0, 0] = np.nan, np.inf
    weight[3] = 0
    with np.errstate(invalid="ignore"):
        expected = NUMPY.conv(x, weight, bias, *options)
    if kernel == "conv_relu":
        expected = NUMPY.relu(expected)
    (y,) = run(kernel, (blank(expected.shape),), 1, x, weight, bias, *options)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(expected))
    assert np.isnan(y).any() and np.isinf(y).any()


def test_arrays_that_do_not_lie_in_order():
    x, weight, bias, options = arrays("three")
    turned = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    by_place = np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)
    assert not turned.flags.c_contiguous and not by_place.flags.c_contiguous
    expected = defined("conv", x, weight, bias, *options)
    (y,) = run("conv", (blank(expected.shape),), 1, turned, by_place, bias, *options)
    close(y, expected)
    dy = normal(*y.shape)
    args = (dy, by_place, x.shape[1:-1], *options)
    (dx,) = run("conv_transpose", (blank(x.shape),), 1, *args)
    close(dx, defined("conv_transpose", dy, weight, x.shape[1:-1], *options))
    memory = blank((*weight.shape[2:], 2 * weight.shape[0], weight.shape[1]))
    dw = memory[:, :, ::2].transpose(2, 3, 0, 1)
    run("conv_weight", (dw,), 1, turned, dy, weight.shape[2:], *options)
    close(dw, defined("conv_weight", x, dy, weight.shape[2:], *options))
    assert (memory[:, :, 1::2] == 77).all()


def test_every_width_of_a_tile():
    for vectors in range(1, 8):
        outputs = vectors * tiles.LANES
        x, weight = normal(3, 3, 3, 4), normal(outputs, 4, 2, 2)
        (y,) = run("conv", (blank((3, 2, 2, outputs)),), 1, x, weight, None, *ONE, 1)
        close(y, defined("conv", x, weight, None, *ONE, 1))


def test_sums_of_many_pixels_keep_their_digits():
    x, dy = normal(64, 24, 24, 1) + np.float32(3), normal(64, 24, 24, 4) + np.float32(3)
    expected = defined("conv_weight", x, dy, (1, 1), *ONE, 1)
    (dw,) = run("conv_weight", (blank((4, 1, 1, 1)),), 1, x, dy, (1, 1), *ONE, 1)
    np.testing.assert_allclose(dw, expected, rtol=2e-6)


def test_what_is_not_served():
    x, weight, _, options = arrays("padded")

    def lower(x, weight=weight, options=options, images=(8, 8)):
        outs = (blank((len(x), *images, len(weight))),)
        return TABLE["conv"].lower(Site(1), outs, x, weight, None, *options)

    assert lower(x) is not None
    assert lower(x.astype(np.float64)) is None
    assert lower(x, weight.astype(np.float64)) is None
    assert lower(x[:0]) is None
    assert lower(x, weight[:, :8], (*options[:3], 2)) is None
    volume, cube = normal(2, 4, 4, 4, 3), normal(5, 3, 1, 1, 1)
    three = ((1,) * 3, ((0, 0),) * 3, (1,) * 3, 1)
    assert lower(volume, cube, three, (4, 4, 4)) is None
