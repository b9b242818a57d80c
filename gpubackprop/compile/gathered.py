"""Results that are only put side by side are made side by side.

The cotangents of queries, keys and values become the columns of one array, that of the projection
which made all three: a kernel that can leave gaps between the rows of its results writes them
there, and ``concatenate`` has nothing left to do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from gpubackprop.compile.passes import mapped
from gpubackprop.compile.patterns import Uses
from gpubackprop.compile.trace import Buffer, Call, Ref


def gathered(calls: Sequence[Call], results: Sequence[Ref], kernels: Collection[str]) -> list[Call]:
    """The calls without ``concatenate`` where each part can be made in its place.

    Parameters
    ----------
    calls : in order.
    results : what must be there at the end.
    kernels : those that write results with gaps at no cost.

    Notes
    -----
    A part can go where one call of these kernels makes all of its buffer and nobody but
    ``concatenate`` reads it. Every view of the buffer is then one of the joint array, whose rows
    are longer, provided that no axis of a view runs along a row and over its end.
    """
    calls = list(calls)
    if not any(c.kernel == "concatenate" for c in calls):
        return calls
    uses = Uses(calls, results)
    places: dict[Buffer, _Place] = {}
    gone: set[int] = set()
    for i, call in enumerate(calls):
        if call.kernel != "concatenate":
            continue
        found = _places(i, call, calls, uses, kernels)
        if found is not None:
            places |= found
            gone.add(i)

    def change(ref: Ref) -> Ref:
        place = places.get(ref.buffer)
        moved = ref if place is None else place.moved(ref)
        assert moved is not None
        return moved

    return mapped([c for i, c in enumerate(calls) if i not in gone], change)


class _Place:
    """Where the rows of a buffer go.

    Parameters
    ----------
    joint : all of the joint array.
    first : of the part's first element, in bytes from the joint array's.
    row, step : bytes of a row of the part, and of the joint array.
    """

    def __init__(self, joint: Ref, first: int, row: int, step: int) -> None:
        self.joint, self.first, self.row, self.step = joint, first, row, step

    def moved(self, ref: Ref) -> Ref | None:
        """A view of the part's buffer as one of the joint array's; None where it cannot be."""
        line, within = divmod(ref.offset, self.row)
        strides = []
        for n, stride in zip(ref.shape, ref.strides, strict=True):
            if n > 1 and stride % self.row:
                if stride < 0:
                    return None
                within += (n - 1) * stride
                strides.append(stride)
            else:
                strides.append(stride // self.row * self.step)
        if within + ref.dtype.itemsize > self.row:
            return None
        offset = self.joint.offset + self.first + line * self.step + ref.offset % self.row
        return replace(ref, buffer=self.joint.buffer, offset=offset, strides=tuple(strides))


def _places(
    i: int, call: Call, calls: Sequence[Call], uses: Uses, kernels: Collection[str]
) -> dict[Buffer, _Place] | None:
    """Where the parts of a joint array go, if all of them can be made there."""
    parts, axis = call.args[0], (*call.args[1:], *call.kwargs.values(), 0)[0]
    joint = call.outs[0]
    if not joint.whole or joint.buffer.kind != "made" or uses.writers[joint.buffer] != [i]:
        return None
    step = math.prod(joint.shape[axis % len(joint.shape) :]) * joint.dtype.itemsize
    found: dict[Buffer, _Place] = {}
    first = 0
    for part in parts:
        row = math.prod(part.shape[axis % len(part.shape) :]) * part.dtype.itemsize
        makers = uses.writers.get(part.buffer, [])
        if (
            not part.whole
            or part.dtype != joint.dtype
            or part.buffer in found
            or len(makers) != 1
            or calls[makers[0]].kernel not in kernels
            or not uses.only_read_by(part, {i})
        ):
            return None
        place = _Place(joint, first, row, step)
        made = [r for r in calls[makers[0]].outs if r.buffer is part.buffer]
        if any(place.moved(r) is None for r in made):
            return None
        found[part.buffer] = place
        first += row
    return found
