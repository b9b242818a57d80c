"""Native reductions over any axes of arrays of any layout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends.chains.chain import Chain, Operand, Result, Step, how_summed
from gpubackprop.backends.chains.layouts import FLAT, Table, memory_order
from gpubackprop.backends.composites import normalize_axes
from gpubackprop.backends.cpu.native.abi import floats, kernel, share
from gpubackprop.backends.cpu.native.chains import add_columns, lower_chain
from gpubackprop.backends.cpu.native.copies import copy_all, copy_instruction
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Lower, Site, lowers

COPY = (Step("copy", (Operand("input", 0),)),)
NEGATED = (Step("negative", (Operand("input", 0),)),)
SERIAL = 1 << 13
FOLDED = 512
"""Columns of a table that is summed over its rows: narrower ones are seen as of this width."""


def _reduce(
    site: Site, out: np.ndarray, x: np.ndarray, axis: Any, op: str = "sum", sign: bool = False
) -> list[Instruction] | None:
    """A reduction over any axes of an array of any layout; with `sign`, of the negated elements.

    Axes are taken in the order of memory. Where that leaves the reduced ones in the middle, or the
    array has gaps, it is copied first, the reduced axes last.
    """
    if not x.size or not out.flags.c_contiguous:
        return None
    axes = set(normalize_axes(axis, x.ndim))
    order = memory_order(x)
    found = None
    if order is not None:
        kept = [i for i in order if i not in axes and x.shape[i] != 1]
        # The result's elements lie in the order of its axes.
        if kept == sorted(kept):
            shape = tuple(x.shape[i] for i in order)
            found = how_summed(shape, tuple(order.index(i) for i in axes))
    made: list[Instruction] = []
    if found is None:
        last = [*(i for i in range(x.ndim) if i not in axes), *sorted(axes)]
        spread = x.transpose(last)
        x = site.scratch(spread.shape, x.dtype)
        copied = copy_instruction(x, spread)
        if copied is None:
            return None
        made.append(copied)
        first = x.ndim - len(axes)
        found = how_summed(x.shape, tuple(range(first, x.ndim)))
    if found is None:
        return None
    how, rows, columns = found
    if op == "sum" and x.dtype == out.dtype == np.float32:
        if how == "rows" and columns > 4096:
            return [*made, Instruction(sum_long_rows, [x, rows, columns, out], parallel=rows > 1)]
        if how == "columns" and columns <= 2 * FOLDED:
            return [*made, *_sum_columns(site, out, x, rows, columns)]
    steps = NEGATED if sign else COPY
    chain = Chain(Table(rows, columns, (FLAT,)), steps, (Result(0, how, op),))
    rest = lower_chain(site, (out,), (x,), chain)
    return None if rest is None else [*made, *rest]


def _afterwards(site: Site, out: np.ndarray, name: str, *numbers: Any) -> list[Instruction] | None:
    """An elementwise kernel of a result and numbers, in its own place."""
    steps = (Step(name, (Operand("input", 0), *numbers)),)
    chain = Chain(Table(1, out.size, (FLAT,)), steps, (Result(0, FLAT),))
    return lower_chain(site, (out,), (out,), chain)


@kernel
def sum_long_rows(frame, part, parts):
    """y[i] = sum over j of x[i, j], in float64 over blocks of 4,096; parts share the rows.

    Frame: x, rows, columns, y. NumPy adds long rows in pairs; this loses no more.
    """
    n = frame[2]
    first, last = share(frame[1], part, parts, 1)
    y = floats(frame[3], frame[1])
    for i in range(first, last):
        total = 0.0
        for start in range(0, n, 4096):
            count = min(4096, n - start)
            x = floats(frame[0] + 4 * (i * n + start), count)
            some = np.float32(0)
            for j in range(count):
                some += x[j]
            total += some
        y[i] = np.float32(total)


@kernel
def sum_columns(frame, part, parts):
    """Each part's share of the sum over the rows of a table, in blocks of 32 rows.

    Frame: x, rows, columns, fold, memory (parts, 2, fold * columns), sums (parts, columns). `fold`
    rows at a time count as one, so that short rows too are whole vectors. The order of the sums
    depends on the number of parts.
    """
    rows, columns, fold = frame[1], frame[2], frame[3]
    n = fold * columns
    groups = rows // fold
    first, last = share(groups, part, parts, 32)
    block = floats(frame[4] + 8 * part * n, n)
    total = floats(frame[4] + 8 * part * n + 4 * n, n)
    for j in range(n):
        block[j] = 0
        total[j] = 0
    for start in range(first, last, 32):
        stop = min(start + 32, last)
        i = start
        while i + 4 <= stop:
            at = frame[0] + 4 * i * n
            a, b = floats(at, n), floats(at + 4 * n, n)
            c, d = floats(at + 8 * n, n), floats(at + 12 * n, n)
            for j in range(n):
                block[j] += (a[j] + b[j]) + (c[j] + d[j])
            i += 4
        while i < stop:
            a = floats(frame[0] + 4 * i * n, n)
            for j in range(n):
                block[j] += a[j]
            i += 1
        for j in range(n):
            total[j] += block[j]
            block[j] = 0
    out = floats(frame[5] + 4 * part * columns, columns)
    for j in range(columns):
        out[j] = total[j]
    for i in range(1, fold):
        some = total[i * columns : (i + 1) * columns]
        for j in range(columns):
            out[j] += some[j]
    if part == parts - 1:
        for i in range(groups * fold, rows):
            a = floats(frame[0] + 4 * i * columns, columns)
            for j in range(columns):
                out[j] += a[j]


def _sum_columns(
    site: Site, out: np.ndarray, x: np.ndarray, rows: int, columns: int
) -> list[Instruction]:
    parts = site.parts if x.size > SERIAL else 1
    fold = max(1, min(FOLDED // columns, rows // (64 * parts)))
    memory = site.scratch((parts, 2, fold * columns))
    sums = out if parts == 1 else site.scratch((parts, columns))
    slots = [x, rows, columns, fold, memory, sums]
    made = [Instruction(sum_columns, slots, parallel=parts > 1)]
    if parts > 1:
        made.append(Instruction(add_columns, [sums, parts, columns, out], parallel=False))
    return made


@lowers("sum_to")
def lower_sum_to(
    site: Site, outs: tuple[np.ndarray, ...], x: np.ndarray, shape: tuple[int, ...]
) -> list[Instruction] | None:
    """Sums over what was broadcast."""
    lead = x.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        i + lead for i, n in enumerate(shape) if n == 1 and x.shape[i + lead] != 1
    )
    return _reduce(site, outs[0], x, axes) if axes else copy_all(outs[0], x.reshape(outs[0].shape))


def _reduction(op: str, mean: bool = False, negated: bool = False) -> Lower:
    """The lowering of a reduction over any axes: divided by how many elements each result is made
    of, or of the negated elements, negated back."""

    def lower(
        site: Site,
        outs: tuple[np.ndarray, ...],
        x: np.ndarray,
        axis: Any = None,
        keepdims: bool = False,
    ) -> list[Instruction] | None:
        made = _reduce(site, outs[0], x, axis, op, negated)
        if made is None or not (mean or negated):
            return made
        if mean:
            count = math.prod(x.shape[i] for i in normalize_axes(axis, x.ndim))
            last = _afterwards(site, outs[0], "divide", count)
        else:
            last = _afterwards(site, outs[0], "negative")
        return None if last is None else [*made, *last]

    return lower


lowers("sum")(_reduction("sum"))
lowers("mean")(_reduction("sum", mean=True))
lowers("max")(_reduction("max"))
lowers("min")(_reduction("max", negated=True))
