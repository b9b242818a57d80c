"""From recorded calls of the contract's kernels to native instructions.

A *lowering* is told the arrays that one recorded call reads and writes, at the places where they
will be in every replay, and gives the instructions that do the same, or None where it does not
serve these dtypes, shapes or layouts: the call then runs as the NumPy backend defines it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.cpu.native.engine import STATUS, Instruction
from gpubackprop.backends.cpu.threads import threads

Lower = Callable[..., Sequence[Instruction] | None]

MODULES = (
    "products",
    "updates",
    "chains",
    "reductions",
    "rows",
    "indexing",
    "random",
    "attention",
    "recurrent",
    "gated",
    "convolution",
    "pooling",
    "norms",
)
"""The files beside this one that register lowerings."""


class Entry(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    lower : ``lower(site, outs, *args, **kwargs)``, the arguments being those of the recorded call
        and `outs` a tuple of the arrays to write (empty for a kernel that writes its arguments).
    inplace : names of array arguments in whose memory, element for element, the first result may
        be written.
    """

    lower: Lower
    inplace: tuple[str, ...]


TABLE: dict[str, Entry] = {}


def lowers(kernel: str, *more: str, inplace: tuple[str, ...] = ()) -> Callable[[Lower], Lower]:
    """Register a lowering for kernels of the contract."""

    def register(lower: Lower) -> Lower:
        for name in (kernel, *more):
            TABLE[name] = Entry(lower, inplace)
        return lower

    return register


@functools.cache
def load() -> dict[str, Entry]:
    """The table, with every file's rows. What reads ``TABLE`` itself sees those of the files that
    happen to be imported, and would make another step of the first one in a process."""
    for name in MODULES:
        importlib.import_module(f"gpubackprop.backends.cpu.native.{name}")
    return TABLE


class Site:
    """What a lowering may ask for.

    Attributes
    ----------
    parts : how many threads will run the program.
    status : the status word, for ``abi.raise_status``.
    """

    def __init__(self, parts: int | None = None) -> None:
        self.parts = threads() if parts is None else parts
        self.status = STATUS
        self.scratches: list[np.ndarray] = []

    def scratch(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """Memory for this call's own use. Its contents are undefined, and lost after the call."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.empty(size + 64, np.uint8)
        first = -memory.ctypes.data % 64
        made = memory[first : first + size].view(dtype).reshape(shape)
        self.scratches.append(made)
        return made


def spacing(shape: tuple[int, ...], strides: tuple[int, ...], alone: int) -> int | None:
    """Bytes from one element to the next, over axes that lie one after the other; None where they
    do not, `alone` where there is but one element."""
    axes = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    for (_, outer), (n, s) in zip(axes, axes[1:], strict=False):
        if outer != n * s:
            return None
    return axes[-1][1] if axes else alone


def fit(*arrays: np.ndarray, dtype: Any = np.float32) -> bool:
    """Whether all are C-contiguous arrays of one dtype."""
    return all(a.dtype == dtype and a.flags.c_contiguous for a in arrays)
