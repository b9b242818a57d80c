"""A thin binding of cuBLASLt: the matrix products of CUDA with every choice an argument.

CuPy's own products take no stream, workspace, scale or epilogue, choose the precision by the
environment, copy transposed batches and cannot be captured into a graph. cuBLASLt takes all of
them as arguments, and a call does nothing but enqueue.

Names of NVIDIA's enumerations are in the comments beside their numbers (cublasLt.h, library_types.h
of CUDA 12 and 13). Matrices here are NVIDIA's, stored by columns; ``matrices.py`` makes them out of
rows.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import itertools
import threading
import weakref
from collections.abc import Callable
from ctypes import (
    byref,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from types import ModuleType
from typing import Any

import numpy as np

from gpubackprop.backends.cuda.matrices import DOUBLE, TYPES, Problem, Stored
from gpubackprop.errors import DeviceError

WORKSPACE = 32 << 20  # bytes; what NVIDIA recommends for the newest GPUs
CANDIDATES = 8
MOST_PLANS = 4096
NOT_SUPPORTED = 15  # CUBLAS_STATUS_NOT_SUPPORTED
FINAL = (7, 8, NOT_SUPPORTED)  # CUBLAS_STATUS_INVALID_VALUE, ARCH_MISMATCH
"""What the library answers about a problem. All else is about the moment: cuBLASLt of CUDA 13.3
proposes no algorithm while a stream is captured (INTERNAL_ERROR), and does a moment later."""

# Attributes of the library's objects.
_TRANSPOSE_A, _TRANSPOSE_B, _EPILOGUE, _BIAS = 3, 4, 7, 8  # cublasLtMatmulDescAttributes_t
_AUXILIARY, _AUXILIARY_LD = 11, 12  # ..._EPILOGUE_AUX_POINTER, ..._EPILOGUE_AUX_LD
_BATCH, _STEP = 5, 6  # cublasLtMatrixLayoutAttribute_t
_MOST_WORKSPACE, _SCHEMES, _ALIGNMENT = 1, 3, (5, 6, 7, 8)  # cublasLtMatmulPreferenceAttributes_t
_SPLITS, _SCHEME = 2, 3  # cublasLtMatmulAlgoConfigAttributes_t


class LtError(DeviceError):
    """cuBLASLt is not there, refuses a product, or failed."""


class RefusedError(LtError):
    """cuBLASLt has no algorithm for a product; another one may serve.

    Parameters
    ----------
    words : what was refused and why.
    status : the library's answer.

    Attributes
    ----------
    final : whether asking again is of no use.
    """

    def __init__(self, words: str, status: int = NOT_SUPPORTED) -> None:
        super().__init__(words)
        self.final = status in FINAL


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    ]


@functools.lru_cache(maxsize=256)
def _number(kind: type[Any], value: float) -> Any:
    """A scale as the library reads it. Nobody writes it, so all calls share one."""
    return kind(value)


def find(cupy: ModuleType | Any) -> str:
    """Path or name of the library of CuPy's CUDA: loaded already, a wheel, Conda or the system.

    Raises
    ------
    LtError
        If it is nowhere.
    """
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
    except ImportError:  # only wheels of CuPy bring it
        return f"libcublasLt.so.{cupy.cuda.runtime.runtimeGetVersion() // 1000}"
    try:
        return str(pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path)
    except Exception as error:  # its classes differ from system to system
        raise LtError(f"cuBLASLt was not found: {' '.join(str(error).split())}") from error


def library(path: str) -> ctypes.CDLL:
    """The library with the types of the functions that are called here.

    Raises
    ------
    LtError
        If there is no such library, or one without these functions.
    """
    pointer, value = c_void_p, c_size_t
    prototypes = {
        "Create": [pointer],
        "Destroy": [pointer],
        "MatmulDescCreate": [pointer, c_int, c_int],
        "MatmulDescDestroy": [pointer],
        "MatmulDescSetAttribute": [pointer, c_int, pointer, value],
        "MatrixLayoutCreate": [pointer, c_int, c_uint64, c_uint64, c_int64],
        "MatrixLayoutDestroy": [pointer],
        "MatrixLayoutSetAttribute": [pointer, c_int, pointer, value],
        "MatmulPreferenceCreate": [pointer],
        "MatmulPreferenceDestroy": [pointer],
        "MatmulPreferenceSetAttribute": [pointer, c_int, pointer, value],
        "MatmulAlgoGetHeuristic": [pointer] * 7 + [c_int, pointer, pointer],
        "MatmulAlgoConfigGetAttribute": [pointer, c_int, pointer, value, pointer],
        "Matmul": [pointer] * 14 + [value, pointer],
    }
    try:
        found = ctypes.CDLL(path)
        for name, types in prototypes.items():
            function = getattr(found, f"cublasLt{name}")
            function.argtypes, function.restype = types, c_int
        found.cublasLtGetStatusString.argtypes = [c_int]
        found.cublasLtGetStatusString.restype = c_char_p
        for function in (found.cublasLtGetCudartVersion, found.cublasLtGetVersion):
            function.argtypes, function.restype = [], c_size_t
    except (OSError, AttributeError) as error:
        raise LtError(f"cuBLASLt cannot be used: {' '.join(str(error).split())}") from error
    return found


class Plan:
    """The descriptors of one problem and the algorithm that was chosen for it.

    Attributes
    ----------
    workspace : bytes that the algorithm needs.
    """

    def __init__(self, lt: CublasLt, problem: Problem) -> None:
        self._lib, self._lock = lt.lib, threading.Lock()
        self.problem = problem
        made: list[tuple[Callable[..., int], c_void_p]] = []
        # The descriptors are the host's memory: a graph that was captured needs them no more.
        weakref.finalize(self, _destroy, made)
        self._scale = c_double if problem.compute == DOUBLE else c_float
        scale = TYPES["float64" if problem.compute == DOUBLE else "float32"]
        self._operation = lt.make(made, "MatmulDesc", problem.compute, scale)
        for attribute, value in (
            (_TRANSPOSE_A, c_int32(problem.transpose_a)),
            (_TRANSPOSE_B, c_int32(problem.transpose_b)),
            (_EPILOGUE, c_uint32(problem.epilogue)),
        ):
            lt.set("MatmulDesc", self._operation, attribute, value)
        # The choice depends on how these addresses are aligned, and reads nothing there.
        anywhere = problem.alignment[2]
        self._pointers = {_BIAS: anywhere} if problem.biased else {}
        if problem.auxiliary:
            self._pointers[_AUXILIARY] = anywhere
            lt.set("MatmulDesc", self._operation, _AUXILIARY_LD, c_int64(problem.auxiliary))
        for attribute, address in self._pointers.items():
            lt.set("MatmulDesc", self._operation, attribute, c_void_p(address))
        self._a, self._b, self._d = (
            self._layout(lt, made, TYPES[name], stored)
            for name, stored in (
                (problem.dtype, problem.a),
                (problem.dtype, problem.b),
                (problem.result, problem.d),
            )
        )
        self._algorithm, self.workspace = self._choose(lt)

    def _layout(self, lt: CublasLt, made: list[Any], kind: int, stored: Stored) -> c_void_p:
        layout = lt.make(made, "MatrixLayout", kind, stored.rows, stored.columns, stored.ld)
        if self.problem.batch > 1:
            lt.set("MatrixLayout", layout, _BATCH, c_int32(self.problem.batch))
            lt.set("MatrixLayout", layout, _STEP, c_int64(stored.step))
        return layout

    def _choose(self, lt: CublasLt) -> tuple[Any, int]:
        """The first algorithm that the library proposes and that sums in an allowed order."""
        problem, lib = self.problem, lt.lib
        mine: list[tuple[Callable[..., int], c_void_p]] = []
        try:
            preference = lt.make(mine, "MatmulPreference")
            a, b, d = problem.alignment
            for attribute, value in (
                (_MOST_WORKSPACE, c_uint64(WORKSPACE)),
                (_SCHEMES, c_uint32(problem.schemes)),
                *zip(_ALIGNMENT, map(c_uint32, (a, b, d, d)), strict=True),
            ):
                lt.set("MatmulPreference", preference, attribute, value)
            found, count = (_Found * CANDIDATES)(), c_int()
            descriptors = (self._operation, self._a, self._b, self._d, self._d, preference)
            status = lib.cublasLtMatmulAlgoGetHeuristic(
                lt.handle, *descriptors, CANDIDATES, byref(found), byref(count)
            )
        finally:
            _destroy(mine)
        if status:
            raise RefusedError(f"cuBLASLt refuses {problem}: {lt.words(status)}", status)
        for one in itertools.islice(found, count.value):
            splits, scheme = (lt.config(one, attribute) for attribute in (_SPLITS, _SCHEME))
            fixed = splits <= 1 or (scheme and not scheme & ~problem.schemes)
            if not one.state and one.workspace <= WORKSPACE and fixed:
                return one.algorithm, int(one.workspace)
        raise RefusedError(f"cuBLASLt has no algorithm for {problem}")

    def run(
        self,
        lt: CublasLt,
        a: int,
        b: int,
        d: int,
        alpha: float = 1.0,
        beta: float = 0.0,
        bias: int = 0,
        c: int = 0,
        auxiliary: int = 0,
    ) -> None:
        """Enqueue the product on the current stream.

        Parameters
        ----------
        a, b, d : addresses on the device.
        bias, auxiliary : addresses, where the epilogue has them.
        c : of what is added `beta` times, which lies as D does; by default D itself.

        Raises
        ------
        RefusedError
            If the library refuses after all.
        LtError
            If it failed.
        """
        room = lt.workspace(self.workspace) if self.workspace else None
        space = 0 if room is None else int(room.data.ptr)
        scales = byref(_number(self._scale, alpha)), byref(_number(self._scale, beta))
        last = c or d, self._d, d, self._d, self._algorithm, space, self.workspace, lt.stream()
        arguments = scales[0], a, self._a, b, self._b, scales[1], *last
        if not self._pointers:
            status = self._lib.cublasLtMatmul(lt.handle, self._operation, *arguments)
        else:
            with self._lock:  # these addresses are in the descriptor, which threads share
                for attribute, address in ((_BIAS, bias), (_AUXILIARY, auxiliary)):
                    if self._pointers.get(attribute, address) != address:
                        lt.set("MatmulDesc", self._operation, attribute, c_void_p(address))
                        self._pointers[attribute] = address
                status = self._lib.cublasLtMatmul(lt.handle, self._operation, *arguments)
        if status == NOT_SUPPORTED:
            raise RefusedError(f"cuBLASLt refuses {self.problem}: {lt.words(status)}")
        if status:
            raise LtError(
                f"cuBLASLt failed at {self.problem}: {lt.words(status)}; an earlier kernel may be "
                "the cause, which CUDA_LAUNCH_BLOCKING=1 shows"
            )


def _destroy(made: list[tuple[Callable[..., int], c_void_p]]) -> None:
    while made:
        function, handle = made.pop()
        function(handle)


class CublasLt:
    """cuBLASLt on one GPU, which must be the current one while this is made and used.

    Parameters
    ----------
    cupy : the CuPy module, for the current stream and the workspace.

    Raises
    ------
    LtError
        If the library is not there, belongs to another CUDA than CuPy's, or cannot start.
    """

    def __init__(self, cupy: ModuleType | Any) -> None:
        self._cupy = cupy
        self.lib = library(find(cupy))
        version, wanted = self.lib.cublasLtGetCudartVersion(), cupy.cuda.runtime.runtimeGetVersion()
        if version // 1000 != wanted // 1000:
            raise LtError(
                f"cuBLASLt is for CUDA {version // 1000} and CuPy for CUDA {wanted // 1000}; "
                "install one extra, cuda12 or cuda13"
            )
        self.handle = c_void_p()
        if status := self.lib.cublasLtCreate(byref(self.handle)):
            raise LtError(f"cuBLASLt cannot start: {self.words(status)}")
        self._plans: dict[Problem, Plan | str] = {}  # or why there is none

    def plan(self, problem: Problem) -> Plan:
        """The plan for a problem, made once.

        Raises
        ------
        RefusedError
            If the library has no algorithm for it; at once, where it said so before.
        """
        found = self._plans.get(problem)
        if found is None:
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            try:
                found = Plan(self, problem)
            except RefusedError as error:
                if not error.final:
                    raise
                found = str(error)  # an error that is kept would keep the arrays of its callers
            self._plans[problem] = found
        if isinstance(found, str):
            raise RefusedError(found)
        return found

    def version(self) -> str:
        """The library's number."""
        return str(self.lib.cublasLtGetVersion())

    def stream(self) -> int:
        """The current stream's handle."""
        return int(self._cupy.cuda.get_current_stream().ptr)

    def workspace(self, nbytes: int) -> Any:
        """Memory for one product on the current stream, which may go back to CuPy's pool as soon as
        the product is enqueued.

        The pool gives it again to what comes later on the same stream, and to nobody else. So two
        streams never share a workspace, and a graph has its own among the rest of its memory.
        """
        return self._cupy.empty((nbytes,), np.uint8)

    def words(self, status: int) -> str:
        """A status in words."""
        text = self.lib.cublasLtGetStatusString(status)
        return f"status {status} ({text.decode() if text else 'unknown'})"

    def make(self, made: list[Any], kind: str, *arguments: int) -> c_void_p:
        """A new object of the library, noted in `made` with what destroys it."""
        handle = c_void_p()
        if status := getattr(self.lib, f"cublasLt{kind}Create")(byref(handle), *arguments):
            words = f"cuBLASLt makes no {kind} of {arguments}: {self.words(status)}"
            raise RefusedError(words, status)
        made.append((getattr(self.lib, f"cublasLt{kind}Destroy"), handle))
        return handle

    def set(self, kind: str, handle: c_void_p, attribute: int, value: Any) -> None:
        """Set an attribute of an object of the library."""
        function = getattr(self.lib, f"cublasLt{kind}SetAttribute")
        if status := function(handle, attribute, byref(value), ctypes.sizeof(value)):
            raise RefusedError(
                f"cuBLASLt refuses {value.value} as attribute {attribute} of {kind}: "
                f"{self.words(status)}",
                status,
            )

    def config(self, found: _Found, attribute: int) -> int:
        """A number out of an algorithm's configuration; 0 where it has none."""
        value, written = c_uint32(), c_size_t()
        status = self.lib.cublasLtMatmulAlgoConfigGetAttribute(
            byref(found.algorithm), attribute, byref(value), 4, byref(written)
        )
        return 0 if status else int(value.value)
