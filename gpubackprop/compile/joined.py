"""Products that take the kernels before or after them along, where the device has one kernel for
both (``backends/joined.py``).

Of a layer with an activation: ``linear`` and ``relu`` forth, and back ``matmul`` (of the layer
above), ``relu_backward`` and the sum over rows for the bias. Of a layer whose cotangent comes from
elsewhere: the product for the weight and the sum for the bias. Where the cotangent is made element
by element, that sum joins its chain as well as it would a product, and is left to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.backends.chains.expressions import ELEMENTWISE
from gpubackprop.backends.joined import mask_shape
from gpubackprop.compile.passes import touched
from gpubackprop.compile.patterns import Uses, same_memory, sums_rows
from gpubackprop.compile.trace import Buffer, Call, Ref

ACTIVATIONS = ("relu", "gelu_tanh")


def joined(calls: Sequence[Call], results: Sequence[Ref], backend: Backend) -> list[Call]:
    """The calls with products that take others along, as far as ``backend.joins`` them.

    What ``accumulated`` adds to a sum in place is not among them: that saves more.

    Parameters
    ----------
    calls : in order.
    results : what must be there at the end.
    """
    calls = list(calls)
    for find in (_activations, _row_sums):
        gone: set[int] = set()
        changed = find(calls, Uses(calls, results), backend, gone)
        calls = [changed.get(i, c) for i, c in enumerate(calls) if i not in gone]
    return calls


def _joins(backend: Backend, call: Call) -> bool:
    """Whether a call is made as one here, in the precision that holds around the step."""
    return call.precision == backend.precision and backend.joins(call.kernel, *call.args)


def _activations(
    calls: list[Call], uses: Uses, backend: Backend, gone: set[int]
) -> dict[int, Call]:
    changed: dict[int, Call] = {}
    for i, call in enumerate(calls):
        if call.kernel not in ACTIVATIONS or call.kwargs:
            continue
        j = uses.made_by(call.args[0], "linear")
        if j is None or j in changed:
            continue
        z, y = calls[j].outs[0], call.outs[0]
        if (
            not (same_memory(call.args[0], z) and z.contiguous and y.contiguous)
            or y.buffer.kind != "made"
            or len(uses.writers[y.buffer]) != 1
            or z.dtype != y.dtype
        ):
            continue
        relu = call.kernel == "relu"
        y = replace(z, buffer=y.buffer, offset=y.offset)
        alone = uses.only_read_by(z, {i})
        if relu and not alone:
            continue
        x, weight, bias = (*calls[j].args, *calls[j].kwargs.values(), None)[:3]

        def forth(
            keep: bool,
            *outs: Ref,
            at: Call = calls[j],
            to: Call = call,
            args: tuple = (x, weight, bias),
        ) -> Call:
            given = (*args, to.kernel, keep)
            return replace(at, kernel="linear_activation", args=given, kwargs={}, outs=outs)

        back = _way_back(call.kernel, y if relu else z, calls, uses)
        if back is not None:
            bits = _mask(calls, changed, y) if relu else None
            first, last = forth(True, y, bits or z), back.call(bits)
            if _joins(backend, first) and _joins(backend, last):
                changed[j], changed[back.at] = first, last
                gone.update((i, *back.gone))
                continue
            if not relu and _joins(backend, last):  # z is there either way
                changed[back.at] = last
                gone.update(back.gone)
        first = forth(False, y) if alone else forth(True, y, z)
        if _joins(backend, first):
            changed[j] = first
            gone.add(i)
    return changed


@dataclass
class _Back:
    """A product, an activation's slope and maybe a sum that can be one call.

    Attributes
    ----------
    at : where that call stands; `gone` which others it replaces.
    product : the product; `value` what the slope is computed from.
    outs : what it makes.
    """

    at: int
    gone: tuple[int, ...]
    product: Call
    activation: str
    value: Ref
    outs: tuple[Ref, ...]

    def call(self, kept: Ref | None) -> Call:
        args = (*self.product.args, self.value, kept, self.activation, len(self.outs) > 1)
        kernel = "matmul_activation_backward"
        return replace(self.product, kernel=kernel, args=args, kwargs={}, outs=self.outs)


def _way_back(activation: str, value: Ref, calls: list[Call], uses: Uses) -> _Back | None:
    """What follows from the only product whose result goes through the activation's slope."""
    name = f"{activation}_backward"
    found = [
        k
        for k in uses.readers.get(value.buffer, [])
        if calls[k].kernel == name and same_memory(calls[k].args[1], value)
    ]
    if len(found) != 1:
        return None
    k = found[0]
    dy, dz = calls[k].args[0], calls[k].outs[0]
    m = uses.made_by(dy, "matmul")
    if m is None or not uses.only_read_by(dy, {k}):
        return None
    product = calls[m].outs[0]
    operands = calls[m].args
    if (
        not (same_memory(product, dy) and product.contiguous and dz.contiguous)
        or product.size != value.size
        or product.shape[-1] != value.shape[-1]
        or {r.dtype for r in (product, dz, *operands)} != {value.dtype}
        or len(operands[1].shape) != 2
        or any(dz.overlaps(r) for r in (*operands, value))
        or not uses.unchanged(operands, m, k)
    ):
        return None
    dz = replace(product, buffer=dz.buffer, offset=dz.offset)
    outs: tuple[Ref, ...] = (dz,)
    over: tuple[int, ...] = (m,)
    total = next(
        (
            s
            for s in uses.readers.get(dz.buffer, [])
            if s > k and sums_rows(calls[s], dz, dz.shape[-1])
        ),
        None,
    )
    if total is not None:
        sums = calls[total].outs[0]
        taken = any(sums.overlaps(r) for r in (*operands, value, dz))
        if sums.dtype == dz.dtype and not taken and uses.quiet(sums, k, total):
            outs, over = (dz, sums), (m, total)
    return _Back(
        k, over, calls[m], activation, replace(value, shape=dz.shape, strides=dz.strides), outs
    )


