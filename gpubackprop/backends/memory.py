"""Counting the bytes that a device holds: while something runs, and by what holds them."""

from __future__ import annotations

import os
import re
import tracemalloc
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple, Protocol


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


class MemoryState(NamedTuple):
    """A device's memory at one moment, in bytes; None where the system does not tell.

    Attributes
    ----------
    used : in use by arrays.
    pooled : free in the memory pool, in blocks that it keeps for later.
    limit : the most that the pool may take; None without a limit.
    available : what the device could still give.
    total : what it has.
    """

    used: int | None = None
    pooled: int | None = None
    limit: int | None = None
    available: int | None = None
    total: int | None = None


def host_memory() -> MemoryState:
    """The machine's memory. What of it arrays use is not known."""
    try:
        unit = os.sysconf("SC_PAGE_SIZE")
        return MemoryState(
            available=unit * os.sysconf("SC_AVPHYS_PAGES"), total=unit * os.sysconf("SC_PHYS_PAGES")
        )
    except (AttributeError, OSError, ValueError):  # not every system counts pages
        return MemoryState()


class Holder(Protocol):
    """Holds arrays for long, and can say what they are for."""

    backend: Any

    def holdings(self) -> Iterator[tuple[str, Any]]:
        """(what it is for, array) of each array that it holds; (what, bytes) of memory beside the
        device's pool."""


HOLDERS: weakref.WeakSet[Any] = weakref.WeakSet()
"""Every :class:`Holder` that is alive, so that an error for lack of memory can name what holds
it."""


_UNITS = {"": 1} | {
    f"{prefix}{kind}b": base ** (power + 1)
    for power, prefix in enumerate("kmgt")
    for kind, base in (("i", 1024), ("", 1000))
}


def parse_bytes(text: str) -> int:
    """A number of bytes as people write it.

    Raises
    ------
    ValueError
        It is none.

    Examples
    --------
    >>> parse_bytes("8GiB"), parse_bytes("1.5 MB"), parse_bytes("512")
    (8589934592, 1500000, 512)
    """
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([a-z]*)", text.strip().lower())
    unit = None if found is None else _UNITS.get(found[2])
    if found is None or unit is None or float(found[1]) * unit < 1:
        raise ValueError(f"must be a size such as 8GiB, 512MiB or 8000000000, not {text[:40]!r}")
    return int(float(found[1]) * unit)


def asked_bytes(error: BaseException) -> int | None:
    """How many bytes an allocation that failed had asked for, where its library tells."""
    for name in ("_total_size", "_size"):  # NumPy's error, CuPy's error
        found = getattr(error, name, None)
        if isinstance(found, int):
            return found
    return None


def words(n: int) -> str:
    """A number of bytes for a reader.

    Examples
    --------
    >>> words(-1536)
    '-1.5 KiB'
    """
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{n} B" if unit == "B" else f"{size:.1f} {unit}"
