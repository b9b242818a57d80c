"""What a recording takes for granted, and whether it still holds at the next call.

A function reads more than its arguments: modules and their modes, parameters, gradients that may be
there or not, options of the optimizer, numbers in its closure. Each is looked at before a replay; a
change means another recording, not a wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import CodeType
from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.backends.random import Generator
from gpubackprop.compile.recorder import Recording

SIMPLE = (bool, int, float, str, type(None))


UNKNOWN = object()
"""In the place of a gradient that nobody looked for when the call began."""


class Guards:
    """The state that a recording depends on.

    Parameters
    ----------
    fn : the compiled function.
    recording : its latest recording.
    grads : for each leaf, its gradient's array when the recorded call began, None where it had
        none, or ``UNKNOWN``.
    """

    def __init__(self, fn: Callable[..., Any], recording: Recording, grads: list[Any]) -> None:
        self.leaves = list(recording.leaves.values())
        self._arrays = [t.array for t in self.leaves]
        self._wanted = [t.requires_grad for t in self.leaves]
        self._grads = grads
        self.open = any(g is UNKNOWN for g in grads)
        self._settings = [_settings(m) for m in recording.modules.values()]
        self._buffers = [
            (m.__dict__, name, t, t.array)
            for m in recording.modules.values()
            for name, t in m.__dict__.items()
            if isinstance(t, Tensor)
        ]
        self._constants = recording.constants
        self._outside = outside(fn)
        self._values = [_plain(read()) for _, read in self._outside]

    def broken(self) -> str | None:
        """What no longer holds, in words; None where everything does."""
        for t, array, wanted, grad in zip(
            self.leaves, self._arrays, self._wanted, self._grads, strict=True
        ):
            if t.array is not array:
                return f"a parameter of shape {t.shape} has other memory"
            if t.requires_grad is not wanted:
                return f"requires_grad of a tensor of shape {t.shape} changed"
            now = t.grad
            if grad is not UNKNOWN and (None if now is None else now.array) is not grad:
                return (
                    f"the gradient of a parameter of shape {t.shape} "
                    + ("is there" if grad is None else "is gone")
                    + " at the beginning of the call"
                )
        for own, names, values, count, module in self._settings:
            if len(own) != count or [*map(own.get, names)] != values:
                return f"{type(module).__name__}: {_difference(own, names, values)}"
        for attributes, name, t, array in self._buffers:
            if attributes.get(name) is not t or t.array is not array:
                return f"the tensor {name!r} of a module is another one"
        for read, value in self._constants:
            if read() != value:
                return f"an option of the optimizer is {read()!r} where it was {value!r}"
        for (name, read), value in zip(self._outside, self._values, strict=True):
            if not _same(_plain(read()), value):
                return f"{name}, which the function reads, is another one"
        return None


def _settings(module: Any) -> tuple[dict[str, Any], list[str], list[Any], int, Any]:
    """The plain attributes of a module (numbers, words, its mode; generators by identity): where
    they are, their names and values, how many attributes it has, and itself."""
    found = {
        name: value
        for name, value in module.__dict__.items()
        if isinstance(value, (*SIMPLE, Generator))
        or (isinstance(value, tuple) and all(isinstance(v, SIMPLE) for v in value))
    }
    return module.__dict__, list(found), list(found.values()), len(module.__dict__), module


def _difference(now: dict[str, Any], names: list[str], values: list[Any]) -> str:
    for name, value in zip(names, values, strict=True):
        if now.get(name) != value:
            return f"{name} is {now.get(name)!r} where it was {value!r}"
    return "it has other parts"


def _plain(value: Any) -> Any:
    """What of a value is compared: itself if it is a number or a word, else which object it is."""
    if isinstance(value, SIMPLE) or isinstance(value, np.generic):
        return value
    if isinstance(value, Tensor):
        return value.array
    return value


def _same(now: Any, before: Any) -> bool:
    if isinstance(now, SIMPLE):
        return type(now) is type(before) and (now == before or (now != now and before != before))
    return now is before


def outside(fn: Callable[..., Any]) -> list[tuple[str, Callable[[], Any]]]:
    """The variables from outside that a function reads by name and that a replay would freeze:
    numbers, words, tensors and arrays of its closure, of its module and of its ``self``."""
    found: list[tuple[str, Callable[[], Any]]] = []
    target = getattr(fn, "__func__", fn)
    code = getattr(target, "__code__", None)
    if code is None:
        return found
    watched = (*SIMPLE[:-1], Tensor, np.ndarray, np.generic)
    for name, cell in zip(code.co_freevars, target.__closure__ or (), strict=False):
        try:
            if isinstance(cell.cell_contents, watched):
                found.append((name, partial(getattr, cell, "cell_contents")))
        except ValueError:  # not filled yet
            continue
    names = _names(code)
    scope = target.__globals__
    for name in names:
        if isinstance(scope.get(name), watched):
            found.append((name, partial(scope.get, name)))
    owner = getattr(fn, "__self__", None)
    if owner is not None and hasattr(owner, "__dict__"):
        for name in names:
            if isinstance(owner.__dict__.get(name), watched):
                found.append((f"self.{name}", partial(owner.__dict__.get, name)))
    return found


def _names(code: CodeType) -> list[str]:
    """Names that a function and the functions in it read from outside."""
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.extend(_names(constant))
    return sorted(set(names))
