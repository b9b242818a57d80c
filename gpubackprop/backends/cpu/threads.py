"""Sharing the images of a batch among the processor's cores.

NumPy lets go of the interpreter while it copies, adds and multiplies, so plain threads run these
side by side. It pays where the products are too small for the BLAS to divide: each thread then
keeps its images in its own core's cache from the first copy to the last sum.
"""

from __future__ import annotations

import contextvars
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")

# More threads than this wait for the interpreter rather than for memory.
MOST = 16
_pool: Any = None


@functools.cache
def threads() -> int:
    """As many threads as NumPy's BLAS takes: the cores of this process, or what
    OPENBLAS_NUM_THREADS or OMP_NUM_THREADS says."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "")
        if text.isdigit() and int(text):
            return min(int(text), MOST)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MOST)


def in_parts(work: Callable[[int, int], R], n: int, parts: int) -> list[R]:
    """``work(start, stop)`` for nearly equal parts of ``range(n)``, at the same time.

    Returns
    -------
    list
        What each part gave, in order: a sum over them has the same bits at every call.
    """
    parts = max(1, min(parts, n))
    bounds = [n * i // parts for i in range(parts + 1)]
    # Warnings that are off here are off in the threads too: NumPy keeps them in the context.
    waiting = [
        _executor().submit(contextvars.copy_context().run, work, start, stop)
        for start, stop in zip(bounds[1:-1], bounds[2:], strict=True)
    ]
    first = work(bounds[0], bounds[1])
    return [first, *[w.result() for w in waiting]]


def _executor() -> Any:
    global _pool
    if _pool is None:
        from concurrent.futures import ThreadPoolExecutor

        _pool = ThreadPoolExecutor(max(threads() - 1, 1), "gpubackprop")
    return _pool


def _forget() -> None:
    """A forked process has none of its parent's threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
