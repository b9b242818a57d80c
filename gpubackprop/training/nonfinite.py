"""Finding the operation that first made a NaN or an infinity.

Training only looks at the cost and the gradient, which is cheap. When one of them is not finite,
the same batch is run again with an observer on the tape that looks at every value: the first
operation with a value that is not finite, in the order in which they ran, is the one to name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpubackprop.autograd import STATE, Node, Operation, Tensor
from gpubackprop.backends import Array, Backend
from gpubackprop.nn import Module
from gpubackprop.optim import Optimizer


class _Found(Exception):  # noqa: N818 - it ends a search, it reports no error
    """Ends the search; its text is the answer."""


def gradients_finite(optimizer: Optimizer) -> bool:
    """Whether every gradient in the arena is finite, looked at one by one."""
    return all(
        bool(s.backend.to_numpy(s.backend.all(s.backend.isfinite(s.grads))))
        for s in optimizer.arena.sections
    )


def values_finite(optimizer: Optimizer) -> bool:
    """Whether every parameter in the arena is finite."""
    for section in optimizer.arena.sections:
        kernels, flat = section.backend, section.values
        # The sum of squares is one pass without a temporary; it overflows before the values do.
        if flat.size and not math.isfinite(float(kernels.to_numpy(kernels.matmul(flat, flat)))):
            if not bool(kernels.to_numpy(kernels.all(kernels.isfinite(flat)))):
                return False
    return True


def find(
    model: Module,
    optimizer: Optimizer,
    batch: Sequence[Tensor],
    random: Mapping[str, Any],
    run: Callable[[], Any],
) -> tuple[str, bool]:
    """Run a batch again and say in words where the first value that is not finite came from.

    Parameters
    ----------
    model : the network, with the weights of before the batch.
    optimizer : holds the parameters; its gradients are forgotten.
    batch : the tensors of the batch; the last is the target.
    random : ``model.random_state()`` of before the batch; the network is left there.
    run : makes the forward and the backward pass over the batch.

    Returns
    -------
    words, in_data : a sentence without a full stop, and whether the batch itself is at fault.
    """
    model.load_random_state(random)
    for number, x in enumerate(batch):
        if trouble := _trouble(x.backend, [x.array]):
            what = "the targets" if number == len(batch) - 1 else f"input {number}"
            holds = "hold" if number == len(batch) - 1 else "holds"
            return f"{what} of the batch {holds} {trouble}{_first(x)}", True
    for name, p in model.named_parameters():
        if trouble := _trouble(p.backend, [p.array]):
            return f"the parameter {name!r} holds {trouble} already before this step", False
    finder = Finder(model)
    before = STATE.observer
    STATE.observer = finder
    optimizer.zero_grad()
    try:
        run()
    except _Found as found:
        return str(found), False
    finally:
        STATE.observer = before
        model.load_random_state(random)
    gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    optimizer.zero_grad()
    for name, g in gradients:
        if trouble := _trouble(g.backend, [g.array]):
            return f"the gradient of the parameter {name!r} adds up to {trouble}", False
    return "every value was finite when the batch was run again", False


class Finder:
    """Observer that ends the run at the first value that is not finite.

    Parameters
    ----------
    model : the network, for the paths of its modules.
    """

    def __init__(self, model: Module) -> None:
        self.names = {id(m): (path, type(m).__name__) for path, m in model.named_modules()}
        self.outermost = id(model)
        self.scope = "the cost"
        self._outer: list[str] = []

    def enter(self, module: Any) -> None:
        """A module begins."""
        self._outer.append(self.scope)
        path, kind = self.names.get(id(module), ("", type(module).__name__))
        self.scope = f"layer {path!r} ({kind})" if path else f"the network ({kind})"

    def leave(self, module: Any) -> None:
        """A module has ended."""
        self.scope = self._outer.pop()

    def forward(
        self, op: Operation, inputs: Sequence[Any], outputs: Sequence[Array], params: dict[str, Any]
    ) -> None:
        """Look at an operation's results."""
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        backend = tensors[0].backend
        if trouble := _trouble(backend, outputs):
            ranges = [_range(x) for x in tensors if x.dtype.kind in "fV" and x.size]
            came = f" from values in {' and '.join(ranges)}" if ranges else ""
            raise _Found(f"{op.name} in {self.scope} gave {trouble}{came} in the forward pass")

    def backward(self, node: Node, dy: Any, cotangents: Sequence[Any]) -> None:
        """Look at what a backward rule was given and what it gave."""
        where = f"{node.op.name} in {node.context or 'the cost'}"
        given = dy if isinstance(dy, tuple) else (dy,)
        if trouble := _trouble(node.backend, [g for g in given if g is not None]):
            raise _Found(
                f"the derivatives that meet at the result of {where} add up to {trouble} in the "
                "backward pass"
            )
        for place, g in enumerate(cotangents):
            if g is not None and (trouble := _trouble(node.backend, [g])):
                names = node.op.inputs
                by = names[place] if place < len(names) else f"input {place}"
                raise _Found(
                    f"the derivative of {where} by its {by} gave {trouble} in the backward pass"
                )


def _trouble(backend: Backend, arrays: Iterable[Array]) -> str:
    """How many values are not finite, in words; empty where all are."""
    for array in arrays:
        if array.dtype.kind not in "fV" or not array.size:
            continue
        if bool(backend.to_numpy(backend.all(backend.isfinite(array)))):
            continue
        host = np.asarray(backend.to_numpy(array), np.float64)
        nans = int(np.isnan(host).sum())
        infinite = host.size - nans - int(np.isfinite(host).sum())
        parts = [f"{nans:,} NaN"] * bool(nans) + [f"{infinite:,} infinite"] * bool(infinite)
        return f"{' and '.join(parts)} of {host.size:,} values"
    return ""


def _first(x: Tensor) -> str:
    """Where the first value of an array that is not finite stands, in words."""
    if not x.ndim:
        return ""
    place = np.argwhere(~np.isfinite(np.asarray(x.numpy(), np.float64)))[0]
    return f", the first at {place.tolist()}"


def _range(x: Tensor) -> str:
    host = x.numpy().astype(np.float64)
    return f"[{host.min():.3g}, {host.max():.3g}]"
