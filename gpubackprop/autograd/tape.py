"""The tape: recording calls of operations.

``apply`` runs an operation and, where an input wants a gradient, leaves a ``Node`` that says which
operation made the result from what. The nodes are the computational graph; ``chain_rule.py`` walks
it backwards.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any, Protocol

from gpubackprop.autograd.operation import Operation, Spec
from gpubackprop.backends import Array, Backend, Shape
from gpubackprop.errors import DeviceError, DTypeError, GpubackpropError

next_number = itertools.count().__next__
NUMBERS = (int, float, bool)


class Observer(Protocol):
    """Sees every operation of a thread: the comparison of devices, the search for a NaN and the
    inspector are observers."""

    def forward(
        self, op: Operation, inputs: Sequence[Any], outputs: Sequence[Array], params: dict[str, Any]
    ) -> None:
        """An operation has run forwards."""

    def backward(self, node: Node, dy: Any, cotangents: Sequence[Any]) -> None:
        """An operation's rule has run backwards."""

    def enter(self, module: Any) -> None:
        """A module begins its forward pass."""

    def leave(self, module: Any) -> None:
        """A module has ended its forward pass."""


class _State(threading.local):
    recording: bool = True
    observer: Observer | None = None
    rule_backend: Backend | None = None  # where a rule that runs on the tape makes its constants
    recomputing: bool = False  # a checkpointed function runs for the second time
    policy: Any = None  # runs each operation, where the precision is mixed


STATE = _State()


class Node:
    """One recorded call.

    Attributes
    ----------
    op, params : what was called.
    edges : for each input, the node or leaf tensor that receives its cotangent, or None.
    indices : for each input, which output of that node it was.
    saved : the values that the backward rule reads; None once they were released.
    shapes : shapes of the inputs (None for a number).
    specs : shape and dtype of each output, for cotangents that never arrive.
    """

    __slots__ = (
        "op",
        "params",
        "edges",
        "indices",
        "saved",
        "shapes",
        "specs",
        "number",
        "backend",
        "context",
        "__weakref__",
    )

    def __init__(
        self,
        op: Operation,
        params: dict[str, Any],
        backend: Backend,
        edges: list[Any],
        indices: list[int],
        saved: tuple[Any, ...],
        shapes: list[Shape | None],
        specs: tuple[Any, ...],
    ) -> None:
        self.op = op
        self.params = params
        self.backend = backend
        self.edges = edges
        self.indices = indices
        self.saved: tuple[Any, ...] | None = saved
        self.shapes = shapes
        self.specs = specs
        self.number = next_number()
        self.context: Any = None

    @property
    def needs(self) -> list[bool]:
        """For each input, whether its cotangent is wanted."""
        return [e is not None for e in self.edges]

    def __repr__(self) -> str:
        return f"<Node {self.number} {self.op.name}>"


def apply(op: Operation, *inputs: Any, **params: Any) -> Any:
    """Run an operation on tensors (and Python numbers), recording it where a gradient may be
    wanted.

    Returns
    -------
    Tensor, or a tuple of tensors for an operation with many outputs.

    Raises
    ------
    ShapeError, DTypeError, DeviceError
        Naming the operation and its arguments.
    """
    state = STATE
    if state.policy is not None:
        return state.policy.run(op, inputs, params)
    # One pass over the inputs gathers all that the call and its record need: this loop is most of
    # what a small operation costs.
    backend: Any = None
    wanted = False
    arrays: list[Any] = []
    shapes: list[Shape | None] = []
    edges: list[Any] = []
    indices: list[int] = []
    for x in inputs:
        if isinstance(x, TENSOR):
            if x.backend is not backend:
                if backend is not None:
                    raise _mixed_devices(op, inputs)
                backend = x.backend
            array = x.array
            arrays.append(array)
            shapes.append(array.shape)
            if x.requires_grad:
                wanted = True
                edges.append(x.node or x)
                indices.append(x.index)
                continue
        elif x is None or type(x) in NUMBERS:
            arrays.append(x)
            shapes.append(None)
        else:
            return apply(op, *as_tensors(op, inputs), **params)
        edges.append(None)
        indices.append(0)
    if backend is None:
        raise DTypeError(f"{op.name}: no argument is a tensor; make one with gb.tensor(...)")
    if op.strict:
        op.infer(*[Spec.of(a) for a in arrays], **params)
    try:
        result = op.forward(backend, *arrays, **params)
    except GpubackpropError:
        raise
    except Exception as error:
        if backend.lacks_memory(error):
            from gpubackprop.autograd.shortage import shortage  # which needs this module

            raise shortage(error, op.name, backend) from error
        raise op.explain(error, arrays, params, backend.device) from error

    extras: Sequence[Any] = ()
    if op.extras:
        result, *extras = result
    many = op.outputs != "one"
    if many:
        outputs = tuple(result)
    else:
        if not result.shape:
            result = backend.asarray(result)  # NumPy's scalars cannot be written in place
        outputs = (result,)
    if state.observer is not None:
        state.observer.forward(op, inputs, outputs, params)

    if not (wanted and state.recording) or op.backward is None:
        return tuple([TENSOR(a, backend) for a in outputs]) if many else TENSOR(result, backend)
    if not many and result.dtype.kind not in "fV":
        return TENSOR(result, backend)  # a cast to integers ends the history
    plan = op.save_plan
    saved: tuple[Any, ...] = ()
    if plan is None:
        saved = tuple(arrays)
    elif plan:
        values = (outputs[0], *extras, *arrays)
        saved = tuple([values[i] for i in plan])
    if many:
        specs = tuple([(a.shape, a.dtype) for a in outputs])
    else:
        specs = ((result.shape, result.dtype),)
    node = Node(op, params, backend, edges, indices, saved, shapes, specs)
    if state.observer is not None:
        node.context = getattr(state.observer, "scope", None)
    if not many:
        return TENSOR(result, backend, True, node)
    return tuple([TENSOR(a, backend, a.dtype.kind in "fV", node, i) for i, a in enumerate(outputs)])


def as_tensors(op: Operation, inputs: Sequence[Any]) -> list[Any]:
    """Wrap host arrays and NumPy scalars that stand beside tensors; refuse them beside tensors of a
    device."""
    device = next((x.backend for x in inputs if isinstance(x, TENSOR)), None)
    wrapped: list[Any] = []
    for i, x in enumerate(inputs):
        if isinstance(x, TENSOR) or x is None or type(x) in NUMBERS:
            wrapped.append(x)
        elif device is not None and hasattr(x, "dtype"):
            if getattr(x, "shape", ()) and not device.owns(x):
                raise DeviceError(
                    f"{op.name}: argument {i} is a host array {Spec.of(x)} beside a tensor on "
                    f"{device.device}; move it with gb.tensor(x, device={device.device!r})"
                )
            wrapped.append(TENSOR(device.asarray(x), device))
        else:
            raise DTypeError(
                f"{op.name}: argument {i} is a {type(x).__name__}; make a tensor of it with "
                "gb.tensor(...)"
            )
    return wrapped


def _mixed_devices(op: Operation, inputs: Sequence[Any]) -> DeviceError:
    listed = ", ".join(
        f"argument {i} is {Spec.of(x.array)} on {x.backend.device}"
        for i, x in enumerate(inputs)
        if isinstance(x, TENSOR)
    )
    return DeviceError(
        f"{op.name}: arguments on different devices: {listed}; move one with .to(device)"
    )


# Filled by tensor.py and kernels.py, which need this module.
TENSOR: Any = None
TAPE_KERNELS: Any = None
