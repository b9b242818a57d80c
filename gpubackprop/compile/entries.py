"""The compiled ways through a function: one for each set of shapes and each state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gpubackprop.autograd import Tensor
from gpubackprop.compile.guards import Guards
from gpubackprop.compile.replay import Replay
from gpubackprop.compile.session import Outcome

PENDING, CHECKING, READY = "recorded", "to be checked", "replayed"


class Entry:
    """One way through a function: for arguments of certain shapes, in a certain state.

    Attributes
    ----------
    key : device; whether gradients are recorded, and the precision; constants, then shape and
        dtype of each array among the arguments.
    outcome, guards : the latest recording, and what it takes for granted.
    replay : the compiled step, once two recordings agreed.
    state : what the next call does.
    calls : how many were replayed.
    """

    def __init__(self, key: Any) -> None:
        self.key = key
        self.outcome: Outcome | None = None
        self.guards: Guards | None = None
        self.replay: Replay | None = None
        self.state = PENDING
        self.recordings = 0
        self.calls = 0
        self.checked: str = "not compared with the eager step"

    def arrays(self, args: Sequence[Any], now: tuple[bool, str]) -> list[Any] | None:
        """The arrays of arguments that are tensors like those of this entry; None where one is
        something else, or gradients are recorded or products made in another way."""
        backend, mode, _, *tensors = self.key
        if len(args) != len(tensors) or mode != now:
            return None
        found = []
        for x, like in zip(args, tensors, strict=True):
            if (
                type(x) is not Tensor
                or x.backend is not backend
                or x.node is not None
                or x.grad is not None
            ):
                return None
            array = x.array
            if (array.shape, array.dtype, x.requires_grad) != like:
                return None
            found.append(array)
        return found

    def ready(self) -> bool:
        """Whether it can be replayed in the state that everything is in now."""
        guards = self.guards
        return self.state == READY and (guards is None or guards.broken() is None)


class Entries:
    """A bounded set of entries, the latest used last.

    Attributes
    ----------
    most : how many are kept.
    events : what happened, for the report.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.items: list[Entry] = []
        self.events: list[str] = []

    def find(self, key: Any) -> Entry | None:
        """The entry for a key whose guards hold."""
        reasons = []
        open_: list[Entry] = []
        for entry in reversed(self.items):
            if entry.key != key:
                continue
            broken = entry.guards.broken() if entry.guards is not None else None
            if broken is not None:
                reasons.append(broken)
            elif entry.state == PENDING:
                open_.append(entry)
            else:
                return self._latest(entry)
        if open_:
            # One whose guards are complete knows more about the state that it is for.
            return self._latest(min(open_, key=lambda e: e.guards is None or e.guards.open))
        if reasons:
            self.note(f"recorded anew: {reasons[0]}")
        elif self.items:
            self.note(f"recorded anew: {_changed(self.items[-1].key, key)}")
        return None

    def new(self, key: Any) -> Entry:
        """A further entry; the one used longest ago makes room."""
        entry = Entry(key)
        self.items.append(entry)
        if len(self.items) > self.most:
            self.items.pop(0)
            self.note(f"more than {self.most} recordings: the one used longest ago is gone")
        return entry

    def remove(self, entry: Entry) -> None:
        """Forget an entry."""
        self.items.remove(entry)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def _latest(self, entry: Entry) -> Entry:
        if self.items[-1] is not entry:
            self.items.remove(entry)
            self.items.append(entry)
        return entry

    def note(self, words: str) -> None:
        """Keep a line for the report."""
        if len(self.events) < 100:
            self.events.append(words)


def _changed(before: Any, now: Any) -> str:
    if len(before) != len(now):
        return "another number of arguments"
    for a, b in zip(before[3:], now[3:], strict=True):
        if a != b:
            return f"an argument is {b[1]} {list(b[0])} where it was {a[1]} {list(a[0])}"
    for a, b in zip(before[2], now[2], strict=False):
        if a != b:
            return f"an argument is {b[1]!r} where it was {a[1]!r}"
    if before[1] == now[1]:
        return "another device"
    if before[1][1] != now[1][1]:
        return f"the precision is {now[1][1]!r} where it was {before[1][1]!r}"
    return "gradients are recorded, or no longer"
