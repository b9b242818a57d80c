"""The BLAS that NumPy brings along, called from native kernels.

Two pools of threads at once make each other wait: OpenBLAS's beside our own cost a factor of ten.
So there is one pool, ours; each of its threads calls ``sgemm`` by itself on its part of a product,
and while a program runs the BLAS is told to use one thread (and afterwards what it used before).
"""

from __future__ import annotations

import ctypes
import functools
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from numba import types

from gpubackprop.backends.cpu.native.abi import inline

SYMBOL = "gpubackprop_sgemm"


class Blas(NamedTuple):
    """A library with ``cblas_sgemm`` of 64-bit integers.

    Attributes
    ----------
    name : what it is called in reports.
    path : the library's file.
    sgemm : address of the product.
    get_threads, set_threads : how many threads the library uses; None where it is not told.
    """

    name: str
    path: str
    sgemm: int
    get_threads: Any
    set_threads: Any


@functools.cache
def bundled() -> Blas | None:
    """NumPy's own OpenBLAS; None where this NumPy was built with another library."""
    folder = os.path.join(os.path.dirname(np.__file__), os.pardir, "numpy.libs")
    for path in sorted(glob.glob(os.path.join(folder, "libscipy_openblas64_*"))):
        try:
            library = ctypes.CDLL(path)
            sgemm = ctypes.cast(library.scipy_cblas_sgemm64_, ctypes.c_void_p).value
            get, put = (
                library.scipy_openblas_get_num_threads64_,
                library.scipy_openblas_set_num_threads64_,
            )
        except (OSError, AttributeError):
            continue
        get.restype, put.argtypes, put.restype = ctypes.c_int, [ctypes.c_int], None
        return Blas("OpenBLAS of NumPy", os.path.realpath(path), int(sgemm or 0), get, put)
    return None


def available() -> bool:
    """Whether native kernels have a BLAS to call; makes its symbol known to the compiler."""
    blas = bundled()
    if blas is None:
        return False
    llvm.add_symbol(SYMBOL, blas.sgemm)
    return True


available()  # before any kernel is compiled, or loaded from the cache


@contextmanager
def single_threaded() -> Iterator[None]:
    """The BLAS uses one thread within the block. This is a setting of the whole process."""
    blas = bundled()
    if blas is None or blas.set_threads is None:
        yield
        return
    before = blas.get_threads()
    if before == 1:
        yield
        return
    blas.set_threads(1)
    try:
        yield
    finally:
        blas.set_threads(before)


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
