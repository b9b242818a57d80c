"""The record of a differentiable operation, and the registry of all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends import Shape, kernel_names
from gpubackprop.errors import DTypeError, GpubackpropError, ShapeError


class Spec(NamedTuple):
    """Shape and dtype of an array that need not exist."""

    shape: Shape
    dtype: np.dtype

    @classmethod
    def of(cls, x: Any) -> Any:
        """The spec of an array; anything else (a Python number, None) stands for itself."""
        return cls(tuple(x.shape), np.dtype(x.dtype)) if hasattr(x, "shape") else x

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Sample(NamedTuple):
    """One call of an operation, for its tests.

    Attributes
    ----------
    inputs : NumPy arrays (float64 where they are real), Python numbers or None.
    params : keyword arguments.
    differentiable : whether the result has a derivative at this point.
    note : what the sample is for.
    """

    inputs: tuple[Any, ...]
    params: dict[str, Any] = {}
    differentiable: bool = True
    note: str = ""


ALL_INPUTS = ("inputs",)
"""Value of ``Operation.saves`` for an operation of any number of inputs whose rule reads all of
them."""

Samples = Callable[["np.random.Generator"], Iterable[Sample]]


@dataclass(frozen=True, eq=False)
class Operation:
    """A differentiable operation: both directions, the shape rule and the test inputs in one place.

    Attributes
    ----------
    name : the operation's name; equal to the kernel's where it is one kernel.
    forward : ``forward(K, *inputs, **params)`` returns the result in terms of the kernels K, or,
        with `extras`, the result followed by the extra values. With ``outputs="many"`` the result
        is a tuple.
    backward : ``backward(K, call, dy, *saved, **params)`` returns one cotangent per input, None
        where there is none. `dy` is the cotangent of the result (a tuple for many outputs, with
        None for one that never arrived where ``outputs="given"``), `saved` the values that `saves`
        names. ``call.needs`` tells which inputs want a cotangent, ``call.shapes`` the inputs'
        shapes. None: the operation has no derivative.
    infer : ``infer(*specs, **params)`` gives the result's ``Spec`` (a tuple for many outputs) or
        raises ``ShapeError`` or ``DTypeError`` in words. It runs only when a kernel has failed, or
        always where `strict`.
    samples : ``samples(rng)`` yields the inputs of the tests.
    saves : names of the values that backward reads: inputs, ``"out"`` and extras, or
        ``ALL_INPUTS``. Nothing else is kept.
    extras : names of further values that forward computes for backward.
    constant_extras : the extras are locally constant (masks, indices); otherwise the tape
        recomputes them from the inputs, all of which must then be saved.
    broadcasts : a cotangent is summed back to the shape of its input where forward repeated it.
    strict : check with `infer` before every call, where NumPy would accept what is surely a
        mistake.
    order : highest order of derivative that the rule gives (2 stands for any).

    Inputs are the positional parameters of `forward` after K (or its ``*args``), `params` its
    keyword-only parameters. Both rules speak only in kernels of the K that they are handed. That is
    what lets one statement run on arrays of every device, on the recorder of a compiled step, and
    on tensors for higher derivatives.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None
    infer: Callable[..., Any]
    samples: Samples
    saves: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    constant_extras: bool = True
    outputs: str = "one"
    broadcasts: bool = False
    strict: bool = False
    order: int = 2
    inputs: tuple[str, ...] = field(init=False)
    parameters: tuple[str, ...] = field(init=False)
    variadic: bool = field(init=False)
    save_plan: tuple[int, ...] | None = field(init=False)

    def __post_init__(self) -> None:
        signature = list(inspect.signature(self.forward).parameters.values())[1:]
        names = tuple(
            p.name for p in signature if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        )
        object.__setattr__(self, "inputs", names)
        object.__setattr__(
            self, "parameters", tuple(p.name for p in signature if p.kind is p.KEYWORD_ONLY)
        )
        object.__setattr__(self, "variadic", any(p.kind is p.VAR_POSITIONAL for p in signature))
        if self.saves == ALL_INPUTS:
            object.__setattr__(self, "save_plan", None)
            return
        # Positions in (out, *extras, *inputs).
        order = ("out", *self.extras, *names)
        missing = [s for s in self.saves if s not in order]
        if missing:
            raise ValueError(f"operation {self.name}: saves unknown value(s) {missing}")
        object.__setattr__(self, "save_plan", tuple(order.index(s) for s in self.saves))

    def register(self) -> Operation:
        """Add the operation to the registry; from then on every suite tests it."""
        if self.name in REGISTRY:
            raise ValueError(f"an operation named {self.name!r} is registered already")
        REGISTRY[self.name] = self
        return self

    @property
    def is_kernel(self) -> bool:
        """Whether the operation is exactly one kernel of the same name, so that the tape may stand
        in for it."""
        return not self.extras and self.outputs == "one" and self.name in KERNELS

    def explain(
        self, error: Exception, arguments: Iterable[Any], params: dict[str, Any], device: str
    ) -> Exception:
        """The error to raise when a kernel failed: the shape rule's words where it finds the fault,
        else the kernel's."""
        specs = [Spec.of(a) for a in arguments]
        try:
            self.infer(*specs, **params)
        except GpubackpropError as found:
            return found
        except Exception:  # noqa: BLE001 - the kernel's own error below is the better one
            pass
        named = ", ".join(
            f"{n}={s}" for n, s in zip(self._argument_names(len(specs)), specs, strict=True)
        )
        message = f"{self.name}: {error} (arguments {named} on {device})"
        if isinstance(error, (ValueError, IndexError)):
            return (
                ShapeError(message) if isinstance(error, ValueError) else IndexRangeError(message)
            )
        if isinstance(error, TypeError):
            return DTypeError(message)
        error.add_note(message)
        return error

    def _argument_names(self, n: int) -> list[str]:
        names = list(self.inputs[:n])
        return names + [f"input {i}" for i in range(len(names), n)]


class IndexRangeError(ShapeError, IndexError):
    """An index or a label is out of range."""


REGISTRY: dict[str, Operation] = {}
KERNELS = frozenset(kernel_names())
