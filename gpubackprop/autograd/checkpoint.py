"""Gradient checkpointing: memory for time.

A checkpointed function keeps its inputs and nothing of what it computed on the way; the backward
pass runs it again (T. Chen, B. Xu, C. Zhang and C. Guestrin, "Training Deep Nets with Sublinear
Memory Cost", arXiv:1604.06174, 2016, section 4). With a network of n layers cut into sqrt(n) pieces
the memory for activations falls from n layers to about 2 sqrt(n), for one more forward pass.

On the tape such a function is one node. Its edges are the inputs and whatever else the function
reached (parameters of a module, tensors of a closure), so that a walk over the graph meets the same
leaves as without checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gpubackprop.autograd import tape
from gpubackprop.autograd.chain_rule import nodes_below, run_backward
from gpubackprop.autograd.operation import ALL_INPUTS, Operation
from gpubackprop.autograd.recording import enable_grad
from gpubackprop.autograd.tape import STATE, Node, next_number
from gpubackprop.autograd.tensor import Tensor
from gpubackprop.backends.random import Draw, recorded_draws, replayed_draws
from gpubackprop.errors import ConfigError, GradientError


def checkpoint(fn: Callable[..., Any], *inputs: Any, **keywords: Any) -> Any:
    """``fn(*inputs, **keywords)``, whose intermediate values are not kept but computed again when
    the backward pass needs them.

    Parameters
    ----------
    fn : a module, or any function of tensors. It must do the same both times that it runs: random
        draws from the project's generators are repeated, batch statistics are counted once, but a
        change of what it reads from outside (a mode, a global) is not noticed unless a shape
        differs.
    inputs, keywords : its arguments: tensors, containers of tensors (tuples, lists, dicts), or
        anything else.

    Returns
    -------
    What `fn` returns: a tensor, or tuples, lists and dicts that hold tensors. Gradients by the
    inputs, and by all that `fn` reaches on its own, have the values that they have without
    checkpointing.

    Raises
    ------
    GradientError
        In the backward pass: the second run gave other shapes or draws, or a tensor that `fn` reads
        was changed in place in between.

    Examples
    --------
    >>> import gpubackprop as gb
    >>> x = gb.tensor([1.0, 2.0], requires_grad=True)
    >>> y = gb.checkpoint(lambda t: gb.exp(gb.sin(t)), x)  # keeps x alone
    >>> y.sum().backward()
    """
    if not callable(fn):
        raise ConfigError(f"checkpoint: fn is a {type(fn).__name__}; give a function or a module")
    if not STATE.recording:
        return fn(*inputs, **keywords)
    originals: list[Tensor] = []
    pattern = _take_out((inputs, keywords), originals)
    run = _Run(fn, pattern)
    start = next_number()
    copies = [Tensor(t.array, t.backend, t.requires_grad) for t in originals]
    with recorded_draws(run.draws):
        value = run.again(copies)
    results: list[Tensor] = []
    shape_of_value = _take_out(value, results)
    run.captured = _captured(results, copies, start)
    run.results = [_brief(t) for t in results]
    return _put_back(shape_of_value, run.record(originals, results))


class _Run:
    """One checkpointed call: what is needed to make it again.

    Attributes
    ----------
    fn, pattern : the function, and its arguments with places for the tensors.
    draws : the random draws that it made.
    captured : the tensors from outside that it reached without being given them.
    results : shape, dtype and whether a gradient passes, of each tensor that it returned.
    """

    def __init__(self, fn: Callable[..., Any], pattern: Any) -> None:
        self.fn, self.pattern = fn, pattern
        self.policy = STATE.policy  # of the first run; the second is under the same
        self.draws: list[Draw] = []
        self.captured: list[Tensor] = []
        self.results: list[tuple[Any, ...]] = []

    def __repr__(self) -> str:
        return f"<run of {_name(self.fn)}>"

    def again(self, tensors: Sequence[Tensor]) -> Any:
        """Call the function on `tensors` in the place of its own."""
        positional, keywords = _put_back(self.pattern, tensors)
        return self.fn(*positional, **keywords)

    def record(self, originals: list[Tensor], results: list[Tensor]) -> list[Tensor]:
        """The results as tensors that one node made."""
        sources = [*originals, *self.captured]
        passing = [t for t in results if t.requires_grad]
        node = None
        if passing:
            node = Node(
                CHECKPOINT,
                {"run": self},
                passing[0].backend,
                [(t.node or t) if t.requires_grad else None for t in sources],
                [t.index for t in sources],
                (*[t.array for t in originals], *[None] * len(self.captured)),
                [t.shape for t in sources],
                tuple([(t.shape, t.dtype) for t in passing]),
            )
            node.context = getattr(STATE.observer, "scope", None)
        numbers = iter(range(len(passing)))
        return [
            Tensor(t.array, t.backend, True, node, next(numbers))
            if t.requires_grad
            else Tensor(t.array, t.backend)
            for t in results
        ]

    def derivatives(self, K: Any, call: Any, dy: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Run the function again and apply the chain rule to it, on arrays or on the tape."""
        name = _name(self.fn)
        for t in self.captured:
            if t.changed_at > call.number:
                raise GradientError(
                    f"checkpoint: a tensor of shape {t.shape} that {name} reads was changed in "
                    "place (by an optimizer's step, copy_ or the like) before the backward pass "
                    f"ran {name} again; call backward() before the change"
                )
        create_graph = K is tape.TAPE_KERNELS
        given = zip(inputs, call.edges, strict=False)
        with _again(call, self.policy):
            if create_graph:
                # A step of its own before each input: the chain rule stops there, even where one
                # input was computed from another.
                fresh = [x if edge is None else K.reshape(x, x.shape) for x, edge in given]
            else:
                fresh = [Tensor(x, call.backend, edge is not None) for x, edge in given]
            start = next_number()
            value = self.again_with_draws(fresh)
        results: list[Tensor] = []
        _take_out(value, results)
        found = [_brief(t) for t in results]
        if found != self.results:
            raise GradientError(
                f"checkpoint: run again in the backward pass, {name} gave {_listed(found)}; the "
                f"first time it gave {_listed(self.results)}; it must do the same both times"
            )
        passing = [t for t in results if t.requires_grad]
        pairs = [(t, g) for t, g in zip(passing, dy, strict=True) if g is not None]
        sources = [*fresh, *self.captured]
        wanted = [i for i, edge in enumerate(call.edges) if edge is not None]
        cotangents = run_backward(
            [t for t, _ in pairs],
            [g for _, g in pairs],
            targets=[sources[i] for i in wanted],
            create_graph=create_graph,
            start=start,
        )
        all_cotangents = [None] * len(call.edges)
        for i, g in zip(wanted, cotangents, strict=True):
            all_cotangents[i] = g
        return all_cotangents

    def again_with_draws(self, tensors: Sequence[Tensor]) -> Any:
        """The second run, with the random draws of the first."""
        try:
            with replayed_draws(self.draws) as left:
                value = self.again(tensors)
        except Exception as error:
            error.add_note(f"while checkpoint ran {_name(self.fn)} again for the backward pass")
            raise
        if left():
            raise GradientError(
                f"checkpoint: run again in the backward pass, {_name(self.fn)} made {left()} random"
                " draw(s) fewer than the first time; it must do the same both times"
            )
        return value


