"""Counts of steps, on the device.

Whether a step of a scaled loss is skipped is known to the device alone, and the host does not wait
to hear of it. So from the first step on that could be skipped, the device counts the steps that it
takes, and updates read their number from there: Adam's count, as if the skipped steps had never
been.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpubackprop.backends import Array, Backend
from gpubackprop.nn.arena import Section

FLOAT64 = np.dtype(np.float64)


class TakenSteps:
    """How many steps each parameter of a section has taken.

    Parameters
    ----------
    section : holds the parameters.
    steps : the counts to begin with.

    Attributes
    ----------
    backend : the device of the counts.
    counts : (n,) float64, on the device.
    kinds : a number for each parameter; the counts of those with equal ones are equal at all times.
    """

    def __init__(self, section: Section, steps: Sequence[int]) -> None:
        self.backend: Backend = section.backend
        self.counts: Array = self.backend.zeros((len(section.tensors),), FLOAT64)
        self.kinds: list[int] = []
        self.write(steps)

    def write(self, steps: Sequence[int]) -> None:
        """Go on from these counts."""
        found = self.backend.asarray(np.array(steps, FLOAT64))
        self.backend.copyto(self.counts, found)
        self.kinds = _numbered(steps)

    def read(self) -> list[int]:
        """The counts; waits for the device."""
        return [int(n) for n in self.backend.to_numpy(self.counts)]

    def take(self, present: Sequence[bool], skip: Array | None) -> list[int | None]:
        """Count a step of the parameters that are `present`, but where `skip` (0-d, of the device)
        is true.

        Returns
        -------
        list
            The kind of each parameter that is present, None for the others.
        """
        backend = self.backend
        if not all(present):
            self.kinds = _numbered(list(zip(self.kinds, present, strict=True)))
        if any(present):
            more: Any = 1.0
            if skip is not None:
                more = backend.astype(backend.logical_not(skip), FLOAT64)
            if not all(present):
                more = backend.multiply(backend.asarray(np.array(present, FLOAT64)), more)
            backend.add(self.counts, more, out=self.counts)
        return [k if has else None for k, has in zip(self.kinds, present, strict=True)]

    def number(self, kind: int) -> Array:
        """The step of the parameters of a kind: 0-d, a view of the counts."""
        i = self.kinds.index(kind)
        return self.backend.reshape(self.backend.getitem(self.counts, slice(i, i + 1)), ())

    def snapshot(self) -> Callable[[], None]:
        """Keep the counts; the result puts them back."""
        counts, kinds = self.backend.copy(self.counts), list(self.kinds)

        def restore() -> None:
            self.backend.copyto(self.counts, counts)
            self.kinds = list(kinds)

        return restore


def _numbered(keys: Sequence[Any]) -> list[int]:
    """Equal keys as equal numbers, from 0 in order of appearance."""
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys]
