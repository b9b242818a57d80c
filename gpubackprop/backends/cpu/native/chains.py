"""Chains of elementwise kernels, with reductions at their ends, as one pass over memory.

A chain is a list of steps over one table (``layouts.py``). Its loop is written as a small Python
function in the cache folder (``generated.py``) and compiled from there; sizes, addresses and
numbers are in the frame, so one compiled loop serves every place where the same chain occurs.

To put one together from recorded calls: each call must be ``eligible``; ``table(out, arrays)``
says how the arrays that come from outside lie over the largest result, and ``Table.split`` gives it
the rows and columns that a sum over the first or the last axes needs. A step sees an element of
each of its operands at each place of the table, so a step whose own result is smaller is computed
again wherever it repeats. Every ``"flat"`` result is dense, in one order of its axes. An array may
be input and ``"flat"`` result at once where its kind is ``"flat"``; no other result may lie over an
input (``lower_chain`` gives None there).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.cpu.native.abi import doubles, floats, kernel, longs, share
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.expressions import (
    BOOL,
    COUNTS,
    ELEMENTWISE,
    FLOAT,
    INT,
    Node,
    Tracer,
    UnfitError,
    cost,
    expression,
)
from gpubackprop.backends.cpu.native.generated import ChainSource, Input, Output, loop
from gpubackprop.backends.cpu.native.layouts import FLAT, Table, table
from gpubackprop.backends.cpu.native.lowering import Site, lowers
from gpubackprop.backends.cpu.native.mathematics import INFINITY, larger

SERIAL = 2000.0
"""Work that is left to one thread, in nanoseconds."""
WIDE = 4096
"""Rows are cut between threads where each gets as many columns. Shorter pieces of a row are read
ahead beyond their end, where another core is writing."""


class Operand(NamedTuple):
    """Where a step's argument comes from: ``("input", k)`` or ``("step", j)``."""

    source: str
    place: int


class Step(NamedTuple):
    """One kernel of a chain; arguments are operands, Python numbers and live numbers."""

    kernel: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()


class Result(NamedTuple):
    """What a chain writes.

    Attributes
    ----------
    step : whose values.
    how : ``"flat"`` (all of them, in the table's order), or how they are reduced: to one for each
        column (``"columns"``), one for each row (``"rows"``) or a single one (``"all"``). The array
        of a reduction is C-contiguous, of any shape.
    op : ``"sum"`` or ``"max"`` (NaN if there is one).
    """

    step: int
    how: str
    op: str = "sum"


class Chain(NamedTuple):
    """A chain.

    Attributes
    ----------
    table : rows, columns and the kind of each input.
    steps : in order.
    results : what is written, in the order of the outs.
    """

    table: Table
    steps: tuple[Step, ...]
    results: tuple[Result, ...]


@kernel
def add_columns(frame, part, parts):
    """out[j] = sum over i of partial[i, j]. Frame: partial, count, columns, out."""
    columns = frame[2]
    left, right = share(columns, part, parts, 64)
    out = floats(frame[3], columns)[left:right]
    for j in range(out.size):
        out[j] = 0
    for i in range(frame[1]):
        row = floats(frame[0] + 4 * i * columns, columns)[left:right]
        for j in range(out.size):
            out[j] += row[j]


@kernel
def top_columns(frame, part, parts):
    """out[j] = maximum over i of partial[i, j]. Frame: partial, count, columns, out."""
    columns = frame[2]
    left, right = share(columns, part, parts, 64)
    out = floats(frame[3], columns)[left:right]
    for j in range(out.size):
        out[j] = -INFINITY
    for i in range(frame[1]):
        row = floats(frame[0] + 4 * i * columns, columns)[left:right]
        for j in range(out.size):
            out[j] = larger(out[j], row[j])


@kernel
def add_all(frame, part, parts):
    """out = sum of float64 partial sums. Frame: partial, count, out, whether out is an integer."""
    total = 0.0
    sums = doubles(frame[0], frame[1])
    for i in range(sums.size):
        total += sums[i]
    if frame[3]:
        longs(frame[2], 1)[0] = np.int64(total)
    else:
        floats(frame[2], 1)[0] = np.float32(total)


