"""Parameter: a tensor that an optimizer changes."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from gpubackprop.autograd import REGISTRY, STATE, Node, Tensor, tensor
from gpubackprop.backends import Array, Backend
from gpubackprop.errors import DTypeError, ShapeError

if TYPE_CHECKING:
    from gpubackprop.nn.arena import Section


class Parameter(Tensor):
    """A leaf of the graph that belongs to a module and is changed by an optimizer.

    Parameters
    ----------
    data : numbers, an array or a tensor; always copied, so that the parameter owns its memory.
    requires_grad : whether the cost's derivative by it is wanted.
    dtype, device : as in :func:`gpubackprop.tensor`.

    Attributes
    ----------
    grad_buffer : where an :class:`~gpubackprop.nn.arena.Arena` wants the gradient, or None.
    home : the arena's section (weakly held) and the place in it, or None.

    Raises
    ------
    DTypeError
        If the dtype has no derivatives.

    Notes
    -----
    In an arena ``grad`` is a window on a buffer that every backward pass uses again: after
    ``zero_grad()`` the next pass overwrites the numbers of a gradient that was held on to. Keep a
    copy where an old gradient is still needed.
    """

    __slots__ = ("grad_buffer", "home")
    lasting = True

    def __init__(
        self,
        data: Any,
        requires_grad: bool = True,
        *,
        dtype: Any = None,
        device: str | Backend | None = None,
    ) -> None:
        made = tensor(data, dtype, device)
        if made.dtype.kind != "f" and made.dtype.name != "bfloat16":
            raise DTypeError(
                f"Parameter: {made.dtype} has no derivatives; use a float dtype, "
                "or register_buffer for values that are not learned"
            )
        super().__init__(made.backend.copy(made.array), made.backend, requires_grad)
        self.grad_buffer: Array | None = None
        self.home: tuple[weakref.ref[Section], int] | None = None

    def accumulate(self, g: Any, kernels: Any) -> None:
        """Add a cotangent to ``grad``; in an arena the first one is copied into the buffer."""
        if self.grad is None and self.grad_buffer is not None and not isinstance(g, Tensor):
            self.backend.copyto(self.grad_buffer, g)
            self.grad = Tensor(self.grad_buffer, self.backend)
        else:
            super().accumulate(g, kernels)

    def rounded(self, dtype: np.dtype) -> Tensor:
        """``astype(dtype)``, as a view of the arena's own rounded copy where it is in one."""
        section, i = (self.home[0](), self.home[1]) if self.home is not None else (None, 0)
        if section is None or self.array is not section.value_views[i]:
            return super().rounded(dtype)
        op, backend, params = REGISTRY["astype"], self.backend, {"dtype": dtype}
        array = section.rounded(dtype).view(i)
        if STATE.observer is not None:
            STATE.observer.forward(op, (self,), (array,), params)
        if not (self.requires_grad and STATE.recording):
            return Tensor(array, backend)
        specs = ((array.shape, array.dtype),)
        node = Node(op, params, backend, [self], [0], (), [self.shape], specs)
        if STATE.observer is not None:
            node.context = getattr(STATE.observer, "scope", None)
        return Tensor(array, backend, True, node)

    def copy_(self, values: Any) -> Parameter:
        """Write `values` over the parameter, in place.

        Parameters
        ----------
        values : a tensor or array of the parameter's shape, or numbers. A float dtype is cast.

        Raises
        ------
        ShapeError
            If the shapes differ.
        DTypeError
            If the values are not real numbers.
        """
        source = host_array(values) if not isinstance(values, Tensor) else values
        if tuple(source.shape) != self.shape:
            raise ShapeError(
                f"copy_: the parameter has shape {self.shape}, the values {tuple(source.shape)}"
            )
        if source.dtype.kind not in "fiub" and source.dtype.name != "bfloat16":
            raise DTypeError(f"copy_: values of dtype {source.dtype} are not real numbers")
        if isinstance(source, Tensor):
            array = source.array if source.backend is self.backend else source.numpy()
        else:
            array = source
        self.backend.copyto(self.array, self.backend.asarray(array))
        self.mark_changed()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        """A parameter of its own with the same values, outside of any arena."""
        copied = Parameter(self.array, self.requires_grad, device=self.backend)
        if self.grad is not None:
            copied.grad = Tensor(self.backend.copy(self.grad.array), self.backend)
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return _parameter, (self.numpy(), self.requires_grad, self.device)

    def __repr__(self) -> str:
        return "Parameter" + super().__repr__().removeprefix("tensor")


def _parameter(values: np.ndarray, requires_grad: bool, device: str) -> Parameter:
    return Parameter(values, requires_grad, device=device)


def host_array(values: Any) -> np.ndarray:
    """Values of a tensor, an array of any library or nested numbers as a NumPy array."""
    if isinstance(values, Tensor):
        return values.numpy()
    return np.asarray(values)
