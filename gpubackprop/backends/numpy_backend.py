"""The NumPy backend: the reference that gives every kernel its meaning, on a CPU.

The primitives come from NumPy. The overrides below compute what the composite definitions say with
fewer passes over memory; the parity suite holds each against its definition.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends import philox, special
from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.base import Numerics
from gpubackprop.backends.primitives import Array
from gpubackprop.backends.updates import Updates

# Optimizer updates run over slices of this many elements: eight float32 temporaries of 64 KiB each
# stay in a core's L2 cache.
UPDATE_BLOCK = 16384


def in_blocks(update: Callable[..., None]) -> Callable[..., None]:
    """`update`, an elementwise kernel over flat arrays, run over cache-sized slices of them."""

    @functools.wraps(update)
    def blocked(self: NumPyBackend, *arrays: Array | None, **options: Any) -> None:
        size = arrays[0].size  # type: ignore[union-attr]
        for start in range(0, size, UPDATE_BLOCK):
            part = slice(start, start + UPDATE_BLOCK)
            update(self, *(None if a is None else a[part] for a in arrays), **options)

    return blocked


class NumPyBackend(ArrayBackend):
    """Kernels on ``numpy.ndarray``."""

    def __init__(self, numerics: Numerics = "deterministic") -> None:
        super().__init__(np, "numpy", "cpu", numerics)

    def to_numpy(self, x: Array) -> np.ndarray:
        return x

    def first_outside(
        self, x: Array, low: float, high: float
    ) -> tuple[tuple[int, ...], float] | None:
        if not x.size or (x.min() >= low and x.max() <= high):
            return None
        wrong = np.logical_not((x >= low) & (x <= high))
        at = np.unravel_index(int(wrong.argmax()), x.shape)
        return tuple(int(i) for i in at), x[at].item()

    def erf(self, x: Array, out: Array | None = None) -> Array:
        result = special.erf(x)
        return result if out is None else self._fill(out, result)

    def random_bits(self, seed: int, stream: int, offset: int, n: int) -> Array:
        return philox.random_bits(seed, stream, offset, n)

    def scatter_take(self, dy: Array, indices: Array, axis: int, size: int) -> Array:
        # Sorting brings equal indices together, and one reduceat sums each group in the order of
        # appearance: several times faster than add.at for rows, and the order of every sum is
        # fixed.
        axis %= dy.ndim - indices.ndim + 1
        lead = dy.shape[:axis]
        rows = dy.reshape(lead + (indices.size,) + dy.shape[axis + indices.ndim :])
        result = np.zeros(lead + (size,) + rows.shape[axis + 1 :], dy.dtype)
        flat = indices.reshape(-1)
        if not flat.size:
            return result
        if flat.min() < -size or flat.max() >= size:
            raise IndexError(f"index out of range for an axis of length {size}")
        flat = np.where(flat < 0, flat + size, flat)
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        starts = np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1))
        before = (slice(None),) * axis
        sums = np.add.reduceat(rows[before + (order,)], starts, axis=axis)
        result[before + (ordered[starts],)] = sums
        return result

    # Fused versions of composite kernels.
    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        y = np.matmul(x, weight.T)
        if bias is not None:
            if y.dtype == np.result_type(y, bias):
                y += bias
            else:
                y = y + bias
        return y

    def sigmoid(self, x: Array) -> Array:
        y = np.tanh(np.multiply(x, 0.5))
        y = np.add(y, 1.0, out=y) if isinstance(y, np.ndarray) else y + 1.0
        return np.multiply(y, 0.5, out=y) if isinstance(y, np.ndarray) else y * y.dtype.type(0.5)

    def softmax(self, x: Array, axis: int = -1) -> Array:
        y = np.asarray(x - x.max(axis=axis, keepdims=True))
        np.exp(y, out=y)
        y /= y.sum(axis=axis, keepdims=True)
        return y

    def softmax_backward(self, dy: Array, y: Array, axis: int = -1) -> Array:
        product = np.asarray(dy * y)
        product -= y * product.sum(axis=axis, keepdims=True)
        return product

    def log_softmax(self, x: Array, axis: int = -1) -> Array:
        y = np.asarray(x - x.max(axis=axis, keepdims=True))
        y -= np.log(np.exp(y).sum(axis=axis, keepdims=True))
        return y

    def softmax_cross_entropy(
        self,
        x: Array,
        target: Array,
        weight: Array | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> tuple[Array, Array]:
        check_labels(target, x.shape[1], ignore_index)
        if weight is not None or label_smoothing:
            return super().softmax_cross_entropy(x, target, weight, ignore_index, label_smoothing)
        logp = self.log_softmax(x, axis=1)
        ignored = target == ignore_index
        loss = -logp[np.arange(len(target)), np.where(ignored, 0, target)]
        loss[ignored] = 0.0
        return loss, logp

    def softmax_cross_entropy_backward(
        self,
        dy: Array,
        log_probabilities: Array,
        target: Array,
        weight: Array | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> Array:
        if weight is not None or label_smoothing:
            return super().softmax_cross_entropy_backward(
                dy, log_probabilities, target, weight, ignore_index, label_smoothing
            )
        ignored = target == ignore_index
        dx = np.exp(log_probabilities)
        dx[np.arange(len(target)), np.where(ignored, 0, target)] -= 1.0
        dx *= np.where(ignored, dx.dtype.type(0), dy)[:, None]
        return dx

    sgd_update = in_blocks(Updates.sgd_update)
    adagrad_update = in_blocks(Updates.adagrad_update)
    rmsprop_update = in_blocks(Updates.rmsprop_update)
    adam_update = in_blocks(Updates.adam_update)


def check_labels(target: np.ndarray, classes: int, ignore_index: int) -> None:
    """Raise IndexError, naming row and value, where a label is neither a class nor
    `ignore_index`."""
    wrong = (target < 0) | (target >= classes)
    if wrong.any() and (wrong := wrong & (target != ignore_index)).any():
        row = int(wrong.argmax())
        raise IndexError(
            f"target[{row}] = {target[row]} is not a class index in [0, {classes}) "
            f"nor ignore_index={ignore_index}"
        )
