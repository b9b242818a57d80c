"""Composite kernels on NumPy arrays: what their definitions say, with fewer calls and fewer passes
over memory.

The fast paths are for float32 and float64 arrays, whose results fit the memory of a temporary
already at hand; all else runs the definition. Calls are spelled for small arrays too: a ufunc takes
half a microsecond less when a constant is an array without axes instead of a Python number and
``out`` is positional, and as much when a reduction is the ufunc's own method.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.composites import HALVES, is_half
from gpubackprop.backends.cpu import gelu, logits, rows, shared
from gpubackprop.backends.primitives import Array


def _constant(value: float) -> dict[np.dtype, np.ndarray]:
    table = {np.dtype(t): np.array(value, t) for t in (np.float32, np.float64)}
    for array in table.values():
        array.flags.writeable = False
    return table


ZERO, HALF, ONE = _constant(0.0), _constant(0.5), _constant(1.0)

# From this many elements on, the kernels of ``shared.py`` and ``sum_of_rows`` are faster.
MANY = 8192
# Elements of the rows that are added up together, at most.
WIDE = 2048

# Any: NumPy's stubs know `out` and `keepdims` by name only.
add_over: Any = np.add.reduce
max_over: Any = np.maximum.reduce
min_over: Any = np.minimum.reduce
UNSIGNED = {np.dtype(f"i{n}"): np.dtype(f"u{n}") for n in (1, 2, 4, 8)}


class FusedKernels(ArrayBackend):
    """Overrides of composite kernels, for arrays of NumPy."""

    # Products.
    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        if bias is not None and x.dtype.char in HALVES and x.dtype == weight.dtype == bias.dtype:
            wide = (a.astype(np.float32) for a in (x, weight, bias))
            return self.linear(*wide).astype(x.dtype)  # the bias is added before the rounding
        y = self.matmul(x, weight.T)
        if bias is None:
            return y
        return np.add(y, bias, y) if bias.dtype == y.dtype and y.shape else y + bias

    # Activations.
    def sigmoid(self, x: Array) -> Array:
        half = HALF.get(x.dtype)
        if half is None or not x.shape:
            return super().sigmoid(x)
        y = np.multiply(x, half, shared.result_like(x))
        np.tanh(y, y)
        np.add(y, ONE[x.dtype], y)
        return np.multiply(y, half, y)

    def sigmoid_backward(self, dy: Array, y: Array) -> Array:
        one = ONE.get(y.dtype)
        if one is None or not y.shape or dy.shape != y.shape or dy.dtype != y.dtype:
            return super().sigmoid_backward(dy, y)
        slope = np.subtract(one, y, shared.result_like(y))
        np.multiply(slope, y, slope)
        return np.multiply(slope, dy, slope)

    def tanh_backward(self, dy: Array, y: Array) -> Array:
        one = ONE.get(y.dtype)
        if one is None or not y.shape or dy.shape != y.shape or dy.dtype != y.dtype:
            return super().tanh_backward(dy, y)
        slope = np.square(y, shared.result_like(y))
        np.subtract(one, slope, slope)
        return np.multiply(slope, dy, slope)

    def relu(self, x: Array) -> Array:
        zero = ZERO.get(x.dtype)
        y = shared.relu(x) if zero is not None and x.size >= MANY else None
        return np.maximum(x, 0 if zero is None else zero) if y is None else y

    def relu_backward(self, dy: Array, y: Array) -> Array:
        zero = ZERO.get(y.dtype)
        if zero is not None and y.size >= MANY and dy.shape == y.shape and dy.dtype == y.dtype:
            dx = shared.relu_backward(dy, y, zero)
            if dx is not None:
                return dx
        return self.where(np.greater(y, 0 if zero is None else zero), dy, 0.0)

    def gelu(self, x: Array) -> Array:
        if x.dtype != np.float32 or not x.shape:
            return super().gelu(x)
        return gelu.gelu(x, super().gelu)

    def gelu_backward(self, dy: Array, x: Array) -> Array:
        if x.dtype != np.float32 or dy.dtype != x.dtype or dy.shape != x.shape or not x.shape:
            return super().gelu_backward(dy, x)
        return gelu.gelu_backward(dy, x, super().gelu_backward)

    # Softmax family.
    def softmax(self, x: Array, axis: int = -1) -> Array:
        if x.dtype not in ONE or not x.shape:
            return super().softmax(x, axis)
        y = np.subtract(x, max_over(x, axis, None, None, True), shared.result_like(x))
        np.exp(y, y)
        return np.divide(y, add_over(y, axis, None, None, True), y)

    def softmax_backward(self, dy: Array, y: Array, axis: int = -1) -> Array:
        if y.dtype not in ONE or not y.shape or dy.dtype != y.dtype:
            return super().softmax_backward(dy, y, axis)
        dx = np.multiply(dy, y)
        inner = add_over(dx, axis, None, None, True)
        return np.subtract(dx, np.multiply(y, inner), dx)

    def log_softmax(self, x: Array, axis: int = -1) -> Array:
        if x.dtype not in ONE or not x.shape:
            return super().log_softmax(x, axis)
        if x.ndim == 2 and axis in (1, -1) and logits.is_narrow(x):
            y = x.T.copy()
            np.subtract(y, max_over(y, 0), y)
            total = add_over(np.exp(y), 0)
            np.log(total, total)
            return np.subtract(y, total, y).T.copy()
        y = np.subtract(x, max_over(x, axis, None, None, True), shared.result_like(x))
        total = add_over(np.exp(y), axis, None, None, True)
        np.log(total, total)
        return np.subtract(y, total, y)

    def log_softmax_backward(self, dy: Array, y: Array, axis: int = -1) -> Array:
        if y.dtype not in ONE or not y.shape or dy.dtype != y.dtype:
            return super().log_softmax_backward(dy, y, axis)
        dx = np.exp(y)
        np.multiply(dx, add_over(dy, axis, None, None, True), dx)
        return np.subtract(dy, dx, dx)

    def softmax_cross_entropy(
        self,
        x: Array,
        target: Array,
        weight: Array | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> tuple[Array, Array, Array]:
        label, ignored = checked_labels(target, x.shape[1], ignore_index)
        if weight is not None or label_smoothing or not _is_float(x):
            return super().softmax_cross_entropy(x, target, weight, ignore_index, label_smoothing)
        top, total = logits.spread(x)
        own = self._wide(x.reshape(-1)[logits.places(label, x.shape[1])])
        loss = np.subtract(np.log(total), np.subtract(own, top, own), own)
        if ignored is not None:
            loss[ignored] = 0.0
        return loss, top, total

    def softmax_cross_entropy_backward(
        self,
        dy: Array,
        x: Array,
        top: Array,
        total: Array,
        target: Array,
        weight: Array | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> Array:
        fast = _is_float(x) and all(a.dtype == top.dtype for a in (dy, total))
        if weight is not None or label_smoothing or not fast:
            return super().softmax_cross_entropy_backward(
                dy, x, top, total, target, weight, ignore_index, label_smoothing
            )
        label, ignored = checked_labels(target, x.shape[1], ignore_index)
        dx = shared.result(x.shape, x.dtype)
        logits.cotangents(dy, x, top, total, label, dx)
        if ignored is not None:
            dx[ignored] = 0.0
        return dx

    # Normalisation.
    def layer_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        axes: int,
        eps: float,
        dtype: Any = None,
    ) -> tuple[Array, Array, Array]:
        if dtype is not None or not all_like(x, weight, bias):
            return super().layer_norm(x, weight, bias, axes, eps, dtype)
        if x.size >= MANY and rows.of_features(x, axes, weight, bias):
            return rows.normalised(x, weight, bias, axes, eps, True)
        over = tuple(range(x.ndim - axes, x.ndim))
        n = self.count(x.shape, over)
        mean = add_over(x, over, None, None, True)
        np.divide(mean, n, mean)
        y = np.subtract(x, mean)
        rstd = add_over(np.square(y), over, None, None, True)
        np.divide(rstd, n, rstd)
        np.add(rstd, eps, rstd)
        np.sqrt(rstd, rstd)
        np.reciprocal(rstd, rstd)
        np.multiply(y, rstd, y)
        if weight is not None:
            np.multiply(y, weight, y)
        if bias is not None:
            np.add(y, bias, y)
        return y, mean, rstd

    def layer_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, axes: int
    ) -> tuple[Array, Array, Array]:
        if not all_like(x, weight, dy):
            return super().layer_norm_backward(dy, x, weight, mean, rstd, axes)
        if x.size >= MANY and dy.shape == x.shape and rows.of_features(x, axes, weight):
            dx, *sums = rows.cotangents(dy, x, weight, mean, rstd, axes)
            return dx, sums[0], sums[1]
        over = tuple(range(x.ndim - axes, x.ndim))
        n = self.count(x.shape, over)
        xhat = np.subtract(x, mean)
        np.multiply(xhat, rstd, xhat)
        product = np.multiply(dy, xhat)
        lead = tuple(range(x.ndim - axes))
        dw = add_over(product, lead) if lead else product.copy()
        db = add_over(dy, lead) if lead else dy.copy()
        if weight is None:
            g = dy
        else:
            g = np.multiply(dy, weight)
            np.multiply(product, weight, product)
        slope = add_over(product, over, None, None, True)
        np.divide(slope, n, slope)
        np.multiply(xhat, slope, xhat)
        offset = add_over(g, over, None, None, True)
        np.divide(offset, n, offset)
        np.add(xhat, offset, xhat)
        dx = np.subtract(g, xhat, xhat)
        return np.multiply(dx, rstd, dx), dw, db


def all_like(x: np.ndarray, *others: Any) -> bool:
    """Whether `x` is an array that the fast paths are for, and the others share its dtype."""
    return x.dtype in ONE and all(a is None or a.dtype == x.dtype for a in others) and x.ndim > 0


def _is_float(x: np.ndarray) -> bool:
    """Whether an array is of floats as the processor has them, or of half precision."""
    return x.dtype in ONE or is_half(x)


def sum_of_rows(rows: np.ndarray) -> np.ndarray:
    """Sum over the first axis of a C-contiguous matrix (n, columns).

    NumPy is slow where it adds short rows, so k neighbours are added as one long row first, and
    then the k rows of that sum. It also keeps digits: each sum is a shorter one.
    """
    n, columns = rows.shape
    k = max(min(WIDE // columns, math.isqrt(n)), 1)
    whole = n - n % k
    total = add_over(add_over(rows[:whole].reshape(-1, k * columns), 0).reshape(k, columns), 0)
    return np.add(total, add_over(rows[whole:], 0), total) if whole < n else total


def leading(axis: Any) -> int:
    """How many axes `axis` stands for, if they are the first ones; otherwise 0."""
    if isinstance(axis, tuple):
        return len(axis) if axis == tuple(range(len(axis))) else 0
    return int(axis == 0)


def all_classes(target: np.ndarray, classes: int) -> bool:
    """Whether every label is a class. Seen as unsigned, a negative number is larger than any."""
    if not target.size:
        return True
    return bool(max_over(target.view(UNSIGNED.get(target.dtype, target.dtype))) < classes)


def checked_labels(
    target: np.ndarray, classes: int, ignore_index: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels with a class in place of `ignore_index`, and which of them that was; None where it was
    none. A label that is neither raises IndexError, naming row and value."""
    every = all_classes(target, classes)
    if every and not 0 <= ignore_index < classes:
        return target, None
    ignored = target == ignore_index
    wrong = None if every else ((target < 0) | (target >= classes)) & ~ignored
    if wrong is not None and wrong.any():
        row = int(wrong.argmax())
        raise IndexError(
            f"target[{row}] = {target[row]} is not a class index in [0, {classes}) "
            f"nor ignore_index={ignore_index}"
        )
    return np.where(ignored, 0, target), ignored