def _mask(calls: list[Call], changed: dict[int, Call], y: Ref) -> Ref:
    """New memory for the mask of a relu."""
    number = max(
        r.buffer.number for c in (*calls, *changed.values()) for r in [*c.reads, *touched(c)]
    )
    shape, kind = mask_shape(y.shape), np.dtype(np.uint8)
    made = Buffer(number + 1, shape[0] * shape[1], "made", made_by="linear_activation")
    return Ref(made, 0, shape, (shape[1], 1), kind)


def _row_sums(calls: list[Call], uses: Uses, backend: Backend, gone: set[int]) -> dict[int, Call]:
    changed: dict[int, Call] = {}
    for i, call in enumerate(calls):
        if call.kernel != "matmul" or any(len(r.shape) != 2 for r in call.reads):
            continue
        turned, other = call.args
        rows = replace(turned, shape=turned.shape[::-1], strides=turned.strides[::-1])
        if turned.dtype != other.dtype or not rows.contiguous or _elementwise(rows, calls, uses):
            continue
        for s in uses.readers.get(rows.buffer, []):
            if s <= i or not sums_rows(calls[s], rows, rows.shape[1]):
                continue
            sums, y = calls[s].outs[0], call.outs[0]
            outs = (y, sums)
            if (
                {r.dtype for r in outs} != {rows.dtype}
                or any(sums.overlaps(r) for r in (*call.args, y))
                or not uses.quiet(sums, i, s)
            ):
                continue
            both = replace(call, kernel="matmul_row_sums", outs=outs)
            if _joins(backend, both):
                changed[i] = both
                gone.add(s)
            break
    return changed


def _elementwise(rows: Ref, calls: list[Call], uses: Uses) -> bool:
    """Whether an array is made element by element, so that a chain can sum it on the way."""
    writers = uses.writers.get(rows.buffer, [])
    return any(calls[w].kernel in ELEMENTWISE for w in writers)
