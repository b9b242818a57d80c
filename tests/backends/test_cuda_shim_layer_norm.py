"""The CUDA kernels of layer norm and of its kin, executed on the CPU from the same source, against
NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.base import Backend
from gpubackprop.backends.cuda import geometry
from tests.backends.support import shim
from tests.backends.support.shim_cases import (  # noqa: F401
    ABSENT,
    BFLOAT16,
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
# Of y and its cotangent, and of x and its: alike, or halves beside float32.
TYPES = [
    *[pytest.param(d, d, id=np.dtype(d).name) for d in (np.float32, np.float64, np.float16)],
    pytest.param(np.float16, np.float32, id="float16 of float32"),
    *[
        pytest.param(BFLOAT16, x or BFLOAT16, id=note, marks=() if BFLOAT16 else ABSENT)
        for x, note in ((None, "bfloat16"), (np.float32, "bfloat16 of float32"))
    ],
]
IN_STAGES = {"kept": 2, "stages": (1, 2, 3)}


def define(name, *arguments):
    """A kernel by its definition."""
    return getattr(Backend, name)(NUMPY, *arguments)


def room(share, x, kinds):
    """Where the blocks leave their part of the parameters' cotangents; None where they cannot."""
    if not share.sums_columns(x.itemsize):
        return None
    return np.full((share.launch.grid, kinds * x.shape[1]), np.nan, wide_of(x.dtype.type))


def by_columns(launch, element, dy, x, mean, rstd, part=None):  # noqa: F811
    """The cotangents of the parameters: of the weight, and with a mean of the bias."""
    rows, cols = x.shape
    width, wide = (1 if mean is None else 2) * cols, rstd.dtype
    if part is None:
        span = geometry.row_span(rows)
        part = np.empty((-(-rows // span), width), wide)
        shape, arrays = geometry.over(len(part) * cols), (dy, x, mean, rstd, part)
        launch("layer_norm_weight", element, shape, *arrays, rows, cols, span)
    sums = [np.empty(cols, wide) for _ in range(width // cols)]
    shape = geometry.over_column_sums(width)
    outs = (*sums, None)[:2]
    launch("column_sum", (cpp(wide.type),), shape, part, *outs, len(part), width, cols)
    return sums


def exact(*arrays):
    """Arrays as the definition takes them, in the type that is computed in."""
    return [a if a is None else a.astype(wide_of(a.dtype.type)) for a in arrays]


def summing(sums, want, dtype):
    """Fail where sums over rows, which are not rounded, differ from the definition's."""
    for got, total in zip(sums, want, strict=True):
        assert got.dtype == wide_of(dtype)
        close(got, total, got.dtype.type, 50)


@pytest.mark.parametrize(("dtype", "of"), TYPES)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_and_its_derivative(launch, shape, affine, dtype, of):  # noqa: F811
    rows, cols = shape
    wide, element = wide_of(dtype), (cpp(dtype), cpp(of))
    x, dy = (random(shape, wide, 1) + 3).astype(of), random(shape, dtype, 2)
    weight, bias = (random(cols, wide, 3), random(cols, wide, 4)) if affine else (None, None)
    expected = define("layer_norm", *exact(x), weight, bias, 1, 1e-5)
    factor = 1 if cols > 1 else 1000  # a row of one element has no spread but rounding
    for share in shares(*shape, of):
        y, dx = np.empty(shape, dtype), np.empty_like(x)
        mean, rstd = np.empty((rows, 1), wide), np.empty((rows, 1), wide)
        arrays = (x, weight, bias, y, mean, rstd)
        run_rows(launch, "layer_norm", element, arrays, share, *shape, 1e-5, **IN_STAGES)
        for got, want in zip((y, mean, rstd), expected, strict=True):
            close(got, want, dtype, 10 * factor)
        part = room(share, x, 2)
        arrays = (dy, x, weight, mean, rstd, dx, part)
        run_rows(launch, "layer_norm_backward", element, arrays, share, *shape, kept=2)
        want, *sums = define("layer_norm_backward", *exact(dy, x), weight, mean, rstd, 1)
        close(dx, want, of, 40 * factor)
        summing(by_columns(launch, element, dy, x, mean, rstd, part), sums, dtype)


@pytest.mark.parametrize(("dtype", "of"), TYPES)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_and_its_derivative(launch, shape, affine, dtype, of):  # noqa: F811
    rows, cols = shape
    wide, element = wide_of(dtype), (cpp(dtype), cpp(of))
    x, dy = random(shape, of, 1), random(shape, dtype, 2)
    weight = random(cols, wide, 3) if affine else None
    expected = define("rms_norm", *exact(x), weight, 1, 1e-5)
    for share in shares(*shape, of):
        y, dx, rstd = np.empty(shape, dtype), np.empty_like(x), np.empty((rows, 1), wide)
        run_rows(launch, "rms_norm", element, (x, weight, y, rstd), share, *shape, 1e-5)
        for got, want in zip((y, rstd), expected, strict=True):
            close(got, want, dtype, 10)
        part = room(share, x, 1)
        arrays = (dy, x, weight, rstd, dx, part)
        run_rows(launch, "rms_norm_backward", element, arrays, share, *shape)
        want, *sums = define("rms_norm_backward", *exact(dy, x), weight, rstd, 1)
        close(dx, want, of, 40)
        summing(by_columns(launch, element, dy, x, None, rstd, part), sums, dtype)


@pytest.mark.parametrize("cols", [1, 7, 8, 300])
@pytest.mark.parametrize("rows", [1, 31, 33, 512])
def test_sums_of_columns_have_the_order_of_the_rows(launch, rows, cols):  # noqa: F811
    part, out = random((rows, cols), np.float64, 1), np.empty(cols)
    for grid in (geometry.over_column_sums(cols), geometry.Launch(1)):
        launch("column_sum", ("double",), grid, part, out, None, rows, cols, cols)
        each = [sum(part[y::32, :], np.zeros(cols)) for y in range(32)]
        assert np.array_equal(out, sum(each[1:], each[0]))


@pytest.mark.parametrize(("dtype", "of"), TYPES)
def test_bits_do_not_depend_on_where_an_array_lies(launch, dtype, of):  # noqa: F811
    shape, wide, element = (3, 80), wide_of(dtype), (cpp(dtype), cpp(of))
    x, dy, weight, bias = (
        random(s, d, k)
        for k, (s, d) in enumerate(((shape, of), (shape, dtype), (80, wide), (80, wide)))
    )
    for share in shares(*shape, of):
        found = []
        for offset in (0, 1, 3):
            y, dx = lying(np.zeros(shape, dtype), offset), lying(np.zeros_like(x), offset)
            mean, rstd = np.empty((3, 1), wide), np.empty((3, 1), wide)
            beside = [lying(a, 1 - offset % 2) for a in (weight, bias)]
            arrays = (lying(x, offset), *beside, y, mean, rstd)
            run_rows(launch, "layer_norm", element, arrays, share, *shape, 1e-5, **IN_STAGES)
            part = room(share, x, 2)
            arrays = (lying(dy, offset), lying(x, 1), beside[0], mean, rstd, dx, part)
            run_rows(launch, "layer_norm_backward", element, arrays, share, *shape, kept=2)
            sums = by_columns(launch, element, dy, x, mean, rstd, part)
            found.append([a.tobytes() for a in (y, dx, mean, rstd, *sums)])
        assert found[0] == found[1] == found[2]