@kernel
def top_all(frame, part, parts):
    """out = maximum of partial maxima. Frame: partial, count, out."""
    most = floats(frame[0], frame[1])
    top = -INFINITY
    for i in range(most.size):
        top = larger(top, most[i])
    floats(frame[2], 1)[0] = top


def traced(
    steps: Sequence[Step], dtypes: Sequence[np.dtype]
) -> tuple[list[Node], list[tuple[Any, np.dtype]]]:
    """The expression of each step, and the numbers in them with the dtypes they are used as.

    Raises
    ------
    UnfitError
        A step cannot be compiled.
    """
    constants: list[tuple[Any, np.dtype]] = []
    tracer = Tracer(constants)
    if any(d not in (FLOAT, BOOL, INT) for d in dtypes):
        raise UnfitError("a dtype that is not compiled")
    inputs = [tracer.make("input", (i,), np.dtype(d)) for i, d in enumerate(dtypes)]
    nodes: list[Node] = []

    def value(a: Any) -> Any:
        if isinstance(a, Operand):
            return inputs[a.place] if a.source == "input" else nodes[a.place]
        return a

    for step in steps:
        args = tuple(value(a) for a in step.args)
        nodes.append(expression(step.kernel, args, {k: value(v) for k, v in step.kwargs}, tracer))
    return nodes, constants


