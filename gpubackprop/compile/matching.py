"""Comparing two recordings of one function: what differs between two calls cannot be replayed.

A function is recorded at two calls in a row. If both made the same kernel calls, with the same
constants, on the same memory, a third will too. Where only a number or an array's contents differ,
the function froze something that changes, and the error says what. Where the calls themselves
differ, the function had not settled yet (a first call fills caches and finds no gradients), and is
recorded once more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends import Backend, live
from gpubackprop.compile.recorder import Recording
from gpubackprop.compile.trace import Buffer, Call, Ref
from gpubackprop.errors import CompileError

SMALL = 1 << 24
"""Arrays from outside that are made anew at each call are compared up to this many bytes."""


class UnsettledError(Exception):
    """The recordings are of different calls; the words say where they part."""


def match(first: Recording, second: Recording, backend: Backend) -> None:
    """Check that two recordings are of the same step.

    Raises
    ------
    UnsettledError
        Different kernels were called, or on other memory.
    CompileError
        A number or an outside array changed from one call to the next.
    """
    if len(first.calls) != len(second.calls):
        a, b = len(first.calls), len(second.calls)
        raise UnsettledError(f"one call ran {a} kernels, the next {b}")
    _Matching(backend).all(first, second)


class _Matching:
    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.partners: dict[Buffer, Buffer] = {}

    def all(self, first: Recording, second: Recording) -> None:
        for a, b in zip(first.inputs, second.inputs, strict=True):
            self.refs(a, b, "an argument")
        for i, (x, y) in enumerate(zip(first.calls, second.calls, strict=True)):
            where = f"kernel call {i} ({y.kernel})"
            if x.kernel != y.kernel:
                raise UnsettledError(f"{where}: the call before ran {x.kernel} there")
            if x.precision != y.precision:
                raise UnsettledError(f"{where}: the call before was in {x.precision}")
            self.trees(x.args, y.args, where, y)
            self.trees(x.kwargs, y.kwargs, where, y)
            self.trees(x.outs, y.outs, where, y)
        if len(first.live) != len(second.live):
            raise UnsettledError("the number of draws and of optimizer steps differs")

    def trees(self, a: Any, b: Any, where: str, call: Call) -> None:
        if isinstance(a, Ref) or isinstance(b, Ref):
            if not (isinstance(a, Ref) and isinstance(b, Ref)):
                raise UnsettledError(f"{where}: an array in one call, none in the other")
            self.refs(a, b, where)
        elif isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
            if len(a) != len(b):
                raise UnsettledError(f"{where}: {len(a)} arguments, then {len(b)}")
            for u, v in zip(a, b, strict=True):
                self.trees(u, v, where, call)
        elif isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                raise UnsettledError(f"{where}: other options")
            for key in a:
                self.trees(a[key], b[key], where, call)
        elif isinstance(b, (live.LiveFloat, live.LiveInt)):
            if getattr(a, "live", None) != b.live:
                raise UnsettledError(f"{where}: other live numbers")
        else:
            self.constants(a, b, where, call)

    def refs(self, a: Ref, b: Ref, where: str) -> None:
        if (a.shape, a.strides, a.dtype, a.offset) != (b.shape, b.strides, b.dtype, b.offset):
            if a.buffer.kind == b.buffer.kind == "external" and a.buffer.array is b.buffer.array:
                raise self.moved(b, where)
            raise UnsettledError(f"{where}: {a} in one call, {b} in the next")
        partner = self.partners.get(a.buffer)
        if partner is b.buffer:
            return
        if partner is not None or a.buffer.kind != b.buffer.kind:
            raise UnsettledError(f"{where}: {a} in one call, other memory in the next")
        self.partners[a.buffer] = b.buffer
        if b.buffer.kind == "external" and a.buffer.array is not b.buffer.array:
            self.outside(a, b, where)

    def outside(self, a: Ref, b: Ref, where: str) -> None:
        """Two arrays that lived outside: a constant that is made anew, or something that moves."""
        x, y = a.buffer.array, b.buffer.array
        same = (
            x.shape == y.shape
            and x.dtype == y.dtype
            and y.nbytes <= SMALL
            and np.array_equal(
                self.backend.to_numpy(x), self.backend.to_numpy(y), equal_nan=x.dtype.kind == "f"
            )
        )
        if not same:
            raise self.moved(b, where)

    def moved(self, b: Ref, where: str) -> CompileError:
        return CompileError(
            f"{where}: an array of {b.dtype} {list(b.shape)} that is no argument was another one "
            "(or another part of one) at the next call; a replay would go on using the old one. "
            "Pass it to the compiled function as an argument (random numbers: draw with the "
            "project's generators)"
        )

    def constants(self, a: Any, b: Any, where: str, call: Call) -> None:
        if a is b:
            return
        if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
            equal = np.array_equal(a, b)
        else:
            equal = type(a) is type(b) and (a == b or (a != a and b != b))
        if equal:
            return
        if isinstance(b, (int, float, np.generic)) and not isinstance(b, bool):
            raise CompileError(
                f"{where}: a Python number went in as {a!r} at one call and as {b!r} at the next; a"
                " replay would repeat the same one for ever. Pass it to the compiled function as a "
                "tensor (learning rates, step counts and random draws are followed by themselves)"
            )
        raise UnsettledError(f"{where}: {a!r}, then {b!r}")
