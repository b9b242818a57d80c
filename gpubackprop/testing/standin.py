"""A stand-in for a device on a machine without one.

Its arrays live in host memory but behave as if they did not: they cannot be read, compared or mixed
with host arrays unless somebody copies them. An operation whose rules slip from the kernels into
NumPy, or look at a value on the way, works on a CPU and fails here as it would on a GPU.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gpubackprop.backends import Array, Shape
from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.composites import normalize_axes
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.updates import Updates


class StandInArray:
    """An array that the host cannot see into. It has no operators: rules use kernels."""

    __slots__ = ("hidden", "__weakref__")
    __array_ufunc__ = None

    def __init__(self, hidden: np.ndarray) -> None:
        self.hidden = hidden

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.hidden.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.hidden.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.hidden.size

    @property
    def dtype(self) -> np.dtype:
        """Type of the elements."""
        return self.hidden.dtype

    @property
    def T(self) -> StandInArray:  # noqa: N802 - NumPy's name
        """Axes reversed."""
        return StandInArray(self.hidden.T)

    def __getitem__(self, key: Any) -> StandInArray:
        return _hide(self.hidden[_uncover(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.hidden[_uncover(key)] = _uncover(value)

    def __getattr__(self, name: str) -> Any:
        if name not in ("sum", "max", "min", "reshape", "transpose", "astype", "copy"):
            raise AttributeError(f"a device array has no attribute {name!r}; use a kernel")
        return functools.partial(_call, getattr(self.hidden, name))

    def __repr__(self) -> str:
        return f"<array {self.dtype}{list(self.shape)} on the stand-in device>"

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "a value of a device array was read on the host, which would make the device wait"
        )

    __array__ = __bool__ = __float__ = __int__ = __index__ = __iter__ = __len__ = __eq__ = _refuse


class _Namespace:
    """NumPy for stand-in arrays: takes them out of their wrapping and puts results back."""

    ndarray = StandInArray

    def __getattr__(self, name: str) -> Any:
        function = functools.partial(_call, getattr(np, name))
        setattr(self, name, function)
        return function

    def asarray(self, data: Any, dtype: Any = None) -> StandInArray:
        """The only way in for a host array."""
        if isinstance(data, StandInArray):
            return data if dtype in (None, data.dtype) else data.astype(dtype)
        return StandInArray(np.array(data, dtype))


def _on_the_device(name: str) -> Any:
    """An update whose learning rate, step, scale and flag may be arrays that the host cannot
    read."""

    @functools.wraps(getattr(Updates, name))
    def update(self: StandInBackend, *args: Any, **options: Any) -> None:
        _call(getattr(self._host, name), *args, **options)

    return update


class StandInBackend(ArrayBackend):
    """Kernels on :class:`StandInArray`: primitives by NumPy, other kernels by their definition."""

    def __init__(self, device: str = "stand-in") -> None:
        super().__init__(_Namespace(), "stand-in", device)  # type: ignore[arg-type]
        self._host = NumPyBackend()

    def owner(self, x: Array) -> object:
        return self._host.owner(x.hidden)

    def layout(self, x: Array) -> tuple[int, tuple[int, ...]]:
        return self._host.layout(x.hidden)

    def extent(self, owner: Any) -> tuple[int, int]:
        return self._host.extent(owner.hidden if isinstance(owner, StandInArray) else owner)

    def view_at(self, owner: Any, offset: int, shape: Shape, strides: Shape, dtype: Any) -> Array:
        hidden = owner.hidden if isinstance(owner, StandInArray) else owner
        return StandInArray(self._host.view_at(hidden, offset, shape, strides, dtype))

    def to_numpy(self, x: Array) -> np.ndarray:
        return x.hidden.copy()

    def erf(self, x: Array, out: Array | None = None) -> Array:
        result = _call(self._host.erf, x)
        return result if out is None else self._fill(out, result)

    def random_bits(self, seed: int, stream: int, offset: int, n: int) -> Array:
        return StandInArray(self._host.random_bits(seed, stream, offset, n))

    def windows(self, x: Array, kernel: Shape, stride: Shape, dilation: Shape) -> Array:
        return _call(self._host.windows, x, kernel, stride, dilation)

    def scatter_take(self, dy: Array, indices: Array, axis: int, size: int) -> Array:
        (axis,) = normalize_axes(axis, dy.ndim - indices.ndim + 1)
        rows, places = dy.hidden, indices.hidden
        if places.size and (places.min() < -size or places.max() >= size):
            raise IndexError(f"index out of range for an axis of length {size}")
        result = np.zeros(dy.shape[:axis] + (size,) + dy.shape[axis + indices.ndim :], dy.dtype)
        np.add.at(result, (slice(None),) * axis + (places,), rows)
        return StandInArray(result)

    sgd_update = _on_the_device("sgd_update")
    adagrad_update = _on_the_device("adagrad_update")
    rmsprop_update = _on_the_device("rmsprop_update")
    adam_update = _on_the_device("adam_update")


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    out = kwargs.get("out")
    result = function(*_uncover(args), **{n: _uncover(v) for n, v in kwargs.items()})
    return out if out is not None else _hide(result)


def _hide(result: Any) -> Any:
    if isinstance(result, (np.ndarray, np.generic)):
        return StandInArray(np.asarray(result))
    return result


def _uncover(value: Any) -> Any:
    if isinstance(value, StandInArray):
        return value.hidden
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"a host array {value.dtype}{list(value.shape)} met an array of a device")
    if isinstance(value, (tuple, list)):
        return type(value)(_uncover(v) for v in value)
    return value
