"""Recorded calls that run again in planned memory give what they gave, for every operation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.autograd import REGISTRY, Tensor, grad
from gpubackprop.backends import get_backend
from gpubackprop.backends.cpu import shared
from gpubackprop.backends.live import LiveFloat, LiveInt
from gpubackprop.compile.plain import thunk
from gpubackprop.compile.plan import Memory, plan_memory
from gpubackprop.compile.recorder import Recorder, recording
from gpubackprop.compile.trace import Buffer, Call, Ref
from gpubackprop.testing import StandInBackend, require_close, samples_of, tolerance
from gpubackprop.testing.calls import call as call_operation
from gpubackprop.testing.calls import cast, cotangent, differentiable_inputs, fresh, place
from gpubackprop.testing.closeness import longest, magnitude

CPU = get_backend("cpu")
STAND_IN = StandInBackend()


def never(call: Call, out: Ref) -> tuple[Ref, ...]:
    return ()


class Replayed:
    """Calls ready to run again.

    Parameters
    ----------
    calls, results, inputs : refs of what is needed afterwards and of what is given.
    numbers : live ones.
    """

    def __init__(self, calls, results, inputs, backend, numbers=()) -> None:
        self.backend, self.numbers = backend, list(numbers)
        self.memory = Memory(plan_memory(calls, results, inputs, never), backend)
        found = [thunk(c, self.memory, backend, self.numbers) for c in calls]
        self.thunks = [t for t in found if t is not None]
        self.results = [self.memory.view(r) for r in results]
        self.inputs = [self.memory.view(r) for r in inputs]

    def run(self, arrays) -> list[np.ndarray]:
        """From memory full of NaN and other nonsense."""
        arena = self.memory.arena
        getattr(arena, "hidden", arena)[...] = 0xFF
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for view, array in zip(self.inputs, arrays, strict=True):
                self.backend.copyto(view, array)
            for t in self.thunks:
                t()
        return [self.backend.to_numpy(r).copy() for r in self.results]


def replay_sample(op, sample, backend, dtype) -> None:
    """Forward and backward pass of an operation, recorded, run twice again."""
    wanted = differentiable_inputs(op, sample)
    arrays = [
        backend.asarray(cast(fresh(x), dtype)) for x in sample.inputs if isinstance(x, np.ndarray)
    ]
    given = iter(arrays)
    inputs = [
        Tensor(next(given), backend, i in wanted) if isinstance(x, np.ndarray) else x
        for i, x in enumerate(sample.inputs)
    ]
    params = place(sample.params, backend)
    copies = [backend.copy(a) for a in arrays]
    recorder = Recorder(backend, arrays)
    with recording(recorder):
        outcome = call_operation(op, inputs, params)
        found = list(outcome.outputs)
        out = [t for t in found if t.requires_grad]
        if out and wanted:
            cotangents = [
                backend.asarray(cotangent(t.shape, t.dtype, k)) for k, t in enumerate(out)
            ]
            with np.errstate(all="ignore"):
                slopes = grad(out, [inputs[i] for i in wanted], cotangents, allow_unused=True)
            found += [g for g in slopes if g is not None]
    refs = [recorder.ref_of(t.array) for t in found]
    expected = [t.numpy().copy() for t in found]
    made = recorder.recording
    replayed = Replayed(made.calls, refs, made.inputs, backend, made.numbers)
    scale = magnitude([*expected, *sample.inputs])
    terms = longest([*expected, *sample.inputs])
    for _ in range(2):
        for value, wish in zip(replayed.run(copies), expected, strict=True):
            exact = wish.dtype.kind != "f"
            bound = 0.0 if exact else tolerance(wish.dtype, terms)
            require_close("replayed", value, wish, bound, scale)
            assert value.dtype == wish.dtype


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", REGISTRY.values(), ids=list(REGISTRY))
def test_every_operation(op, dtype):
    for sample in samples_of(op):
        replay_sample(op, sample, CPU, dtype)


@pytest.mark.parametrize("op", REGISTRY.values(), ids=list(REGISTRY))
def test_every_operation_on_a_device(op):
    for sample in samples_of(op):
        replay_sample(op, sample, STAND_IN, "float32")


def test_half_precision():
    for name in ("add", "matmul", "linear", "sum", "sigmoid", "softmax", "relu", "mean"):
        for sample in samples_of(REGISTRY[name]):
            replay_sample(REGISTRY[name], sample, CPU, "float16")
