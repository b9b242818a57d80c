"""Kernels of the contract as NumPy says them with the fewest passes and no Python between.

Each function gives a thunk that writes the result to `out`, or None where it does not serve these
arrays: the backend's kernel runs then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpubackprop.backends.composites import HALVES
from gpubackprop.backends.cpu.fused import HALF, ONE
from gpubackprop.backends.live import LiveFloat, LiveInt

Thunk = Callable[[], Any]
SMALL = 65536
"""Updates of more parameters than this run in blocks, which threads share."""


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


def descent(
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
    place = lr.live if isinstance(lr, (LiveFloat, LiveInt)) else None
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
