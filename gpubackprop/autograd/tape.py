"""The tape: recording calls of operations, and walking them backwards by the chain rule.

``apply`` runs an operation and, where an input wants a gradient, leaves a ``Node`` that says which operation made the result
from what. Nodes are numbered as they are made; an operation's inputs exist before its result does, so descending numbers are an
order in which every node comes after all that used its result. ``run_backward`` visits the nodes in that order: by the time a
node is reached, the partial derivative of the cost by its result is complete, and its rule turns that into partial derivatives
by its inputs.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Protocol

from gpubackprop.autograd.operation import Operation, Spec
from gpubackprop.backends import Array, Backend, Shape
from gpubackprop.errors import DeviceError, DTypeError, GpubackpropError, GradientError, ShapeError

if TYPE_CHECKING:
    from gpubackprop.autograd.tensor import Tensor

_number = itertools.count().__next__
NUMBERS = (int, float, bool)


class Observer(Protocol):
    """Sees every operation of a thread: the comparison of devices, the search for a NaN and the inspector are observers."""

    def forward(self, op: Operation, inputs: Sequence[Any], outputs: Sequence[Array], params: dict[str, Any]) -> None:
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

    __slots__ = ("op", "params", "edges", "indices", "saved", "shapes", "specs", "number", "backend", "context", "__weakref__")

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
        self.number = _number()
        self.context: Any = None

    @property
    def needs(self) -> list[bool]:
        """For each input, whether its cotangent is wanted."""
        return [e is not None for e in self.edges]

    def __repr__(self) -> str:
        return f"<Node {self.number} {self.op.name}>"


def apply(op: Operation, *inputs: Any, **params: Any) -> Any:
    """Run an operation on tensors (and Python numbers), recording it where a gradient may be wanted.

    Returns
    -------
    Tensor, or a tuple of tensors for an operation with many outputs.

    Raises
    ------
    ShapeError, DTypeError, DeviceError
        Naming the operation and its arguments.
    """
    backend: Any = None
    wanted = False
    arrays: list[Any] = []
    for x in inputs:
        if isinstance(x, TENSOR):
            if backend is None:
                backend = x.backend
            elif x.backend is not backend:
                raise _mixed_devices(op, inputs)
            arrays.append(x.array)
            if x.requires_grad:
                wanted = True
        elif x is None or type(x) in NUMBERS:
            arrays.append(x)
        else:
            return apply(op, *_as_tensors(op, inputs), **params)
    if backend is None:
        raise DTypeError(f"{op.name}: no argument is a tensor; make one with gb.tensor(...)")
    if op.strict:
        op.infer(*[Spec.of(a) for a in arrays], **params)
    try:
        result = op.forward(backend, *arrays, **params)
    except GpubackpropError:
        raise
    except Exception as error:
        raise op.explain(error, arrays, params, backend.device) from error

    extras: tuple[Any, ...] = ()
    if op.extras:
        result, *extras = result
    many = op.outputs != "one"
    if many:
        outputs = tuple(result)
    elif result.shape:
        outputs = (result,)
    else:
        outputs = (backend.asarray(result),)  # NumPy reduces to scalars, which cannot be written in place
    state = STATE
    if state.observer is not None:
        state.observer.forward(op, inputs, outputs, params)

    if not (wanted and state.recording) or op.backward is None:
        tensors = tuple([TENSOR(a, backend) for a in outputs])
        return tensors if many else tensors[0]
    edges: list[Any] = []
    indices: list[int] = []
    for x in inputs:
        if isinstance(x, TENSOR) and x.requires_grad:
            edges.append(x.node or x)
            indices.append(x.index)
        else:
            edges.append(None)
            indices.append(0)
    values = (outputs[0], *extras, *arrays)
    node = Node(
        op,
        params,
        backend,
        edges,
        indices,
        tuple(arrays) if op.save_plan is None else tuple([values[i] for i in op.save_plan]),
        [None if a is None or type(a) in NUMBERS else a.shape for a in arrays],
        tuple([(a.shape, a.dtype) for a in outputs]),
    )
    if state.observer is not None:
        node.context = getattr(state.observer, "scope", None)
    tensors = tuple([TENSOR(a, backend, a.dtype.kind == "f", node, i) for i, a in enumerate(outputs)])
    return tensors if many else tensors[0]


def run_backward(
    roots: Sequence[Tensor],
    cotangents: Sequence[Any],
    *,
    targets: Sequence[Tensor] | None = None,
    create_graph: bool = False,
    retain_graph: bool = False,
) -> list[Any]:
    """The chain rule from `roots` down.

    Parameters
    ----------
    roots : results whose cotangents are given.
    cotangents : one per root: arrays, or tensors when `create_graph`.
    targets : tensors whose cotangents are returned; None accumulates into every leaf's ``grad`` instead.
    create_graph : record the backward rules themselves, so that their results can be differentiated again.
    retain_graph : keep the saved values for a further pass.

    Returns
    -------
    One cotangent per target, None where the roots do not depend on it.
    """
    kernels: Any = TAPE_KERNELS if create_graph else roots[0].backend
    heap: list[tuple[int, Node]] = []
    pending: dict[Node, list[Any]] = {}
    found: dict[tuple[int, int], Any] = {}
    slots = None if targets is None else {_slot(t) for t in targets}
    useful = None if targets is None else _leading_to(roots, targets)
    owned: set[tuple[int, int]] = set()  # slots whose array was made by a sum here, so that nobody else holds it

    def send(edge: Any, index: int, g: Any) -> None:
        """Add a cotangent to what an edge has received so far."""
        key = (id(edge), index)
        if type(edge) is not Node:
            if slots is None:
                edge.accumulate(g, kernels)
                return
            if key not in slots:
                return
            found[key] = g if key not in found else kernels.add(found[key], g)
            return
        if useful is not None and edge not in useful and key not in slots:  # type: ignore[operator]
            return
        waiting = pending.get(edge)
        if waiting is None:
            waiting = pending[edge] = [None] * len(edge.specs)
            heappush(heap, (-edge.number, edge))
        present = waiting[index]
        if present is None:
            waiting[index] = g
        elif key in owned and not create_graph:
            waiting[index] = kernels.add(present, g, out=present)
        else:
            total = waiting[index] = kernels.add(present, g)
            if total.shape:  # NumPy adds 0-d arrays to scalars, which cannot be written in place
                owned.add(key)

    for root, g in zip(roots, cotangents, strict=True):
        send(root.node or root, root.index, g)
    state = STATE
    while heap:
        node = heappop(heap)[1]
        waiting = pending.pop(node)
        if slots is not None:
            for i, g in enumerate(waiting):
                if g is not None and (id(node), i) in slots:
                    found[(id(node), i)] = g
            if node not in useful:  # type: ignore[operator]
                continue
        op = node.op
        saved = node.saved
        if saved is None:
            raise GradientError(
                f"{op.name}: the values saved for its derivative were released by an earlier backward pass; "
                "pass retain_graph=True to the first pass to go through the graph twice"
            )
        if create_graph:
            state.rule_backend = node.backend
            saved = _saved_tensors(node)
        dy: Any = waiting[0]
        if op.outputs != "one":
            dy = tuple(
                kernels.zeros(shape, dtype) if g is None else g
                for g, (shape, dtype) in zip(waiting, node.specs, strict=True)
            )
        grads = op.backward(kernels, node, dy, *saved, **node.params)  # type: ignore[misc]
        if state.observer is not None:
            state.observer.backward(node, dy, grads)
        if not (retain_graph or create_graph):
            node.saved = None
        for edge, index, g, shape in zip(node.edges, node.indices, grads, node.shapes, strict=True):
            if edge is None or g is None:
                continue
            if g.shape != shape:
                if not op.broadcasts:
                    raise ShapeError(f"{op.name}: its backward rule gave a cotangent of shape {g.shape} for an input of shape {shape}")
                g = kernels.sum_to(g, shape)
            dtype = edge.specs[index][1] if type(edge) is Node else edge.array.dtype
            if g.dtype != dtype:
                g = kernels.astype(g, dtype)
            send(edge, index, g)
    return [] if targets is None else [found.get(_slot(t)) for t in targets]


def _slot(t: Tensor) -> tuple[int, int]:
    return (id(t.node or t), t.index)


def _leading_to(roots: Sequence[Tensor], targets: Sequence[Tensor]) -> set[Node]:
    """The nodes at or below `roots` through whose inputs some target can be reached."""
    goal = {id(t.node or t) for t in targets}
    seen: dict[int, Node] = {}
    stack = [r.node for r in roots if r.node is not None]
    while stack:
        node = stack.pop()
        if node.number not in seen:
            seen[node.number] = node
            stack.extend(e for e in node.edges if type(e) is Node)
    useful: set[Node] = set()
    for number in sorted(seen):
        node = seen[number]
        if any(e is not None and (id(e) in goal or (type(e) is Node and e in useful)) for e in node.edges):
            useful.add(node)
    return useful


def _saved_tensors(node: Node) -> tuple[Any, ...]:
    """The saved values as tensors that know where they came from, so that a backward rule can be recorded."""
    op, backend = node.op, node.backend
    assert node.saved is not None
    first_input = 1 + len(op.extras)
    plan = range(first_input, first_input + len(node.edges)) if op.save_plan is None else op.save_plan
    tensors: list[Any] = []
    inputs: dict[int, Any] = {}
    for place, value in zip(plan, node.saved, strict=True):
        if value is None or type(value) in NUMBERS:
            wrapped = value
        elif place == 0:
            wrapped = TENSOR(value, backend, True, node, 0)
        elif place < first_input:
            wrapped = TENSOR(value, backend)
        else:
            edge = node.edges[place - first_input]
            if type(edge) is Node:
                wrapped = TENSOR(value, backend, True, edge, node.indices[place - first_input])
            else:
                wrapped = TENSOR(value, backend) if edge is None else edge
        if place >= first_input:
            inputs[place - first_input] = wrapped
        tensors.append(wrapped)
    if op.extras and not op.constant_extras:
        # The extras depend on the inputs: run the forward rule on the tape to learn how.
        fresh = op.forward(TAPE_KERNELS, *[inputs.get(i) for i in range(len(node.edges))], **node.params)
        tensors = [
            fresh[p] if 0 < p < first_input else t for p, t in zip(plan, tensors, strict=True)
        ]
    return tuple(tensors)


def _as_tensors(op: Operation, inputs: Sequence[Any]) -> list[Any]:
    """Wrap host arrays and NumPy scalars that stand beside tensors; refuse them beside tensors of a device."""
    device = next((x.backend for x in inputs if isinstance(x, TENSOR)), None)
    wrapped: list[Any] = []
    for i, x in enumerate(inputs):
        if isinstance(x, TENSOR) or x is None or type(x) in NUMBERS:
            wrapped.append(x)
        elif device is not None and hasattr(x, "dtype"):
            if getattr(x, "shape", ()) and not device.owns(x):
                raise DeviceError(
                    f"{op.name}: argument {i} is a host array {Spec.of(x)} beside a tensor on {device.device}; "
                    f"move it with gb.tensor(x, device={device.device!r})"
                )
            wrapped.append(TENSOR(device.asarray(x), device))
        else:
            raise DTypeError(f"{op.name}: argument {i} is a {type(x).__name__}; make a tensor of it with gb.tensor(...)")
    return wrapped


def _mixed_devices(op: Operation, inputs: Sequence[Any]) -> DeviceError:
    listed = ", ".join(
        f"argument {i} is {Spec.of(x.array)} on {x.backend.device}" for i, x in enumerate(inputs) if isinstance(x, TENSOR)
    )
    return DeviceError(f"{op.name}: arguments on different devices: {listed}; move one with .to(device)")


# Filled by tensor.py and kernels.py, which need this module.
TENSOR: Any = None
TAPE_KERNELS: Any = None
