"""How long work takes on a device, by the device's own clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol


class Clock(Protocol):
    """Times calls.

    Attributes
    ----------
    source : what it reads, in a word or two.
    """

    source: str

    def seconds(self, call: Callable[[], Any], calls: int = 1) -> float:
        """Seconds that `calls` calls take together, until the device has done all of them. What was
        asked of the device before is waited for first, and not counted."""
        ...


class HostClock:
    """The host's clock, for work that is done when a call returns."""

    source = "perf_counter"

    def seconds(self, call: Callable[[], Any], calls: int = 1) -> float:
        """See :class:`Clock`."""
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return time.perf_counter() - start
