"""Numbers that change from step to step: learning rates, step counts, places in random sequences.

A compiled step repeats what was recorded, so a Python number that went into a kernel would be the
same for ever. What must be read anew is therefore read through :func:`call`: outside of a recording
it is a plain call; a recording notes the function, runs it again before each replay, and gives its
results to the kernels that were given them when it was recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

Numbers = tuple[float | int, ...]
Read = Callable[[], Numbers]


class Recorder(Protocol):
    """What a recording does with live numbers and constants."""

    def live(self, read: Read, undo: Callable[[], None] | None) -> Numbers:
        """Run `read`, note it, and give its numbers, marked."""

    def constant(self, read: Callable[[], Any]) -> None:
        """Note `read` and what it gives now; a replay is refused where it gives something else."""


class _State(threading.local):
    recorder: Recorder | None = None


STATE = _State()


class LiveFloat(float):
    """A float that is read anew at each replay."""

    live: int
    """Its place among the step's live numbers."""


class LiveInt(int):
    """An integer that is read anew at each replay."""

    live: int


def call(read: Read, undo: Callable[[], None] | None = None) -> Numbers:
    """``read()``, now and before every replay of a step that is being recorded.

    Parameters
    ----------
    read : may change state (count a step, move a generator on); gives numbers.
    undo : takes that change back, where the step then fails.
    """
    recorder = STATE.recorder
    return read() if recorder is None else recorder.live(read, undo)


def constant(read: Callable[[], Any]) -> None:
    """Say that what is being recorded holds only as long as ``read()`` gives what it gives now."""
    if STATE.recorder is not None:
        STATE.recorder.constant(read)


def marked(value: float | int, place: int) -> Any:
    """A number that remembers its place among the live ones."""
    made: Any = LiveInt(value) if isinstance(value, int) else LiveFloat(value)
    made.live = place
    return made
