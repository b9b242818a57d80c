"""What was written in place, so that no derivative reads it by mistake.

A recorded call keeps arrays for its backward rule, not copies of them. When a tensor is written in
place (by an optimizer's step, ``copy_`` or the like), the number of the tape is noted here. A call
with a lower number whose saved values lie in that tensor's memory has lost them: they may be the
tensor itself, a view of it (``w.T``, ``w[i]``), or a parameter that is frozen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from gpubackprop.autograd.tape import Node, next_number
from gpubackprop.errors import GradientError

if TYPE_CHECKING:
    from gpubackprop.autograd.tensor import Tensor


class Changes:
    """All tensors that were written in place and still exist.

    Attributes
    ----------
    latest : the tape's number at the latest change. Calls with a higher number need no check.
    """

    def __init__(self) -> None:
        self.latest = 0
        # By id: tensors compare element by element.
        self._tensors: WeakValueDictionary[int, Tensor] = WeakValueDictionary()

    def note(self, t: Tensor) -> None:
        """`t` was written now."""
        if not t.changed_at:
            self._tensors[id(t)] = t
        t.changed_at = self.latest = next_number()

    def by_owner(self) -> ByOwner:
        """A look at all changes so far, for one backward pass."""
        return ByOwner(list(self._tensors.values()))


class ByOwner:
    """Changed tensors by the array that owns their memory, the latest change first."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors: dict[int, list[Tensor]] = {}
        for t in sorted(tensors, key=lambda t: -t.changed_at):
            self._tensors.setdefault(id(t.backend.owner(t.array)), []).append(t)

    def check(self, node: Node) -> None:
        """Raise GradientError if values that a call saved were overwritten after it.

        The memory tells: values that were copied elsewhere in between, as into an arena, are
        intact.
        """
        backend = node.backend
        for value in node.saved or ():
            if not backend.owns(value):
                continue  # a number, or nothing
            for t in self._tensors.get(id(backend.owner(value)), ()):
                if t.changed_at <= node.number:
                    break
                if backend.overlap(value, t.array):
                    raise GradientError(
                        f"{node.op.name}: an input of shape {value.shape} was changed in place, "
                        f"with the tensor of shape {t.shape} that holds it (by an optimizer's "
                        "step, copy_ or the like), after this result was computed from it, so its "
                        "derivative is lost; call backward() before the change, or compute the "
                        "result again"
                    )


CHANGES = Changes()
