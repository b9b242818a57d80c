"""Chains of elementwise kernels, with sums at their ends, as one pass over memory.

A chain is a list of steps over one table (``layouts.py``). Its loop is written as a small Python
function in the cache folder (``generated.py``) and compiled from there; sizes, addresses and
numbers are in the frame, so one compiled loop serves every place where the same chain occurs.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    expression,
)
from gpubackprop.backends.cpu.native.generated import ChainSource, loop
from gpubackprop.backends.cpu.native.layouts import Table, table
from gpubackprop.backends.cpu.native.lowering import Site, lowers

SERIAL = 1 << 13
"""Elements that are left to one thread."""


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
    """What a chain writes: a step's values (``how`` is ``"flat"``), or their sum over the rows
    (``"columns"``, one for each column), over the columns (``"rows"``) or over all (``"all"``)."""

    step: int
    how: str


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


def traced(steps: Sequence[Step], dtypes: Sequence[np.dtype]) -> tuple[list[Node], list[Any]]:
    """The expression of each step, and the numbers in them.

    Raises
    ------
    UnfitError
        A step cannot be compiled.
    """
    constants: list[Any] = []
    tracer = Tracer(constants)
    if any(d not in (FLOAT, BOOL, INT) for d in dtypes):
        raise UnfitError("a dtype that is not compiled")
    inputs = [Node("input", (i,), d) for i, d in enumerate(dtypes)]
    nodes: list[Node] = []

    def value(a: Any) -> Any:
        if isinstance(a, Operand):
            return inputs[a.place] if a.source == "input" else nodes[a.place]
        return a

    for step in steps:
        args = tuple(value(a) for a in step.args)
        found = expression(step.kernel, args, {k: value(v) for k, v in step.kwargs}, tracer)
        if not isinstance(found, Node):
            raise UnfitError(f"{step.kernel} of nothing")
        nodes.append(found)
    return nodes, constants


def lower_chain(
    site: Site, outs: Sequence[np.ndarray], inputs: Sequence[np.ndarray], chain: Chain
) -> list[Instruction] | None:
    """The instructions of a chain.

    Parameters
    ----------
    outs : one array per result.
    inputs : the arrays that ``Operand("input", k)`` stands for.

    Notes
    -----
    Sums over rows are taken in blocks of 32 rows, each part on its own rows (or, for wide tables,
    columns); their order depends on the number of threads.
    """
    rows, columns, kinds = chain.table
    try:
        nodes, constants = traced(chain.steps, [x.dtype for x in inputs])
    except UnfitError:
        return None
    for result, out in zip(chain.results, outs, strict=True):
        wanted = nodes[result.step].dtype
        if result.how == "all" and wanted in COUNTS:
            wanted = INT
        elif result.how != "flat" and wanted != FLOAT:
            return None
        if out.dtype != wanted:
            return None
    size = rows * columns
    parallel = size > SERIAL and site.parts > 1
    wide = rows < 2 * site.parts or columns >= 256 * site.parts
    if any(r.how == "rows" for r in chain.results):
        if wide and rows < 2 * site.parts:
            parallel = False
        wide = False
    used = site.parts if parallel else 1
    slots: list[Any] = [rows, columns, wide]
    after: list[Instruction] = []
    places: dict[Any, int] = {}

    def place(x: Any) -> int:
        key = x.ctypes.data if isinstance(x, np.ndarray) else object()
        if key not in places:
            places[key] = len(slots)
            slots.append(x)
        return places[key]

    arrays = [place(x) for x in inputs]
    targets = []
    for result, out in zip(chain.results, outs, strict=True):
        if result.how == "columns":
            block = site.scratch((used, columns))
            direct = used == 1 or wide
            total = out if direct else site.scratch((used, columns))
            targets.append((place(block), place(total)))
            slots.append(0 if direct else 4 * columns)
            if not direct:
                slots_of = [total, used, columns, out]
                after.append(Instruction(add_columns, slots_of, parallel=columns > 4096))
        elif result.how == "all":
            sums = site.scratch((used,), np.float64)
            targets.append((place(sums),))
            integer = out.dtype == INT
            after.append(Instruction(add_all, [sums, used, out, integer], parallel=False))
        else:
            targets.append((place(out),))
    numbers = []
    for value in constants:
        numbers.append((len(slots), isinstance(value, float)))
        slots.append(value)
    source = ChainSource(
        tuple((kind, x.dtype.char, at) for kind, x, at in zip(kinds, inputs, arrays, strict=True)),
        tuple(
            (nodes[r.step], r.how, out.dtype.char, at)
            for r, out, at in zip(chain.results, outs, targets, strict=True)
        ),
        tuple(numbers),
        rows == 1,
    )
    try:
        made = loop(source)
    except UnfitError:
        return None
    return [Instruction(made, slots, parallel=parallel), *after]


@lowers("chain", inplace=("inputs",))
def lower_chain_call(
    site: Site, outs: tuple[np.ndarray, ...], inputs: tuple[np.ndarray, ...], chain: Chain
) -> list[Instruction] | None:
    """A chain that the fusion pass has put together."""
    return lower_chain(site, outs, inputs, chain)


def single(kernel_name: str, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The chain of one recorded call, and its arrays: ``(chain, inputs)``; None where its arrays
    do not lie as a table."""
    inputs: list[Any] = []

    def taken(a: Any) -> Any:
        if hasattr(a, "strides") and hasattr(a, "dtype") and hasattr(a, "shape"):
            inputs.append(a)
            return Operand("input", len(inputs) - 1)
        return a

    step_args = tuple(taken(a) for a in args)
    step_kwargs = tuple((k, taken(v)) for k, v in kwargs.items())
    found = table(out, inputs)
    if found is None:
        return None
    step = Step(kernel_name, step_args, step_kwargs)
    return Chain(found, (step,), (Result(0, "flat"),)), inputs


_INPLACE = ("x", "x1", "x2", "dy", "y")


def _lower_single(kernel_name: str) -> Any:
    def lower(
        site: Site, outs: tuple[np.ndarray, ...], *args: Any, **kwargs: Any
    ) -> list[Instruction] | None:
        out = outs[0] if outs else args[0]
        if kernel_name == "copyto":
            args = args[1:]
            if not isinstance(args[0], np.ndarray) and hasattr(args[0], "live"):
                return None
            made = single(
                "copy" if isinstance(args[0], np.ndarray) else "copyto",
                out,
                args if isinstance(args[0], np.ndarray) else (None, *args),
                kwargs,
            )
        else:
            made = single(kernel_name, out, args, kwargs)
        if made is None:
            return None
        chain, inputs = made
        return lower_chain(site, (out,), inputs, chain)

    return lower


for _name in sorted(ELEMENTWISE):
    lowers(_name, inplace=_INPLACE)(_lower_single(_name))
