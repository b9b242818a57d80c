"""The convolution kernels of the GPU, executed on the CPU from the same source, against NumPy; and
the backend's code around them, over a fake CuPy."""

from __future__ import annotations

import sys

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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FILLED, ids=str)
def test_columns_are_the_windows(launch, case, dtype):  # noqa: F811
    shape, outputs, kernel, stride, padding, dilation, groups = case
    w, numbers = sizes(case)
    x = fill(shape, 1).astype(dtype)
    expected, _ = NUMPY._columns(x, kernel, stride, padding, dilation, groups)
    for grid in (geometry.over(expected.size), geometry.Launch(1, 32)):
        columns = np.full((groups, shape[0] * w.rows, w.width), 99, dtype)
        launch("im2col", (sources.FLOATS[np.dtype(dtype).name],), grid, x, columns, *numbers)
        np.testing.assert_array_equal(columns, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FILLED, ids=str)
def test_the_transpose_adds_them_back(launch, case, dtype):  # noqa: F811
    """<columns(x), v> = <x, transpose(v)> for whole numbers, exactly."""
    shape, outputs, kernel, stride, padding, dilation, groups = case
    w, numbers = sizes(case)
    rng = np.random.default_rng(5)
    x = rng.integers(-4, 5, shape).astype(np.float64)
    v = rng.integers(-4, 5, (groups, shape[0] * w.rows, w.width)).astype(dtype)
    back = np.full(shape, 99, dtype)
    element = sources.FLOATS[np.dtype(dtype).name]
    launch("col2im", (element,), geometry.over(back.size), v, back, *numbers)
    columns, _ = NUMPY._columns(x, kernel, stride, padding, dilation, groups)
    assert (columns * v).sum() == (x * back).sum()
    # And with one column at a time, so that no two mistakes cancel out.
    place = tuple(n // 2 for n in v.shape)
    one = np.zeros_like(v)
    one[place] = 1
    launch("col2im", (element,), geometry.over(back.size), one, back, *numbers)
    assert columns[place] == (x * back).sum()


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
