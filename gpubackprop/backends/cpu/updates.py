"""Adam on NumPy arrays: what its definition says, operation by operation, without a temporary for
each."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.primitives import Array
from gpubackprop.backends.updates import Scalar, Updates

FAST = (np.dtype(np.float32), np.dtype(np.float64))


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
) -> None:
    """See :meth:`gpubackprop.backends.updates.Updates.adam_update`; each bit is the same."""
    dtype = param.dtype
    if dtype not in FAST or not grad.dtype == mean.dtype == mean_square.dtype == dtype:
        options: dict[str, Any] = {"weight_decay": weight_decay, "decoupled": decoupled}
        options |= {"lr": lr, "step": step, "beta1": beta1, "beta2": beta2, "eps": eps}
        return Updates.adam_update(self, param, grad, mean, mean_square, **options)
    lr, step = float(lr), float(step)
    factors = (beta1, 1.0 - beta1, beta2, 1.0 - beta2, (1.0 - beta2**step) ** -0.5, eps)
    # A ufunc takes less time with an array than with a Python number.
    keep1, take1, keep2, take2, scale, least = (np.array(f, dtype) for f in factors)
    work = np.empty(param.shape, dtype)
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
    np.multiply(work, scale, work)
    np.add(work, least, work)
    np.divide(mean, work, work)
    np.multiply(work, lr / (1.0 - beta1**step), work)
    np.subtract(param, work, param)
    return None
