"""What the tests of CUDA kernels that are executed on the CPU share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends.composites import Composites
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import geometry, sources
from gpubackprop.backends.cuda.kernels import Kernels
from gpubackprop.backends.cuda.rows import RowKernels
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


def lying(values: np.ndarray, offset: int) -> np.ndarray:
    """A copy whose first element is so many elements behind a boundary of 64 bytes."""
    room = np.empty(values.size + offset + 64, values.dtype)
    first = -room.ctypes.data % 64 // values.itemsize + offset
    place = room[first : first + values.size].reshape(values.shape)
    place[...] = values
    return place


def shares(rows: int, cols: int, dtype: Any) -> list[geometry.RowShare]:
    """Every way in which threads can share these rows."""
    lanes = geometry.PACK_BYTES // np.dtype(dtype).itemsize
    found = []
    for team, held in ((int(team), int(held)) for team, held in sources.SHARES):
        for packed in (0, 1) if cols % lanes == 0 else (0,):
            packs = cols // lanes if packed else cols
            if held and packs > team * held:
                continue
            for pieces in (1,) if held else (1, 3):
                # Fewer blocks than jobs, so that each has several.
                grid = geometry.Launch(max(1, rows * pieces * team // geometry.BLOCK // 2))
                found.append(geometry.RowShare(team, held, packed, pieces, grid))
    return found


def run_rows(
    launch: Any, kernel: str, template: Any, arrays: Any, share: Any, *numbers: Any, **stages: Any
) -> None:
    """Run a kernel that reduces rows; `numbers` begin with rows and columns."""
    host = SimpleNamespace(empty=np.empty, kernels=SimpleNamespace(launch=launch))
    RowKernels._launch_rows(
        host, kernel, template, arrays, share, numbers[:2], *numbers[2:], **stages
    )
