"""The arena: parameters, gradients and optimizer state in flat buffers.

Each parameter is a view of one buffer, so that an update, a norm or a copy to another device is
one operation on the buffer instead of one per parameter. A :class:`Section` holds what has one
dtype on one device; an :class:`Arena` is nearly always a single section.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.autograd.shortage import named
from gpubackprop.backends import Array, Backend, get_backend
from gpubackprop.backends.memory import HOLDERS
from gpubackprop.errors import DeviceError, DTypeError, GradientError, ShapeError
from gpubackprop.nn.parameter import Parameter
from gpubackprop.nn.rounded import RoundedValues

ALIGNMENT = 64
"""Parameters begin at multiples of this many bytes from the buffer's start: what vector loads and
matrix units of a device ask for, where the buffer itself is aligned."""


class Section:
    """Buffers for tensors of one dtype on one device.

    Attributes
    ----------
    tensors : the parameters, in order.
    starts : first element of each parameter in the buffers, and the buffers' length at the end.
    values, grads : flat buffers. Elements between two parameters are zero in both, at all times.
    value_views, grad_views : each parameter's part of them, in its shape.
    slots : further buffers of the same layout, by name; zero where nothing was written.
    clipped_at : the tape's number when gradients here were clipped last.
    """

    clipped_at = -1

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self.backend: Backend = tensors[0].backend
        self.dtype: np.dtype = np.dtype(tensors[0].dtype)
        step = max(1, ALIGNMENT // self.dtype.itemsize)
        self.starts = [0]
        for t in tensors:
            self.starts.append(self.starts[-1] + -(-math.prod(t.shape) // step) * step)
        self.slots: dict[str, Array] = {}
        self._rounded: dict[np.dtype, RoundedValues] = {}
        self.values = self._zeros()
        self.grads = self._zeros()
        self._make_views()
        for i in range(len(tensors)):
            self._adopt(i)
        HOLDERS.add(self)

    def holdings(self) -> Iterator[tuple[str, Array]]:
        """What the buffers are for, for the error that says what holds a device's memory."""
        yield "parameters", self.values
        yield "gradients", self.grads
        for buffer in self.slots.values():
            yield "optimizer state", buffer
        for copy in self._rounded.values():
            yield "parameters in half precision", copy.buffer.array

    @property
    def size(self) -> int:
        """Elements of each buffer, padding included."""
        return self.starts[-1]

    def _zeros(self) -> Array:
        with named(f"a buffer of {self.size:,} parameters", self.backend):
            return self.backend.zeros((self.size,), self.dtype)

    def view(self, buffer: Array, i: int) -> Array:
        """Parameter `i`'s part of a buffer, in its shape."""
        shape = self.tensors[i].shape
        start = self.starts[i]
        return buffer[start : start + math.prod(shape)].reshape(shape)

    def _make_views(self) -> None:
        n = range(len(self.tensors))
        self.value_views = [self.view(self.values, i) for i in n]
        self.grad_views = [self.view(self.grads, i) for i in n]

    def _adopt(self, i: int) -> None:
        """Bring the values of parameter `i` into the buffer and make it a view of that."""
        t, view = self.tensors[i], self.value_views[i]
        if t.shape != view.shape:
            raise ShapeError(
                f"parameter {i} of the arena changed its shape from {view.shape} to {t.shape}; "
                "make a new optimizer for it"
            )
        if t.dtype != self.dtype:
            raise DTypeError(
                f"parameter {i} of the arena (shape {t.shape}) changed its dtype from "
                f"{self.dtype} to {t.dtype}; make a new optimizer for it"
            )
        self.backend.copyto(view, t.array)
        t.array = view
        for copy in self._rounded.values():
            copy.forget()
        if isinstance(t, Parameter):
            t.grad_buffer = self.grad_views[i]
            t.home = (weakref.ref(self), i)

    def gather(self) -> list[bool]:
        """Bring in values and gradients that were replaced from outside.

        Returns
        -------
        list of bool
            For each parameter, whether it has a gradient. Each gradient is then a view of
            ``grads``, so that writing the buffer is writing ``parameter.grad``.
        """
        present = []
        for i, (t, value, grad) in enumerate(
            zip(self.tensors, self.value_views, self.grad_views, strict=True)
        ):
            if t.array is not value:
                if t.backend is not self.backend:
                    self._follow()
                    return self.gather()
                self._adopt(i)
            g = t.grad
            if g is None:
                present.append(False)
                continue
            if g.array is not grad:
                if g.shape != t.shape:
                    raise ShapeError(
                        f"parameter {i} of the arena has shape {t.shape}, its gradient {g.shape}"
                    )
                if g.backend is not self.backend:
                    raise DeviceError(
                        f"parameter {i} of the arena is on {t.device}, its gradient on {g.device}"
                    )
                self.backend.copyto(grad, g.array)
                t.grad = Tensor(grad, self.backend)
            present.append(True)
        return present

    def spans(
        self,
        keys: Sequence[object],
        first: int = 0,
        last: int | None = None,
        *,
        exact: bool = False,
    ) -> Iterator[tuple[int, int, object]]:
        """Contiguous stretches of the buffers over parameters with equal keys.

        Parameters
        ----------
        keys : one per parameter; parameters whose key is None or False are left out.
        first, last : consider parameters ``first <= i < last`` only.
        exact : one stretch per parameter, without the padding behind it.

        Yields
        ------
        start, stop, key
            In elements.
        """
        last = len(self.tensors) if last is None else last
        i = first
        while i < last:
            key = keys[i]
            if key is None or key is False:
                i += 1
                continue
            j = i + 1
            if exact:
                stop = self.starts[i] + math.prod(self.tensors[i].shape)
            else:
                while j < last and keys[j] == key:
                    j += 1
                stop = self.starts[j]
            if stop > self.starts[i]:
                yield self.starts[i], stop, key
            i = j

    def slot(self, name: str) -> Array:
        """The buffer of this name, made of zeros when it is first asked for."""
        buffer = self.slots.get(name)
        if buffer is None:
            buffer = self.slots[name] = self._zeros()
        return buffer

    def rounded(self, dtype: np.dtype) -> RoundedValues:
        """The values in another dtype; made when first asked for, and kept up to date."""
        copy = self._rounded.get(dtype)
        if copy is None:
            copy = self._rounded[dtype] = RoundedValues(self, dtype)
        return copy

    def _follow(self) -> None:
        """The parameters were moved to another device one by one: move the buffers after them."""
        devices = list({t.backend.device: t.backend for t in self.tensors}.values())
        if len(devices) > 1:
            raise DeviceError(
                "the parameters of one optimizer were moved to different devices "
                f"({', '.join(b.device for b in devices)}); make a new optimizer"
            )
        self.move(devices[0])

    def move(self, target: Backend) -> None:
        """Move the buffers to another device, one copy each, and the parameters with them."""
        inside = [t.array is v for t, v in zip(self.tensors, self.value_views, strict=True)]
        held = [
            t.grad is not None and t.grad.array is v
            for t, v in zip(self.tensors, self.grad_views, strict=True)
        ]
        source, self.backend = self.backend, target
        self._rounded.clear()

        def transfer(buffer: Array) -> Array:
            return target.copy(target.asarray(source.to_numpy(buffer)))

        self.values = transfer(self.values)
        self.grads = transfer(self.grads) if any(held) else self._zeros()
        self.slots = {name: transfer(buffer) for name, buffer in self.slots.items()}
        self._make_views()
        for i, t in enumerate(self.tensors):
            if inside[i]:
                t.array = self.value_views[i]
            elif t.backend is not target:
                t.array = target.asarray(t.numpy())
            t.backend = target
            if held[i]:
                t.grad = Tensor(self.grad_views[i], target)
            elif t.grad is not None:
                t.grad = t.grad.detach().to(target)
            if isinstance(t, Parameter):
                t.grad_buffer = self.grad_views[i]
                t.home = (weakref.ref(self), i)
            if not inside[i]:
                self._adopt(i)


