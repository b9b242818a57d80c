"""The libraries that native kernels may call for products, and how one of them is chosen."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba")

import gpubackprop as gb
from gpubackprop.backends.cpu.native import blas
from gpubackprop.compile import compiled
from gpubackprop.errors import CompileError, ConfigError

RNG = np.random.default_rng(3)
I32, I64, F32 = ctypes.c_int, ctypes.c_int64, ctypes.c_float
SGEMM = ctypes.CFUNCTYPE(
    None, I32, I32, I32, I64, I64, I64, F32, I64, I64, I64, I64, F32, I64, I64
)  # fmt: skip


@pytest.fixture(params=blas.PROVIDERS)
def library(request):
    found = blas.PROVIDERS[request.param]()
    if found is None:
        pytest.skip(f"{blas.PACKAGES[request.param]} is not installed, or brings no such library")
    return request.param, found


@pytest.mark.parametrize("beta", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("trans_a", [0, 1])
def test_products_of_each_library(library, trans_a, trans_b, beta):
    sgemm = SGEMM(library[1].sgemm)
    for m, n, k in [(1, 1, 1), (3, 5, 7), (16, 1, 33), (1, 40, 2), (65, 31, 129), (128, 96, 200)]:
        a = RNG.standard_normal((k, m + 2) if trans_a else (m, k + 2)).astype(np.float32)
        b = RNG.standard_normal((n, k + 3) if trans_b else (k, n + 3)).astype(np.float32)
        c = np.full((m, n + 1), 2 if beta else np.nan, np.float32)
        x = a[:, :m].T if trans_a else a[:, :k]
        y = b[:, :k].T if trans_b else b[:, :n]
        expected = x.astype(np.float64) @ y.astype(np.float64) + 2 * beta
        sgemm(
            101, 111 + trans_a, 111 + trans_b, m, n, k, 1.0, a.ctypes.data, a.shape[1],
            b.ctypes.data, b.shape[1], float(beta), c.ctypes.data, n + 1,
        )  # fmt: skip
        np.testing.assert_allclose(c[:, :n], expected, rtol=1e-4, atol=1e-4)
        untouched = c[:, n]
        assert (untouched == 2).all() if beta else np.isnan(untouched).all()


def test_each_library_has_one_thread_within_the_block(library, monkeypatch):
    found = library[1]
    monkeypatch.setattr(blas, "chosen", lambda: found)
    usual = found.get_threads()
    try:
        found.set_threads(2)
        before = found.get_threads()  # one, where the library was told to make no threads
        assert before == (1 if library[0] == "mkl" else 2)
        with pytest.raises(KeyError), blas.OneThread():
            assert found.get_threads() == 1
            with blas.OneThread():
                assert found.get_threads() == 1
            assert found.get_threads() == 1
            raise KeyError
        assert found.get_threads() == before
    finally:
        found.set_threads(usual)


# In a process of its own: which library, how many kernels had to be compiled, whether y = x @ w.T.
RUN = """
import ctypes, sys
import llvmlite.binding as llvm
import numpy as np
from gpubackprop.backends.cpu.native import blas
from gpubackprop.backends.cpu.native.abi import Kernel
from gpubackprop.backends.cpu.native.engine import Program
from gpubackprop.backends.cpu.native.lowering import Site, TABLE
from gpubackprop.backends.cpu.native import products

if sys.argv[1] == "spy":
    i32, i64, f32 = ctypes.c_int, ctypes.c_int64, ctypes.c_float
    kind = ctypes.CFUNCTYPE(
        None, i32, i32, i32, i64, i64, i64, f32, i64, i64, i64, i64, f32, i64, i64
    )

    @kind
    def spy(*arguments):
        to, m, n = arguments[12], arguments[3], arguments[4]
        ctypes.memmove(to, np.full(m * n, 42, np.float32).ctypes.data, 4 * m * n)

    llvm.add_symbol(blas.SYMBOL, ctypes.cast(spy, ctypes.c_void_p).value)

