"""Chains of elementwise kernels, with reductions at their ends, as one pass over memory.

A chain is a list of steps over one table (``layouts.py``). To put one together from recorded calls:
each call must be ``eligible``; ``table(out, arrays)`` says how the arrays that come from outside
lie over the largest result, and ``Table.split`` gives it the rows and columns that a sum over the
first or the last axes needs. A step sees an element of each of its operands at each place of the
table, so a step whose own result is smaller is computed again wherever it repeats. Every ``"flat"``
result is dense, in one order of its axes. An array may be input and ``"flat"`` result at once where
its kind is ``"flat"``; no other result may lie over an input.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.chains.expressions import (
    COUNTS,
    FLOAT,
    INT,
    Node,
    Tracer,
    UnfitError,
    expression,
    is_float,
)
from gpubackprop.backends.chains.layouts import FLAT, Table, table
from gpubackprop.backends.composites import normalize_axes


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


def live_numbers(chain: Chain) -> dict[str, Any]:
    """The numbers of a chain that are read anew at each replay, by the names under which a call of
    it is given them: ``real0``, ``whole1``, ... in the order of the steps."""
    found: dict[tuple[int, type], Any] = {}
    for step in chain.steps:
        for value in (*step.args, *(v for _, v in step.kwargs)):
            if hasattr(value, "live"):
                found.setdefault((value.live, type(value)), value)
    return {
        f"{'real' if isinstance(value, float) else 'whole'}{k}": value
        for k, value in enumerate(found.values())
    }


def traced(
    steps: Sequence[Step],
    dtypes: Sequence[np.dtype],
    floats: Collection[np.dtype] = (FLOAT,),
) -> tuple[list[Node], list[tuple[Any, np.dtype]]]:
    """The expression of each step, and the numbers in them with the dtypes they are used as.

    Parameters
    ----------
    steps : of a chain.
    dtypes : of its inputs.
    floats : which of them are compiled, beside bool and int64.

    Raises
    ------
    UnfitError
        A step cannot be compiled.
    """
    constants: list[tuple[Any, np.dtype]] = []
    tracer = Tracer(constants, floats)
    if any(d not in tracer.dtypes for d in dtypes):
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


def eligible(
    kernel_name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    out: Any,
    floats: Collection[np.dtype] = (FLOAT,),
) -> bool:
    """Whether a recorded call can be a step of a chain, as far as dtypes and numbers go.

    Parameters
    ----------
    args, kwargs : the call's; arrays are anything with ``shape``, ``strides`` and ``dtype``.
    out : what it makes.
    floats : dtypes that are compiled, beside bool and int64.
    """
    inputs, step = _step(kernel_name, args, kwargs)
    try:
        nodes, _ = traced((step,), [x.dtype for x in inputs], floats)
    except UnfitError:
        return False
    return bool(nodes[0].dtype == out.dtype)


def result_dtype(result: Result, node: Node) -> np.dtype | None:
    """The dtype of the array that a result is written to; None where it cannot be computed: sums of
    counts are taken over everything or not at all, maxima of floats alone."""
    dtype = node.dtype
    if result.how == FLAT:
        return dtype
    if (result.op == "max" or result.how != "all") and not is_float(dtype):
        return None
    return INT if dtype in COUNTS else dtype


def how_summed(shape: tuple[int, ...], axis: Any) -> tuple[str, int, int] | None:
    """How a reduction of a C-contiguous array over axes is one of a table: ``(how, rows,
    columns)``; None where it is neither over the first axes nor over the last, or over none."""
    axes = set(normalize_axes(axis, len(shape)))
    kept = [i for i in range(len(shape)) if i not in axes and shape[i] != 1]
    summed = [i for i in axes if shape[i] != 1]
    size = math.prod(shape)
    if not size:
        return None
    if not kept:
        return "all", 1, size
    if not summed:
        return None
    if max(summed) < min(kept):
        columns = math.prod(shape[i] for i in kept)
        return "columns", size // columns, columns
    if min(summed) > max(kept):
        columns = math.prod(shape[i] for i in summed)
        return "rows", size // columns, columns
    return None


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
