"""A compiled step as one launch: its calls captured by the device, where it can.

A captured call repeats its arguments to the letter. What changes from step to step is therefore in
the memory of the device: arrays lie in the arena, which stays; the live numbers that a kernel can
read from there (learning rates, step counts, places in random sequences) are filled in by one copy
before each launch. A live number that a kernel takes by value (a momentum, the seed of a sequence)
is part of what was captured: where it has changed, the step is captured anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpubackprop.backends import Backend
from gpubackprop.backends.launching import Launchable, Numbers, read_late
from gpubackprop.backends.live import LiveFloat, LiveInt
from gpubackprop.compile.plan import size_of
from gpubackprop.compile.trace import Call
from gpubackprop.errors import CompileError

if TYPE_CHECKING:
    from gpubackprop.compile.replay import Replay

LIVE = (LiveFloat, LiveInt)

WARM_UPS = 2
"""Replays call by call before the capture: they compile kernels and make what kernels keep."""

CAPTURES = 4
"""How often a step is captured before numbers that change from step to step end the attempts."""


def one_launch(replay: Replay, wanted: bool | None) -> OneLaunch | None:
    """A replay's calls as one launch; None where its device knows nothing of the kind.

    Parameters
    ----------
    wanted : the option ``graph`` of a compiled function.

    Raises
    ------
    CompileError
        It is wanted and cannot be had.
    """
    if wanted is False:
        return None
    trouble = replay.backend.capture_trouble()
    if trouble is None:
        return OneLaunch(wanted is True)
    if wanted:
        raise CompileError(f"compile: graph=True, but {trouble}; leave the option out")
    return None


class OneLaunch:
    """Runs the calls of a replay by one launch, after a few runs call by call.

    It is handed the replay at each run and does not keep it: the two are then freed with the last
    reference to the compiled function, not when Python next looks for cycles.

    Parameters
    ----------
    wanted : whether it is an error where that is not possible.

    Attributes
    ----------
    reason : why it does not and will not; None while it does or may.
    captures, launches : how often.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self.reason: str | None = None
        self.captures = self.launches = self._warm = 0
        self._captured: Launchable | None = None
        self._numbers: Numbers | None = None
        self._places: list[int] = []  # which live numbers are on the device, in their order there
        self._slots: dict[tuple[int, str], int] = {}  # number and dtype: its place there
        self._fixed: dict[int, str] = {}  # which went in by value, and where to
        self._values: list[float | int] = []

    def run(self, replay: Replay) -> bool:
        """Make the calls by one launch; False where they have to be made one by one.

        Raises
        ------
        CompileError
            The launch is wanted and cannot be had.
        """
        if self.reason is None and self._warm < WARM_UPS:
            self._warm += 1
            return False
        numbers = replay.numbers
        if self.reason is None and (
            self._captured is None or self._values != [numbers[i] for i in self._fixed]
        ):
            self._capture(replay)
        if self._captured is None:
            if self._wanted:
                raise CompileError(
                    f"compile: graph=True, but the step cannot be one launch: {self.reason}. Leave "
                    "the option out to run it call by call"
                )
            return False
        if self._numbers is not None:
            self._numbers.fill([numbers[i] for i in self._places])
        self._captured.launch()
        self.launches += 1
        return True

    def _capture(self, replay: Replay) -> None:
        """Capture with the live numbers as they are now; what fails leaves a reason."""
        backend, numbers = replay.backend, replay.numbers
        if self._captured is not None:
            backend.synchronize()  # the launch before may still be under way
            self._captured = None
        if self.captures >= CAPTURES:
            which = ", ".join(dict.fromkeys(self._changed(numbers)))
            self.reason = (
                f"numbers that kernels take by value change from step to step ({which}); captured "
                f"{self.captures} times"
            )
            return
        if not self.captures:
            self._settle(replay)
        self._values = [numbers[i] for i in self._fixed]
        found = backend.capture(self._calls(replay))
        self.captures += 1
        if isinstance(found, str):
            self.reason, self._numbers = found, None
        else:
            self._captured = found

    def _changed(self, numbers: list[float | int]) -> list[str]:
        return [
            where
            for (i, where), value in zip(self._fixed.items(), self._values, strict=True)
            if numbers[i] != value
        ]

    def _settle(self, replay: Replay) -> None:
        """Decide which live numbers are read from the device and which are part of the capture."""
        slots = self._slots
        for call in replay.calls:
            dtypes = read_late(call.kernel)
            for name, value in _named(call, replay.backend):
                if not isinstance(value, LIVE):
                    continue
                if name in dtypes:
                    slots.setdefault((value.live, dtypes[name]), len(slots))
                else:
                    self._fixed.setdefault(value.live, f"{name or 'an argument'} of {call.kernel}")
        self._places = [i for i, _ in slots]
        if slots:
            self._numbers = replay.backend.device_numbers([dtype for _, dtype in slots])

    def _calls(self, replay: Replay) -> list[tuple[str, Callable[[], Any]]]:
        """The calls with every live number in its place."""
        made = []
        for call in replay.calls:
            step = replay.bound(self._settled(call, replay), [])
            if step is not None:
                made.append((call.kernel, step))
        return made

    def _settled(self, call: Call, replay: Replay) -> Call:
        if not any(isinstance(a, LIVE) for a in (*call.args, *call.kwargs.values())):
            return call
        dtypes, numbers = read_late(call.kernel), replay.numbers
        values = []
        for name, value in _named(call, replay.backend):
            if isinstance(value, LIVE):
                if name in dtypes:
                    assert self._numbers is not None
                    value = self._numbers.views[self._slots[value.live, dtypes[name]]]
                else:
                    value = numbers[value.live]
            values.append(value)
        n = len(call.args)
        return replace(
            call, args=tuple(values[:n]), kwargs=dict(zip(call.kwargs, values[n:], strict=True))
        )

    def describe(self) -> str:
        """How the calls are made, in words."""
        if self.reason is not None:
            return f"launched call by call: {self.reason}"
        if self._captured is None:
            return f"launched call by call; captured into one launch after {WARM_UPS} replays"
        held = size_of(self._captured.nbytes)
        return (
            f"{self._captured.calls} calls are one launch with {held} of its own; "
            f"{len(self._places)} number(s) read from the device; {self.captures} capture(s), "
            f"{self.launches} launch(es)"
        )


def _named(call: Call, backend: Backend) -> list[tuple[str, Any]]:
    """A call's arguments with their names, in order: the positional ones first."""
    named = list(call.kwargs.items())
    if not call.args:
        return named
    if not any(isinstance(a, LIVE) for a in call.args):
        return [("", a) for a in call.args] + named
    try:
        names = list(inspect.signature(getattr(backend, call.kernel)).parameters)
    except (TypeError, ValueError):  # an array library's own function
        names = []
    names += [""] * (len(call.args) - len(names))
    return list(zip(names, call.args, strict=False)) + named
