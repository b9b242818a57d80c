"""The convolution kernels of the GPU, executed on the CPU from the same source, against NumPy; and
the backend's code around them, over a fake CuPy."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gpubackprop.backends.base import Backend
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import CUDABackend, convolution, geometry, sources
from tests.backends.support import fake_cupy, shim
from tests.backends.support.convolution_cases import CONVOLUTIONS, cases, fill
from tests.backends.support.shim_cases import DTYPES, launch  # noqa: F401

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

NUMPY = NumPyBackend()
FILLED = [case for case in CONVOLUTIONS.values() if case[0][0]]


def sizes(case):
    shape, outputs, kernel, stride, padding, dilation, groups = case
    weight = (outputs, shape[-1] // groups, *kernel)
    w = convolution.windows_of(shape[1:-1], weight, stride, padding, dilation, groups)
    return w, (shape[0], w.channels, w.groups, *w.axes)


def makings(case, dtype):
    """Every way in which the kernels are compiled that can serve these channels."""
    shape, groups, lanes = case[0], case[-1], 16 // np.dtype(dtype).itemsize
    packed = ("0", "1") if shape[-1] // groups % lanes == 0 else ("0",)
    element = sources.FLOATS[np.dtype(dtype).name]
    return [(element, unsigned, p) for unsigned in ("u32", "u64") for p in packed]


# Channels in whole pieces of 16 bytes; the last two of them with several groups.
WIDE = [
    ((2, 5, 4, 16), 3, (3, 2), (1, 2), ((1, 1), (0, 1)), (1, 1), 1),
    ((1, 9, 32), 4, (3,), (2,), ((2, 0),), (2,), 2),
    ((2, 3, 4, 3, 32), 4, (2, 1, 3), (1, 1, 1), ((0, 0), (0, 0), (1, 1)), (1, 2, 1), 4),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FILLED + WIDE, ids=str)
def test_columns_are_the_windows(launch, case, dtype):  # noqa: F811
    shape, outputs, kernel, stride, padding, dilation, groups = case
    w, numbers = sizes(case)
    x = fill(shape, 1).astype(dtype)
    expected, _ = NUMPY._columns(x, kernel, stride, padding, dilation, groups)
    for grid in (geometry.over(expected.size), geometry.Launch(1, 32)):
        for template in makings(case, dtype):
            columns = np.full((groups, shape[0] * w.rows, w.width), 99, dtype)
            launch("im2col", template, grid, x, columns, *numbers)
            np.testing.assert_array_equal(columns, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FILLED + WIDE, ids=str)
def test_the_transpose_adds_them_back(launch, case, dtype):  # noqa: F811
    """<columns(x), v> = <x, transpose(v)> for whole numbers, exactly."""
    shape, outputs, kernel, stride, padding, dilation, groups = case
    w, numbers = sizes(case)
    rng = np.random.default_rng(5)
    x = rng.integers(-4, 5, shape).astype(np.float64)
    v = rng.integers(-4, 5, (groups, shape[0] * w.rows, w.width)).astype(dtype)
    columns, _ = NUMPY._columns(x, kernel, stride, padding, dilation, groups)
    # And with one column at a time, so that no two mistakes cancel out.
    place = tuple(n // 2 for n in v.shape)
    one = np.zeros_like(v)
    one[place] = 1
    for template in makings(case, dtype):
        back = np.full(shape, 99, dtype)
        launch("col2im", template, geometry.over(back.size), v, back, *numbers)
        assert (columns * v).sum() == (x * back).sum()
        launch("col2im", template, geometry.over(back.size), one, back, *numbers)
        assert columns[place] == (x * back).sum()


def test_pictures_that_begin_anywhere(launch):  # noqa: F811
    """Off a boundary of 16 bytes they are read and written one by one."""
    case = WIDE[0]
    shape, _, kernel, stride, padding, dilation, groups = case
    w, numbers = sizes(case)
    rows = (groups, shape[0] * w.rows, w.width)
    x = np.zeros(math.prod(shape) + 4, np.float32)[1:][: math.prod(shape)].reshape(shape)
    x[...] = fill(shape, 1)
    columns = np.zeros(math.prod(rows) + 4, np.float32)[3:][: math.prod(rows)].reshape(rows)
    launch("im2col", ("float", "u32", "1"), geometry.over(columns.size), x, columns, *numbers)
    expected, _ = NUMPY._columns(x, kernel, stride, padding, dilation, groups)
    np.testing.assert_array_equal(columns, expected)
    back = np.zeros(math.prod(shape) + 4, np.float32)[1:][: math.prod(shape)].reshape(shape)
    launch("col2im", ("float", "u32", "1"), geometry.over(back.size), columns, back, *numbers)
    straight = np.zeros(shape, np.float32)
    given = columns.copy()
    launch("col2im", ("float", "u32", "1"), geometry.over(back.size), given, straight, *numbers)
    np.testing.assert_array_equal(back, straight)


@pytest.mark.parametrize(
    ("axes", "channels", "dtype", "template"),
    [
        ((8, 8), 16, np.float32, ("float", "u32", "1")),
        ((8, 8), 6, np.float32, ("float", "u32", "0")),
        ((8, 8), 4, np.float16, ("__half", "u32", "0")),
        ((2**31, 1), 1, np.float64, ("double", "u64", "0")),
    ],
)
def test_numbers_are_as_wide_as_they_must_be(cuda, axes, channels, dtype, template):
    w = convolution.windows_of(axes, (1, channels, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    size = math.prod(axes) * channels
    x = SimpleNamespace(size=size, dtype=np.dtype(dtype))
    cuda._element = lambda x: sources.FLOATS[x.dtype.name]
    found, launch = cuda._columns_making(w, x, x)  # noqa: F811
    assert found == template
    assert launch.grid * launch.block < 2**21


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.FakeCuPy(1))
    return CUDABackend(0)


@pytest.mark.parametrize("kernel", ["conv", "conv_transpose", "conv_weight"])
def test_images_go_in_blocks_that_fit_the_buffer(monkeypatch, cuda, kernel):
    launched = []
    launch = cuda.kernels.launch  # noqa: F811
    monkeypatch.setattr(
        cuda.kernels, "launch", lambda *a: (launched.append(a[0]), launch(*a)) and None
    )
    for columns in (1, 10_000):
        monkeypatch.setattr(convolution, "COLUMNS", columns)
        for note, arguments, _ in cases(kernel):
            arrays = [cuda.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
            launched.clear()
            found = cuda.to_numpy(getattr(cuda, kernel)(*arrays))
            expected = getattr(Backend, kernel)(NUMPY, *arguments)
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12, err_msg=note)
            images = arguments[0].shape[0]
            if columns == 1 and note.removesuffix(" in Fortran order") not in (
                "1x1",
                "one element",
            ):
                assert len(launched) == images, note


@pytest.mark.parametrize("name", ["1x1", "one element"])
def test_a_kernel_of_one_element_needs_no_columns(monkeypatch, cuda, name):
    monkeypatch.setattr(cuda.kernels, "launch", None)
    shape, outputs, kernel, *rest = CONVOLUTIONS[name]
    x, weight = fill(shape, 1), fill((outputs, shape[-1], *kernel), 2)
    found = cuda.conv(cuda.asarray(x), cuda.asarray(weight), None, *rest)
    expected = Backend.conv(NUMPY, x, weight, None, *rest)
    np.testing.assert_allclose(cuda.to_numpy(found), expected, rtol=1e-12)


def test_more_than_three_axes_run_by_definition(monkeypatch, cuda):
    monkeypatch.setattr(cuda.kernels, "launch", None)
    one, x, weight = (1,) * 4, fill((2, 2, 3, 2, 3, 2), 1), fill((3, 2, 2, 2, 1, 2), 2)
    rest = (one, ((0, 1),) * 4, one, 1)
    found = cuda.conv(cuda.asarray(x), cuda.asarray(weight), None, *rest)
    expected = Backend.conv(NUMPY, x, weight, None, *rest)
    np.testing.assert_allclose(cuda.to_numpy(found), expected, rtol=1e-12)
    np.testing.assert_allclose(NUMPY.conv(x, weight, None, *rest), expected, rtol=1e-10)
