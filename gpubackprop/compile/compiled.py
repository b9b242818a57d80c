"""``gb.compile``: a function whose calls are recorded once and replayed after that."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from gpubackprop.autograd import Tensor
from gpubackprop.autograd.tape import STATE
from gpubackprop.backends import Backend, get_backend, live
from gpubackprop.compile.checking import check_replay
from gpubackprop.compile.entries import (
    CHECKING,
    PENDING,
    READY,
    Entries,
    Entry,
    Key,
    described,
    mode,
)
from gpubackprop.compile.guards import UNKNOWN, Guards
from gpubackprop.compile.matching import UnsettledError, match
from gpubackprop.compile.replay import compiled_step
from gpubackprop.compile.report import describe
from gpubackprop.compile.session import Outcome, record
from gpubackprop.compile.tree import put_back, take_out
from gpubackprop.errors import CompileError

RECORDINGS = 8
"""How often a function is recorded without two recordings in a row agreeing before it is left
alone."""


class Compiled:
    """What :func:`compile` gives: call it like the function.

    Attributes
    ----------
    fn : the function.
    entries : the compiled ways through it.
    eager : why the function runs as it is; None where it is compiled.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        check: bool = True,
        fast: bool | None = None,
        cache: int = 8,
        strict: bool = True,
        device: Any = None,
        recompute: bool = False,
        graph: bool | None = None,
        rehearse: Callable[[], Callable[[], None]] | None = None,
    ) -> None:
        if not callable(fn):
            raise CompileError(f"compile: fn is a {type(fn).__name__}; give a function or a module")
        for option, given in (("check", check), ("strict", strict), ("recompute", recompute)):
            _require(option, given, isinstance(given, bool), "True or False")
        for option, choice in (("fast", fast), ("graph", graph)):
            sound = choice is None or isinstance(choice, bool)
            _require(option, choice, sound, "True, False or None")
        whole = isinstance(cache, int) and not isinstance(cache, bool) and cache > 0
        _require("cache", cache, whole, "a whole number from 1 on")
        self.fn, self.check, self.fast, self.strict = fn, check, fast, strict
        self.device, self.recompute, self.rehearse = device, recompute, rehearse
        self.graph = graph
        if fast:
            _require_native()
        self.entries = Entries(cache)
        self.eager: str | None = None
        self._usual: Entry | None = None  # the last one replayed for tensors alone
        self._lock = threading.RLock()
        self._busy = False
        self._fruitless = 0
        functools.update_wrapper(self, fn, updated=())

    @property
    def name(self) -> str:
        """What the function is called."""
        return getattr(self.fn, "__qualname__", type(self.fn).__name__)

    def __repr__(self) -> str:
        return f"<compiled {self.name}: {len(self.entries)} recording(s)>"

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self.__call__, instance)

    def explain(self, *, calls: bool = False) -> str:
        """What was compiled, and why: recordings, kernels, memory, what runs where.

        Parameters
        ----------
        calls : list every kernel call of each step too.
        """
        return describe(self, calls)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.eager is not None or live.STATE.recorder is not None or STATE.observer is not None:
            # Within another recording the calls become part of that; an observer wants to see each
            # operation.
            return self.fn(*args, **kwargs)
        with self._lock:
            if self._busy:
                raise CompileError(
                    "a compiled function was called while it runs in the same thread; call the "
                    "plain function there"
                )
            self._busy = True
            try:
                # The step that usually comes next is looked at first: a small network's takes
                # less time than to work out what the arguments are.
                entry = self._usual
                if entry is not None and not kwargs:
                    arrays = entry.arrays(args)
                    if arrays is not None and entry.ready():
                        return self._replayed(entry, args, arrays)
                return self._called(args, kwargs)
            finally:
                self._busy = False

    def _called(self, args: Any, kwargs: Any) -> Any:
        given: list[Any] = []
        constants: list[Any] = []
        pattern = take_out((args, kwargs), given, constants)
        backend = self._backend(given)
        for x in given:
            if isinstance(x, Tensor):
                if x.node is not None and STATE.recording and x.requires_grad:
                    raise CompileError(
                        f"an argument of shape {x.shape} has a history (it was made by "
                        f"{x.node.op.name}), which a compiled function would cut off; pass "
                        "x.detach(), or compute it inside"
                    )
                if x.grad is not None:
                    return self.fn(*args, **kwargs)  # would be added to, from outside
        arrays = [x.array if isinstance(x, Tensor) else x for x in given]
        key = Key(backend, mode(), tuple(constants), tuple(described(x) for x in given))
        entry = self.entries.find(key)
        if self.rehearse is not None and (entry is None or entry.state != READY):
            entry = self._rehearsed(self.rehearse, key, pattern, given, arrays)
            if self.eager is not None:
                return self.fn(*args, **kwargs)
        if entry is None or entry.state == PENDING:
            return self._record(entry, key, pattern, given, arrays)
        replay = entry.replay
        assert replay is not None and entry.outcome is not None
        if entry.state == CHECKING:
            return self._check(entry, pattern, given, arrays)
        self._usual = entry if len(args) == len(given) and not kwargs else None
        return self._replayed(entry, given, arrays)

    def _replayed(self, entry: Entry, given: Sequence[Any], arrays: list[Any]) -> Any:
        assert entry.replay is not None and entry.outcome is not None
        results = entry.replay.run(arrays)
        entry.calls += 1
        self._set_gradients(entry, given)
        values = [given[r] if isinstance(r, int) else r for r in results]
        return put_back(entry.outcome.pattern, values)

    def _rehearsed(
        self,
        save: Callable[[], Callable[[], None]],
        key: Key,
        pattern: Any,
        given: list[Any],
        arrays: list[Any],
    ) -> Entry | None:
        """Record and check on a state that is put back each time, so that the first real step is a
        replay already."""
        restore = save()
        entry = self.entries.find(key)
        for _ in range(RECORDINGS + 1):
            if self.eager is not None or (entry is not None and entry.state == READY):
                break
            try:
                if entry is None or entry.state == PENDING:
                    self._record(entry, key, pattern, given, arrays)
                else:
                    self._check(entry, pattern, given, arrays)
            finally:
                restore()
            entry = self.entries.find(key)
        return entry

    def _record(
        self,
        entry: Entry | None,
        key: Key,
        pattern: Any,
        given: list[Any],
        arrays: list[Any],
    ) -> Any:
        """Run the function as it is and record it; compile it where it did the same as last
        time."""
        if entry is None:
            entry = self.entries.new(key)
        backend = key.backend
        before = entry.outcome
        leaves = [] if before is None else list(before.recording.leaves.values())
        grads = {id(t): None if t.grad is None else t.grad.array for t in leaves}
        copies = [backend.copy(a) for a in arrays]
        self._fruitless += 1
        try:
            outcome = record(self.fn, backend, pattern, given, copies)
        except CompileError as error:
            self.entries.remove(entry)
            if self.strict:
                raise
            return self._give_up(str(error), given, pattern)
        entry.recordings += 1
        settled = False
        if before is not None:
            try:
                match(before.recording, outcome.recording, backend)
                self._compare(before, outcome)
                settled = True
            except UnsettledError as error:
                self.entries.note(f"not settled: {error}")
            except CompileError as error:
                if self.strict:
                    self.entries.remove(entry)
                    raise
                self.entries.note(str(error))
                self._stop(str(error))
        entry.outcome = outcome
        ordered = [grads.get(i, UNKNOWN) for i in outcome.recording.leaves]
        entry.guards = Guards(self.fn, outcome.recording, ordered)
        if settled and not entry.guards.open:
            entry.replay = compiled_step(
                outcome, backend, _use_native(self.fast, backend), self.recompute, self.graph
            )
            entry.state = CHECKING if self.check else READY
            self._fruitless = 0
        elif self.eager is None and (
            entry.recordings >= RECORDINGS or self._fruitless >= RECORDINGS * self.entries.most
        ):
            why = self.entries.events[-1] if self.entries.events else "it never did the same twice"
            self._stop(f"{self._fruitless} calls were recorded and no two agreed ({why})")
        return outcome.value

    def _compare(self, before: Outcome, now: Outcome) -> None:
        if now.kept:
            b = now.kept[0]
            raise CompileError(
                f"a compiled function left an array of {b.nbytes} bytes (made by {b.made_by}) "
                "somewhere outside, in a list, an attribute or a global; a replay would not do that"
                " again. Return it instead"
            )
        if before.constants != now.constants:
            for a, b in zip(before.constants, now.constants, strict=False):
                if a != b and a[0] is b[0] and isinstance(b[1], (int, float)):
                    raise CompileError(
                        f"a compiled function returned the Python number {a[1]!r} at one call and "
                        f"{b[1]!r} at the next; a replay would return the same one for ever. Return"
                        " a tensor"
                    )
            raise UnsettledError("the results have another form")

    def _check(self, entry: Entry, pattern: Any, given: list[Any], arrays: list[Any]) -> Any:
        """Compare the replay with the function itself, which then has done this call's step."""
        copies = [
            Tensor(x.backend.copy(a), x.backend, x.requires_grad) if isinstance(x, Tensor) else a
            for x, a in zip(given, arrays, strict=True)
        ]
        assert entry.replay is not None
        args, kwargs = put_back(pattern, copies)
        entry.checked = "compared with the eager step"
        value = check_replay(entry.replay, lambda: self.fn(*args, **kwargs), arrays)
        entry.state = READY
        for x, c in zip(given, copies, strict=True):
            if isinstance(x, Tensor) and c.grad is not None:
                x.grad = c.grad
        found: list[Any] = []
        shape = take_out(value, found, [])
        values = []
        for v in found:
            index = next((i for i, c in enumerate(copies) if v is c), None)
            values.append(given[index] if index is not None else v.detach())
        return put_back(shape, values)

    def _set_gradients(self, entry: Entry, given: Sequence[Any]) -> None:
        """Leave the gradients where the function leaves them."""
        assert entry.replay is not None and entry.outcome is not None
        found = entry.replay.gradients()
        leaves = entry.outcome.recording.leaves
        for t, g in zip(leaves.values(), found, strict=False):
            if t.grad is not g:
                t.grad = g
        if len(found) == len(leaves):
            return
        tensors = [x for x in given if isinstance(x, Tensor)]
        for x, g in zip(tensors, found[len(leaves) :], strict=True):
            if g is not None:
                x.grad = g

    def _backend(self, given: list[Any]) -> Backend:
        found = None
        for x in given:
            if isinstance(x, Tensor):
                if found is not None and x.backend is not found:
                    raise CompileError(
                        f"arguments of a compiled function are on {found.device} and {x.device}; "
                        "move one with .to(device)"
                    )
                found = x.backend
        return found or get_backend(self.device)

    def _stop(self, why: str) -> None:
        """Run the function as it is from now on."""
        self.eager = why
        warnings.warn(f"{self.name} is not compiled: {why}", RuntimeWarning, stacklevel=5)

    def _give_up(self, why: str, given: list[Any], pattern: Any) -> Any:
        self._stop(why)
        args, kwargs = put_back(pattern, given)
        return self.fn(*args, **kwargs)


def _use_native(fast: bool | None, backend: Backend) -> bool:
    if fast is False or backend.device != "cpu" or backend.name != "numpy":
        return False
    return native_trouble() is None


@functools.cache
def native_trouble() -> str | None:
    """Why native kernels cannot be used; None where they can."""
    try:
        from gpubackprop.backends.cpu.native import blas
    except ImportError as error:
        return f"{error}; install the extra: pip install 'gpubackprop[fast]'"
    return None if blas.available() else "this NumPy does not bring the BLAS that they call"


def _require(option: str, given: Any, sound: bool, allowed: str) -> None:
    if not sound:
        raise CompileError(f"compile: {option} must be {allowed}, not {given!r}")


def _require_native() -> None:
    trouble = native_trouble()
    if trouble is not None:
        raise CompileError(f"compile: fast=True, but {trouble}")
