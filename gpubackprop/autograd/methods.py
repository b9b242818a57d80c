"""Operators and methods of a tensor: NumPy's and PyTorch's names for the operations of layer 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpubackprop.autograd import tape
from gpubackprop.autograd.operation import REGISTRY
from gpubackprop.autograd.reductions import Reductions
from gpubackprop.autograd.tape import NUMBERS, apply
from gpubackprop.backends import Array, Axis, Backend, Shape, as_dtype
from gpubackprop.backends.composites import normalize_axes
from gpubackprop.errors import DeviceError, DTypeError, GradientError, ShapeError

if TYPE_CHECKING:
    from gpubackprop.autograd.tensor import Tensor

Operand = Any
"""A tensor, a Python number, or a host array beside a CPU tensor."""


class ArrayMethods(Reductions):
    """What a tensor can do beside remembering how it was made."""

    __slots__ = ()

    array: Array
    backend: Backend
    lasting = False  # whether += and the like write the array even where no gradient is wanted

    # Operators.
    def __add__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["add"], self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["add"], other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["subtract"], self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["subtract"], other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["multiply"], self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["multiply"], other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["divide"], self, other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["divide"], other, self)

    def __pow__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["power"], self, other)

    def __rpow__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["power"], other, self)

    def __iadd__(self, other: Operand) -> Tensor:
        return _assigned("+=", "add", self, other)

    def __isub__(self, other: Operand) -> Tensor:
        return _assigned("-=", "subtract", self, other)

    def __imul__(self, other: Operand) -> Tensor:
        return _assigned("*=", "multiply", self, other)

    def __itruediv__(self, other: Operand) -> Tensor:
        return _assigned("/=", "divide", self, other)

    def __matmul__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["matmul"], self, other)

    def __rmatmul__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["matmul"], other, self)

    def __neg__(self) -> Tensor:
        return apply(REGISTRY["negative"], self)

    def __pos__(self) -> Tensor:
        return self  # type: ignore[return-value]

    def __abs__(self) -> Tensor:
        return apply(REGISTRY["absolute"], self)

    def __eq__(self, other: Operand) -> Tensor:  # type: ignore[override]
        return apply(REGISTRY["equal"], self, other)

    def __ne__(self, other: Operand) -> Tensor:  # type: ignore[override]
        return apply(REGISTRY["not_equal"], self, other)

    def __lt__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["less"], self, other)

    def __le__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["less_equal"], self, other)

    def __gt__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["greater"], self, other)

    def __ge__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["greater_equal"], self, other)

    __hash__ = object.__hash__

    def __invert__(self) -> Tensor:
        return apply(REGISTRY["logical_not"], *_masks("~", self))

    def __and__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["logical_and"], *_masks("&", self, other))

    def __rand__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["logical_and"], *_masks("&", other, self))

    def __or__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["logical_or"], *_masks("|", self, other))

    def __ror__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["logical_or"], *_masks("|", other, self))

    def __xor__(self, other: Operand) -> Tensor:
        return apply(REGISTRY["not_equal"], *_masks("^", self, other))

    def __getitem__(self, key: Any) -> Tensor:
        return apply(REGISTRY["getitem"], self, key=_plain_key(key, self.backend))

    # Shape.
    def numel(self) -> int:
        """PyTorch's name for ``size``."""
        return self.array.size

    def reshape(self, *shape: Any) -> Tensor:
        """The elements in C order under another shape; one entry may be -1."""
        return apply(REGISTRY["reshape"], self, shape=_sequence(shape))

    view = reshape

    def ravel(self) -> Tensor:
        """The elements in C order along one axis."""
        return apply(REGISTRY["reshape"], self, shape=(self.array.size,))

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """The axes from `start_dim` to `end_dim` (both included) joined into one."""
        shape: Shape = self.array.shape or (1,)
        first, last = _axes("flatten", (start_dim, end_dim), shape, once=False)
        if last < first:
            raise ShapeError(
                f"flatten: end_dim {end_dim} lies before start_dim {start_dim} in shape {shape}"
            )
        joined = int(np.prod(shape[first : last + 1], dtype=np.int64))
        return self.reshape((*shape[:first], joined, *shape[last + 1 :]))

    def squeeze(self, axis: Axis = None) -> Tensor:
        """Without the axes of size one, or without those named, which must have size one."""
        shape: Shape = self.array.shape
        if axis is None:
            return self.reshape(tuple(n for n in shape if n != 1))
        axes = _axes("squeeze", axis, shape)
        if wrong := [a for a in axes if shape[a] != 1]:
            raise ShapeError(
                f"squeeze: axis {wrong[0]} of shape {shape} has {shape[wrong[0]]} elements, not one"
            )
        return self.reshape(tuple(n for i, n in enumerate(shape) if i not in axes))

    def expand_dims(self, axis: int | tuple[int, ...]) -> Tensor:
        """With new axes of size one, at these places of the result."""
        count = len(axis) if isinstance(axis, Sequence) else 1
        result = [0] * (len(self.array.shape) + count)
        new = _axes("expand_dims", axis, tuple(result))
        sizes = iter(self.array.shape)
        return self.reshape(tuple(1 if i in new else next(sizes) for i in range(len(result))))

    unsqueeze = expand_dims

    def transpose(self, *axes: Any) -> Tensor:
        """Axes permuted as in NumPy; reversed when none are named."""
        order = _sequence(axes) if axes and axes != (None,) else None
        return apply(REGISTRY["transpose"], self, axes=order)

    def permute(self, *dims: Any) -> Tensor:
        """Axes in the order named."""
        return apply(REGISTRY["transpose"], self, axes=_sequence(dims))

    @property
    def T(self) -> Tensor:
        """Axes reversed."""
        return self.transpose()

    def swapaxes(self, axis1: int, axis2: int) -> Tensor:
        """Two axes exchanged."""
        order = list(range(len(self.array.shape)))
        first, second = _axes("swapaxes", (axis1, axis2), self.array.shape, once=False)
        order[first], order[second] = second, first
        return self.permute(order)

    def moveaxis(self, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
        """Axes `source` moved to the places `destination`; the others keep their order."""
        shape = self.array.shape
        old, new = _axes("moveaxis", source, shape), _axes("moveaxis", destination, shape)
        if len(old) != len(new):
            raise ShapeError(
                f"moveaxis: source {source} and destination {destination} must name equally many "
                "axes"
            )
        order = [a for a in range(len(shape)) if a not in old]
        for to, a in sorted(zip(new, old, strict=True)):
            order.insert(to, a)
        return self.permute(order)

    def broadcast_to(self, *shape: Any) -> Tensor:
        """Axes of size one, and missing leading axes, repeated to fill a shape."""
        return apply(REGISTRY["broadcast_to"], self, shape=_sequence(shape))

    def flip(self, axis: Axis = None) -> Tensor:
        """The order of the elements reversed along axes."""
        return apply(REGISTRY["flip"], self, axis=axis)

    def split(self, indices_or_sections: int | Sequence[int], axis: int = 0) -> tuple[Tensor, ...]:
        """The tensor cut along an axis, into equal parts or at the indices given, as in NumPy."""
        (along,) = _axes("split", axis, self.array.shape)
        cuts = indices_or_sections
        if isinstance(cuts, (int, np.integer)):
            size = self.array.shape[along]
            if cuts < 1 or size % cuts:
                raise ShapeError(
                    f"split: axis {axis} of shape {self.array.shape} cannot be cut into {cuts} "
                    "equal parts"
                )
            cuts = (
                range(size // int(cuts), size, size // int(cuts)) if size else [0] * (int(cuts) - 1)
            )
        return apply(REGISTRY["split"], self, indices=tuple(int(c) for c in cuts), axis=along)

    # Elements.
    def clip(self, min: float | None = None, max: float | None = None) -> Tensor:
        """Each element, but no smaller than `min` and no larger than `max`; None is no bound."""
        if min is None and max is None:
            raise DTypeError("clip: give min, max or both")
        if isinstance(min, (*NUMBERS, type(None))) and isinstance(max, (*NUMBERS, type(None))):
            return apply(REGISTRY["clip"], self, low=min, high=max)
        low = self if min is None else apply(REGISTRY["maximum"], self, min)
        return low if max is None else apply(REGISTRY["minimum"], low, max)

    clamp = clip

    def take(self, indices: Any, axis: int | None = None) -> Tensor:
        """Slices along an axis by number, or elements of the flattened tensor."""
        if not isinstance(indices, ArrayMethods):
            indices = tape.TENSOR(self.backend.asarray(np.asarray(indices)), self.backend)
        if axis is None:
            return apply(REGISTRY["take"], self.ravel(), indices, axis=0)
        return apply(REGISTRY["take"], self, indices, axis=axis)

    def astype(self, dtype: Any) -> Tensor:
        """The values with another dtype."""
        return apply(REGISTRY["astype"], self, dtype=as_dtype(dtype))

    def rounded(self, dtype: np.dtype) -> Tensor:
        """``astype(dtype)``, from a copy that is there already where the tensor has one."""
        return apply(REGISTRY["astype"], self, dtype=dtype)

    def copy(self) -> Tensor:
        """The same values in memory of their own, with the history."""
        return apply(REGISTRY["copy"], self)

    clone = copy

    def __getattr__(self, name: str) -> Any:
        # Elementwise methods such as t.exp() or t.sigmoid(): any registered operation of one
        # tensor.
        op = REGISTRY.get(name)
        if op is None or op.inputs[:1] != ("x",):
            instead = ELSEWHERE.get(name)
            words = f"; write {instead} instead" if instead else ""
            raise AttributeError(f"Tensor has no attribute {name!r}{words}")
        return lambda *args, **params: apply(op, self, *args, **params)


# Methods of other libraries' tensors that have another name here: NumPy's.
ELSEWHERE = {
    "cuda": "x.to('cuda')",
    "dim": "x.ndim",
    "float": "x.astype('float32')",
    "double": "x.astype('float64')",
    "half": "x.astype('float16')",
    "int": "x.astype('int32')",
    "long": "x.astype('int64')",
    "bool": "x.astype('bool')",
    "contiguous": "x",
    "t": "x.T",
    "mT": "x.swapaxes(-1, -2)",
    "expand": "gb.broadcast_to(x, shape)",
    "masked_fill": "gb.where(mask, value, x)",
    "pow": "x**n",
    "mm": "x @ y",
    "bmm": "x @ y",
    "matmul": "x @ y",
    "add_": "x += y",
    "mul_": "x *= y",
    "grad_fn": "x.node",
    "is_cuda": "x.device",
}


def _assigned(symbol: str, name: str, x: Any, other: Operand) -> Any:
    """``x += other`` and the like. Leaves that are learned, and parameters, are written in place;
    any other name is bound to a new tensor, so that nothing computed before is touched."""
    result = apply(REGISTRY[name], x, other)
    if x.node is not None or not (x.requires_grad or x.lasting):
        return result
    if result.node is not None:
        raise GradientError(
            f"{symbol}: a leaf that requires a gradient cannot be changed while operations are "
            "recorded; change it under gb.no_grad(), or give the result another name"
        )
    if result.shape != x.shape:
        raise ShapeError(f"{symbol}: the result has shape {result.shape}, the tensor {x.shape}")
    x.backend.copyto(x.array, result.array)
    x.mark_changed()
    return x


def _masks(symbol: str, *values: Any) -> tuple[Any, ...]:
    """`values`, which must be booleans: the bits of integers are no operation here."""
    for v in values:
        if not (isinstance(v, bool) or getattr(v, "dtype", None) == np.bool_):
            raise DTypeError(
                f"{symbol} is for boolean tensors, not {getattr(v, 'dtype', type(v).__name__)}"
            )
    return values


def _axes(name: str, axis: Any, shape: Shape, once: bool = True) -> tuple[int, ...]:
    """Axes of a shape, counted from the front; each named `once` only."""
    try:
        axes = normalize_axes(axis, len(shape))
    except ValueError as error:
        raise ShapeError(f"{name}: {error} (shape {shape})") from None
    if once and len(set(axes)) < len(axes):
        raise ShapeError(f"{name}: axis {axis} names an axis twice (shape {shape})")
    return axes


def _sequence(args: tuple[Any, ...]) -> tuple[int, ...]:
    if len(args) == 1 and not isinstance(args[0], (int, np.integer)):
        return tuple(int(a) for a in args[0])
    return tuple(int(a) for a in args)


def _plain_key(key: Any, backend: Backend) -> Any:
    """An index with its tensors, lists and host arrays replaced by arrays of the device."""
    kind = type(key)
    if kind is int or kind is slice:
        return key
    if isinstance(key, tuple):
        return tuple(_plain_key(k, backend) for k in key)
    if isinstance(key, ArrayMethods):
        if key.backend is not backend:
            raise DeviceError(
                f"getitem: the index is on {key.backend.device}, the tensor on {backend.device}; "
                "move one with .to(device)"
            )
        return key.array
    if isinstance(key, (list, np.ndarray)):
        return backend.asarray(np.asarray(key))
    return key
