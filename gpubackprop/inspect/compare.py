"""Laying two runs side by side: how far apart they are, and which operation first did something
else.

Two devices round differently, and training feeds the differences back. So a difference in a result
proves nothing by itself: what counts is whether an operation *added* more than rounding explains.
For each record, with d the distance of its values relative to their norm,

    d(out) <= tolerance(op) + AMPLIFICATION * max(d(inputs)),     tolerance(op) = eps * (ULPS +
    GROWTH * sqrt(terms))

The square root is the growth of the error of a sum whose rounding errors are independent (Higham,
"Accuracy and Stability of Numerical Algorithms", 2nd ed., section 2.8). The first record beyond it
names the operation that diverges.

Some sums are zero but for rounding: the gradient of a bias before batch normalisation, or of the
keys' bias in attention. What is left of them is noise, as large in one run as in the other, so that
their distance is relative to the norm of their terms. Optimizers that divide by a gradient's size
(Adam) turn the noise into steps; elements that it moved are not compared any more, and the module
that they are in may give other values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpubackprop.inspect.trace import Record

ULPS = 16.0
GROWTH = 4.0
AMPLIFICATION = 64.0
DRIFT = 100.0
"""Weights may end this many units of rounding apart, and one more for each step. Other orders of
summation on a CPU gave 8 units after 300 steps; a derivative that was wrong by a thousandth gave
20."""


@dataclass
class Distance:
    """How far two records are apart: relative norm of the difference, and the largest distance in
    units in the last place."""

    relative: float
    ulps: int


@dataclass
class Divergence:
    """The first record that rounding does not explain."""

    step: int
    label: str
    relative: float
    allowed: float
    inputs_relative: float

    def __str__(self) -> str:
        return (
            f"step {self.step}: {self.label} is {self.relative:.2e} apart; rounding and inputs "
            f"{self.inputs_relative:.2e} apart explain {self.allowed:.2e}"
        )


@dataclass
class StepReport:
    """Largest distances in one step, by layer and kind."""

    step: int
    loss: tuple[float, float]
    layers: dict[str, dict[str, Distance]]

    def worst(self, kind: str) -> Distance:
        """The largest distance of a kind over the layers."""
        found = [kinds[kind] for kinds in self.layers.values() if kind in kinds]
        return Distance(
            max((d.relative for d in found), default=0.0), max((d.ulps for d in found), default=0)
        )


@dataclass
class Comparison:
    """The outcome of comparing two runs."""

    steps: list[StepReport]
    divergence: Divergence | None
    weights_relative: float
    weights_allowed: float

    @property
    def agrees(self) -> bool:
        """Whether every operation stayed within its tolerance and the weights within theirs."""
        return self.divergence is None and self.weights_relative <= self.weights_allowed

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "agrees": self.agrees,
            "first_divergence": None if self.divergence is None else asdict(self.divergence),
            "weights_relative": self.weights_relative,
            "weights_allowed": self.weights_allowed,
            "steps": [asdict(s) for s in self.steps],
        }


def distance(a: np.ndarray, b: np.ndarray, least: float = 0.0) -> Distance:
    """Distance of two equally shaped arrays; infinite where one is NaN and the other is not. It is
    relative to their norm, or to `least` where that is larger."""
    if not a.size or a.dtype.kind != "f":
        same = np.array_equal(a, b)
        return Distance(0.0 if same else np.inf, 0 if same else 1)
    both_nan = np.isnan(a) & np.isnan(b)
    equal = (a == b) | both_nan
    if equal.all():
        return Distance(0.0, 0)
    wide_a, wide_b = (np.where(equal & ~np.isfinite(x), 0.0, x).astype(np.float64) for x in (a, b))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.linalg.norm(wide_a - wide_b)
        scale = max(float(np.linalg.norm(wide_a)), float(np.linalg.norm(wide_b)), least)
    relative = float(gap / scale) if np.isfinite(gap) and np.isfinite(scale) and scale else np.inf
    return Distance(relative, ulp_distance(a[~equal], b[~equal]))


def ulp_distance(a: np.ndarray, b: np.ndarray) -> int:
    """Largest number of representable values between corresponding elements (of one float
    dtype)."""
    bits: Any = {2: np.int16, 4: np.int32, 8: np.int64}[a.dtype.itemsize]
    low = int(np.iinfo(bits).min)

    def ordered(x: np.ndarray) -> list[int]:
        # Sign-magnitude bits to integers that count representable values; Python integers, since
        # the gap may need 65 bits.
        raw = np.ascontiguousarray(x).view(bits)
        return [int(i) if i >= 0 else low - int(i) for i in raw]

    if a.size > 4096:  # only the farthest matter: keep those whose estimated distance is largest
        with np.errstate(all="ignore"):
            estimate = np.abs(a - b) / np.spacing(np.minimum(np.abs(a), np.abs(b)))
        order = np.argsort(np.nan_to_num(estimate, nan=np.inf))[-4096:]
        a, b = a[order], b[order]
    return max((abs(i - j) for i, j in zip(ordered(a), ordered(b), strict=True)), default=0)


def tolerance(record: Record, eps: float) -> float:
    """What rounding alone may do to a result."""
    return eps * (ULPS + GROWTH * float(np.sqrt(record.length)))


class Comparer:
    """Compares runs step by step, so that neither run has to be kept.

    Parameters
    ----------
    dtype : float dtype of the run; sets the unit of rounding.
    """

    def __init__(self, dtype: Any) -> None:
        self.eps = float(np.finfo(dtype).eps)
        self.steps: list[StepReport] = []
        self.divergence: Divergence | None = None
        self.weights: Distance = Distance(0.0, 0)
        self._weights_before: dict[str, float] = {}
        self._noise: dict[str, np.ndarray] = {}  # elements of weights that noise has moved
        self._moved: dict[str, float] = {}  # how far apart they put the weights, by module

    def step(
        self, left: Sequence[Record], right: Sequence[Record], loss: tuple[float, float]
    ) -> StepReport:
        """Compare the records of one step.

        A mismatch in the sequence of operations is itself a divergence.
        """
        number = len(self.steps) + 1
        layers: dict[str, dict[str, Distance]] = {}
        relative: list[float] = []
        inherited = max(self._weights_before.values(), default=0.0)
        moved, self._moved = self._moved, {}
        floors: dict[str, float] = {}  # by module: what rounding alone leaves of its sums
        for a, b in zip(left, right, strict=False):
            if (a.kind, a.path, a.op, a.shape) != (b.kind, b.path, b.op, b.shape):
                self._diverge(
                    number,
                    f"{a.label} {list(a.shape)} meets {b.label} {list(b.shape)}",
                    np.inf,
                    0.0,
                    0.0,
                )
                break
            d = self._distance(a, b, floors)
            relative.append(d.relative)
            seen = layers.setdefault(a.path, {}).setdefault(a.kind, Distance(0.0, 0))
            seen.relative, seen.ulps = max(seen.relative, d.relative), max(seen.ulps, d.ulps)
            if a.kind in ("gradient", "weight"):
                continue
            inputs = max([relative[i] for i in a.sources] + [inherited])
            if a.kind == "value":
                inputs = max(inputs, moved.get(a.path, 0.0))
            elif a.terms_norm:
                share = tolerance(a, self.eps) + AMPLIFICATION * relative[a.sources[0]]
                floor = share * max(a.terms_norm, b.terms_norm) / np.sqrt(a.size)
                floors[a.path] = max(floors.get(a.path, 0.0), float(floor))
            allowed = tolerance(a, self.eps) + AMPLIFICATION * inputs
            if not d.relative <= allowed:
                self._diverge(number, a.label, d.relative, allowed, inputs)
        if len(left) != len(right):
            self._diverge(number, f"{len(left)} records meet {len(right)}", np.inf, 0.0, 0.0)
        self._weights_before = {
            path: kinds["weight"].relative for path, kinds in layers.items() if "weight" in kinds
        }
        report = StepReport(number, loss, layers)
        self.weights = report.worst("weight")
        self.steps.append(report)
        return report

    def _distance(self, a: Record, b: Record, floors: dict[str, float]) -> Distance:
        """How far apart two records are, but for what is only noise."""
        if a.kind in ("value", "cotangent"):
            share = np.sqrt(a.sample.size / max(a.size, 1))
            return distance(a.sample, b.sample, float(share * max(a.terms_norm, b.terms_norm)))
        module, noise = a.path.rpartition(".")[0], self._noise.get(a.path)
        if a.kind == "gradient" and module in floors:
            size = np.maximum(np.abs(a.sample), np.abs(b.sample))
            found = (a.sample != b.sample) & (size <= floors[module])
            noise = self._noise[a.path] = found if noise is None else found | noise
        if noise is None or not noise.any():
            return distance(a.sample, b.sample)
        if a.kind == "weight":
            whole = distance(a.sample, b.sample).relative
            self._moved[module] = max(self._moved.get(module, 0.0), whole)
        return distance(a.sample[~noise], b.sample[~noise])

    def _diverge(
        self, step: int, label: str, relative: float, allowed: float, inputs: float
    ) -> None:
        if self.divergence is None:
            self.divergence = Divergence(step, label, relative, allowed, inputs)

    def result(self) -> Comparison:
        """The verdict so far. Weights may drift apart by a share that grows with the number of
        steps."""
        allowed = self.eps * (DRIFT + len(self.steps))
        return Comparison(self.steps, self.divergence, self.weights.relative, allowed)


def table(steps: Iterable[StepReport], every: int = 1) -> str:
    """Every so many steps as text, the last always: with the largest distance of each kind."""
    kinds = ("value", "cotangent", "gradient", "weight")
    lines = [f"{'step':>5}  {'loss':>22}  " + "  ".join(f"{k:>22}" for k in kinds)]
    steps = list(steps)
    for s in steps:
        if (s.step - 1) % every and s is not steps[-1]:
            continue
        cells = [f"{(w := s.worst(k)).relative:.1e} ({w.ulps} ulp)" for k in kinds]
        lines.append(
            f"{s.step:>5}  {s.loss[0]:>10.6g}  {s.loss[1]:>10.6g}  "
            + "  ".join(f"{c:>22}" for c in cells)
        )
    return "\n".join(lines)
