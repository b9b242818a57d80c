"""A kernel as a compiled step runs it: natively, where native kernels are installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpubackprop.autograd import Tensor
from gpubackprop.backends import Array, Backend
from gpubackprop.bench.measure import AbsentError
from gpubackprop.compile.api import compile as compiled
from gpubackprop.compile.compiled import native_trouble

WARM = 4
"""Calls after which a function is replayed: two recordings, one comparison, the first replay."""


def native(backend: Backend) -> bool:
    """Whether a compiled step on a device runs native kernels in place of the backend's own."""
    return backend.name == "numpy" and native_trouble() is None


def replayed(call: Callable[[], Any], backend: Backend) -> Callable[[], Any]:
    """A call of a kernel, recorded and replayed.

    Raises
    ------
    AbsentError
        It cannot be compiled.
    """

    def step() -> list[Tensor]:
        given = call()
        found = given if isinstance(given, tuple) else (given,)
        return [Tensor(_corner(x), backend) for x in found if isinstance(x, backend.array_type)]

    step.__qualname__ = "kernel"
    made = compiled(step, device=backend.device)
    for _ in range(WARM):
        made()
    if made.eager is not None:
        raise AbsentError(made.eager)
    return made


def _corner(x: Array) -> Array:
    """The last element: the kernel must write all of its result, and nobody copies it out."""
    return x[(slice(-1, None),) * x.ndim]
