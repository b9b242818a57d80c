"""Timing contenders in turns, so that a device that slows down does so for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from gpubackprop.backends.timing import Clock
from gpubackprop.errors import GpubackpropError

PAUSE = 0.03
"""Seconds between two turns, in which idle threads of the library before give up their cores."""


class AbsentError(RuntimeError):
    """A contender cannot take part; the text is the reason."""


class Candidate(NamedTuple):
    """What is timed: a call, and the clock of the device that it runs on."""

    call: Callable[[], Any]
    clock: Clock


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median over the rounds, the shortest and the longest."""

    seconds: float
    lowest: float
    highest: float
    rounds: int
    clock: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def interleaved(
    candidates: Mapping[str, Candidate], rounds: int, seconds: float
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time each candidate in every round.

    Parameters
    ----------
    candidates : by name.
    rounds : turns of each.
    seconds : length of a turn; one call where a call takes longer.

    Returns
    -------
    timings, absent : by name, and why the others could not be timed.
    """
    calls: dict[str, int] = {}
    found: dict[str, list[float]] = {}
    absent: dict[str, str] = {}
    for name, each in candidates.items():
        try:
            each.clock.seconds(each.call, 2)  # compiles, fills caches
            once = max(each.clock.seconds(each.call), 1e-7)
            if once < seconds / 10:
                few = max(1, round(seconds / 10 / once))
                once = max(each.clock.seconds(each.call, few) / few, 1e-7)
            calls[name] = max(1, round(seconds / once))
            found[name] = []
        except Exception as error:  # noqa: BLE001 - whatever a contender raises, the others go on
            absent[name] = reason(error)
    for _ in range(rounds):
        for name, n in calls.items():
            if name in absent:
                continue
            if len(calls) > 1:
                time.sleep(PAUSE)
            try:
                found[name].append(candidates[name].clock.seconds(candidates[name].call, n) / n)
            except Exception as error:  # noqa: BLE001
                absent[name] = reason(error)
    timings = {
        name: Timing(statistics.median(s), min(s), max(s), len(s), candidates[name].clock.source)
        for name, s in found.items()
        if name not in absent
    }
    return timings, absent


def reason(error: BaseException) -> str:
    """Why something could not be done, in one line."""
    words = " ".join(str(error).split())
    if isinstance(error, (AbsentError, GpubackpropError)) and words:
        return words
    return f"{type(error).__name__}: {words}"[:300]


def best(candidate: Candidate, rounds: int = 3, seconds: float = 0.02) -> float:
    """Seconds of the fastest of some short turns of one call."""
    timings, absent = interleaved({"": candidate}, rounds, seconds)
    if absent:
        raise AbsentError(absent[""])
    return timings[""].lowest