@contextmanager
def _again(call: Any, policy: Any) -> Iterator[None]:
    """Recording, as a second run, under the observer's scope of the first."""
    observer, before, ambient = STATE.observer, STATE.recomputing, STATE.policy
    scoped = call.context is not None and hasattr(observer, "scope")
    outer = observer.scope if scoped else None  # type: ignore[union-attr]
    STATE.recomputing, STATE.policy = True, policy
    if scoped:
        observer.scope = call.context  # type: ignore[union-attr]
    try:
        with enable_grad():
            yield
    finally:
        STATE.recomputing, STATE.policy = before, ambient
        if scoped:
            observer.scope = outer  # type: ignore[union-attr]


def _captured(results: list[Tensor], given: list[Tensor], start: int) -> list[Tensor]:
    """What the results were computed from that was there before: leaves, and results of older
    calls."""
    own = {id(t) for t in given}
    found: dict[tuple[int, int], Tensor] = {}

    def meet(edge: Any, index: int) -> None:
        key = (id(edge), index)
        if edge is None or id(edge) in own or key in found:
            return
        if type(edge) is not Node:
            found[key] = edge
        elif edge.number < start:
            found[key] = _standing_for(edge, index)

    for t in results:
        if t.requires_grad:
            meet(t.node or t, t.index)
    nodes = nodes_below((t.node for t in results), start)
    for node in sorted(nodes, key=lambda n: n.number):
        for edge, index in zip(node.edges, node.indices, strict=True):
            meet(edge, index)
    return list(found.values())


def _standing_for(node: Node, index: int) -> Tensor:
    """A tensor in the place of a node's result, of which only place, shape and dtype are needed.

    Its array is a single number repeated: it must not keep the values alive.
    """
    shape, dtype = node.specs[index]
    backend = node.backend
    array = backend.broadcast_to(backend.zeros((), dtype), shape)
    return Tensor(array, backend, True, node, index)


class _Hole(int):
    """Place of a tensor in a pattern."""


def _take_out(value: Any, tensors: list[Tensor]) -> Any:
    """`value` with numbered places for its tensors, which are added to the list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Hole(len(tensors) - 1)
    return _rebuilt(value, lambda v: _take_out(v, tensors))


def _put_back(pattern: Any, tensors: Sequence[Tensor]) -> Any:
    """`pattern` with tensors in the places of :func:`_take_out`."""
    if type(pattern) is _Hole:
        return tensors[pattern]
    return _rebuilt(pattern, lambda v: _put_back(v, tensors))


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    if type(value) is dict:
        return {k: change(v) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)([change(v) for v in value])
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[change(v) for v in value])
    return value


def _brief(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.dtype, t.requires_grad


def _listed(results: list[tuple[Any, ...]]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype, _ in results) or "no tensor"


def _name(fn: Any) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


def _forward(K: Any, *inputs: Any, run: _Run) -> Any:
    raise GradientError("checkpoint: call gb.checkpoint; its record is no operation to apply")


def _backward(K: Any, call: Any, dy: Any, *saved: Any, run: _Run) -> list[Any]:
    return run.derivatives(K, call, dy, saved[: len(saved) - len(run.captured)])


def _infer(*specs: Any, run: _Run) -> Any:
    return tuple([tape.Spec(shape, dtype) for shape, dtype, _ in run.results])


CHECKPOINT = Operation(
    "checkpoint", _forward, _backward, _infer, lambda rng: (), saves=ALL_INPUTS, outputs="given"
)
