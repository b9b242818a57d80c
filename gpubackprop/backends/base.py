"""The kernel contract: everything that the layers above may ask of a device.

``Backend`` = primitives (each backend supplies them) + composites (``composites.py``, and by
subject ``convolution.py``, ``images.py``, ``norms.py``, ``recurrent.py``, ``attention.py``) and
updates (both defined once, overridden where a fused kernel pays). Derivative rules, layers and
optimizers speak to a backend and to nothing else; which array library answers is the backend's
business.

To add a backend: subclass ``Backend``, supply the primitives, register it in ``device.py``. The
reflection test compares its signatures with the contract and the parity suite runs it over every
operation's samples.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

from gpubackprop.backends.attention import AttentionKernels
from gpubackprop.backends.convolution import ConvolutionKernels
from gpubackprop.backends.images import ImageKernels
from gpubackprop.backends.memory import HostMemory, MemoryMeter
from gpubackprop.backends.norms import NormKernels
from gpubackprop.backends.primitives import Array, Primitives, Shape
from gpubackprop.backends.recurrent import RecurrentKernels
from gpubackprop.backends.updates import Updates

Numerics = Literal["native", "deterministic"]


class Backend(
    Updates, ConvolutionKernels, ImageKernels, NormKernels, RecurrentKernels, AttentionKernels
):
    """Kernels on the arrays of one device.

    Attributes
    ----------
    name : the array library's name, ``"numpy"`` or ``"cupy"``.
    device : the device's name, ``"cpu"``, ``"cuda:0"``, ...
    numerics : ``"deterministic"`` (same device, same bits, every run) or ``"native"`` (fastest).
    array_type : the class of this backend's arrays.
    """

    name: str
    device: str
    numerics: Numerics
    array_type: type

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked."""

    def memory_meter(self) -> MemoryMeter:
        """Counts the bytes in use on the device while a ``with`` block runs."""
        return HostMemory()

    def owns(self, x: Array) -> bool:
        """Whether `x` is an array of this backend's device."""
        return isinstance(x, self.array_type)

    def owner(self, x: Array) -> object:
        """What holds the memory of `x`: the array itself, or the array that it is a view of."""
        raise NotImplementedError

    def layout(self, x: Array) -> tuple[int, tuple[int, ...]]:
        """Address of the element at index 0, and the strides in bytes."""
        raise NotImplementedError

    def extent(self, owner: Any) -> tuple[int, int]:
        """Addresses of the first byte and of the byte after the last of what :meth:`owner` gave."""
        raise NotImplementedError

    def view_at(self, owner: Any, offset: int, shape: Shape, strides: Shape, dtype: Any) -> Array:
        """A view of memory that :meth:`owner` gave: the element at index 0 lies `offset` bytes
        after the first byte of its extent; strides in bytes, of any sign."""
        raise NotImplementedError

    def overlap(self, x: Array, y: Array) -> bool:
        """Whether two arrays with one owner may have elements in common: the bounds of their
        memory overlap."""
        raise NotImplementedError

    def first_outside(
        self, x: Array, low: float, high: float
    ) -> tuple[tuple[int, ...], float] | None:
        """Where the first element outside [low, high] is (a NaN is outside), and its value; None
        where there is none.

        For errors that name an element. A device that would have to be waited for does not look,
        and gives None.
        """
        return None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.device}>"


def kernel_names() -> tuple[str, ...]:
    """Names of every kernel in the contract, primitives first."""
    names = [n for n in Primitives.__annotations__]
    for cls in reversed([c for c in Backend.__mro__[1:] if issubclass(c, Primitives)]):
        for name, member in vars(cls).items():
            if inspect.isfunction(member) and not name.startswith("_") and name not in names:
                names.append(name)
    return tuple(names)
