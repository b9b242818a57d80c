"""What the tests of CUDA kernels that are executed on the CPU share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends.composites import Composites
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import sources
from gpubackprop.backends.cuda.kernels import Kernels
from tests.backends.support import shim

# Definitions, not the NumPy backend's own faster versions of them.
NUMPY = NumPyBackend()
ABSENT = pytest.mark.skip(reason="ml_dtypes, which has bfloat16, is not installed")
BFLOAT16 = None if shim.BFLOAT16 is None else shim.BFLOAT16.type
HALVES = [
    np.float16,
    pytest.param(BFLOAT16, id="bfloat16", marks=() if BFLOAT16 else ABSENT),
]
DTYPES = [np.float32, np.float64, *HALVES]
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-14, np.float16: 3e-3, BFLOAT16: 2e-2}


def is_half(dtype: Any) -> bool:
    """Whether a dtype is one of two bytes."""
    return np.dtype(dtype).itemsize == 2


def largest(dtype: Any) -> Any:
    """The largest finite number of a dtype."""
    bits = {np.float16: 0x7BFF, BFLOAT16: 0x7F7F}.get(dtype)
    return np.finfo(dtype).max if bits is None else np.array(bits, np.uint16).view(dtype)


def wide_of(dtype: Any) -> Any:
    """What the kernels compute with where arrays are of this dtype."""
    return np.float32 if is_half(dtype) else dtype


def define(name: str, *arguments: Any, **options: Any) -> Any:
    """A composite kernel by its definition, on NumPy arrays."""
    return getattr(Composites, name)(NUMPY, *arguments, **options)


def cpp(dtype: Any) -> str:
    """A dtype's name in C++."""
    return (sources.FLOATS | sources.INDICES)[np.dtype(dtype).name]


@pytest.fixture(params=[False, True], ids=["forward", "reversed"])
def launch(request, monkeypatch):
    """Run a kernel, with a block's threads served in rising and in falling order."""
    monkeypatch.setattr(shim.RawModule, "reverse", request.param)
    return Kernels(SimpleNamespace(RawModule=shim.RawModule)).launch


def random(shape: Any, dtype: Any = np.float32, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    """Normally distributed numbers."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def close(got: Any, expected: Any, dtype: Any, factor: float = 1.0) -> None:
    """Fail where arrays differ by more than a few roundings of a dtype."""
    tolerance = TOLERANCE[dtype] * factor
    got, expected = (np.asarray(a, np.float64) for a in (got, expected))
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
