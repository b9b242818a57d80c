"""Learning-rate schedules as pure functions of the step.

A schedule is called with a step (0 before the first update) and returns the factor by which each
parameter group's own learning rate is multiplied. It has no state: the rate of step n does not
depend on what happened before, so a resumed run needs only the number n. "Step" is whatever the
caller counts, updates or epochs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from gpubackprop.errors import ConfigError


class Schedule(Protocol):
    """Anything that gives a factor for a step."""

    def __call__(self, step: int) -> float:
        """The factor of the learning rate at `step`."""
        ...


def _require(holds: bool, name: str, words: str) -> None:
    if not holds:
        raise ConfigError(f"{name}: {words}")


def _fraction(step: float, steps: int) -> float:
    """How far `step` is on the way from 0 to `steps`, at most 1."""
    return min(step / steps, 1.0)


@dataclass(frozen=True)
class Constant:
    """The same factor at every step."""

    factor: float = 1.0

    def __call__(self, step: int) -> float:
        return self.factor


@dataclass(frozen=True)
class StepDecay:
    """Multiplied by `gamma` after every `every` steps.

    Parameters
    ----------
    every : steps between two drops.
    gamma : the factor of one drop.
    """

    every: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _require(self.every >= 1, "StepDecay", f"every must be at least 1, not {self.every}")

    def __call__(self, step: int) -> float:
        return self.gamma ** (step // self.every)


@dataclass(frozen=True)
class MultiStepDecay:
    """Multiplied by `gamma` at each of the given steps.

    Parameters
    ----------
    milestones : the steps, in any order.
    gamma : the factor of one drop.
    """

    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))

    def __call__(self, step: int) -> float:
        return self.gamma ** sum(step >= m for m in self.milestones)


@dataclass(frozen=True)
class Exponential:
    """gamma ** step."""

    gamma: float

    def __call__(self, step: int) -> float:
        return self.gamma**step


@dataclass(frozen=True)
class Cosine:
    """Half a cosine wave from 1 at step 0 to `floor` at `steps`, and `floor` from then on.

    Parameters
    ----------
    steps : length of the way down.
    floor : the last factor.

    Notes
    -----
    Loshchilov & Hutter, "SGDR" (2017), equation 5, without restarts.
    """

    steps: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "Cosine", f"steps must be at least 1, not {self.steps}")

    def __call__(self, step: int) -> float:
        wave = (1.0 + math.cos(math.pi * _fraction(step, self.steps))) / 2.0
        return self.floor + (1.0 - self.floor) * wave


@dataclass(frozen=True)
class Polynomial:
    """(1 - step / steps) ** power, scaled to end at `floor`; `floor` from `steps` on.

    Parameters
    ----------
    steps : length of the way down.
    power : 1 for a straight line.
    floor : the last factor.
    """

    steps: int
    power: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "Polynomial", f"steps must be at least 1, not {self.steps}")
        _require(self.power > 0, "Polynomial", f"power must be positive, not {self.power}")

    def __call__(self, step: int) -> float:
        left = (1.0 - _fraction(step, self.steps)) ** self.power
        return self.floor + (1.0 - self.floor) * left


@dataclass(frozen=True)
class LinearWarmup:
    """A straight line from `start` to 1 over `steps` steps, then another schedule from its step 0.

    Parameters
    ----------
    steps : length of the warm-up.
    then : the schedule after it; it is called with the steps since the end of the warm-up.
    start : the factor at step 0. The default gives (step + 1) / (steps + 1).
    """

    steps: int
    then: Schedule = Constant()
    start: float | None = None

    def __post_init__(self) -> None:
        _require(self.steps >= 0, "LinearWarmup", f"steps must not be negative, not {self.steps}")

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.then(step - self.steps)
        start = 1.0 / (self.steps + 1) if self.start is None else self.start
        goal = self.then(0)
        return goal * (start + (1.0 - start) * step / self.steps)


@dataclass(frozen=True)
class OneCycle:
    """Up to the group's learning rate and down again, far below the start (Smith & Topin 2018).

    Parameters
    ----------
    steps : length of the whole cycle.
    pct_start : share of the steps on the way up.
    anneal_strategy : ``"cos"`` or ``"linear"``: the form of each way.
    div_factor : the first factor is 1 / div_factor.
    final_div_factor : the last factor is 1 / (div_factor * final_div_factor).
    three_phase : come down to the first factor as fast as going up, then down to the last.
    base_momentum, max_momentum : the momentum moves between them, opposite to the rate; None
        leaves it alone.
    """

    steps: int
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False
    base_momentum: float | None = None
    max_momentum: float | None = None

    def __post_init__(self) -> None:
        _require(self.steps >= 2, "OneCycle", f"steps must be at least 2, not {self.steps}")
        inside = 0.0 < self.pct_start < (0.5 if self.three_phase else 1.0)
        _require(inside, "OneCycle", f"pct_start {self.pct_start} leaves no way up or down")
        _require(
            self.anneal_strategy in ("cos", "linear"),
            "OneCycle",
            f"anneal_strategy must be 'cos' or 'linear', not {self.anneal_strategy!r}",
        )
        _require(self.div_factor > 0 and self.final_div_factor > 0, "OneCycle", "divisors are > 0")
        _require(
            (self.base_momentum is None) == (self.max_momentum is None),
            "OneCycle",
            "give both base_momentum and max_momentum, or neither",
        )

    def _between(self, step: int, points: tuple[float, ...]) -> float:
        """The value at `step` of the curve through `points`, one more than there are ways."""
        top = self.pct_start * self.steps - 1.0
        ends = [top, 2.0 * top, self.steps - 1.0] if self.three_phase else [top, self.steps - 1.0]
        begin = 0.0
        step = min(step, self.steps - 1)
        for i, end in enumerate(ends):
            if step <= end or i == len(ends) - 1:
                share = 1.0 if end == begin else (step - begin) / (end - begin)
                a, b = points[i], points[i + 1]
                if self.anneal_strategy == "cos":
                    return b + (a - b) / 2.0 * (1.0 + math.cos(math.pi * share))
                return a + (b - a) * share
            begin = end
        raise AssertionError("the last way has no end")

    def __call__(self, step: int) -> float:
        low = 1.0 / self.div_factor
        last = low / self.final_div_factor
        return self._between(step, (low, 1.0, low, last) if self.three_phase else (low, 1.0, last))

    def momentum(self, step: int) -> float | None:
        """The momentum at `step`; None where it is left alone."""
        if self.base_momentum is None or self.max_momentum is None:
            return None
        base, top = self.base_momentum, self.max_momentum
        return self._between(step, (top, base, top, top) if self.three_phase else (top, base, top))
