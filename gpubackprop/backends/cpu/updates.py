"""Adam on NumPy arrays: what its definition says, operation by operation, without a temporary for
each. And the norm of a gradient, a block at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.primitives import Array
from gpubackprop.backends.updates import Flag, Scalar, Updates

FAST = (np.dtype(np.float32), np.dtype(np.float64))
BLOCK = 65536
"""Elements of a gradient that are squared at once, so that their copy in float64 stays in cache."""


def adam_update(
    self: Updates,
    param: Array,
    grad: Array,
    mean: Array,
    mean_square: Array,
    *,
    lr: Scalar,
    step: Scalar,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    scale: Scalar | None = None,
    skip: Flag | None = None,
) -> None:
    """See :meth:`gpubackprop.backends.updates.Updates.adam_update`; each bit is the same."""
    dtype = param.dtype
    if dtype not in FAST or not grad.dtype == mean.dtype == mean_square.dtype == dtype:
        options: dict[str, Any] = {"weight_decay": weight_decay, "decoupled": decoupled}
        options |= {"lr": lr, "step": step, "beta1": beta1, "beta2": beta2, "eps": eps}
        options |= {"scale": scale, "skip": skip}
        return Updates.adam_update(self, param, grad, mean, mean_square, **options)
    if skip is not None and skip:
        return None
    lr, step = float(lr), float(step)
    factors = (beta1, 1.0 - beta1, beta2, 1.0 - beta2, (1.0 - beta2**step) ** -0.5, eps)
    # A ufunc takes less time with an array than with a Python number.
    keep1, take1, keep2, take2, spread, least = (np.array(f, dtype) for f in factors)
    work = np.empty(param.shape, dtype)
    grad = self._gradient(grad, scale)
    if weight_decay and decoupled:
        np.multiply(param, 1.0 - lr * weight_decay, param)
    elif weight_decay:
        grad = np.add(grad, np.multiply(param, weight_decay, work))
    np.multiply(grad, take1, work)
    np.multiply(mean, keep1, mean)
    np.add(mean, work, mean)
    np.square(grad, work)
    np.multiply(work, take2, work)
    np.multiply(mean_square, keep2, mean_square)
    np.add(mean_square, work, mean_square)
    np.sqrt(mean_square, work)
    np.multiply(work, spread, work)
    np.add(work, least, work)
    np.divide(mean, work, work)
    np.multiply(work, lr / (1.0 - beta1**step), work)
    np.subtract(param, work, param)
    return None


def square_norm(self: Updates, grad: Array) -> tuple[Array, Array]:
    """See :meth:`gpubackprop.backends.updates.Updates.square_norm`."""
    flat = grad.reshape(-1)
    total, finite = np.float64(0.0), True
    for start in range(0, flat.size, BLOCK):
        part = flat[start : start + BLOCK]
        wide = part.astype(np.float64)
        squares = np.dot(wide, wide)
        # A sum of squares in float64 is finite where all of fewer digits are; of float64 itself
        # it may overflow.
        finite = finite and bool(np.isfinite(squares) or np.isfinite(part).all())
        total += squares
    return total, np.bool_(not finite)
