"""Counting the bytes that a device holds while something runs."""

from __future__ import annotations

import tracemalloc
from types import TracebackType
from typing import Protocol


class MemoryMeter(Protocol):
    """Counts within a ``with`` block. One at a time per thread.

    Attributes
    ----------
    source : what it counts, in a word or two.
    """

    source: str

    def __enter__(self) -> MemoryMeter: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def read(self) -> tuple[int, int]:
        """Bytes in use now, and the most that were in use since the reading before."""
        ...


class HostMemory:
    """Memory that Python and NumPy allocate, by ``tracemalloc``; Python's objects are in it too.

    What was allocated before the block began is not counted, unless ``tracemalloc`` ran already.
    """

    source = "host memory (tracemalloc)"

    def __enter__(self) -> HostMemory:
        self._own = not tracemalloc.is_tracing()
        if self._own:
            tracemalloc.start()
        tracemalloc.reset_peak()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._own:
            tracemalloc.stop()

    def read(self) -> tuple[int, int]:
        """Bytes in use now, and the most since the reading before."""
        found = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        return found
