"""The CUDA kernels of layer norm, executed on the CPU from the same source, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.cuda import geometry
from tests.backends.support import shim
from tests.backends.support.shim_cases import DTYPES, close, cpp, define, launch, random, wide_of  # noqa: F401

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (6, 10), (100, 33), (3, 700)])
def test_layer_norm_and_its_derivative(launch, shape, affine, dtype):  # noqa: F811
    rows, cols = shape
    x, dy = random(shape, dtype, 1) + dtype(3), random(shape, dtype, 2)
    weight, bias = (random(cols, dtype, 3), random(cols, dtype, 4)) if affine else (None, None)
    y, dx = np.empty_like(x), np.empty_like(x)
    wide = wide_of(dtype)
    mean, rstd = np.empty((rows, 1), wide), np.empty((rows, 1), wide)
    team, grid = geometry.over_rows(rows, cols)
    launch("layer_norm", (cpp(dtype), team), grid, x, weight, bias, y, mean, rstd, rows, cols, 1e-5)
    up = [None if a is None else a.astype(wide) for a in (x, weight, bias)]
    expected = define("layer_norm", *up, 1, 1e-5)
    factor = 1 if cols > 1 else 1000  # a row of one element has no spread but rounding
    for got, want in zip((y, mean, rstd), expected, strict=True):
        close(got, want, dtype, 10 * factor)
    launch(
        "layer_norm_backward", (cpp(dtype), team), grid, dy, x, weight, mean, rstd, dx, rows, cols
    )
    span = geometry.row_span(rows)
    part = np.empty((-(-rows // span), cols), wide)
    dweight = np.empty(cols, dtype)
    launch(
        "layer_norm_weight",
        (cpp(dtype),),
        geometry.over(part.size),
        dy,
        x,
        mean,
        rstd,
        part,
        rows,
        cols,
        span,
    )
    launch("column_sum", (cpp(dtype),), geometry.over(cols), part, dweight, len(part), cols)
    up = [None if a is None else a.astype(wide) for a in (dy, x, weight, mean, rstd)]
    want_dx, want_dweight = define("layer_norm_backward", *up, 1)
    close(dx, want_dx, dtype, 30 * factor)
    close(dweight, want_dweight, dtype, 50)
