"""In what precision products are computed: the names, and what a device is told of them.

The choice is a property of the code that runs, not of the machine: it holds within a ``with`` block
of one thread (:func:`gpubackprop.precision`), and without one it is ``"float32"``. Nothing in the
environment changes it.
"""

from __future__ import annotations

import threading

import numpy as np

from gpubackprop.errors import ConfigError
from gpubackprop.suggest import unknown

HALVES: dict[str, str | None] = {
    "float32": None,
    "tf32": None,
    "bf16-mixed": "bfloat16",
    "fp16-mixed": "float16",
}
"""The precisions, and the dtype that products take their operands in where it is not theirs."""

PRECISIONS = tuple(HALVES)


class _State(threading.local):
    products: str | None = None


STATE = _State()


class ProductPrecision:
    """The attribute ``precision`` of a backend: ``"float32"``, or ``"tf32"`` where products of
    float32 arrays may round their operands to 10 bits (NVIDIA's TensorFloat-32). Kernels read it
    whenever they run. A ``with`` block of the reading thread comes first, then what the backend was
    given, then ``"float32"``."""

    def __get__(self, backend: object, owner: type | None = None) -> str:
        given: str = vars(backend).get("_precision", "float32") if backend is not None else ""
        return STATE.products or given or "float32"

    def __set__(self, backend: object, value: str) -> None:
        if value not in ("float32", "tf32"):
            raise ConfigError(f"a backend's precision is 'float32' or 'tf32', not {value!r}")
        vars(backend)["_precision"] = value


def check(name: object, where: str) -> str:
    """`name` if it is a precision.

    Raises
    ------
    ConfigError
        If it is not: names the nearest.
    """
    if name not in PRECISIONS:
        raise ConfigError(f"{where}: {unknown('precision', name, PRECISIONS)}")
    return str(name)


def half_dtype(name: str) -> np.dtype | None:
    """The dtype that a precision rounds the operands of products to; None for none.

    Raises
    ------
    ConfigError
        If it is bfloat16, and the library that gives it to NumPy is not installed.
    """
    half = HALVES[name]
    if half is None:
        return None
    if half == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise ConfigError(
                f"precision {name!r} needs bfloat16, which NumPy does not have; install the extra: "
                "pip install 'gpubackprop[bf16]' (it brings ml_dtypes)"
            ) from None
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(half)
