"""Timing work on a GPU by events on its stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

UNSEEN = 1.2, 2e-4
"""Work was done on a stream that the events do not see where the host waited longer than this many
times what they say, and so many seconds."""


class EventClock:
    """CUDA events on the current stream around the calls, gaps between kernels included.

    Work on other streams (a captured graph may have one of its own) lies outside the events; where
    waiting for the whole GPU took the host clearly longer, the host's time is what counts, so that
    nothing looks faster than it is.

    Parameters
    ----------
    cupy : the module.
    index : number of the GPU.
    """

    source = "CUDA events"

    def __init__(self, cupy: Any, index: int) -> None:
        self._cuda, self._gpu = cupy.cuda, cupy.cuda.Device(index)

    def seconds(self, call: Callable[[], Any], calls: int = 1) -> float:
        """See :class:`~gpubackprop.backends.timing.Clock`."""
        with self._gpu:
            start, stop = self._cuda.Event(), self._cuda.Event()
            self._gpu.synchronize()
            began = time.perf_counter()
            start.record()
            for _ in range(calls):
                call()
            stop.record()
            self._gpu.synchronize()
            host = time.perf_counter() - began
            events = self._cuda.get_elapsed_time(start, stop) / 1e3
        factor, least = UNSEEN
        return host if host > factor * events + least else events
