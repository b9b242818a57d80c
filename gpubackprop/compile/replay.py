"""A recorded step made ready to run again: passes, plan, kernels.

The calls are thinned out, their memory is planned, and each becomes either native instructions
(with the extra ``fast``) or a function of no arguments whose arrays are bound. Native instructions
that follow one another are one program; the rest runs between them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpubackprop.autograd import Tensor
from gpubackprop.autograd.operation import IndexRangeError
from gpubackprop.autograd.shortage import shortage
from gpubackprop.backends import Array, Backend
from gpubackprop.compile import passes
from gpubackprop.compile.accumulate import accumulated, widened
from gpubackprop.compile.checking import WHOLE
from gpubackprop.compile.gathered import gathered
from gpubackprop.compile.graph import one_launch
from gpubackprop.compile.halved import halved
from gpubackprop.compile.joined import joined
from gpubackprop.compile.plain import Thunk, UnfusedError, thunk
from gpubackprop.compile.plan import Memory, Plan, chain_in_place, lifetimes, peak_of, plan_memory
from gpubackprop.compile.recompute import recomputed
from gpubackprop.compile.recorder import Live
from gpubackprop.compile.session import Outcome
from gpubackprop.compile.trace import Call, Ref, replaced
from gpubackprop.compile.trouble import explained
from gpubackprop.errors import OutOfMemoryError


@dataclass
class Report:
    """How a step was compiled, for :meth:`Compiled.explain`.

    Attributes
    ----------
    recorded, planned : kernel calls before and after the passes.
    native, plain : how many of those run natively, and which kernels run in plain NumPy.
    fused : how many calls were taken into loops of several.
    again : how many values are computed twice, to be kept for a shorter time.
    kept : most bytes in use at once without that.
    parts : threads of the native programs.
    programs : how many there are.
    seconds : what building took; `compiled` native kernels were not in the cache.
    plan : the memory plan.
    """

    recorded: int = 0
    planned: int = 0
    native: int = 0
    plain: Counter[str] = field(default_factory=Counter)
    fused: int = 0
    again: int = 0
    kept: int = 0
    parts: int = 0
    programs: int = 0
    seconds: float = 0.0
    compiled: int = 0
    plan: Plan | None = None


def compiled_step(
    outcome: Outcome,
    backend: Backend,
    fast: bool,
    recompute: bool = False,
    graph: bool | None = None,
) -> Replay:
    """A recorded step made ready, fused where it can be."""
    try:
        return Replay(outcome, backend, fast, recompute, graph=graph)
    except UnfusedError:
        return Replay(outcome, backend, fast, recompute, fuse=False, graph=graph)


class Replay:
    """Runs a recorded step again.

    Parameters
    ----------
    outcome : the recorded call.
    backend : its device.
    fast : whether native kernels may be used.
    recompute : whether cheap values may be computed twice to save memory.
    fuse : whether calls may be taken together.
    graph : whether the calls become one launch; None where the device can.
    """

    def __init__(
        self,
        outcome: Outcome,
        backend: Backend,
        fast: bool,
        recompute: bool = False,
        fuse: bool = True,
        graph: bool | None = None,
    ) -> None:
        began = time.perf_counter()
        self.outcome, self.backend = outcome, backend
        self.numbers: list[float | int] = list(outcome.recording.numbers)
        self.live = outcome.recording.live
        recording = outcome.recording
        self.report = Report(recorded=len(recording.calls))
        # What must be there at the end of a step.
        kept = [r for r in (*outcome.results, *outcome.grads) if isinstance(r, Ref)]
        calls = passes.dead(recording.calls, kept)
        calls = passes.simplified(calls)
        calls = passes.folded(calls, backend)
        calls = passes.copies(calls)
        calls = passes.placed(calls)
        calls = passes.dead(calls, kept)
        if backend.rounds_norms:
            calls = halved(calls, kept)
        if backend.adds_products:
            calls = widened(calls, kept)
        if fast or backend.adds_products:
            calls = accumulated(calls, kept)
        if backend.adds_products:
            calls = joined(calls, kept, backend)
        if backend.leaves_gaps:
            calls = gathered(calls, kept, backend.leaves_gaps)
        if recompute:
            self.report.kept = peak_of(lifetimes(calls, kept, recording.inputs))[0]
            calls, self.report.again = recomputed(calls, kept, recording.inputs)
        floats = None if fast else backend.chain_floats
        if fuse and floats != ():
            from gpubackprop.compile.fusion import fused

            calls = fused(calls, kept, self.report, floats)
        self.calls = calls
        self.report.planned = len(calls)
        in_place = chain_in_place
        if fast:
            from gpubackprop.compile.native import assemble, in_place
        self.plan = plan_memory(calls, kept, recording.inputs, in_place)
        self.report.plan = self.plan
        self.memory = Memory(self.plan, backend)
        self._inputs = [self.memory.view(r) for r in recording.inputs]
        self._outputs = [self.memory.view(r) if isinstance(r, Ref) else r for r in outcome.results]
        self._grads = [self.memory.view(g) if isinstance(g, Ref) else g for g in outcome.grads]
        self.steps: list[Callable[[], None]] = []
        # Where the comparison with the eager step ends: before the updates of a large model.
        self.boundary: int | None = None
        self.split = self._first_update() if self._state_bytes() > WHOLE else len(calls)
        if fast:
            self.steps = assemble(self)
        else:
            for i, call in enumerate(calls):
                self.reach(i)
                self.add_plain(call)
        self.launch = one_launch(self, graph)
        self._place: object | None = None  # where the run before was asked for
        self.report.seconds = time.perf_counter() - began

    def _state_bytes(self) -> int:
        written = {r.buffer for c in self.calls for r in passes.touched(c)}
        return sum(b.nbytes for b in written if b.kind == "external")

    def _first_update(self) -> int:
        updates = (i for i, c in enumerate(self.calls) if c.kernel.endswith("_update"))
        return next(updates, len(self.calls))

    def reach(self, i: int) -> None:
        """Note where in the steps call `i` begins, if the comparison ends there."""
        if i == self.split:
            self.boundary = len(self.steps)

    def compared(self) -> list[Call]:
        """The calls that are compared with the eager step."""
        return self.calls[: self.split]

    def try_out(self, arrays: Sequence[Array]) -> None:
        """Run what is compared, and take the live numbers' changes back."""
        done: list[Live] = []
        try:
            self._begin(arrays, done)
            for step in self.steps[: self.boundary]:
                step()
        finally:
            _take_back(done)

    def _begin(self, arrays: Sequence[Array], done: list[Live]) -> None:
        """Follow the run before, fill the inputs, and read the live numbers (noting in `done`
        which)."""
        self._place = self.backend.follow(self._place)
        copyto, numbers = self.backend.copyto, self.numbers
        for view, array in zip(self._inputs, arrays, strict=True):
            copyto(view, array)
        for entry in self.live:
            places = entry.places
            numbers[places.start : places.stop] = entry.read()
            done.append(entry)

    def bound(self, call: Call, numbers: list[float | int]) -> Thunk | None:
        """A call as the backend defines it, as a function of no arguments."""
        return thunk(call, self.memory, self.backend, numbers)

    def add_plain(self, call: Call) -> None:
        """Append a call as the backend defines it."""
        if not hasattr(self.backend, call.kernel):
            raise UnfusedError(call.kernel)
        step = self.bound(call, self.numbers)
        if step is not None:
            self.steps.append(step)
            self.report.plain[call.kernel] += 1

    def arguments(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Array, ...]]:
        """A call's arguments and results as arrays at their places."""
        view = self.memory.view
        return (
            tuple(replaced(a, view) for a in call.args),
            {k: replaced(a, view) for k, a in call.kwargs.items()},
            tuple(view(r) for r in call.outs),
        )

    def run(self, arrays: Sequence[Array]) -> list[Any]:
        """One step.

        Parameters
        ----------
        arrays : contents of the inputs.

        Returns
        -------
        list
            For each result: a tensor of its own memory, or the number of the argument that it is.

        Notes
        -----
        Where the step fails, what its live numbers changed (counts, places in random sequences) is
        taken back.
        """
        done: list[Live] = []
        try:
            self._begin(arrays, done)
            if self.launch is None or not self.launch.run(self):
                for step in self.steps:
                    step()
        except BaseException as error:
            _take_back(done)
            if self.backend.lacks_memory(error) and not isinstance(error, OutOfMemoryError):
                raise shortage(error, "a compiled step", self.backend) from error
            if isinstance(error, IndexError) and not isinstance(error, IndexRangeError):
                raise explained(self, error) from error
            raise
        return self.results()

    def results(self) -> list[Any]:
        """Copies of the results as they are now."""
        backend = self.backend
        return [
            r if isinstance(r, int) else Tensor(backend.asarray(backend.copy(r)), backend)
            for r in self._outputs
        ]

    def gradients(self) -> list[Tensor | None]:
        """The gradient of each leaf after the step."""
        backend = self.backend
        return [
            g
            if g is None or isinstance(g, Tensor)
            else Tensor(backend.asarray(backend.copy(g)), backend)
            for g in self._grads
        ]


def _take_back(done: Sequence[Live]) -> None:
    """Undo what reading live numbers changed, the latest first."""
    for entry in reversed(done):
        if entry.undo is not None:
            entry.undo()
