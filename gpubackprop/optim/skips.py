"""Steps that the device skipped.

Whether a step of a scaled loss is skipped is known to the device alone, and the host does not wait
to hear of it. So the host counts every step, the device those that it skipped, and an update is
given the difference: Adam's count, as if the skipped steps had never been.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpubackprop.backends import Array, Backend
from gpubackprop.nn.arena import Section

FLOAT64 = np.dtype(np.float64)


class SkippedSteps:
    """How many steps of each parameter of a section were skipped.

    Attributes
    ----------
    backend : the device of the counts.
    counts : (n,) float64, on the device.
    kinds : a number for each parameter: those with equal ones were skipped together at all times.
    """

    def __init__(self, section: Section) -> None:
        n = len(section.tensors)
        self.backend: Backend = section.backend
        self.counts: Array = self.backend.zeros((n,), FLOAT64)
        self.kinds = [0] * n

    def note(self, present: Sequence[bool], skip: Array) -> None:
        """Count a step of the parameters that are `present`, where `skip` (0-d, of the device) is
        true."""
        if not any(present):
            return
        backend = self.backend
        more = backend.astype(skip, FLOAT64)
        if not all(present):
            pairs = list(zip(self.kinds, present, strict=True))
            numbers = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
            self.kinds = [numbers[pair] for pair in pairs]
            more = backend.multiply(backend.asarray(np.array(present, np.float64)), more)
        backend.add(self.counts, more, out=self.counts)

    def keys(self, steps: Sequence[int | None]) -> list[tuple[int, int] | None]:
        """For each parameter its step, counted by the host, and its kind; None where it has no
        step."""
        return [None if s is None else (s, kind) for s, kind in zip(steps, self.kinds, strict=True)]

    def taken(self, key: tuple[int, int]) -> Array:
        """The number of a step among those that were not skipped: 0-d float64, on the device."""
        step, kind = key
        count = self.backend.getitem(self.counts, self.kinds.index(kind))
        return self.backend.subtract(step, count)

    def read(self) -> list[int]:
        """The counts; waits for the device."""
        return [int(n) for n in self.backend.to_numpy(self.counts)]

    def clear(self) -> None:
        """Count from 0 again."""
        n = len(self.kinds)
        self.backend.copyto(self.counts, self.backend.zeros((n,), FLOAT64))
        self.kinds = [0] * n

    def snapshot(self) -> Callable[[], None]:
        """Keep the counts; the result puts them back."""
        counts, kinds = self.backend.copy(self.counts), list(self.kinds)

        def restore() -> None:
            self.backend.copyto(self.counts, counts)
            self.kinds = list(kinds)

        return restore
