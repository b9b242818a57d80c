"""Products that are only added to what is there are added while they are made.

A gradient adds up over batches, and a cotangent over the uses of a value: ``matmul``, then ``add``
into the sum. One call of ``addmm`` neither writes the product to memory nor reads it again. It
stands where the addition stood, if what it multiplies is still there by then.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpubackprop.compile.passes import touched
from gpubackprop.compile.patterns import Uses
from gpubackprop.compile.trace import Call, Ref

APART = 32
"""The addition follows the product after this many calls at most: what is multiplied is kept until
then."""


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
        for total, product in (call.args, call.args[::-1]):
            j = _product(i, total, product, call.outs[0], calls, uses)
            if j is not None and j not in gone:
                changed[i] = Call("addmm", (total, *calls[j].args), {}, call.outs)
                gone.add(j)
                break
    return [changed.get(i, c) for i, c in enumerate(calls) if i not in gone]


def _product(
    i: int, total: object, product: object, out: Ref, calls: list[Call], uses: Uses
) -> int | None:
    """The ``matmul`` whose result call `i` adds to a sum in place, where one call can be both."""
    if not isinstance(total, Ref) or not isinstance(product, Ref) or not out.same(total):
        return None
    j = uses.made_by(product, "matmul")
    if j is None or not i - APART <= j < i:
        return None
    made = calls[j].outs[0]
    if not made.same(product) or not uses.only_read_by(product, {i}):
        return None
    if made.shape != total.shape or made.dtype != total.dtype or total.dtype.kind not in "fV":
        return None
    between = [r for c in calls[j + 1 : i] for r in touched(c)]
    for x in calls[j].args:
        if not isinstance(x, Ref) or x.dtype != total.dtype or x.overlaps(total):
            return None
        if any(r.overlaps(x) for r in between):
            return None
    return j