class Arena:
    """Parameters in flat buffers.

    Parameters
    ----------
    parameters : leaf tensors in registration order; one that appears twice (tied) is kept once.

    Attributes
    ----------
    parameters : the tensors, each once.
    sections : the buffers, one section per dtype and device, in order of first appearance.

    Raises
    ------
    DTypeError
        If something is not a tensor.
    GradientError
        If a tensor is the result of an operation.

    Examples
    --------
    >>> arena = Arena(model.parameters())  # doctest: +SKIP
    >>> arena.values[0].shape  # doctest: +SKIP
    (669712,)
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        unique: dict[int, Tensor] = {}
        for i, t in enumerate(parameters):
            if not isinstance(t, Tensor):
                raise DTypeError(f"parameter {i} is a {type(t).__name__}, not a tensor")
            if t.node is not None:
                raise GradientError(
                    f"parameter {i} (shape {t.shape}) is the result of {t.node.op.name}; "
                    "only a leaf can be updated: use detach() and requires_grad=True"
                )
            unique.setdefault(id(t), t)
        self.parameters: tuple[Tensor, ...] = tuple(unique.values())
        members: dict[tuple[np.dtype, str], list[Tensor]] = {}
        for t in self.parameters:
            members.setdefault((t.dtype, t.device), []).append(t)
        self.sections: tuple[Section, ...] = tuple(Section(m) for m in members.values())
        self.places: dict[int, tuple[Section, int]] = {
            id(t): (s, i) for s in self.sections for i, t in enumerate(s.tensors)
        }

    @property
    def values(self) -> tuple[Array, ...]:
        """The flat buffer of each section's values."""
        return tuple(s.values for s in self.sections)

    @property
    def grads(self) -> tuple[Array, ...]:
        """The flat buffer of each section's gradients; stale where a parameter has none."""
        return tuple(s.grads for s in self.sections)

    def slot(self, name: str) -> tuple[Array, ...]:
        """Further buffers of the same layout, of zeros when they are first asked for."""
        return tuple(s.slot(name) for s in self.sections)

    def gather(self) -> list[list[bool]]:
        """:meth:`Section.gather` of each section."""
        return [s.gather() for s in self.sections]

    def zero_grad(self) -> None:
        """Forget every gradient. Nothing is written: the next one overwrites the buffer."""
        for t in self.parameters:
            t.grad = None

    def to(self, device: str | Backend) -> Arena:
        """Move every buffer, and with it each parameter, to another device; returns the arena."""
        target = get_backend(device)
        for section in self.sections:
            if section.backend is not target:
                section.move(target)
        return self
