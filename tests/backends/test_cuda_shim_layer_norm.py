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

SHAPES = [(1, 1), (6, 10), (9, 32), (3, 700), (2, 2056), (1, 9000)]
IN_STAGES = {"kept": 2, "stages": (1, 2, 3)}


def define(name, *arguments):
    """A kernel by its definition."""
    return getattr(Backend, name)(NUMPY, *arguments)


def by_columns(launch, dtype, dy, x, mean, rstd):  # noqa: F811
    """The weight's cotangent."""
    rows, cols = x.shape
    span = geometry.row_span(rows)
    part = np.empty((-(-rows // span), cols), wide_of(dtype))
    dweight = np.empty(cols, dtype)
    shape, arrays = geometry.over(part.size), (dy, x, mean, rstd, part)
    launch("layer_norm_weight", (cpp(dtype),), shape, *arrays, rows, cols, span)
    launch("column_sum", (cpp(dtype),), geometry.over(cols), part, dweight, len(part), cols)
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
        arrays = (dy, x, weight, mean, rstd, dx)
        run_rows(launch, "layer_norm_backward", element, arrays, share, *shape, kept=2)
        back = [None if a is None else a.astype(wide) for a in (dy, x, weight, mean, rstd)]
        want_dx, want_dweight = define("layer_norm_backward", *back, 1)
        close(dx, want_dx, dtype, 40 * factor)
    close(by_columns(launch, dtype, dy, x, mean, rstd), want_dweight, dtype, 50)


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
        arrays = (dy, x, weight, rstd, dx)
        run_rows(launch, "rms_norm_backward", element, arrays, share, *shape)
        back = [None if a is None else a.astype(wide) for a in (dy, x, weight, rstd)]
        want_dx, want_dweight = define("rms_norm_backward", *back, 1)
        close(dx, want_dx, dtype, 40)
    close(by_columns(launch, dtype, dy, x, None, rstd), want_dweight, dtype, 50)


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
            arrays = (lying(dy, 1), lying(x, offset), beside[0], mean, rstd, dx)
            run_rows(launch, "layer_norm_backward", element, arrays, share, *shape, kept=2)
            found.append((y.tobytes(), dx.tobytes(), mean.tobytes(), rstd.tobytes()))
        assert found[0] == found[1] == found[2]
