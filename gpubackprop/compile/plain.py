"""A recorded call as a function of no arguments, with NumPy or CuPy writing into planned memory.

What costs on a CPU is Python between the array library's loops and memory that is asked for anew.
So the arrays are bound here, once, results are written where the plan wants them, and views cost
nothing. What NumPy cannot be told in fewer words (``spellings.py``) runs the backend's kernel,
which is told where its results shall lie (``written_to`` of the backend).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.backends.live import LiveFloat, LiveInt
from gpubackprop.backends.precision import STATE
from gpubackprop.backends.primitives import Primitives
from gpubackprop.compile.plan import Memory
from gpubackprop.compile.spellings import SPELLINGS, Thunk, descent
from gpubackprop.compile.trace import Call, replaced

LIVE = (LiveFloat, LiveInt)
SUMS = frozenset({*Primitives.__annotations__, "addmm"})
"""Kernels that may write their result over an argument with the same elements."""


class UnfusedError(Exception):
    """A fused call has no kernel for its arrays."""


def thunk(call: Call, memory: Memory, backend: Backend, numbers: list[float | int]) -> Thunk | None:
    """What runs a call again; None where nothing is left to do.

    A call that was made in a block of another precision than that around the step is so again.

    Parameters
    ----------
    numbers : the live numbers, as they are when the thunk runs.

    Raises
    ------
    UnfusedError
        It is a chain that the backend has no kernel for.
    """
    made = _thunk(call, memory, backend, numbers)
    if made is None or not backend.has_tf32 or call.precision == backend.precision:
        return made
    return partial(_in_precision, call.precision, made)


def _in_precision(name: str, run: Thunk) -> None:
    before, STATE.products = STATE.products, name
    try:
        run()
    finally:
        STATE.products = before


def _thunk(
    call: Call, memory: Memory, backend: Backend, numbers: list[float | int]
) -> Thunk | None:
    view = memory.view
    args = tuple(replaced(a, view) for a in call.args)
    kwargs = {k: replaced(a, view) for k, a in call.kwargs.items()}
    outs = tuple(view(r) for r in call.outs)
    if call.kernel == "copyto" and call.args[1] is not None and _same(call):
        return None
    if call.kernel == "chain":
        inputs, chain = args
        return _chain(backend.chain(inputs, chain, outs), list(kwargs.values()), numbers)
    lives = [a for a in (*args, *kwargs.values()) if isinstance(a, LIVE)]
    # A result in the memory of an argument: only a single loop of NumPy's may write it there.
    over = any(memory.meet(r, x) for r in call.outs for x in call.reads)
    if backend.name == "numpy" and not lives and outs:
        spelled = None if over else SPELLINGS.get(call.kernel)
        if spelled is not None and not kwargs.keys() - {"axis", "keepdims"}:
            made = spelled(outs[0], *args, **kwargs)
            if made is not None:
                return made
        kernel = getattr(backend, call.kernel)
        if isinstance(kernel, np.ufunc) and not kwargs:
            if call.kernel in ("maximum", "minimum"):  # NumPy asks for their `out` by name
                return partial(kernel, *args, out=outs[0])
            return partial(kernel, *args, outs[0])
    if call.kernel in ("copy", "copyto"):
        target, source = args if call.kernel == "copyto" else (outs[0], args[0])
        return partial(_copyto(backend), target, source)
    kernel = getattr(backend, call.kernel)
    if not outs:
        if call.kernel == "sgd_update" and backend.name == "numpy":
            made = descent(numbers, *args, **kwargs)
            if made is not None:
                return made
        return (
            _written(kernel, args, kwargs, numbers) if lives else partial(kernel, *args, **kwargs)
        )
    if len(outs) == 1 and not lives and _takes_out(backend, call.kernel):
        # A sum in place reads an element before it writes it.
        inplace = call.kernel in SUMS and all(
            r.same(x) or not memory.meet(r, x) for r in call.outs for x in call.reads
        )
        if inplace or not over:
            return partial(kernel, *args, **kwargs, out=outs[0])
    return _filled(backend, kernel, args, kwargs, outs, numbers, over)


def _takes_out(backend: Backend, kernel: str) -> bool:
    """Whether a kernel of a backend writes its result where `out` says."""
    if backend.name == "numpy":  # it has ways of its own, above; but for this one
        return kernel == "addmm"
    if kernel in Primitives.__annotations__:
        return True
    return "out" in inspect.signature(getattr(type(backend), kernel)).parameters


def _chain(run: Any, values: list[Any], numbers: list[float | int]) -> Thunk:
    """A chain with the numbers that it is given at each run."""
    if run is None:
        raise UnfusedError("chain")
    if not values:
        return run
    if not any(isinstance(v, LIVE) for v in values):  # on the device, or as they are now
        return partial(run, values)
    return lambda: run(_now(values, numbers))


def _same(call: Call) -> bool:
    target, source = call.args[:2]
    return hasattr(source, "same") and target.same(source)


def _copyto(backend: Backend) -> Callable[[Any, Any], None]:
    return np.copyto if backend.name == "numpy" else backend.copyto


def _now(values: Any, numbers: list[float | int]) -> Any:
    return [numbers[v.live] if isinstance(v, LIVE) else v for v in values]


def _written(kernel: Any, args: Any, kwargs: Any, numbers: list[float | int]) -> Thunk:
    """A kernel that writes its arguments, given the live numbers."""
    places = [i for i, a in enumerate(args) if isinstance(a, LIVE)]
    names = [(k, a.live) for k, a in kwargs.items() if isinstance(a, LIVE)]
    if places:
        return lambda: kernel(
            *_now(args, numbers), **dict(kwargs, **{k: numbers[i] for k, i in names})
        )

    def run() -> None:
        for name, i in names:
            kwargs[name] = numbers[i]
        kernel(*args, **kwargs)

    return run


def _filled(
    backend: Backend,
    kernel: Any,
    args: Any,
    kwargs: Any,
    outs: Any,
    numbers: list[float | int],
    over: bool,
) -> Thunk:
    """A kernel whose results go to `outs`; where these lie over an argument, at the end."""
    live = any(isinstance(a, LIVE) for a in (*args, *kwargs.values()))

    def given() -> tuple[list[Any], dict[str, Any]]:
        if not live:
            return args, kwargs
        return _now(args, numbers), dict(zip(kwargs, _now(kwargs.values(), numbers), strict=True))

    if not over:

        def run() -> None:
            now, named = given()
            backend.written_to(outs, kernel, *now, **named)

        return run

    def copied() -> None:
        now, named = given()
        found = kernel(*now, **named)
        several = found if isinstance(found, (tuple, list)) else (found,)
        for out, value in zip(outs, [v for v in several if v is not None], strict=True):
            backend.copyto(out, value)

    return copied