def eligible(kernel_name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> bool:
    """Whether a recorded call can be a step of a chain, as far as dtypes and numbers go.

    Parameters
    ----------
    args, kwargs : the call's; arrays are anything with ``shape``, ``strides`` and ``dtype``.
    out : what it makes.
    """
    inputs, step = _step(kernel_name, args, kwargs)
    try:
        nodes, _ = traced((step,), [x.dtype for x in inputs])
    except UnfitError:
        return False
    return bool(nodes[0].dtype == out.dtype)


def _writable(chain: Chain, nodes: Sequence[Node], outs: Sequence[np.ndarray]) -> bool:
    """Whether the results can be computed, and have the dtypes of their arrays."""
    for result, out in zip(chain.results, outs, strict=True):
        wanted = nodes[result.step].dtype
        if result.how != FLAT and (result.op == "max" or result.how != "all") and wanted != FLOAT:
            return False
        if result.how == "all" and wanted in COUNTS:
            wanted = INT
        if out.dtype not in (FLOAT, BOOL, INT):
            return False
        if out.dtype != wanted or (result.how != FLAT and not out.flags.c_contiguous):
            return False
    return True


def _apart(chain: Chain, inputs: Sequence[np.ndarray], outs: Sequence[np.ndarray]) -> bool:
    """Whether no result lies over an input, unless it is the same elements in the same order."""
    bounds = np.lib.array_utils.byte_bounds
    for result, out in zip(chain.results, outs, strict=True):
        low, high = bounds(out)
        for kind, x in zip(chain.table.kinds, inputs, strict=True):
            same = (
                kind == result.how == FLAT and x.ctypes.data == low and x.itemsize == out.itemsize
            )
            first, last = bounds(x)
            if first < high and low < last and not same:
                return False
    return True


def lower_chain(
    site: Site, outs: Sequence[np.ndarray], inputs: Sequence[np.ndarray], chain: Chain
) -> list[Instruction] | None:
    """The instructions of a chain; None where its dtypes are not served, or a result lies over an
    input in another order.

    Parameters
    ----------
    outs : one array per result.
    inputs : the arrays that ``Operand("input", k)`` stands for, as ``chain.table`` describes them.

    Notes
    -----
    Sums over rows are taken in blocks of 32 rows, each part on its own rows (or, for wide tables,
    columns), sums over everything in float64; the order of sums depends on the number of threads
    and on nothing else.
    """
    rows, columns, kinds, lengths, strides = chain.table
    try:
        nodes, constants = traced(chain.steps, [x.dtype for x in inputs])
    except UnfitError:
        return None
    if not _writable(chain, nodes, outs) or not _apart(chain, inputs, outs):
        return None
    work = rows * columns * cost([nodes[r.step] for r in chain.results])
    parallel = work > SERIAL and site.parts > 1
    wide = rows < 2 * site.parts or columns >= WIDE * site.parts
    if any(r.how == "rows" for r in chain.results):
        if wide and rows < 2 * site.parts:
            parallel = False
        wide = False
    used = site.parts if parallel else 1
    slots: list[Any] = [rows, columns, wide]
    after: list[Instruction] = []
    places: dict[Any, int] = {}

    def place(*values: Any) -> int:
        slots.extend(values)
        return len(slots) - len(values)

    def shared(x: np.ndarray, kind: str) -> int:
        key = (x.ctypes.data, x.dtype.char, kind)
        if key not in places:
            places[key] = place(x)
        return places[key]

    first = place(*lengths)
    sources = []
    for i, (kind, x) in enumerate(zip(kinds, inputs, strict=True)):
        steps = place(*strides[i]) if strides and strides[i] else -1
        at = shared(x, kind) if steps < 0 else place(x)
        sources.append(Input(kind, x.dtype.char, at, steps))
    targets = []
    for (step, how, op), out in zip(chain.results, outs, strict=True):
        if how == "columns":
            direct = used == 1 or wide
            total = out if direct else site.scratch((used, columns))
            block = site.scratch((used, columns))
            at = place(block, total, 0 if direct else 4 * columns)
            where: tuple[int, ...] = (at, at + 1, at + 2)
            if not direct:
                second = add_columns if op == "sum" else top_columns
                row = [total, used, columns, out]
                after.append(Instruction(second, row, parallel=columns > 4096))
        elif how == "all":
            sums = site.scratch((used,), np.float64 if op == "sum" else np.float32)
            where = (place(sums),)
            row = [sums, used, out, out.dtype == INT]
            second = add_all if op == "sum" else top_all
            after.append(Instruction(second, row, parallel=False))
        else:
            where = (shared(out, how),)
        targets.append(Output(nodes[step], how, op, out.dtype.char, where))
    numbers = []
    for value, dtype in constants:
        numbers.append((place(value), dtype.char, isinstance(value, float)))
    source = ChainSource(tuple(sources), tuple(targets), tuple(numbers), (first, len(lengths)))
    return [Instruction(loop(source), slots, parallel=parallel), *after]


@lowers("chain", inplace=("inputs",))
def lower_chain_call(
    site: Site, outs: tuple[np.ndarray, ...], inputs: tuple[np.ndarray, ...], chain: Chain
) -> list[Instruction] | None:
    """A chain that the fusion pass has put together."""
    return lower_chain(site, outs, inputs, chain)


def _step(
    kernel_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], Step]:
    """The arrays of a call, and the call with operands in their place."""
    inputs: list[Any] = []

    def taken(a: Any) -> Any:
        if isinstance(a, np.generic) or not hasattr(a, "strides"):
            return a
        inputs.append(a)
        return Operand("input", len(inputs) - 1)

    step_args = tuple(taken(a) for a in args)
    return inputs, Step(kernel_name, step_args, tuple((k, taken(v)) for k, v in kwargs.items()))


def single(
    kernel_name: str, out: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Chain, list[Any]] | None:
    """The chain of one recorded call, and its arrays; None where the result has gaps."""
    inputs, step = _step(kernel_name, args, kwargs)
    found = table(out, inputs)
    return None if found is None else (Chain(found, (step,), (Result(0, FLAT),)), inputs)


_INPLACE = ("x", "x1", "x2", "dy", "y")


def _lower_single(kernel_name: str) -> Any:
    def lower(
        site: Site, outs: tuple[np.ndarray, ...], *args: Any, **kwargs: Any
    ) -> list[Instruction] | None:
        out = outs[0] if outs else args[0]
        if not out.size:
            return []
        name = kernel_name
        if name == "copyto":
            array = isinstance(args[1], np.ndarray)
            name, args = ("astype", (args[1], out.dtype)) if array else (name, (out.dtype, args[1]))
        made = single(name, out, args, kwargs)
        return None if made is None else lower_chain(site, (out,), made[1], made[0])

    return lower


for _name in sorted(ELEMENTWISE):
    lowers(_name, inplace=_INPLACE)(_lower_single(_name))
