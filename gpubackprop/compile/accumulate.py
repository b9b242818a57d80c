"""Products that are only added to what is there, or only widened, do that while they are made.

A gradient adds up over batches, and a cotangent over the uses of a value: ``matmul``, then ``add``
into the sum. One call of ``addmm`` neither writes the product to memory nor reads it again. The
gradient of a weight that was rounded to half precision is a product of halves, rounded, and widened
again: one call of ``wide_matmul`` adds up in float32 and rounds nothing. Either stands where the
second call stood, if what it multiplies is still there by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gpubackprop.compile.patterns import Uses
from gpubackprop.compile.trace import Call, Ref

APART = 32
"""The addition follows the product after this many calls at most: what is multiplied is kept until
then."""


def widened(calls: Sequence[Call], results: Sequence[Ref]) -> list[Call]:
    """The calls with ``wide_matmul`` in the place of a product of halves that is made float32.

    Parameters
    ----------
    calls : in order.
    results : what must be there at the end.
    """
    calls = list(calls)
    uses = Uses(calls, results)
    gone: set[int] = set()
    changed: dict[int, Call] = {}
    for i, call in enumerate(calls):
        if call.kernel != "astype" or call.outs[0].dtype != np.float32:
            continue
        j = _product(i, call.args[0], ("matmul",), call.outs[0], calls, uses)
        if j is not None and calls[j].outs[0].dtype.itemsize == 2:
            changed[i] = replace(calls[j], kernel="wide_matmul", outs=call.outs)
            gone.add(j)
    return [changed.get(i, c) for i, c in enumerate(calls) if i not in gone]


def accumulated(calls: Sequence[Call], results: Sequence[Ref]) -> list[Call]:
    """The calls with ``addmm`` in the place of a product and its addition to a sum in place.

    Parameters
    ----------
    calls : in order.
    results : what must be there at the end.
    """
    calls = list(calls)
    uses = Uses(calls, results)
    gone: set[int] = set()
    changed: dict[int, Call] = {}
    for i, call in enumerate(calls):
        if call.kernel != "add" or len(call.outs) != 1 or call.kwargs:
            continue
        out = call.outs[0]
        for total, product in (call.args, call.args[::-1]):
            if not isinstance(total, Ref) or not out.same(total):
                continue
            j = _product(i, product, ("matmul", "wide_matmul"), out, calls, uses)
            if j is not None and j not in gone and calls[j].outs[0].dtype == out.dtype:
                args = (total, *calls[j].args)
                changed[i] = replace(calls[j], kernel="addmm", args=args, outs=call.outs)
                gone.add(j)
                break
    return [changed.get(i, c) for i, c in enumerate(calls) if i not in gone]


def _product(
    i: int, product: object, kernels: tuple[str, ...], out: Ref, calls: list[Call], uses: Uses
) -> int | None:
    """The product that only call `i` reads, to write `out`, where one call can be both."""
    if not isinstance(product, Ref):
        return None
    makers = (uses.made_by(product, kernel) for kernel in kernels)
    j = next((j for j in makers if j is not None), None)
    if j is None or not i - APART <= j < i:
        return None
    made = calls[j].outs[0]
    if not made.same(product) or made.shape != out.shape or not uses.only_read_by(product, {i}):
        return None
    operands = calls[j].args
    for x in operands:
        if not isinstance(x, Ref) or x.dtype.kind not in "fV" or x.overlaps(out):
            return None
        if x.dtype != operands[0].dtype:
            return None
    return j if uses.unchanged(operands, j, i) else None
