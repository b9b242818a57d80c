"""A stand-in for CuPy on a machine without a GPU, so that the CUDA backend's own code runs in CI.

Arrays hide their values: nothing but ``asnumpy`` brings them back, and they do not mix with host
arrays or with arrays of another device. The namespace has the functions that the backend may use,
with CuPy's restrictions, and no ``random``, ``linalg`` or ``fft``, whose libraries the lean
installation lacks. ``RawModule`` runs the real ``.cu`` sources through ``shim.h``, and its cuBLASLt
is ``fake_lt.c``.

What it cannot show is how CuPy's own functions behave on a GPU; NumPy answers in their place.
"""

from __future__ import annotations

import time
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np

from gpubackprop.backends.primitives import Primitives
from tests.backends.support import fake_lt, shim

_FUNCTIONS = {
    *Primitives.__annotations__,
    *("all", "any", "argmax", "argmin", "argsort", "broadcast_to", "clip", "cumsum"),
    *("einsum", "empty", "flip", "full", "matmul", "ones", "prod", "sum", "take_along_axis"),
    *("may_share_memory", "where", "zeros", "arange", "ascontiguousarray", "concatenate", "take"),
}
_METHODS = {"astype", "copy", "fill", "max", "min", "reshape", "sum", "transpose"}


class ndarray:  # noqa: N801 - CuPy's name
    """An array on a device."""

    __slots__ = ("__weakref__", "device", "on_host")
    __array_ufunc__ = None  # a NumPy function refuses it

    def __init__(self, values: np.ndarray, device: Device) -> None:
        self.on_host = values
        self.device = device
        device.module.pool.handed_out(values, device.id)

    shape = property(lambda self: self.on_host.shape)
    ndim = property(lambda self: self.on_host.ndim)
    size = property(lambda self: self.on_host.size)
    dtype = property(lambda self: self.on_host.dtype)
    flags = property(lambda self: self.on_host.flags)
    base = property(lambda self: self.on_host)  # CuPy's is None for an array that is no view
    strides = property(lambda self: self.on_host.strides)
    T = property(lambda self: self.transpose())
    itemsize = property(lambda self: self.on_host.itemsize)
    data = property(lambda self: SimpleNamespace(ptr=self.on_host.ctypes.data))
    __cuda_array_interface__ = property(lambda self: {"shape": self.shape})

    def __getattr__(self, name: str) -> Any:
        if name not in _METHODS:
            raise AttributeError(f"the fake cupy.ndarray has no {name}")
        return lambda *a, **k: self.device.call(getattr(np.ndarray, name), self, *a, **k)

    def __getitem__(self, key: Any) -> ndarray:
        return self.device.call(lambda x, *k: x[_key(k)], self, *_entries(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        entries = _entries(key)
        masked = any(getattr(k, "dtype", None) == np.bool_ for k in entries)
        if masked and getattr(value, "size", 1) != 1:
            raise NotImplementedError("a mask is assigned one value")
        self.device.check(value)

        def store(x: np.ndarray, v: Any, *k: Any) -> None:
            x[_key(k)] = v

        self.device.call(store, self, value, *entries)

    def __len__(self) -> int:
        return len(self.on_host)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("implicit conversion of a device array: the host would wait for the device")

    __array__ = __bool__ = __float__ = __int__ = __index__ = __iter__ = item = tolist = _refuse

    def _operator(self, *_: Any) -> Any:
        raise TypeError("the backend computes by kernels, not by operators")

    __add__ = __radd__ = __mul__ = __rmul__ = __sub__ = __rsub__ = __truediv__ = _operator
    __eq__ = __ne__ = __lt__ = __gt__ = __neg__ = __pow__ = __matmul__ = _operator  # type: ignore
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.dtype}{list(self.shape)} on fake device {self.device.id}>"


class OutOfMemoryError(MemoryError):
    """CuPy's, with the words and the attributes of version 14."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        self._size, self._total, self._limit = size, total, limit
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes, limit "
            f"set to: {limit:,} bytes)."
        )


class Pool:
    """CuPy's memory pool as far as its hooks can see it; it counts while there are any, or while it
    has a limit.

    Arrays whose sizes are rounded up to CuPy's unit, by the host array that owns the memory.
    """

    UNIT = 512

    def __init__(self) -> None:
        self.hooks: dict[str, Any] = {}
        self.used = self.limit = 0
        pool = self

        class MemoryHook:
            """The part of ``cupy.cuda.MemoryHook`` that is called here."""

            name = "MemoryHook"

            def __enter__(self) -> MemoryHook:
                assert self.name not in pool.hooks, "CuPy refuses a second hook of this name"
                pool.hooks[self.name] = self
                return self

            def __exit__(self, *_: Any) -> None:
                del pool.hooks[self.name]

            def malloc_postprocess(self, **event: Any) -> None: ...
            def free_postprocess(self, **event: Any) -> None: ...

        self.MemoryHook = MemoryHook

    def handed_out(self, values: np.ndarray, device_id: int) -> None:
        if not (self.hooks or self.limit) or values.base is not None or not values.nbytes:
            return
        size = -(-values.nbytes // self.UNIT) * self.UNIT
        if self.limit and self.used + size > self.limit:
            raise OutOfMemoryError(values.nbytes, self.used, self.limit)
        event = {"device_id": device_id, "mem_size": size, "mem_ptr": values.ctypes.data}
        self.used += size
        for hook in list(self.hooks.values()):
            hook.malloc_postprocess(**event, size=values.nbytes, pmem_id=id(values))
        weakref.finalize(values, self._released, event, id(values))

    def _released(self, event: dict[str, int], pmem_id: int) -> None:
        self.used -= event["mem_size"]
        for hook in list(self.hooks.values()):
            hook.free_postprocess(**event, pmem_id=pmem_id)

    def used_bytes(self) -> int:
        return self.used

    def free_bytes(self) -> int:
        return 0

    def free_all_blocks(self) -> None:
        """It keeps none."""

    def get_limit(self) -> int:
        return self.limit

    def set_limit(self, size: int) -> None:
        self.limit = size


class Event:
    """A moment on the only stream."""

    def record(self) -> None:
        """Nothing is ever pending, so it is now."""
        self.at = time.perf_counter()


def _entries(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def _key(entries: tuple[Any, ...]) -> Any:
    return entries if len(entries) != 1 else entries[0]


class Device:
    """A fake GPU, and the context that makes it the current one."""

    def __init__(self, module: FakeCuPy, index: int) -> None:
        if not 0 <= index < module.count:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.module, self.id = module, index
        self._before: list[int] = []

    def __enter__(self) -> Device:
        self._before.append(self.module.current)
        self.module.current = self.id
        return self

    def __exit__(self, *_: Any) -> None:
        self.module.current = self._before.pop()

    def synchronize(self) -> None:
        """Nothing is ever pending."""
        self.module.synchronised += 1

    def wrap(self, result: Any) -> Any:
        """NumPy's results as arrays of this device; 0-d ones stay arrays, as in CuPy."""
        if isinstance(result, (np.ndarray, np.generic)):
            return ndarray(np.asarray(result), self)
        return tuple(map(self.wrap, result)) if isinstance(result, tuple) else result

    def check(self, value: Any) -> None:
        """Refuse arrays of the host or of another device, and work outside the current device."""
        if isinstance(value, (tuple, list)):
            for v in value:
                self.check(v)
        elif isinstance(value, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        elif isinstance(value, ndarray) and value.device.id != self.id:
            raise ValueError(f"array device must be the current one: {value.device.id}, {self.id}")

    def call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """Run a NumPy function on the hidden values."""
        current = self.module.device()
        for value in (*arguments, *options.values()):
            current.check(value)
        out = options.get("out")
        with np.errstate(all="ignore"):
            result = function(
                *map(_reveal, arguments), **{n: _reveal(v) for n, v in options.items()}
            )
        return out if out is not None else current.wrap(result)


def _reveal(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value.on_host
    return type(value)(map(_reveal, value)) if isinstance(value, (tuple, list)) else value


class FakeCuPy:
    """The module.

    Parameters
    ----------
    count : number of GPUs that the machine seems to have.

    Attributes
    ----------
    transfers : arrays that were copied to the host.
    synchronised : how often the host waited for a device.
    stream : what the current stream is called.
    capturing : whether a graph is being made of what is asked for.
    """

    __version__ = "14.2.0"
    ndarray = ndarray

    def __init__(self, count: int = 1) -> None:
        self.count, self.current = count, 0
        self.transfers = self.synchronised = self.stream = 0
        self.capturing = False
        self._devices = [Device(self, i) for i in range(count)]
        self.pool = Pool()
        self.cuda = SimpleNamespace(
            Device=lambda index: Device(self, index),
            MemoryHook=self.pool.MemoryHook,
            runtime=SimpleNamespace(
                getDeviceCount=lambda: self.count,
                getDevice=lambda: self.current,
                memGetInfo=lambda: (3 << 30, 8 << 30),
                runtimeGetVersion=lambda: 0,  # no library of CUDA's is of this version
                driverGetVersion=lambda: 13000,
                getDeviceProperties=lambda _: {"name": b"NVIDIA Stand-In", "major": 9, "minor": 0},
            ),
            Event=Event,
            get_elapsed_time=lambda start, stop: 1e3 * (stop.at - start.at),
            get_current_stream=lambda: SimpleNamespace(
                ptr=self.stream, is_capturing=lambda: self.capturing
            ),
        )

        def as_strided(x: ndarray, shape: Any, strides: Any) -> ndarray:
            return self.device().call(np.lib.stride_tricks.as_strided, x, shape, strides)

        self.lib = SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=as_strided))

    def get_default_memory_pool(self) -> Pool:
        """One for all devices here; CuPy's tells the current device's bytes."""
        return self.pool

    def device(self) -> Device:
        """The current device."""
        return self._devices[self.current]

    def __getattr__(self, name: str) -> Any:
        if name not in _FUNCTIONS:
            raise AttributeError(f"the fake CuPy has no {name}")
        function = getattr(np, name)

        def call(*arguments: Any, **options: Any) -> Any:
            return self.device().call(function, *arguments, **options)

        setattr(self, name, call)
        return call

    def take(self, x: ndarray, indices: Any, axis: int | None = None) -> ndarray:
        """As CuPy does, indices out of range wrap around."""
        return self.device().call(np.take, x, indices, axis=axis, mode="wrap")

    def argsort(self, x: ndarray) -> ndarray:
        """Stable, as CuPy's is."""
        return self.device().call(np.argsort, x, kind="stable")

    def asarray(self, data: Any, dtype: Any = None) -> ndarray:
        """The way in for host data; an array of a device stays there."""
        if isinstance(data, ndarray):
            return data if dtype in (None, data.dtype) else data.astype(dtype)
        return ndarray(np.array(data, dtype), self.device())

    def asnumpy(self, x: ndarray) -> np.ndarray:
        """The way out."""
        self.device().check(x)
        self.transfers += 1
        return x.on_host.copy()

    def RawModule(self, **options: Any) -> Any:  # noqa: N802 - CuPy's name
        """Kernels that run on the CPU and check that their arrays are of the current device."""
        module = shim.RawModule(**options)

        def get_function(expression: str) -> Any:
            function = module.get_function(expression)

            def launch(grid: tuple[int], block: tuple[int], arguments: tuple) -> None:
                self.device().check(arguments)
                function(grid, block, arguments)

            return launch

        return SimpleNamespace(get_function=get_function)


fake_lt.install(FakeCuPy)
