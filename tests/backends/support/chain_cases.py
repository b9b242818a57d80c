"""Samples for chains of elementwise calls, on whatever device writes them as a loop."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.chains.chain import Operand
from gpubackprop.backends.chains.expressions import COMPARE, LOGIC, UNARY

SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 80.0, -80.0, 0.3], np.float32)

ONE = sorted((set(UNARY) - {"gelu_slope"}) | {
    "relu", "leaky_relu", "elu", "gelu_tanh", "silu", "softplus", "isfinite", "isnan", "copy",
})  # fmt: skip
TWO = [
    "add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "arctan2", *COMPARE,
    "relu_backward", "sigmoid_backward", "tanh_backward", "leaky_relu_backward", "elu_backward",
    "gelu_backward", "gelu_tanh_backward", "silu_backward",
]  # fmt: skip


def numbers_and_kinds(dtype: Any = np.float32) -> list[tuple[Any, ...]]:
    """Calls with Python numbers, integers and booleans among their arguments. The inputs are
    floats, integers, booleans and floats again."""
    x, whole, positive, y = (Operand("input", k) for k in range(4))
    calls: list[tuple[Any, ...]] = [
        (kernel, *args)
        for args in ((x, 2), (2.5, x), (x, -0.0), (whole, 3), (4, whole), (whole, whole))
        for kernel in ("subtract", "maximum", "less")
    ]
    return [
        *calls,
        ("power", x, 3),
        ("not_equal", whole, -100),
        ("where", positive, x, 0),
        ("where", positive, 1.5, x),
        ("clip", x, -0.5, 1),
        ("clip", x, None, y),
        ("leaky_relu", x, 0.2),
        ("elu", x, 0.5),
        ("dropout_backward", x, positive, 0.25),
        ("add", positive, x),
        ("astype", positive, np.dtype(dtype)),
        ("astype", whole, np.dtype(dtype)),
        ("astype", x, np.dtype(bool)),
        *((kernel, positive, x)[: 2 if kernel == "logical_not" else 3] for kernel in LOGIC),
    ]
