"""Elementwise calls, and the sums of what they give, taken into one loop.

A call joins the chain that makes one of its arguments, if it can be moved up to there: everything
else that it reads must be there already, and nobody in between may touch what it writes. What only
the chain itself reads is then never written to memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpubackprop.backends.chains.chain import (
    Chain,
    Operand,
    Result,
    Step,
    eligible,
    how_summed,
    live_numbers,
    result_dtype,
)
from gpubackprop.backends.chains.expressions import ELEMENTWISE, FLOAT, Node
from gpubackprop.backends.chains.layouts import FLAT, Table, table
from gpubackprop.compile.passes import touched
from gpubackprop.compile.patterns import images_fused, same_memory
from gpubackprop.compile.trace import Call, Ref

STEPS, INPUTS = 24, 8
"""A chain has no more steps and arrays from outside than these."""


@dataclass
class Group:
    """A chain that is being put together.

    Attributes
    ----------
    at : the place of its first call.
    calls : its calls; `places` where they were.
    inputs : arrays from outside, with their kinds.
    size : elements of its table, `columns` of a row; `fixed` where a call needs rows of that
        length.
    """

    at: int
    size: int
    columns: int
    fixed: bool
    calls: list[Call] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    inputs: list[Ref] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    outs: list[Ref] = field(default_factory=list)
    how: list[str] = field(default_factory=list)  # of each call: "flat", or how it sums
    sources: list[int] = field(default_factory=list)  # the step that each call's result comes from

    def step_of(self, ref: Ref) -> int | None:
        """The step that gives all elements of a ref."""
        for out, how, step in zip(self.outs, self.how, self.sources, strict=True):
            if how == FLAT and same_memory(out, ref):
                return step
        return None


def fused(
    calls: Sequence[Call],
    results: Sequence[Ref],
    report: Any,
    floats: Collection[np.dtype] | None = None,
) -> list[Call]:
    """The calls with elementwise chains as one call each.

    Parameters
    ----------
    calls, results : of a step.
    report : is told how many calls were taken together.
    floats : dtypes that the device writes chains for; one of a single call is written too, since it
        puts its result where it is wanted. None for the native kernels of the CPU, which are made
        for float32, know single calls, and also take images' sequences together.
    """
    before, alone = len(calls), floats is not None
    calls = list(calls)
    if floats is None:
        floats = (FLOAT,)
        calls = images_fused(calls, results)
    report.fused += before - len(calls)
    groups: list[Group] = []
    member: dict[int, Group] = {}
    for i, call in enumerate(calls):
        found = _described(call, floats, 1 if alone else 2)
        if found is None:
            continue
        for group in reversed(groups):
            if i - group.at < 200 and _joins(group, call, i, found, calls, member):
                member[i] = group
                break
        else:
            if call.kernel in ELEMENTWISE:
                group = _begun(call, i, found)
                groups.append(group)
                member[i] = group
    kept: list[Call] = []
    last = {r.buffer for r in results}
    for i, call in enumerate(calls):
        chain = member.get(i)
        if chain is None or (len(chain.calls) == 1 and not alone):
            kept.append(call)
        elif chain.at == i:
            kept.append(_chain(chain, calls, last))
            report.fused += len(chain.calls) if len(chain.calls) > 1 else 0
    return kept


@dataclass
class _Part:
    """A call as part of a chain: how it sums, over which table, its arrays and their kinds."""

    how: str
    table: Table
    inputs: list[Ref]


def _described(call: Call, floats: Collection[np.dtype], least: int) -> _Part | None:
    if call.writes or len(call.outs) != 1:
        return None
    out = call.outs[0]
    if call.kernel in ("sum", "sum_to"):
        x = call.args[0]
        if not isinstance(x, Ref) or not x.contiguous or not out.contiguous:
            return None
        if call.kernel == "sum":
            axis = call.kwargs.get("axis", call.args[1] if len(call.args) > 1 else None)
        else:
            shape = call.kwargs.get("shape", call.args[1] if len(call.args) > 1 else ())
            axis = tuple(range(len(x.shape) - len(shape)))
            if tuple(shape) != x.shape[len(x.shape) - len(shape) :]:
                return None
        found = how_summed(x.shape, axis)
        if found is None:
            return None
        how, rows, columns = found
        if result_dtype(Result(0, how), Node("input", (0,), x.dtype)) != out.dtype:
            return None
        return _Part(how, Table(rows, columns, (FLAT,)), [x])
    if call.kernel not in ELEMENTWISE or call.kernel == "copyto":
        return None
    inputs = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, Ref)]
    if not eligible(call.kernel, call.args, call.kwargs, out, floats):
        return None
    lies = table(out, inputs)
    if lies is None or lies.strides or out.size < least:
        return None
    for x, kind in zip(inputs, lies.kinds, strict=True):
        if out.overlaps(x) and not (kind == FLAT and same_memory(out, x)):
            return None
    return _Part(FLAT, lies, inputs)


def _free(part: _Part) -> bool:
    """Whether the rows of a part may have any length."""
    if part.how == "all":
        return True
    return part.how == FLAT and all(k in (FLAT, "scalar") for k in part.table.kinds)


def _begun(call: Call, i: int, part: _Part) -> Group:
    size = part.table.rows * part.table.columns
    group = Group(i, size, part.table.columns, not _free(part))
    _added(group, call, i, part)
    return group


def _added(group: Group, call: Call, i: int, part: _Part) -> None:
    kinds = iter(part.table.kinds)

    def operand(a: Any) -> Any:
        if not isinstance(a, Ref):
            return a
        kind = next(kinds)
        # Where the table is one element, that is the kind of all of them.
        step = group.step_of(a) if kind == FLAT or group.size == 1 else None
        if step is not None:
            return Operand("step", step)
        for k, (x, known) in enumerate(zip(group.inputs, group.kinds, strict=True)):
            if known == kind and x.buffer is a.buffer and x.same(a):
                return Operand("input", k)
        group.inputs.append(a)
        group.kinds.append(kind)
        return Operand("input", len(group.inputs) - 1)

    if part.how == FLAT:
        args = tuple(operand(a) for a in call.args)
        kwargs = tuple((k, operand(v)) for k, v in call.kwargs.items())
        group.steps.append(Step(call.kernel, args, kwargs))
        source = len(group.steps) - 1
    else:
        source = operand(call.args[0]).place
    group.calls.append(call)
    group.places.append(i)
    group.outs.append(call.outs[0])
    group.how.append(part.how)
    group.sources.append(source)


def _joins(
    group: Group, call: Call, i: int, part: _Part, calls: list[Call], member: dict[int, Group]
) -> bool:
    """Add a call to a chain if it can be."""
    if part.table.rows * part.table.columns != group.size or len(group.calls) >= STEPS:
        return False
    if not any(group.step_of(x) is not None for x in part.inputs):
        return False
    if part.how != FLAT and group.step_of(part.inputs[0]) is None:
        return False
    if len(group.inputs) + len(part.inputs) > INPUTS:
        return False
    # What the chain itself writes can be read in it only element by element.
    for x, kind in zip(part.inputs, part.table.kinds, strict=True):
        known = kind == FLAT or group.size == 1
        if not (known and group.step_of(x) is not None) and any(o.overlaps(x) for o in group.outs):
            return False
    columns, fixed = group.columns, group.fixed
    if not _free(part):
        if fixed and columns != part.table.columns:
            return False
        columns, fixed = part.table.columns, True
    elif not fixed and part.how == FLAT:
        columns = group.columns
    own = set(group.places)
    out = call.outs[0]
    for j in range(group.at, i):
        if j in own:
            continue
        other = calls[j]
        # A call that has moved up to an earlier chain writes there already.
        moved = member.get(j)
        earlier = moved is not None and moved.at < group.at
        for r in touched(other):
            if r.overlaps(out):
                return False
            if not earlier and any(r.overlaps(x) for x in part.inputs):
                return False
        if any(r.overlaps(out) for r in other.reads):
            return False
    if any(r.overlaps(out) for c in group.calls for r in c.reads):
        return False
    group.columns, group.fixed = columns, fixed
    _added(group, call, i, part)
    return True


def _chain(group: Group, calls: list[Call], last: set[Any]) -> Call:
    """The call that runs a chain, writing what is read outside of it."""
    own = set(group.places)
    readers = [r for j, c in enumerate(calls) if j not in own for r in c.reads]
    results: list[Result] = []
    outs: list[Ref] = []
    for out, how, step in zip(group.outs, group.how, group.sources, strict=True):
        buffer = out.buffer
        wanted = buffer.kind != "made" or buffer in last
        if wanted or how != FLAT or any(r.buffer is buffer for r in readers):
            results.append(Result(step, how))
            outs.append(out)
    order = sorted(range(len(outs)), key=lambda k: results[k].how != FLAT)
    lies = Table(group.size // group.columns, group.columns, tuple(group.kinds))
    chain = Chain(lies, tuple(group.steps), tuple(results[k] for k in order))
    written = tuple(outs[k] for k in order)
    return Call("chain", (tuple(group.inputs), chain), live_numbers(chain), written)
