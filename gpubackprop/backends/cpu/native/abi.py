"""What a native kernel is, and how it finds its arrays.

A native kernel is a compiled function ``kernel(frame, part, parts)``. Its *frame* is a row of
64-bit slots: addresses of arrays, lengths, strides, and numbers; it does part `part` of `parts`
parts of the work, and every part is called on its own thread. All kernels have this one signature,
so that a list of them needs no Python between one and the next.

Raw addresses keep nothing alive: whoever writes them into a frame holds on to the arrays.

Rules for a kernel's body:

* No exceptions and no objects: a body that could raise would have to take hold of the interpreter.
  What is wrong with the data is told through the status word (see ``raise_status``).
* Slices are taken outside of loops, and inner loops run over contiguous arrays by number, so that
  they become vector instructions. Sums that may be reordered belong into functions compiled with
  ``FAST``; functions that must round step by step (``mathematics.py``) with ``EXACT``.
* Which part does what must not change the bits that a single part would give, but where a sum over
  all rows is divided; say so in the kernel's docstring then.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpubackprop.backends.cpu.native.cache import forget_stale, keep_where_there_is_room

forget_stale(Path(__file__).parent)  # before any kernel is looked for
keep_where_there_is_room()

# LLVM leaves a loop over more than a few arrays scalar where it cannot prove them apart: it would
# have to compare too many addresses first. For rows of thousands of elements that is nothing.
llvm.set_option("gpubackprop", "-runtime-memory-check-threshold=64")

FRAME = types.CPointer(types.int64)
SIGNATURE = types.void(FRAME, types.int64, types.int64)

# Division gives infinities as in NumPy (Numba's check for zero would keep loops scalar), and a
# product that is added may be rounded once.
_COMMON: dict[str, Any] = {"error_model": "numpy", "cache": True}
EXACT: dict[str, Any] = {**_COMMON, "fastmath": {"contract"}}
"""Options of functions whose order of operations counts."""
FAST: dict[str, Any] = {**_COMMON, "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
"""Options of functions whose sums may be taken in any order. NaN and infinity stay."""


class Kernel:
    """A native kernel, compiled when its address is first asked for.

    Attributes
    ----------
    name : the function's name.
    function : its Python source, for reading.
    """

    compiled = 0  # how many had to be compiled in this process, not found in the cache

    def __init__(self, function: Callable[..., None], options: dict[str, Any]) -> None:
        self.function, self.options = function, options
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self._made: Any = None

    @property
    def address(self) -> int:
        """Where the machine code begins."""
        if self._made is None:
            self._made = numba.cfunc(SIGNATURE, **self.options)(self.function)
            if not self._made.cache_hits:
                Kernel.compiled += 1
        return self._made.address

    @property
    def loaded(self) -> bool:
        """Whether the machine code is in memory."""
        return self._made is not None

    def __repr__(self) -> str:
        return f"<Kernel {self.name}>"


def kernel(function: Callable[..., None]) -> Kernel:
    """A native kernel whose own sums may be reordered (see ``FAST``)."""
    return Kernel(function, FAST)


def inline(function: Callable[..., Any]) -> Any:
    """A helper that is copied into the kernels that call it, its order of operations kept."""
    return numba.njit(forceinline=True, **EXACT)(function)


def inline_fast(function: Callable[..., Any]) -> Any:
    """A helper that is copied into the kernels that call it, whose sums may be reordered."""
    return numba.njit(forceinline=True, **FAST)(function)


# Reading a frame.
def _pointer_at(element: Any) -> Any:
    @intrinsic
    def pointer(typingctx: Any, address: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            target = context.get_value_type(types.CPointer(element))
            return builder.inttoptr(args[0], target)

        return types.CPointer(element)(types.int64), build

    return pointer


_f32 = _pointer_at(types.float32)
_f64 = _pointer_at(types.float64)
_i64 = _pointer_at(types.int64)
_u32 = _pointer_at(types.uint32)
_u8 = _pointer_at(types.uint8)


@inline
def floats(address, *shape):
    """The float32 array of a shape that begins at an address (C order)."""
    return numba.carray(_f32(address), shape)


@inline
def doubles(address, *shape):
    """The float64 array of a shape that begins at an address (C order)."""
    return numba.carray(_f64(address), shape)


@inline
def longs(address, *shape):
    """The int64 array of a shape that begins at an address (C order)."""
    return numba.carray(_i64(address), shape)


@inline
def words(address, *shape):
    """The uint32 array of a shape that begins at an address (C order)."""
    return numba.carray(_u32(address), shape)


@inline
def octets(address, *shape):
    """The uint8 (or bool) array of a shape that begins at an address (C order)."""
    return numba.carray(_u8(address), shape)


@intrinsic
def number(typingctx: Any, slot: Any) -> Any:
    """The float64 whose bits a slot holds."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), build


@inline
def share(n, part, parts, step):
    """Which of `n` items a part works on, (start, stop): equal shares, in multiples of `step`."""
    blocks = (n + step - 1) // step
    start = blocks * part // parts * step
    stop = blocks * (part + 1) // parts * step
    return min(start, n), min(stop, n)


@inline
def raise_status(address, code):
    """Say through the status word that the data are not what they must be; the program ends after
    this instruction. `code` is a row of ``engine.TROUBLE``."""
    longs(address, 1)[0] = code


# Between threads.
@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address, at once; gives what was there before."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), build


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    """The int64 at an address, as other threads have left it."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.int64), build


@intrinsic
def atomic_store(typingctx: Any, address: Any, value: Any) -> Any:
    """Write the int64 at an address for other threads to see."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store_atomic(args[1], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def call_kernel(typingctx: Any, address: Any, frame: Any, part: Any, parts: Any) -> Any:
    """Run the kernel at an address with the frame at an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64 = ir.IntType(64)
        shape = ir.FunctionType(ir.VoidType(), [i64.as_pointer(), i64, i64])
        function = builder.inttoptr(args[0], shape.as_pointer())
        builder.call(function, [builder.inttoptr(args[1], i64.as_pointer()), args[2], args[3]])
        return context.get_dummy_value()

    signature = types.void(types.int64, types.int64, types.int64, types.int64)
    return signature, build


def slot(value: Any) -> int:
    """What a frame's slot holds for an array (its address), an integer or a float (its bits)."""
    if isinstance(value, np.ndarray):
        return int(value.ctypes.data)
    if isinstance(value, (bool, int, np.integer)):
        value = int(value)
        return value - (1 << 64) if value >= 1 << 63 else value
    if isinstance(value, (float, np.floating)):
        return int(np.float64(value).view(np.int64))
    raise TypeError(f"a frame holds arrays and numbers, not {type(value).__name__}")
