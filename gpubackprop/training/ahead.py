"""The updates of a run: asked for, and heard of.

A device that works by itself is given one step after the other; what came of them is heard later,
in order. How many may be under way is the device's to say (``Backend.run_ahead``): on the CPU none,
so that a step is looked at before its update is made; on a GPU a few, so that it never waits for
the host between two steps.

A step that is not finite changes nothing, although it is noticed after others were asked for: the
device holds back its update and those of all steps after it (see
:mod:`gpubackprop.training.numerics`). What the host did for these steps is taken back here: places
in random sequences, learning rates, and buffers such as running averages, of which a copy is kept
for each step. The run's own counts only ever say what was heard.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gpubackprop.autograd import Tensor
from gpubackprop.backends import Array
from gpubackprop.backends.launching import Arriving
from gpubackprop.errors import NonFiniteError
from gpubackprop.optim import Scheduler
from gpubackprop.training import nonfinite
from gpubackprop.training.evaluation import Batch, tensors
from gpubackprop.training.state import RunState
from gpubackprop.training.step import Step


@dataclass(slots=True)
class Asked:
    """A step that was asked for.

    Attributes
    ----------
    batch : its samples.
    places : of the network's generators before it.
    rates : the step whose learning rates held before it.
    put_back : gives buffers the contents that they had before it.
    arriving : what came of it.
    cost : the mean cost, where it is known.
    """

    batch: Batch
    places: list[tuple[int, int, int]]
    rates: int
    put_back: Callable[[], None]
    arriving: Arriving
    cost: float | None = None


class Updates:
    """Makes the updates of a run.

    Parameters
    ----------
    step : forward and backward pass, and update.
    run : where the run stands. A step is counted when it is heard of.
    scheduler : sets the learning rates.

    Attributes
    ----------
    ahead : how many steps may be under way.
    """

    def __init__(self, step: Step, run: RunState, scheduler: Scheduler | None) -> None:
        self.step, self.run, self.scheduler = step, run, scheduler
        self.ahead = step.numerics.ahead
        self._asked: deque[Asked] = deque()
        self._broken_off = False  # after the device may have looked at its gradients
        self.look_at_model()

    def __len__(self) -> int:
        """Steps that were asked for and not heard of."""
        return len(self._asked)

    def look_at_model(self) -> None:
        """Find the network's generators and buffers, which may be others than before."""
        model = self.step.model
        self._generators = dict(model.named_generators())
        self._buffers = Buffers(list(model.buffers()) if self.ahead else [])

    def ask(self, batch: Batch, clip_value: float | None, clip_norm: float | None) -> None:
        """Ask for a step: forward, backward, update.

        Raises
        ------
        NonFiniteError
            See :meth:`heard`; where no step may be under way.
        """
        step, scheduler = self.step, self.scheduler
        if self._broken_off:
            step.numerics.go_on()
        places = [g.state() for g in self._generators.values()]
        put_back = self._buffers.keep() if self._buffers else _nothing
        self._broken_off = True
        arriving = step.gradients(batch)
        rates = 0 if scheduler is None else scheduler.last_step
        asked = Asked(batch, places, rates, put_back, arriving)
        if not self.ahead:
            step.look_ahead()
            asked.cost = self._cost(asked)
        if scheduler is not None:
            scheduler.set_step(self.run.step + len(self._asked))
        step.update(clip_value, clip_norm)
        self._asked.append(asked)
        self._broken_off = False
        if self.ahead:
            step.look_ahead()

    def heard(self, most: int = 0) -> Iterator[tuple[float, int]]:
        """Cost and number of samples of each step that is done, in order; waits until no more than
        `most` are under way.

        Raises
        ------
        NonFiniteError
            The cost or a gradient of a step was not finite. Everything is as it was before that
            step, and none is under way.
        """
        while self._asked:
            first = self._asked[0]
            if len(self._asked) <= most and not first.arriving.done:
                return
            cost = self._cost(first) if first.cost is None else first.cost
            self._asked.popleft()
            self.run.step += 1
            yield cost, len(first.batch[-1])

    @contextmanager
    def all_heard(self, book: Callable[[float, int], None]) -> Iterator[None]:
        """Within the block no error leaves a step behind: those that were made before it are heard
        of first, and each is given to `book`."""
        try:
            yield
        except BaseException as error:
            try:
                for cost, samples in self.heard():
                    book(cost, samples)
            except NonFiniteError:
                # A loop that hears of each step at once would have met it before the other error.
                if isinstance(error, Exception):
                    raise
            except Exception:  # the device itself has failed: the first error says more
                self._asked.clear()
            raise

    def _cost(self, asked: Asked) -> float:
        cost, finite = self.step.verdict(asked.arriving)
        if not finite:
            raise self._explained(asked)
        return cost

    def _explained(self, asked: Asked) -> NonFiniteError:
        """The error for a step that is not finite; nothing is left of it and of those after it."""
        step, run = self.step, self.run
        self._asked.clear()
        asked.put_back()
        if self.scheduler is not None:
            self.scheduler.set_step(asked.rates)
        before = {
            path: list(place) for path, place in zip(self._generators, asked.places, strict=True)
        }
        given = tensors(asked.batch, step.backend)
        try:
            words, in_data = nonfinite.find(
                *(step.model, step.optimizer, given, before), lambda: step.run(asked.batch)
            )
        finally:
            step.numerics.go_on()
            self.look_at_model()
            asked.put_back()
        hint = "mend or leave out such samples"
        if not in_data:
            hint = f"{step.numerics.hint} may help"
        return NonFiniteError(
            f"step {run.step + 1} (epoch {run.epoch + 1}, batch {run.batch + 1}): {words}; the "
            f"weights are those of before this step; {hint}"
        )


def _nothing() -> None:
    """Puts nothing back."""


class Buffers:
    """Tensors whose contents are kept for each step, those of one dtype in one array.

    Parameters
    ----------
    tensors : whose shapes and dtypes stay; their arrays may be exchanged.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        groups: dict[tuple[int, str], list[Tensor]] = {}
        for t in tensors:
            groups.setdefault((id(t.backend), t.dtype.name), []).append(t)
        self._groups = list(groups.values())
        self._tensors = [t for group in self._groups for t in group]
        self._arrays: list[Array] = []
        self._flat: list[list[Array]] = []

    def __len__(self) -> int:
        return len(self._tensors)

    def keep(self) -> Callable[[], None]:
        """Keep the contents as they are now; the result puts them back."""
        # Hundreds of views would cost the host more than the rest of a step.
        if not self._flat or any(
            t.array is not a for t, a in zip(self._tensors, self._arrays, strict=True)
        ):
            self._look()
        copies = [
            group[0].backend.concatenate(flat)
            for group, flat in zip(self._groups, self._flat, strict=True)
        ]

        def put_back() -> None:
            for flat, group in zip(copies, self._groups, strict=True):
                start = 0
                for t in group:
                    part = t.backend.getitem(flat, slice(start, start + t.size))
                    t.backend.copyto(t.array, t.backend.reshape(part, t.shape))
                    start += t.size

        return put_back

    def _look(self) -> None:
        """Make the views that are read."""
        self._arrays = [t.array for t in self._tensors]
        self._flat = [[t.backend.reshape(t.array, (-1,)) for t in group] for group in self._groups]
        for t, flat in zip(self._tensors, itertools.chain(*self._flat), strict=True):
            if t.backend.owner(flat) is not t.backend.owner(t.array):
                self._arrays = [None] * len(self._tensors)  # a copy, good for this time only
