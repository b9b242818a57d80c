"""Tensor: an array that remembers how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpubackprop.autograd import tape
from gpubackprop.autograd.chain_rule import run_backward
from gpubackprop.autograd.changes import CHANGES
from gpubackprop.autograd.methods import ArrayMethods
from gpubackprop.autograd.shortage import brought
from gpubackprop.autograd.tape import Node
from gpubackprop.backends import Array, Backend, Shape, as_dtype, backend_of, get_backend
from gpubackprop.errors import DeviceError, DTypeError, GradientError, ShapeError


class Tensor(ArrayMethods):
    """An array on a device, together with its place in the computational graph.

    Make one with :func:`tensor`. Arithmetic, indexing and the methods below record themselves, so
    that ``backward()`` can find the partial derivative of a cost by every tensor that was made with
    ``requires_grad=True``.

    Attributes
    ----------
    array : the backend's array (``numpy.ndarray`` or ``cupy.ndarray``); no copy.
    backend : the kernels of the device that holds it.
    requires_grad : whether the cost's derivative by this tensor is wanted, or passes through it.
    grad : after ``backward()``, that derivative (same shape and dtype) for leaves; None before.
    node : the recorded call that made it; None for a leaf.
    changed_at : the tape's number when the array was last written in place; 0 for never.
    """

    __slots__ = (
        "array",
        "backend",
        "requires_grad",
        "node",
        "index",
        "grad",
        "changed_at",
        "__weakref__",
    )
    __array_ufunc__ = None  # so that `ndarray + tensor` comes to Tensor.__radd__

    def __init__(
        self,
        array: Array,
        backend: Backend,
        requires_grad: bool = False,
        node: Node | None = None,
        index: int = 0,
    ) -> None:
        self.array = array
        self.backend = backend
        self.requires_grad = requires_grad
        self.node = node
        self.index = index
        self.grad: Tensor | None = None
        self.changed_at = 0

    # What it is.
    @property
    def shape(self) -> Shape:
        """Lengths of the axes."""
        return self.array.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.array.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.array.size

    @property
    def dtype(self) -> np.dtype:
        """NumPy dtype of the elements."""
        return self.array.dtype

    @property
    def device(self) -> str:
        """Name of the device that holds the array."""
        return self.backend.device

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made this tensor."""
        return self.node is None

    @property
    def data(self) -> Tensor:
        """The same array without its history."""
        return Tensor(self.array, self.backend)

    def __len__(self) -> int:
        if not self.array.shape:
            raise TypeError("a tensor without axes has no length")
        return self.array.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        text = np.array2string(self.numpy(), prefix="tensor(", threshold=20, separator=", ")
        parts = [text, f"dtype={self.dtype}"]
        if self.device != "cpu":
            parts.append(f"device={self.device!r}")
        if self.node is not None:
            parts.append(f"made_by={self.node.op.name}")
        elif self.requires_grad:
            parts.append("requires_grad=True")
        return f"tensor({', '.join(parts)})"

    # Out of the graph.
    def numpy(self) -> np.ndarray:
        """The values as a NumPy array; waits for a device, shares memory on the CPU."""
        return self.backend.to_numpy(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.requires_grad:
            raise GradientError(
                "np.asarray would drop this tensor's history; call .detach().numpy()"
            )
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def item(self) -> float | int | bool:
        """The only element as a Python number; waits for a device."""
        if self.array.size != 1:
            raise ShapeError(
                f"item: the tensor has {self.array.size} elements (shape {self.shape}), not one; "
                "index it first"
            )
        return self.numpy().reshape(()).item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        if self.array.size != 1:
            raise ShapeError(
                f"bool: whether a tensor of shape {self.shape} is true is not defined for "
                f"{self.size} elements; use .any() or .all()"
            )
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        return self.numpy().tolist()

    def detach(self) -> Tensor:
        """The same array without its history: a constant to the chain rule."""
        return Tensor(self.array, self.backend)

    def to(self, device: str | Backend) -> Tensor:
        """A copy on another device (the tensor itself if it is there already). A copy of a leaf is
        a leaf of its own.

        Raises
        ------
        GradientError
            If the tensor has a history: a device copy is not recorded.
        """
        target = get_backend(device)
        if target is self.backend:
            return self
        if self.node is not None:
            raise GradientError(
                "to: cannot move a tensor with a history; move its inputs, or call detach() first"
            )
        return Tensor(brought(target, self.numpy(), None), target, self.requires_grad)

    def cpu(self) -> Tensor:
        """``to("cpu")``."""
        return self.to("cpu")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A leaf of its own with the same values on the same device."""
        if self.node is not None:
            raise GradientError("deepcopy: only a leaf can be copied; use detach()")
        memo[id(self)] = copied = Tensor(
            self.backend.copy(self.array), self.backend, self.requires_grad
        )
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        # For copy.copy and for pickles between processes: values and device, not the kernels.
        if self.node is not None:
            raise GradientError("pickle: only a leaf can be copied; use detach()")
        return tensor, (self.numpy(), None, self.device, self.requires_grad)

    def mark_changed(self) -> None:
        """Say that ``array`` was written in place. A derivative that would read the values of
        before is then refused instead of being wrong."""
        CHANGES.note(self)

    # The chain rule.
    def backward(
        self,
        gradient: Tensor | np.ndarray | None = None,
        *,
        retain_graph: bool = False,
        create_graph: bool = False,
    ) -> None:
        """Add the partial derivatives of this tensor to ``grad`` of every leaf that it was computed
        from.

        Parameters
        ----------
        gradient : the derivative of the cost by this tensor, of its shape; may be left out for a
            single element (then 1).
        retain_graph : keep the saved values, so that the graph can be walked again.
        create_graph : record the derivatives' own computation.
        """
        if not self.requires_grad:
            raise GradientError(
                "backward: this tensor does not depend on any tensor that has requires_grad=True "
                "(what no_grad, detach() or a compiled function gives has no history)"
            )
        seed = seed_cotangent(self, gradient, create_graph)
        run_backward([self], [seed], retain_graph=retain_graph, create_graph=create_graph)

    def accumulate(self, g: Any, kernels: Any) -> None:
        """Add a cotangent to ``grad`` (of a leaf)."""
        backend = self.backend
        if isinstance(g, Tensor):
            if self.grad is not None:
                self.grad = kernels.add(self.grad, g)
            else:
                # A copy, since rules may hand the same array to two leaves.
                self.grad = kernels.copy(g)
        elif self.grad is None:
            # A copy as above; an array, since NumPy copies 0-d arrays to scalars.
            self.grad = Tensor(backend.asarray(backend.copy(g)), backend)
        elif self.grad.requires_grad:
            # Somebody may differentiate it again: its array must stay as it is.
            self.grad = Tensor(backend.asarray(backend.add(self.grad.array, g)), backend)
        else:
            total = self.grad.array
            backend.add(total, g, out=total)

    def zero_grad(self) -> None:
        """Forget ``grad``."""
        self.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set ``requires_grad`` on a leaf and return it."""
        if self.node is not None:
            raise GradientError("requires_grad_: only a leaf can be changed; use detach()")
        if requires_grad and self.dtype.kind not in "fV":
            raise DTypeError(f"requires_grad_: {self.dtype} has no derivatives; use a float dtype")
        self.requires_grad = requires_grad
        return self


tape.TENSOR = Tensor


def tensor(
    data: Any, dtype: Any = None, device: str | Backend | None = None, requires_grad: bool = False
) -> Tensor:
    """Make a tensor.

    Parameters
    ----------
    data : numbers, nested sequences, a NumPy or CuPy array (shared, not copied, if dtype and device
        fit), or a tensor.
    dtype : NumPy dtype; by default the array's own, and float32 for Python floats.
    device : where to put it; by default where `data` is, else the device named by
        ``GPUBACKPROP_DEVICE``, else the CPU.
    requires_grad : whether derivatives by this tensor are wanted.

    Raises
    ------
    DTypeError
        If `data` is not numeric, or derivatives are asked of an integer dtype.
    """
    source, dtype = None, None if dtype is None else as_dtype(dtype)
    if isinstance(data, Tensor):
        source, data = data.backend, data.array
    if hasattr(data, "dtype") and hasattr(data, "shape"):
        source = source or backend_of(data)
        backend = source if device is None else get_backend(device)
        if backend is not source:
            data = source.to_numpy(data)
    else:
        backend = get_backend(device)
        try:
            data = np.asarray(data)
        except ValueError as error:
            raise ShapeError(f"tensor: {error}") from None
        if dtype is None and data.dtype == np.float64:
            dtype = np.float32
    if data.dtype.kind not in "fiub" and data.dtype.name != "bfloat16":
        raise DTypeError(f"tensor: dtype {data.dtype} is not numeric")
    array = brought(backend, data, dtype)
    if requires_grad and array.dtype.kind not in "fV":
        raise DTypeError(
            f"tensor: {array.dtype} has no derivatives; use a float dtype with requires_grad=True"
        )
    return Tensor(array, backend, requires_grad)


def seed_cotangent(t: Tensor, gradient: Any, create_graph: bool) -> Any:
    """The cotangent to start a backward pass with: given, or 1 for a single element."""
    if gradient is None:
        if t.size != 1:
            raise GradientError(
                f"backward: a tensor of shape {t.shape} needs the derivative of the cost by it "
                "(gradient=...); only a single element may do without"
            )
        array = t.backend.ones(t.shape, t.dtype)
    else:
        if isinstance(gradient, Tensor):
            if gradient.backend is not t.backend:
                raise DeviceError(
                    f"backward: gradient is on {gradient.device}, the tensor on {t.device}"
                )
            if create_graph and gradient.shape == t.shape:
                return gradient if gradient.dtype == t.dtype else gradient.astype(t.dtype)
            gradient = gradient.array
        array = t.backend.asarray(gradient, t.dtype)
        if array.shape != t.shape:
            raise ShapeError(f"backward: gradient has shape {array.shape}, the tensor {t.shape}")
    return Tensor(array, t.backend) if create_graph else array


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    allow_unused: bool = False,
) -> tuple[Tensor, ...]:
    """Partial derivatives of (the sum of) `outputs` by `inputs`, without touching any ``grad``.

    Parameters
    ----------
    outputs : tensors to differentiate.
    inputs : tensors to differentiate by; leaves or intermediate results.
    grad_outputs : cotangents, one per output; None for 1 at a single element.
    create_graph : make the results differentiable: second and higher derivatives.
    retain_graph : keep saved values; by default the value of `create_graph`.
    allow_unused : give zeros, instead of an error, for an input that the outputs do not depend on.

    Returns
    -------
    tuple of Tensor
        One per input, of its shape.
    """
    outs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    ins = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if not outs:
        raise GradientError("grad: there are no outputs to differentiate")
    given = (
        [grad_outputs] if isinstance(outputs, Tensor) else list(grad_outputs or [None] * len(outs))
    )
    if len(given) != len(outs):
        raise GradientError(f"grad: {len(outs)} outputs, but {len(given)} grad_outputs")
    for kind, tensors in (("output", outs), ("input", ins)):
        for i, t in enumerate(tensors):
            if not t.requires_grad:
                raise GradientError(
                    f"grad: {kind} {i} (shape {t.shape}) does not require a gradient"
                )
    seeds = [seed_cotangent(t, g, create_graph) for t, g in zip(outs, given, strict=True)]
    found = run_backward(
        outs,
        seeds,
        targets=ins,
        create_graph=create_graph,
        retain_graph=create_graph if retain_graph is None else retain_graph,
    )
    results = []
    for i, (t, g) in enumerate(zip(ins, found, strict=True)):
        if g is None:
            if not allow_unused:
                raise GradientError(
                    f"grad: the outputs do not depend on input {i} (shape {t.shape}); "
                    "allow_unused=True gives zeros"
                )
            g = t.backend.zeros(t.shape, t.dtype)
        if not isinstance(g, Tensor):
            # A copy: rules may hand the same array to two inputs, or a window on one they got.
            g = Tensor(t.backend.asarray(t.backend.copy(g)), t.backend)
        results.append(g)
    return tuple(results)
