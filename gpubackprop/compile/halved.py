"""Normalised rows that are only rounded are written so, and cotangents that are only widened for
the way back are read as they are.

Under mixed precision a transformer's residual sum is float32, and so is what normalisation makes of
it; every product behind rounds that first, and widens the cotangent that comes back.
``layer_norm``, then ``astype``: one call writes half precision and no float32. Nothing is rounded
that was not, and nothing rounded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gpubackprop.compile.passes import mapped
from gpubackprop.compile.patterns import Uses, same_memory
from gpubackprop.compile.trace import Buffer, Call, Ref

NORMS = ("layer_norm", "rms_norm")
BACKWARD = ("layer_norm_backward", "rms_norm_backward")


def halved(calls: Sequence[Call], results: Sequence[Ref]) -> list[Call]:
    """The calls with normalisations that round their results themselves, and take cotangents of
    half precision, where nobody asks for those in float32.

    Parameters
    ----------
    calls : in order.
    results : what must be there at the end.
    """
    return _back(_forth(list(calls), results), results)


def _forth(calls: list[Call], results: Sequence[Ref]) -> list[Call]:
    uses = Uses(calls, results)
    changed: dict[int, Call] = {}
    gone: set[int] = set()
    same: dict[Buffer, Buffer] = {}
    for j, call in enumerate(calls):
        if call.kernel not in NORMS or call.outs[0].dtype != np.float32:
            continue
        y = call.outs[0]
        readers = uses.readers.get(y.buffer, [])
        rounded = [calls[i].outs[0] for i in readers if _rounds(calls[i], y, uses)]
        alike = {r.dtype for r in rounded}
        if not y.whole or len(rounded) < len(readers) or len(alike) != 1:
            continue
        if uses.made_by(y, call.kernel) != j or not uses.only_read_by(y, set(readers)):
            continue
        # Several products round it each for itself: they read one result.
        first = rounded[0]
        made = replace(y, buffer=first.buffer, strides=_halves(y.strides), dtype=first.dtype)
        changed[j] = replace(call, args=(*call.args, first.dtype), outs=(made, *call.outs[1:]))
        same |= {r.buffer: first.buffer for r in rounded[1:]}
        gone.update(readers)
    calls = [changed.get(i, c) for i, c in enumerate(calls) if i not in gone]

    def moved(ref: Ref) -> Ref:
        return replace(ref, buffer=same[ref.buffer]) if ref.buffer in same else ref

    return mapped(calls, moved) if same else calls


def _rounds(call: Call, y: Ref, uses: Uses) -> bool:
    """Whether a call does nothing but round all of y, into memory of its own."""
    if call.kernel != "astype" or not isinstance(call.args[0], Ref):
        return False
    out = call.outs[0]
    return (
        same_memory(call.args[0], y)
        and call.args[0].contiguous
        and out.dtype.kind in "fV"
        and out.dtype.itemsize == 2
        and out.whole
        and uses.made_by(out, "astype") is not None
        and out.buffer not in uses.kept
    )


def _back(calls: list[Call], results: Sequence[Ref]) -> list[Call]:
    uses = Uses(calls, results)
    changed: dict[int, Call] = {}
    gone: set[int] = set()
    for k, call in enumerate(calls):
        if call.kernel not in BACKWARD or call.args[1].dtype != np.float32:
            continue
        dy = call.args[0]
        i = uses.made_by(dy, "astype")
        if i is None or not uses.only_read_by(dy, {k}) or any(dy.overlaps(r) for r in call.outs):
            continue
        given, wide = calls[i].args[0], calls[i].outs[0]
        if (
            given.dtype.kind in "fV"
            and given.dtype.itemsize == 2
            and given.contiguous
            and wide.contiguous
            and dy.contiguous
            and same_memory(wide, dy)
            and not any(given.overlaps(r) for r in call.outs)
            and uses.unchanged([given], i, k)
        ):
            given = replace(given, shape=dy.shape, strides=_halves(dy.strides))
            changed[k] = replace(call, args=(given, *call.args[1:]))
            gone.add(i)
    return [changed.get(i, c) for i, c in enumerate(calls) if i not in gone]


def _halves(strides: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of an array of half precision that lies as one of float32 does."""
    return tuple(s // 2 for s in strides)
