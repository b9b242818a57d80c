"""Chains (``backends/chains/``) as native loops.

A loop is written as a small Python function in the cache folder (``generated.py``) and compiled
from there; sizes, addresses and numbers are in the frame, so one compiled loop serves every place
where the same chain occurs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.backends.chains.chain import Chain, result_dtype, single, traced
from gpubackprop.backends.chains.expressions import (
    BOOL,
    ELEMENTWISE,
    FLOAT,
    INT,
    Node,
    UnfitError,
)
from gpubackprop.backends.chains.layouts import FLAT
from gpubackprop.backends.cpu.native.abi import doubles, floats, kernel, longs, share
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.expressions import cost
from gpubackprop.backends.cpu.native.generated import ChainSource, Input, Output, loop
from gpubackprop.backends.cpu.native.lowering import Site, lowers
from gpubackprop.backends.cpu.native.mathematics import INFINITY, larger

SERIAL = 2000.0
"""Work that is left to one thread, in nanoseconds."""
WIDE = 4096
"""Rows are cut between threads where each gets as many columns. Shorter pieces of a row are read
ahead beyond their end, where another core is writing."""


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


def _writable(chain: Chain, nodes: Sequence[Node], outs: Sequence[np.ndarray]) -> bool:
    """Whether the results can be computed, and have the dtypes of their arrays."""
    for result, out in zip(chain.results, outs, strict=True):
        wanted = result_dtype(result, nodes[result.step])
        if wanted is None or out.dtype not in (FLOAT, BOOL, INT):
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
            # Beside an operand that repeats in another way, the same elements are a view.
            alike = kind == FLAT or (x.shape, x.strides) == (out.shape, out.strides)
            same = (
                alike and result.how == FLAT and x.ctypes.data == low and x.itemsize == out.itemsize
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
    site: Site,
    outs: tuple[np.ndarray, ...],
    inputs: tuple[np.ndarray, ...],
    chain: Chain,
    **numbers: Any,
) -> list[Instruction] | None:
    """A chain that the fusion pass has put together; its live numbers are among its steps."""
    return lower_chain(site, outs, inputs, chain)


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
