"""The compiled ways through a function: one for each set of shapes and each state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gpubackprop.autograd import Tensor, precision
from gpubackprop.autograd.tape import STATE
from gpubackprop.backends import Backend
from gpubackprop.compile.guards import Guards
from gpubackprop.compile.replay import Replay
from gpubackprop.compile.session import Outcome

PENDING, CHECKING, READY = "recorded", "to be checked", "replayed"


class Key(NamedTuple):
    """What a call is told from others by.

    Attributes
    ----------
    backend : of the tensors.
    mode : see :func:`mode`.
    constants : what among the arguments is no array.
    arrays : what is (see :func:`described`).
    """

    backend: Backend
    mode: tuple[bool, str]
    constants: tuple[Any, ...]
    arrays: tuple[tuple[Any, ...], ...]


def mode() -> tuple[bool, str]:
    """Whether gradients are recorded, and the precision."""
    return STATE.recording, precision.current()


def described(x: Any) -> tuple[Any, ...]:
    """Shape and dtype of an argument, and of a tensor whether it requires a gradient."""
    if isinstance(x, Tensor):
        array = x.array
        return array.shape, array.dtype, x.requires_grad
    return x.shape, x.dtype


class Entry:
    """One way through a function: for arguments of certain shapes, in a certain state.

    Attributes
    ----------
    key : what calls it is for.
    outcome, guards : the latest recording, and what it takes for granted.
    replay : the compiled step, once two recordings agreed.
    state : what the next call does.
    calls : how many were replayed.
    """

    def __init__(self, key: Key) -> None:
        self.key = key
        self.outcome: Outcome | None = None
        self.guards: Guards | None = None
        self.replay: Replay | None = None
        self.state = PENDING
        self.recordings = 0
        self.calls = 0
        self.checked: str = "not compared with the eager step"

    def arrays(self, args: Sequence[Any]) -> list[Any] | None:
        """The arrays of arguments that are tensors and nothing else, and make up this entry's key;
        None where they do not, or a tensor has a history or a gradient."""
        backend, now, _, arrays = self.key
        if len(args) != len(arrays) or now != mode():
            return None
        found = []
        for x, like in zip(args, arrays, strict=True):
            if (
                type(x) is not Tensor
                or x.backend is not backend
                or x.node is not None
                or x.grad is not None
                or described(x) != like
            ):
                return None
            found.append(x.array)
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

    def find(self, key: Key) -> Entry | None:
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

    def new(self, key: Key) -> Entry:
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


def _changed(before: Key, now: Key) -> str:
    if len(before.arrays) != len(now.arrays):
        return "another number of arguments"
    for a, b in zip(before.arrays, now.arrays, strict=True):
        if a != b:
            return f"an argument is {b[1]} {list(b[0])} where it was {a[1]} {list(a[0])}"
    for a, b in zip(before.constants, now.constants, strict=False):
        if a != b:
            return f"an argument is {b[1]!r} where it was {a[1]!r}"
    if before.mode == now.mode:
        return "another device"
    if before.mode[1] != now.mode[1]:
        return f"the precision is {now.mode[1]!r} where it was {before.mode[1]!r}"
    return "gradients are recorded, or no longer"
