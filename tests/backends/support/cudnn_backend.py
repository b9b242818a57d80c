"""A CUDA backend whose CuPy and cuDNN are stand-ins, for the tests of cuDNN."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
import pytest

from gpubackprop.backends import detect
from gpubackprop.backends.cuda import CUDABackend
from tests.backends.support.fake_cudnn import FakeCudnn
from tests.backends.support.fake_cupy import FakeCuPy


class Machine(NamedTuple):
    """What a test looks at."""

    cuda: CUDABackend
    cudnn: FakeCudnn
    cupy: FakeCuPy

    def call(self, kernel: str, *arguments: Any, **options: Any) -> list[np.ndarray]:
        """A kernel's results on the host, for arguments from there."""
        ready = [self.cuda.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
        found = getattr(self.cuda, kernel)(*ready, **options)
        return [self.cuda.to_numpy(a) for a in (found if isinstance(found, tuple) else (found,))]


def machine(patch: pytest.MonkeyPatch, cudnn: str | None = "always", **options: Any) -> Machine:
    """A backend on a machine where cuDNN can be used, until `patch` is undone."""
    cupy = FakeCuPy()
    fake = FakeCudnn(cupy)
    patch.setitem(sys.modules, "cupy", cupy)
    patch.setitem(sys.modules, "cudnn", fake)
    patch.setattr(detect, "cudnn_problem", lambda: None)
    return Machine(CUDABackend(0, cudnn=cudnn, **options), fake, cupy)
