"""The BLAS that native kernels call: by default the one that NumPy brings along.

Two pools of threads at once make each other wait: OpenBLAS's beside our own cost a factor of ten.
So there is one pool, ours; each of its threads calls ``sgemm`` by itself on its part of a product,
and while a program runs the BLAS is told to use one thread (and afterwards what it used before).

The environment variable ``GPUBACKPROP_GEMM`` chooses another library, which must be installed:

* ``numpy``: the OpenBLAS inside NumPy's wheels.
* ``openblas``: the wheel ``scipy-openblas64``, which may be newer; also for a NumPy that was built
  with another library.
* ``mkl``: Intel's wheel ``mkl``.
* ``auto``, the default: the first of these that is there. On processors of AMD no other is faster.
  With AVX-512, most products are then made without it (``blocked.py``), which is faster still.

Kernels know the product by the name ``SYMBOL`` alone. It is given an address when this module is
imported, so before a kernel is compiled or loaded from the cache: what is cached fits any library.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from numba import types

from gpubackprop.backends.cpu.native.abi import inline
from gpubackprop.errors import ConfigError
from gpubackprop.suggest import unknown

SYMBOL = "gpubackprop_sgemm"
VARIABLE = "GPUBACKPROP_GEMM"

_SEQUENTIAL = 1  # MKL_THREADING_SEQUENTIAL


class Blas(NamedTuple):
    """A library with ``cblas_sgemm`` of 64-bit integers.

    Attributes
    ----------
    name : what it is called in reports.
    path : the library's file.
    sgemm : address of the product.
    get_threads, set_threads : how many threads the library uses, in the whole process.
    """

    name: str
    path: str
    sgemm: int
    get_threads: Callable[[], int]
    set_threads: Callable[[int], None]


def _functions(path: Path, *names: str) -> list[Any]:
    """Functions of a library; none where it cannot be loaded or lacks one."""
    try:
        library = ctypes.CDLL(str(path))
        return [getattr(library, name) for name in names]
    except (OSError, AttributeError):
        return []


def _openblas(name: str, paths: list[Path]) -> Blas | None:
    for path in paths:
        found = _functions(
            path,
            "scipy_cblas_sgemm64_",
            "scipy_openblas_get_num_threads64_",
            "scipy_openblas_set_num_threads64_",
        )
        if found:
            return _blas(name, path, *found)
    return None


def _blas(name: str, path: Path, sgemm: Any, get: Any, put: Any) -> Blas:
    get.restype, put.argtypes, put.restype = ctypes.c_int, [ctypes.c_int], None
    address = ctypes.cast(sgemm, ctypes.c_void_p).value
    return Blas(name, os.path.realpath(path), int(address or 0), get, put)


def _installed(package: str, pattern: str) -> list[Path]:
    """Files of an installed package whose names match, the last version first."""
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [Path(str(f.locate())) for f in files if re.fullmatch(pattern, f.name)]
    return sorted(found, reverse=True)


_OPENBLAS = r"(lib)?scipy_openblas64_.*\.(so|dylib|dll)"
_MKL = r"(lib)?mkl_rt[.\d]*\.(so|dylib|dll)[.\d]*"


@functools.cache
def bundled() -> Blas | None:
    """NumPy's own OpenBLAS; None where this NumPy was built with another library."""
    package = Path(np.__file__).parent
    files: list[Path] = []
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        files += sorted(f for f in folder.glob("*") if re.fullmatch(_OPENBLAS, f.name))
    return _openblas("OpenBLAS of NumPy", files)


@functools.cache
def separate() -> Blas | None:
    """The OpenBLAS of the wheel ``scipy-openblas64``."""
    return _openblas("OpenBLAS", _installed("scipy-openblas64", _OPENBLAS))


@functools.cache
def mkl() -> Blas | None:
    """The library of the wheel ``mkl``, told to make no threads of its own if nobody in this
    process has called it yet."""
    for path in _installed("mkl", _MKL):
        found = _functions(
            path,
            "cblas_sgemm_64",
            "MKL_Get_Max_Threads",
            "MKL_Set_Num_Threads",
            "MKL_Set_Threading_Layer",
        )
        if found:
            *rest, layer = found
            layer.argtypes, layer.restype = [ctypes.c_int], ctypes.c_int
            layer(_SEQUENTIAL)
            return _blas("MKL", path, *rest)
    return None


PROVIDERS: dict[str, Callable[[], Blas | None]] = {
    "numpy": bundled,
    "openblas": separate,
    "mkl": mkl,
}
PACKAGES = {"numpy": "numpy", "openblas": "scipy-openblas64", "mkl": "mkl"}
"""Where the libraries come from."""


@functools.cache
def chosen() -> Blas | None:
    """The library that kernels call, for the whole life of the process; None where there is none.

    Raises
    ------
    ConfigError
        The environment variable names no library, or one that is not installed.
    """
    name = wanted()
    if name == "auto":
        return next((found for find in PROVIDERS.values() if (found := find())), None)
    if name not in PROVIDERS:
        raise ConfigError(unknown(f"value of {VARIABLE}", name, ["auto", *PROVIDERS]))
    found = PROVIDERS[name]()
    if found is None:
        raise ConfigError(
            f"{VARIABLE}={name}: the package {PACKAGES[name]!r} is not installed"
            " or has no library that fits"
        )
    return found


def wanted() -> str:
    """The library that the environment asks for."""
    return os.environ.get(VARIABLE) or "auto"


def available() -> bool:
    """Whether native kernels have a BLAS to call; makes its symbol known to the compiler."""
    blas = chosen()
    if blas is None:
        return False
    llvm.add_symbol(SYMBOL, blas.sgemm)
    return True


available()  # before any kernel is compiled, or loaded from the cache


class OneThread:
    """The BLAS uses one thread within a ``with`` block. This is a setting of the whole process, so
    one block exists at a time (a plain class: a generator would cost more than a small step)."""

    def __enter__(self) -> None:
        blas = chosen()
        self._before = 1 if blas is None else blas.get_threads()
        if blas is not None and self._before != 1:
            blas.set_threads(1)

    def __exit__(self, *_: object) -> None:
        if self._before != 1:
            blas = chosen()
            if blas is not None:
                blas.set_threads(self._before)


ONE_THREAD = OneThread()
"""The block of the pool of threads, which holds its lock meanwhile."""


_i32, _i64, _f32 = types.int32, types.int64, types.float32
_sgemm = types.ExternalFunction(
    SYMBOL,
    types.void(_i32, _i32, _i32, _i64, _i64, _i64, _f32, _i64, _i64, _i64, _i64, _f32, _i64, _i64),
)


@inline
def sgemm(trans_a, trans_b, m, n, k, a, lda, b, ldb, beta, c, ldc):
    """C = op(A) op(B) + beta C for row-major float32 matrices at addresses; op(A) is (m, k).

    `trans_a` is 1 where A is stored as its transpose, (k, m); `lda` is the distance of two stored
    rows in elements. Runs on the calling thread alone.
    """
    _sgemm(
        np.int32(101), np.int32(111 + trans_a), np.int32(111 + trans_b), m, n, k,
        np.float32(1.0), a, lda, b, ldb, np.float32(beta), c, ldc,
    )  # fmt: skip
