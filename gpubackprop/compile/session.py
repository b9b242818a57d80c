"""One recorded call of a function, from its arguments to its results."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpubackprop.autograd import Tensor
from gpubackprop.backends import Array, Backend
from gpubackprop.compile.recorder import Recorder, Recording, recording
from gpubackprop.compile.trace import Buffer, Ref
from gpubackprop.compile.tree import put_back, take_out
from gpubackprop.errors import CompileError


@dataclass
class Outcome:
    """What a recorded call gave.

    Attributes
    ----------
    recording : its kernel calls.
    value : its result, without history, for the caller.
    pattern : the result's containers, with a slot for each tensor.
    results : for each slot: the ref of its memory, or the number of the argument that it is, or the
        very object (a parameter).
    constants : a key of what is no tensor in the result.
    grads : for each leaf, the gradient at the end: None, a tensor, or a ref of what was made.
    kept : made memory that the function left somewhere outside.
    """

    recording: Recording
    value: Any
    pattern: Any
    results: list[Any]
    constants: list[Any]
    grads: list[Any]
    kept: list[Buffer]


def record(
    fn: Callable[..., Any], backend: Backend, pattern: Any, given: list[Any], arrays: list[Array]
) -> Outcome:
    """Call `fn` once and record what it does.

    Parameters
    ----------
    pattern : ``(args, kwargs)`` with slots for the tensors and arrays.
    given : those tensors and arrays.
    arrays : copies of their contents, which the function may hold on to.
    """
    stand_ins = [
        Tensor(array, backend, x.requires_grad) if isinstance(x, Tensor) else array
        for x, array in zip(given, arrays, strict=True)
    ]
    args, kwargs = put_back(pattern, stand_ins)
    recorder = Recorder(backend, arrays)
    with recording(recorder):
        result = fn(*args, **kwargs)
    found: list[Any] = []
    constants: list[Any] = []
    shape = take_out(result, found, constants)
    del result, args, kwargs
    results: list[Any] = []
    values: list[Any] = []
    watched: list[tuple[Any, Buffer]] = []
    for x in found:
        index = next((i for i, s in enumerate(stand_ins) if x is s), None)
        if index is not None:
            results.append(index)
            values.append(given[index])
            continue
        if not isinstance(x, Tensor):
            raise CompileError(
                "a compiled function returned a NumPy array; return the tensor and take its numbers"
                " outside with .numpy()"
            )
        if x.backend is not backend:
            raise CompileError(
                f"a compiled function returned a tensor on {x.device}, but its arguments are on "
                f"{backend.device}; compile one function for each device"
            )
        results.append(recorder.ref_of(x.array))
        if recorder.known(x.array):
            watched.append((weakref.ref(x), results[-1].buffer))
        # Outside memory goes on changing.
        values.append(
            Tensor(x.array if recorder.known(x.array) else backend.copy(x.array), backend)
        )
    found.clear()
    x = None
    grads = [
        _gradient(t, recorder)
        for t in [
            *recorder.recording.leaves.values(),
            *(s for s in stand_ins if isinstance(s, Tensor)),
        ]
    ]
    for s, x in zip(stand_ins, given, strict=True):
        if isinstance(s, Tensor) and s.grad is not None:
            x.grad, s.grad = s.grad, None
    made = recorder.recording
    held = {r.buffer for r in [*results, *grads] if isinstance(r, Ref)}

    def still_there() -> list[Buffer]:
        left = [b for b, _ in made.alive.values() if b not in held]
        return left + [b for reference, b in watched if reference() is not None]

    kept = still_there()
    if kept:
        gc.collect()
        kept = still_there()
    return Outcome(made, put_back(shape, values), shape, results, constants, grads, kept)


def _gradient(t: Tensor, recorder: Recorder) -> Any:
    if t.grad is None:
        return None
    return recorder.ref_of(t.grad.array) if recorder.known(t.grad.array) else t.grad
