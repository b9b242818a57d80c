"""The CUDA kernels of layer norm and of its kin, executed on the CPU from the same source, against
NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.base import Backend
from gpubackprop.backends.cuda import geometry
from tests.backends.support import shim
from tests.backends.support.shim_cases import (  # noqa: F401
    DTYPES,
    NUMPY,
    close,
    cpp,
    launch,
    lying,
    random,
    run_rows,
    shares,
    wide_of,
)

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

SHAPES = [(1, 1), (6, 10), (37, 32), (3, 700), (2, 2056), (1, 9000)]
IN_STAGES = {"kept": 2, "stages": (1, 2, 3)}


def define(name, *arguments):
    """A kernel by its definition."""
    return getattr(Backend, name)(NUMPY, *arguments)


def room(share, x):
    """Where the blocks leave their part of the weight's cotangent; None where they cannot."""
    if not share.sums_columns(x.itemsize):
        return None
    return np.full((share.launch.grid, x.shape[1]), np.nan, wide_of(x.dtype.type))


def by_columns(launch, dtype, dy, x, mean, rstd, part=None):  # noqa: F811
    """The weight's cotangent."""
    rows, cols = x.shape
    dweight = np.empty(cols, dtype)
    if part is None:
        span = geometry.row_span(rows)
        part = np.empty((-(-rows // span), cols), wide_of(dtype))
        shape, arrays = geometry.over(part.size), (dy, x, mean, rstd, part)
        launch("layer_norm_weight", (cpp(dtype),), shape, *arrays, rows, cols, span)
    shape = geometry.over_column_sums(cols)
    launch("column_sum", (cpp(dtype),), shape, part, dweight, len(part), cols)
    return dweight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_and_its_derivative(launch, shape, affine, dtype):  # noqa: F811
    rows, cols = shape
    wide, element = wide_of(dtype), (cpp(dtype),)
    x, dy = (random(shape, wide, 1) + 3).astype(dtype), random(shape, dtype, 2)
    weight, bias = (random(cols, dtype, 3), random(cols, dtype, 4)) if affine else (None, None)
    up = [None if a is None else a.astype(wide) for a in (x, weight, bias)]
    expected = define("layer_norm", *up, 1, 1e-5)
    factor = 1 if cols > 1 else 1000  # a row of one element has no spread but rounding
    for share in shares(*shape, dtype):
        y, dx = np.empty_like(x), np.empty_like(x)
        mean, rstd = np.empty((rows, 1), wide), np.empty((rows, 1), wide)
        arrays = (x, weight, bias, y, mean, rstd)
        run_rows(launch, "layer_norm", element, arrays, share, *shape, 1e-5, **IN_STAGES)
        for got, want in zip((y, mean, rstd), expected, strict=True):
            close(got, want, dtype, 10 * factor)
        part = room(share, x)
        arrays = (dy, x, weight, mean, rstd, dx, part)
        run_rows(launch, "layer_norm_backward", element, arrays, share, *shape, kept=2)
        back = [None if a is None else a.astype(wide) for a in (dy, x, weight, mean, rstd)]
        want_dx, want_dweight = define("layer_norm_backward", *back, 1)
        close(dx, want_dx, dtype, 40 * factor)
        dweight = by_columns(launch, dtype, dy, x, mean, rstd, part)
        close(dweight, want_dweight, dtype, 50)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_and_its_derivative(launch, shape, affine, dtype):  # noqa: F811
    rows, cols = shape
    wide, element = wide_of(dtype), (cpp(dtype),)
    x, dy = random(shape, dtype, 1), random(shape, dtype, 2)
    weight = random(cols, dtype, 3) if affine else None
    up = [None if a is None else a.astype(wide) for a in (x, weight)]
    expected = define("rms_norm", *up, 1, 1e-5)
    for share in shares(*shape, dtype):
        y, dx, rstd = np.empty_like(x), np.empty_like(x), np.empty((rows, 1), wide)
        run_rows(launch, "rms_norm", element, (x, weight, y, rstd), share, *shape, 1e-5)
        for got, want in zip((y, rstd), expected, strict=True):
            close(got, want, dtype, 10)
        part = room(share, x)
        arrays = (dy, x, weight, rstd, dx, part)
        run_rows(launch, "rms_norm_backward", element, arrays, share, *shape)
        back = [None if a is None else a.astype(wide) for a in (dy, x, weight, rstd)]
        want_dx, want_dweight = define("rms_norm_backward", *back, 1)
        close(dx, want_dx, dtype, 40)
        dweight = by_columns(launch, dtype, dy, x, None, rstd, part)
        close(dweight, want_dweight, dtype, 50)


@pytest.mark.parametrize("cols", [1, 7, 8, 300])
@pytest.mark.parametrize("rows", [1, 31, 33, 512])
def test_sums_of_columns_have_the_order_of_the_rows(launch, rows, cols):  # noqa: F811
    part, out = random((rows, cols), np.float64, 1), np.empty(cols)
    for grid in (geometry.over_column_sums(cols), geometry.Launch(1)):
        launch("column_sum", ("double",), grid, part, out, rows, cols)
        each = [sum(part[y::32, :], np.zeros(cols)) for y in range(32)]
        assert np.array_equal(out, sum(each[1:], each[0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_where_an_array_lies(launch, dtype):  # noqa: F811
    shape, wide, element = (3, 80), wide_of(dtype), (cpp(dtype),)
    x, dy, weight, bias = (random(s, dtype, k) for k, s in enumerate((shape, shape, 80, 80)))
    for share in shares(*shape, dtype):
        found = []
        for offset in (0, 1, 3):
            y, dx = lying(np.zeros_like(x), offset), lying(np.zeros_like(x), offset)
            mean, rstd = np.empty((3, 1), wide), np.empty((3, 1), wide)
            beside = [lying(a, 1 - offset % 2) for a in (weight, bias)]
            arrays = (lying(x, offset), *beside, y, mean, rstd)
            run_rows(launch, "layer_norm", element, arrays, share, *shape, 1e-5, **IN_STAGES)
            part = room(share, x)
            arrays = (lying(dy, 1), lying(x, offset), beside[0], mean, rstd, dx, part)
            run_rows(launch, "layer_norm_backward", element, arrays, share, *shape, kept=2)
            found.append((y.tobytes(), dx.tobytes(), mean.tobytes(), rstd.tobytes()))
        assert found[0] == found[1] == found[2]
