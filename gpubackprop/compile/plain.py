"""A recorded call as a function of no arguments, with NumPy or CuPy writing into planned memory.

What costs on a CPU is Python between the array library's loops and memory that is asked for anew.
So the arrays are bound here, once, results are written where the plan wants them, and views cost
nothing. What has no spelling of its own below runs the backend's kernel, which is told where its
results shall lie (``written_to`` of the backend).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpubackprop.backends import Backend
from gpubackprop.backends.composites import HALVES
from gpubackprop.backends.cpu.fused import HALF, ONE
from gpubackprop.backends.live import LiveFloat, LiveInt
from gpubackprop.backends.precision import STATE
from gpubackprop.backends.primitives import Primitives
from gpubackprop.compile.plan import Memory
from gpubackprop.compile.trace import Call, replaced

Thunk = Callable[[], Any]
LIVE = (LiveFloat, LiveInt)
SUMS = frozenset({*Primitives.__annotations__, "addmm"})
"""Kernels that may write their result over an argument with the same elements."""
SMALL = 65536
"""Updates of more parameters than this run in blocks, which threads share."""


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
            made = _descent(numbers, *args, **kwargs)
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


# Spellings for NumPy: each gives a thunk, or None where it does not serve.


def _matmul(out: Any, x1: Any, x2: Any) -> Thunk | None:
    if out.dtype.char in HALVES:
        return None
    if x1.dtype != out.dtype or x2.dtype != out.dtype or not out.flags.c_contiguous:
        return None
    if x2.ndim == 2 and x1.ndim == 2:
        return partial(np.dot, x1, x2, out)
    if x2.ndim == 2 and x1.ndim > 2 and x1.size and out.size and x1.flags.c_contiguous:
        rows = x1.reshape(-1, x1.shape[-1])
        return partial(np.dot, rows, x2, out.reshape(-1, out.shape[-1]))
    if x1.ndim == x2.ndim == 1:
        return partial(np.dot, x1, x2, out)
    return partial(np.matmul, x1, x2, out)


def _linear(out: Any, x: Any, weight: Any, bias: Any = None) -> Thunk | None:
    if not x.shape or not out.flags.c_contiguous:
        return None
    product = _matmul(out, x, weight.T)
    if product is None or bias is None:
        return product
    if bias.dtype != out.dtype:
        return None
    add = partial(np.add, out, bias, out)

    def run() -> None:
        product()
        add()

    return run


def _sum(out: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Thunk | None:
    if x.dtype.char == "?" and axis is None and out.dtype == np.int64:
        count = np.count_nonzero
        return lambda: out.fill(count(x))
    if x.dtype != out.dtype or x.dtype.char in HALVES:
        return None
    lead = _leading(axis, x.ndim)
    if lead and x.size >= 8192 and x.dtype in (np.float32, np.float64) and x.flags.c_contiguous:
        # A product with ones adds rows up several times as fast as a reduction.
        rows = x.reshape(-1, max(x.size // max(int(np.prod(x.shape[:lead])), 1), 1))
        if out.flags.c_contiguous and rows.shape[1] == out.size:
            return partial(np.dot, np.ones(len(rows), x.dtype), rows, out.reshape(-1))
    return partial(np.add.reduce, x, axis, None, out, keepdims)


def _leading(axis: Any, ndim: int) -> int:
    axes = (axis,) if isinstance(axis, int) else axis
    if axes is None or tuple(axes) != tuple(range(len(axes))) or len(axes) >= ndim:
        return 0
    return len(axes)


def _sum_to(out: Any, x: Any, shape: Any) -> Thunk | None:
    lead = x.ndim - len(shape)
    if lead <= 0 or x.shape[lead:] != tuple(shape):
        return None
    return _sum(out, x, tuple(range(lead)))


def _sigmoid(out: Any, x: Any) -> Thunk | None:
    if x.dtype not in HALF or x.dtype != out.dtype or not x.shape:
        return None
    half, one = HALF[x.dtype], ONE[x.dtype]
    multiply, tanh, add = np.multiply, np.tanh, np.add

    def run() -> None:
        multiply(x, half, out)
        tanh(out, out)
        add(out, one, out)
        multiply(out, half, out)

    return run


def _sigmoid_backward(out: Any, dy: Any, y: Any) -> Thunk | None:
    if y.dtype not in ONE or not (y.dtype == dy.dtype == out.dtype) or dy.shape != y.shape:
        return None
    one, subtract, multiply = ONE[y.dtype], np.subtract, np.multiply

    def run() -> None:
        subtract(one, y, out)
        multiply(out, y, out)
        multiply(out, dy, out)

    return run


def _descent(
    numbers: list[float | int],
    param: Any,
    grad: Any,
    velocity: Any = None,
    *,
    lr: Any,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    scale: Any = None,
    skip: Any = None,
    **rest: Any,
) -> Thunk | None:
    """``sgd_update`` of few parameters without momentum: two passes."""
    if scale is not None or skip is not None:
        return None
    if momentum or weight_decay or param.size > SMALL or not param.dtype == grad.dtype:
        return None
    if param.dtype not in ONE:
        return None
    work, rate = np.empty(param.shape, param.dtype), np.array(float(lr), param.dtype)
    place = lr.live if isinstance(lr, LIVE) else None
    multiply, subtract = np.multiply, np.subtract

    def run() -> None:
        if place is not None:
            rate.fill(numbers[place])
        multiply(grad, rate, work)
        subtract(param, work, param)

    return run


def _concatenate(out: Any, arrays: Any, axis: int = 0) -> Thunk:
    return partial(np.concatenate, arrays, axis, out)


def _astype(out: Any, x: Any, dtype: Any) -> Thunk:
    return partial(np.copyto, out, x, "unsafe")


SPELLINGS: dict[str, Callable[..., Thunk | None]] = {
    "matmul": _matmul,
    "linear": _linear,
    "sum": _sum,
    "sum_to": _sum_to,
    "sigmoid": _sigmoid,
    "sigmoid_backward": _sigmoid_backward,
    "concatenate": _concatenate,
    "astype": _astype,
}
