"""Whether a product that takes others along is faster than the kernels that it replaces.

Both are timed as a compiled step runs them: results where they shall lie, the elementwise kernels
as a chain of their own with the sum that it can make on its way, everything captured into a graph,
so that it is the device that is timed and not Python. What was chosen is kept (``choices.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gpubackprop.backends.chains.chain import Chain, Operand, Result, Step, how_summed
from gpubackprop.backends.chains.layouts import COLUMNS, FLAT, table
from gpubackprop.backends.cuda.choices import MOST_CALLS, SPAN, Choice, Choices
from gpubackprop.backends.primitives import Array

JOINED, PARTS = "joined", "parts"
GAIN = 0.97
"""The parts must take less than this share of the time: else there is one launch fewer."""

Calls = list[tuple[str, Callable[[], Any]]]


def measured(
    K: Any, choices: Choices, call: str, kernel: str, args: Sequence[Any], outs: Sequence[Array]
) -> Choice | None:
    """The faster way of a call, timed now; None where a graph cannot be made for the moment.

    Parameters
    ----------
    K : the backend, whose current stream is not being captured.
    choices : what the choice is kept in, unless the parts cannot be captured: then it is good for
        this process.
    call : what it is kept by.
    kernel, args : what is called.
    outs : for its results, which are not None.
    """
    ways: dict[str, Calls] = {
        JOINED: [(kernel, partial(K.written_to, outs, getattr(K, f"_{kernel}"), *args))],
        PARTS: PARTS_OF[kernel](K, *args, outs=outs),
    }
    clock = K.clock()
    for calls in ways.values():
        _run(calls)  # finds plans and compiles, which no capture may
    once = clock.seconds(partial(_run, ways[PARTS]))
    runs = min(max(math.ceil(SPAN / max(once, 1e-9)), 1), MOST_CALLS)
    candidates: dict[str, Callable[[], Any]] = {}
    for name, calls in ways.items():
        graph = K.capture(calls * runs)
        if isinstance(graph, str):
            return None if name == JOINED else Choice(JOINED, {}, f"no graph of its parts: {graph}")
        candidates[name] = graph.launch
    return choices.measure(call, candidates, clock, K.lacks_memory, GAIN, runs)


def _run(calls: Calls) -> None:
    for _, call in calls:
        call()


# The kernels that are replaced, in order.
def _forwards(
    K: Any,
    x: Array,
    weight: Array,
    bias: Array | None,
    activation: str,
    keep: bool,
    outs: Sequence[Array],
) -> Calls:
    y, *kept = outs
    z = kept[0] if kept and activation != "relu" else y  # nobody else reads what relu is applied to
    product = partial(K.linear, x, weight, bias, out=z)
    return [("linear", product), ("chain", _chain(K, activation, [z], [y]))]


def _backwards(
    K: Any,
    x1: Array,
    x2: Array,
    value: Array,
    kept: Array | None,
    activation: str,
    summed: bool,
    outs: Sequence[Array],
) -> Calls:
    dz, *total = outs
    calls: Calls = [("matmul", partial(K.matmul, x1, x2, out=dz))]
    rows = tuple(range(dz.ndim - 1))
    found = how_summed(dz.shape, rows) if summed else None
    along = total if found is not None and found[0] == COLUMNS else []
    calls += [("chain", _chain(K, f"{activation}_backward", [dz, value], [dz, *along]))]
    if summed and not along:
        calls += [("sum", partial(K.sum, dz, axis=rows, out=total[0]))]
    return calls


def _row_sums(K: Any, x1: Array, x2: Array, outs: Sequence[Array]) -> Calls:
    y, sums = outs
    total = partial(K.sum, K.transpose(x1, (1, 0)), axis=0, out=sums)
    return [("matmul", partial(K.matmul, x1, x2, out=y)), ("sum", total)]


PARTS_OF: dict[str, Callable[..., Calls]] = {
    "linear_activation": _forwards,
    "matmul_activation_backward": _backwards,
    "matmul_row_sums": _row_sums,
}
"""What each kernel is made of: a function of the backend, the arguments and the results."""


def _chain(K: Any, kernel: str, inputs: list[Array], outs: list[Array]) -> Callable[[], None]:
    """An elementwise kernel over arrays without gaps, with the sums of its columns where there is
    a second result."""
    y = outs[0]
    lies = table(y, inputs)
    if len(outs) > 1 and lies is not None:
        lies = lies.split(y.shape[-1])
    assert lies is not None
    step = Step(kernel, tuple(Operand("input", i) for i in range(len(inputs))))
    results = tuple(Result(0, how) for how in (FLAT, COLUMNS)[: len(outs)])
    run = K.chain(inputs, Chain(lies, (step,), results), outs)
    assert run is not None, f"no chain of {kernel} for {y.dtype}"
    return run
