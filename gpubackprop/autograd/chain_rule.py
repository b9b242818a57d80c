"""The chain rule: walking the recorded graph from a cost back to everything it was computed from.

Nodes are numbered as they are made, and an operation's inputs exist before its result does. So
descending numbers are an order in which every node comes after all that used its result: by the
time a node is reached, the partial derivative of the cost by its result is complete, and the node's
rule turns that into partial derivatives by its inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from gpubackprop.autograd import tape
from gpubackprop.autograd.changes import CHANGES
from gpubackprop.autograd.shortage import shortage
from gpubackprop.autograd.tape import NUMBERS, STATE, Node
from gpubackprop.errors import DTypeError, GpubackpropError, GradientError, ShapeError

if TYPE_CHECKING:
    from gpubackprop.autograd.tensor import Tensor


def run_backward(roots: Sequence[Tensor], cotangents: Sequence[Any], **options: Any) -> list[Any]:
    """:func:`walk`, in the dtypes of the forward pass: a rule that is recorded runs as it is, also
    where the precision is mixed."""
    state = STATE
    policy, state.policy = state.policy, None
    try:
        return walk(roots, cotangents, **options)
    finally:
        state.policy = policy


def walk(
    roots: Sequence[Tensor],
    cotangents: Sequence[Any],
    *,
    targets: Sequence[Tensor] | None = None,
    create_graph: bool = False,
    retain_graph: bool = False,
    start: int = 0,
) -> list[Any]:
    """The chain rule from `roots` down.

    Parameters
    ----------
    roots : results whose cotangents are given.
    cotangents : one per root: arrays, or tensors when `create_graph`.
    targets : tensors whose cotangents are returned; None accumulates into every leaf's ``grad``
        instead.
    create_graph : record the backward rules themselves, so that their results can be differentiated
        again.
    retain_graph : keep the saved values for a further pass.
    start : go through no node of a lower number, so that `targets` older than that are where the
        walk ends even if one was computed from another.

    Returns
    -------
    One cotangent per target, None where the roots do not depend on it.
    """
    kernels: Any = tape.TAPE_KERNELS if create_graph else roots[0].backend
    heap: list[tuple[int, Node]] = []
    pending: dict[Node, list[Any]] = {}
    found: dict[tuple[int, int], Any] = {}
    slots = None if targets is None else {_slot(t) for t in targets}
    useful = None if targets is None else _leading_to(roots, targets, start)
    # Slots whose array was made by a sum here, so that nobody else holds it.
    owned: set[tuple[int, int]] = set()

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
    changed_at, changes = CHANGES.latest, None
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
                f"{op.name}: the values saved for its derivative were released by an earlier "
                "backward pass; pass retain_graph=True to that pass to go through the graph twice"
            )
        if changed_at > node.number:
            changes = changes or CHANGES.by_owner()
            changes.check(node)
        if create_graph:
            state.rule_backend = node.backend
            saved = _saved_tensors(node)
        dy: Any = waiting[0]
        if op.outputs == "given":
            dy = tuple(waiting)
        elif op.outputs != "one":
            dy = tuple(
                kernels.zeros(shape, dtype) if g is None else g
                for g, (shape, dtype) in zip(waiting, node.specs, strict=True)
            )
        try:
            grads = op.backward(kernels, node, dy, *saved, **node.params)  # type: ignore[misc]
        except Exception as error:
            if isinstance(error, GpubackpropError) or not node.backend.lacks_memory(error):
                raise
            raise shortage(error, f"{op.name} backward", node.backend) from error
        if state.observer is not None:
            state.observer.backward(node, dy, grads)
        if not (retain_graph or create_graph):
            node.saved = None
        for edge, index, g, shape in zip(node.edges, node.indices, grads, node.shapes, strict=True):
            if edge is None or g is None:
                continue
            if g.shape != shape:
                if not op.broadcasts:
                    raise ShapeError(
                        f"{op.name}: its backward rule gave a cotangent of shape {g.shape} "
                        f"for an input of shape {shape}"
                    )
                g = kernels.sum_to(g, shape)
            if type(edge) is Node:
                dtype = edge.specs[index][1]
            else:
                dtype = edge.array.dtype
            if g.dtype != dtype:
                if dtype.kind in "iub":
                    raise DTypeError(
                        f"{op.name}: a leaf of dtype {dtype} requires a gradient, but {dtype} has "
                        "no derivatives; use a float dtype"
                    )
                g = kernels.astype(g, dtype)
            send(edge, index, g)
    return [] if targets is None else [found.get(_slot(t)) for t in targets]


def _slot(t: Tensor) -> tuple[int, int]:
    return (id(t.node or t), t.index)


def nodes_below(roots: Iterable[Node | None], start: int = 0) -> Iterator[Node]:
    """Every recorded call at or below `roots`, each once, in no particular order; nothing at or
    below a call whose number is lower than `start`."""
    seen = {node for node in roots if node is not None and node.number >= start}
    stack = list(seen)
    while stack:
        node = stack.pop()
        yield node
        for edge in node.edges:
            if type(edge) is Node and edge not in seen and edge.number >= start:
                seen.add(edge)
                stack.append(edge)


def _leading_to(roots: Sequence[Tensor], targets: Sequence[Tensor], start: int) -> set[Node]:
    """The nodes at or below `roots`, from number `start` on, through whose inputs some target can
    be reached."""
    goal = {id(t.node or t) for t in targets}
    useful: set[Node] = set()
    for node in sorted(nodes_below((r.node for r in roots), start), key=lambda n: n.number):
        if any(
            e is not None and (id(e) in goal or (type(e) is Node and e in useful))
            for e in node.edges
        ):
            useful.add(node)
    return useful


def _saved_tensors(node: Node) -> tuple[Any, ...]:
    """The saved values as tensors that know where they came from, so that a backward rule can be
    recorded."""
    op, backend = node.op, node.backend
    assert node.saved is not None
    first_input = 1 + len(op.extras)
    plan = (
        range(first_input, first_input + len(node.edges)) if op.save_plan is None else op.save_plan
    )
    tensors: list[Any] = []
    inputs: dict[int, Any] = {}
    for place, value in zip(plan, node.saved, strict=True):
        if value is None or type(value) in NUMBERS:
            wrapped = value
        elif place == 0:
            wrapped = tape.TENSOR(value, backend, True, node, 0)
        elif place < first_input:
            wrapped = tape.TENSOR(value, backend)
        else:
            edge = node.edges[place - first_input]
            if type(edge) is Node:
                wrapped = tape.TENSOR(value, backend, True, edge, node.indices[place - first_input])
            else:
                wrapped = tape.TENSOR(value, backend) if edge is None else edge
        if place >= first_input:
            inputs[place - first_input] = wrapped
        tensors.append(wrapped)
    if op.extras and not op.constant_extras:
        # The extras depend on the inputs: run the forward rule on the tape to learn how.
        fresh = op.forward(
            tape.TAPE_KERNELS, *[inputs.get(i) for i in range(len(node.edges))], **node.params
        )
        tensors = [
            fresh[p] if 0 < p < first_input else t for p, t in zip(plan, tensors, strict=True)
        ]
    return tuple(tensors)
