"""Convolutions on the CPU: every way to divide the work gives the same numbers."""

from __future__ import annotations

import os
import threading
import warnings

import numpy as np
import pytest

from gpubackprop.backends.base import Backend
from gpubackprop.backends.cpu import convolution, depthwise, windows
from gpubackprop.backends.cpu import threads as cpu_threads
from gpubackprop.backends.cpu.backend import NumPyBackend
from tests.backends.support.convolution_cases import CONVOLUTIONS, cases, fill

NUMPY = NumPyBackend()
KERNELS = ("conv", "conv_transpose", "conv_weight")


def compare(kernel: str, exact: float = 1e-11) -> None:
    for note, arguments, _ in cases(kernel):
        found = getattr(NUMPY, kernel)(*arguments)
        expected = getattr(Backend, kernel)(NUMPY, *arguments)
        np.testing.assert_allclose(found, expected, rtol=exact, atol=exact, err_msg=note)


@pytest.mark.parametrize("columns", [1, 3000])
@pytest.mark.parametrize("product", [1, 50, 1000])
@pytest.mark.parametrize("kernel", KERNELS)
def test_blocks_and_pieces(monkeypatch, kernel, product, columns):
    monkeypatch.setattr(convolution, "PRODUCT", product)
    monkeypatch.setattr(convolution, "SUMMED_PRODUCT", product)
    monkeypatch.setattr(convolution, "COLUMNS", columns)
    monkeypatch.setattr(windows, "COLUMNS", columns)
    monkeypatch.setattr(depthwise, "TERMS", columns)
    compare(kernel)


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("kernel", KERNELS)
def test_threads(monkeypatch, kernel, threads):
    monkeypatch.setattr(convolution, "threads", lambda: threads)
    monkeypatch.setattr(convolution, "SHARE", 1)
    compare(kernel)
    _, arguments, _ = next(c for c in cases(kernel) if c[0] == "same")
    first = getattr(NUMPY, kernel)(*arguments)
    for _ in range(5):
        np.testing.assert_array_equal(getattr(NUMPY, kernel)(*arguments), first)


@pytest.mark.parametrize("ratio", [0, 1000])
@pytest.mark.parametrize("short", [0, 1000])
def test_both_ways_to_go_back_and_to_lay_out(monkeypatch, ratio, short):
    monkeypatch.setattr(convolution, "AS_CONVOLUTION", ratio)
    monkeypatch.setattr(windows, "SHORT_RUN", short)
    for kernel in KERNELS:
        compare(kernel)


def test_the_fast_paths_are_taken(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the definition ran")

    for kernel in KERNELS:
        monkeypatch.setattr(Backend, kernel, refuse)
    for dtype in (np.float32, np.float64):
        for note, (shape, outputs, size, *rest) in CONVOLUTIONS.items():
            if note == "no image":
                continue
            groups = rest[-1]
            x = fill(shape, 1).astype(dtype)
            weight = fill((outputs, shape[-1] // groups, *size), 2).astype(dtype)
            y = NUMPY.conv(x, weight, None, *rest)
            dx = NUMPY.conv_transpose(y, weight, shape[1:-1], *rest)
            dw = NUMPY.conv_weight(x, y, size, *rest)
            assert dx.shape == shape and dw.shape == weight.shape
            assert y.dtype == dx.dtype == dw.dtype == dtype
            for result in (y, dx, dw):
                assert result.flags.c_contiguous


def test_a_warning_that_is_off_is_off_in_every_thread(monkeypatch):
    monkeypatch.setattr(convolution, "threads", lambda: 2)
    monkeypatch.setattr(convolution, "SHARE", 1)
    x = np.full((4, 5, 5, 4), np.inf)
    weight = np.ones((4, 1, 3, 3))
    weight[:, :, 1] = -1
    geometry = ((1, 1), ((0, 0), (0, 0)), (1, 1), 4)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("error")
        assert np.isnan(NUMPY.conv(x, weight, None, *geometry)).all()


# Sharing work.


def test_parts_come_back_in_order():
    for n, parts in ((10, 3), (3, 5), (1, 1), (7, 7)):
        found = cpu_threads.in_parts(lambda a, b: list(range(a, b)), n, parts)
        assert len(found) == min(n, parts)
        assert sum(found, []) == list(range(n))


def test_parts_run_at_the_same_time(monkeypatch):
    monkeypatch.setattr(cpu_threads, "threads", lambda: 3)
    monkeypatch.setattr(cpu_threads, "_pool", None)
    together = threading.Barrier(3, timeout=20)
    assert len(cpu_threads.in_parts(lambda a, b: together.wait(), 3, 3)) == 3
    cpu_threads._pool.shutdown()


def test_an_error_in_a_part_is_raised():
    def fail(start, stop):
        if start:
            raise ValueError("the second part")

    with pytest.raises(ValueError, match="the second part"):
        cpu_threads.in_parts(fail, 4, 2)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OPENBLAS_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "2"}, 2),
        ({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "4"}, 1),
        ({"OMP_NUM_THREADS": "1000"}, cpu_threads.MOST),
    ],
)
def test_as_many_threads_as_the_blas_has(monkeypatch, environment, expected):
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cpu_threads.threads.__wrapped__() == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    assert cpu_threads.in_parts(lambda a, b: a, 2, 2) == [0, 1]
    child = os.fork()
    if not child:  # without the new threads this would wait for ever
        os._exit(0 if cpu_threads.in_parts(lambda a, b: a, 2, 2) == [0, 1] else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