x, w = np.ones((3, 5), np.float32), np.ones((4, 5), np.float32)
y = np.zeros((3, 4), np.float32)
Program(TABLE["linear"].lower(Site(1), (y,), x, w), 1).run()
assert (y == y[0, 0]).all()
print(blas.chosen().path, Kernel.compiled, y[0, 0], sep="|")
"""


def run(cache, how="plain", **environment):
    made = subprocess.run(
        [sys.executable, "-c", RUN, how],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    path, count, value = made.stdout.strip().split("|")
    return path, int(count), float(value)


def test_a_cached_kernel_calls_the_library_of_its_process(tmp_path):
    present = {name: find() for name, find in blas.PROVIDERS.items()}
    present = {name: found for name, found in present.items() if found is not None}
    if not present:
        pytest.skip("there is no library for products")
    first, *others = present
    assert run(tmp_path, GPUBACKPROP_GEMM=first) == (present[first].path, 1, 5.0)
    for name in others:
        assert run(tmp_path, GPUBACKPROP_GEMM=name) == (present[name].path, 0, 5.0)
    # Not compiled again, and yet another product is called.
    assert run(tmp_path, "spy", GPUBACKPROP_GEMM=first) == (present[first].path, 0, 42.0)


def test_the_first_library_that_is_there_is_chosen(monkeypatch):
    choose = blas.chosen.__wrapped__
    some = blas.Blas("some", "/some", 1, lambda: 1, lambda n: None)
    monkeypatch.delenv(blas.VARIABLE, raising=False)
    monkeypatch.setattr(blas, "PROVIDERS", {"numpy": lambda: None, "mkl": lambda: some})
    assert choose() is some
    monkeypatch.setenv(blas.VARIABLE, "mkl")
    assert choose() is some


def test_a_library_that_is_not_there(monkeypatch):
    choose = blas.chosen.__wrapped__
    monkeypatch.setenv(blas.VARIABLE, "mlk")
    with pytest.raises(ConfigError, match="GPUBACKPROP_GEMM 'mlk'; did you mean 'mkl'"):
        choose()
    monkeypatch.setenv(blas.VARIABLE, "mkl")
    monkeypatch.setitem(blas.PROVIDERS, "mkl", lambda: None)
    with pytest.raises(ConfigError, match="package 'mkl' is not installed"):
        choose()


def test_files_of_packages(tmp_path, monkeypatch):
    assert blas._installed("no-such-package", ".*") == []
    (found,) = blas._installed("numba", r"numba_entry\.py")
    assert found.is_file()
    broken = tmp_path / "libmkl_rt.so.3"
    broken.write_text("no library")
    monkeypatch.setattr(blas, "_installed", lambda *a: [broken])
    assert blas.mkl.__wrapped__() is None
    assert blas.separate.__wrapped__() is None


@pytest.mark.parametrize(
    ("name", "fits"),
    [("libmkl_rt.so.2", True), ("mkl_rt.2.dll", True), ("libmkl_rt.2.dylib", True),
     ("libmkl_core.so.2", False), ("libmkl_rt.a", False)],
)  # fmt: skip
def test_names_of_files(name, fits):
    assert bool(blas.re.fullmatch(blas._MKL, name)) == fits


def test_without_a_library_steps_are_left_to_numpy(monkeypatch):
    monkeypatch.setattr(blas, "PROVIDERS", dict.fromkeys(blas.PROVIDERS, lambda: None))
    monkeypatch.setattr(blas, "chosen", lambda: None)
    monkeypatch.setattr(compiled, "native_trouble", compiled.native_trouble.__wrapped__)
    assert not blas.available()
    w = gb.tensor(RNG.standard_normal((4, 3)).astype(np.float32))
    x = gb.tensor(RNG.standard_normal((2, 4)).astype(np.float32))
    step = gb.compile(lambda x: x @ w)
    for _ in range(4):
        found = step(x)
    np.testing.assert_array_equal(found.numpy(), (x @ w).numpy())
    assert "native kernels: absent" in step.explain()
    with pytest.raises(CompileError, match="BLAS"):
        gb.compile(lambda x: x @ w, fast=True)(x)
