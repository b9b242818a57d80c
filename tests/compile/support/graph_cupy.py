"""The stand-in for CuPy with streams, events, pinned memory and captures, made to find mistakes.

* Streams other than the first one do their work as late as they may: when somebody waits for them.
  A copy that nobody ordered has not happened when it is needed.
* A capture carries nothing out. Each call is kept with the addresses of its arrays, and a launch
  repeats it on what lies there by then; an address whose array is gone is an error.
* Memory that a capture asks for must come from a pool of its own, whose free blocks it uses again,
  and is full of NaN.
* What CuPy refuses during a capture is refused: its own products, waiting, sorting, copies from and
  to the host. The last of these CuPy does not refuse, but would do wrong.
* Pinned memory that is given back is overwritten at once, as by its next owner.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from gpubackprop.backends.cuda import lt
from tests.backends.support import fake_cupy

PRODUCTS = {"matmul", "einsum", "dot"}
IN_PLACE = {"store", "fill"}


class Memory:
    """What a NumPy array may have as its base so that it keeps `root` alive."""

    def __init__(self, root: np.ndarray, interface: dict[str, Any]) -> None:
        self.root, self.__array_interface__ = root, interface


def over(root: np.ndarray, address: int, shape: Any, strides: Any, dtype: Any) -> np.ndarray:
    """An array at an address within the memory of `root`."""
    dtype = np.dtype(dtype)
    interface = {
        "data": (address, False),
        "shape": tuple(shape),
        "strides": None if strides is None else tuple(strides),
        "typestr": dtype.str,
        "version": 3,
    }
    made = np.asarray(Memory(root, interface))
    return made if made.dtype == dtype else made.view(dtype)  # bfloat16 has no name of its own


def root_of(values: np.ndarray) -> np.ndarray:
    """The array that owns the memory."""
    while (below := values.base) is not None:
        found = below if isinstance(below, np.ndarray) else getattr(below, "root", None)
        if found is None:
            break
        values = found
    return values


class Pointer:
    """``cupy.cuda.MemoryPointer``."""

    def __init__(self, root: np.ndarray, ptr: int, device: Any) -> None:
        self.root, self.ptr, self.device = root, ptr, device

    def __add__(self, n: int) -> Pointer:
        return Pointer(self.root, self.ptr + n, self.device)


class Array(fake_cupy.ndarray):
    """``cupy.ndarray``: of hidden values, or of a shape, a dtype and a pointer."""

    __slots__ = ("above",)

    def __init__(
        self, values: Any, device: Any, memory: Pointer | None = None, strides: Any = None
    ) -> None:
        if memory is not None:
            values = over(memory.root, memory.ptr, values, strides, device)
            device = memory.device
        self.above: Array | None = None
        super().__init__(values, device)
        root = root_of(values)
        device.module.roots[id(root)] = root

    base = property(lambda self: self.above)
    nbytes = property(lambda self: self.on_host.nbytes)
    data = property(
        lambda self: Pointer(root_of(self.on_host), self.on_host.ctypes.data, self.device)
    )

    def set(self, host: np.ndarray, stream: Stream | None = None) -> None:
        module = self.device.module
        assert host.shape == self.shape and host.dtype == self.dtype
        assert host.flags.c_contiguous and self.flags.c_contiguous
        if stream is None:
            module.waited("a synchronous copy")
            self.on_host[...] = host
            return
        assert not stream.is_capturing(), "a captured copy reads a buffer that is used again"
        source, target, n = host.ctypes.data, Place(self), host.nbytes
        module.log.append(("to the device", stream.name))
        stream.do(lambda: ctypes.memmove(target.now().ctypes.data, source, n))

    def get(self, stream: Stream, out: np.ndarray, blocking: bool) -> np.ndarray:
        module = self.device.module
        assert not blocking and out.shape == self.shape and out.dtype == self.dtype
        assert not stream.is_capturing(), "a captured copy to the host"
        source, target, n = Place(self), out.ctypes.data, self.nbytes
        module.log.append(("to the host", stream.name))

        def copied() -> None:
            values = np.ascontiguousarray(source.now())
            ctypes.memmove(target, values.ctypes.data, n)

        # As late as the rest: nobody may read the host's side before its event.
        stream.do(copied, late=True)
        return out


class Place:
    """An array as the device knows it: by its address."""

    def __init__(self, array: Array) -> None:
        values = array.on_host
        self.root = weakref.ref(root_of(values))
        self.address, self.shape = values.ctypes.data, values.shape
        self.strides, self.dtype = values.strides, values.dtype

    def now(self) -> np.ndarray:
        root = self.root()
        if root is None:
            raise RuntimeError("cudaErrorIllegalAddress: the memory of an argument was freed")
        return over(root, self.address, self.shape, self.strides, self.dtype)


class Stream:
    """``cupy.cuda.Stream``; the first one works at once, the others when they have to."""

    def __init__(self, module: GraphCuPy, name: str) -> None:
        self.module, self.name, self.ptr = module, name, len(module.streams)
        self.tasks: list[Callable[[], Any]] = []
        self.ran = 0
        self.running = False
        self.late = name != "main"
        self.graph: Graph | None = None
        module.streams.append(self)

    def do(self, task: Callable[[], Any], late: bool = False) -> None:
        self.tasks.append(task)
        if not (self.late or late):
            self.run(len(self.tasks))

    def run(self, until: int) -> None:
        before, self.running = self.running, True
        while self.ran < until:
            self.ran += 1
            self.tasks[self.ran - 1]()
        self.running = before

    def __enter__(self) -> Stream:
        self.module.current_streams.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        self.module.current_streams.pop()

    def wait_event(self, event: Event) -> None:
        self.module.log.append(("wait", self.name))
        self.do(event.reached())

    def synchronize(self) -> None:
        self.module.waited("a stream")
        self.run(len(self.tasks))

    def is_capturing(self) -> bool:
        return self.graph is not None

    def begin_capture(self) -> None:
        if self.name == "main":
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self.graph = Graph(self.module)

    def end_capture(self) -> Graph:
        graph, self.graph = self.graph, None
        assert graph is not None, "there is no capture to end"
        if graph.spoilt:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")
        return graph


class Event:
    """``cupy.cuda.Event``."""

    def __init__(self, module: GraphCuPy) -> None:
        self.module = module
        self.stream: Stream | None = None
        self.mark = 0

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or self.module.stream_now()
        assert not self.stream.is_capturing()
        self.mark = len(self.stream.tasks)

    def reached(self) -> Callable[[], None]:
        """Brings the stream to where it was when the event was recorded last."""
        stream, mark = self.stream, self.mark
        return (lambda: None) if stream is None else (lambda: stream.run(mark))

    @property
    def done(self) -> bool:
        return self.stream is None or self.stream.ran >= self.mark

    def synchronize(self) -> None:
        self.module.waited("an event")
        self.reached()()


class Graph:
    """``cupy.cuda.Graph``: what a capture saw."""

    def __init__(self, module: GraphCuPy) -> None:
        self.module = module
        self.nodes: list[Callable[[], None]] = []
        self.spoilt = False
        self.uploads = 0

    def launch(self, stream: Stream | None = None) -> None:
        stream = stream or self.module.stream_now()
        self.module.log.append(("launch", stream.name))
        self.module.launches += 1
        for node in self.nodes:
            stream.do(node)

    def upload(self, stream: Stream | None = None) -> None:
        self.uploads += 1


class CUDARuntimeError(RuntimeError):
    """What the driver answers where there is no room."""

    status = 2


class MemoryPool:
    """``cupy.cuda.MemoryPool``, which hands out free blocks again, the latest first, and gives them
    back to the driver when that has no room."""

    def __init__(self, allocator: Callable[[int], np.ndarray]) -> None:
        self.allocator = allocator
        self.blocks: list[np.ndarray] = []
        self.free: list[np.ndarray] = []
        self.reused = self.limit = 0

    def malloc(self, nbytes: int) -> np.ndarray:
        """Memory whose array gives it back."""
        size = max(-(-nbytes // 512) * 512, 512)
        fitting = [b for b in self.free if b.size == size]
        if fitting:
            memory = fitting[-1]
            self.free = [b for b in self.free if b is not memory]
            self.reused += 1
        else:
            if self.limit and self.total_bytes() + size > self.limit:
                raise fake_cupy.OutOfMemoryError(size, self.total_bytes(), self.limit)
            try:
                memory = self.allocator(size)
            except CUDARuntimeError:
                self.blocks = [b for b in self.blocks if not any(b is f for f in self.free)]
                self.free.clear()
                memory = self.allocator(size)
            self.blocks.append(memory)
        memory[...] = 0xFF
        lent = over(memory, memory.ctypes.data, (size,), None, np.uint8)
        weakref.finalize(lent.base, self.free.append, memory)
        return lent

    def set_limit(self, size: int) -> None:
        self.limit = size

    def total_bytes(self) -> int:
        return sum(b.size for b in self.blocks)


class Device(fake_cupy.Device):
    """A GPU whose calls go to the current stream."""

    module: GraphCuPy

    def wrap(self, result: Any) -> Any:
        if isinstance(result, (np.ndarray, np.generic)):
            return Array(np.asarray(result), self)
        return tuple(map(self.wrap, result)) if isinstance(result, tuple) else result

    def synchronize(self) -> None:
        self.module.waited("the device")
        super().synchronize()

    def call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        current = self.module.device()
        for value in (*arguments, *options.values()):
            current.check(value)
        return self.module.perform(function, arguments, options)


class GraphCuPy(fake_cupy.FakeCuPy):
    """The module.

    Attributes
    ----------
    log : copies, waits and launches, each with the name of its stream.
    launches : of graphs.
    eager : calls of kernels outside of a capture.
    waits : what the host waited for.
    room : bytes that the driver has for pools of captures.
    """

    ndarray = Array

    def __init__(self, count: int = 1) -> None:
        super().__init__(count)
        self.streams: list[Stream] = []
        self.log: list[tuple[str, str]] = []
        self.waits: list[str] = []
        self.launches = self.eager = 0
        self.room = 2**40
        self.roots: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self.physical: list[np.ndarray] = []
        self.pools: list[weakref.ref[MemoryPool]] = []
        self.main = Stream(self, "main")
        self.current_streams = [self.main]
        self.allocators: list[Any] = []
        self._devices = [Device(self, i) for i in range(count)]
        self.pinned_pool = SimpleNamespace(malloc=self._pin)
        self.pinned_allocator: Callable[[int], Any] = self._pin
        for name, value in {
            "Device": lambda index: Device(self, index),
            "Stream": lambda non_blocking: Stream(self, f"side {len(self.streams)}"),
            "Event": lambda disable_timing=False: Event(self),
            "get_current_stream": self.stream_now,
            "Memory": self._from_the_driver,
            "MemoryPointer": lambda memory, offset: memory,
            "MemoryPool": self._pool,
            "using_allocator": self._using,
            "alloc_pinned_memory": lambda n: self.pinned_allocator(n),
            "set_pinned_memory_allocator": lambda f: setattr(self, "pinned_allocator", f),
        }.items():
            setattr(self.cuda, name, value)

    def get_default_pinned_memory_pool(self) -> Any:
        return self.pinned_pool

    def stream_now(self) -> Stream:
        """The current stream."""
        return self.current_streams[-1]

    def _from_the_driver(self, size: int) -> np.ndarray:
        if size > self.room:
            raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
        memory = np.empty(size, np.uint8)
        self.room -= size
        weakref.finalize(memory, self._back_to_the_driver, size)
        return memory

    def _back_to_the_driver(self, size: int) -> None:
        self.room += size

    def _pool(self, allocator: Callable[[int], np.ndarray]) -> MemoryPool:
        pool = MemoryPool(allocator)
        self.pools.append(weakref.ref(pool))
        return pool

    @contextlib.contextmanager
    def _using(self, malloc: Any) -> Iterator[None]:
        self.allocators.append(malloc)
        try:
            yield
        finally:
            self.allocators.pop()

    def _pin(self, nbytes: int) -> Any:
        memory = np.zeros(nbytes, np.uint8)
        self.physical.append(memory)  # stays readable: a late copy finds what the next owner wrote
        kind = type("Pinned", (ctypes.c_ubyte * nbytes,), {})
        made = kind.from_buffer(memory)
        weakref.finalize(made, memory.fill, 0xAA)
        return made

    def waited(self, what: str) -> None:
        """The host waits: not while it captures."""
        graph = self.stream_now().graph
        if graph is not None:
            graph.spoilt = True
            raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: waiting for {what}")
        self.waits.append(what)

    # Kernels.
    def perform(self, function: Any, arguments: Any, options: Any) -> Any:
        """Run a NumPy function on hidden values, or capture it."""
        stream, name = self.stream_now(), getattr(function, "__name__", "")
        out = options.get("out")
        if stream.graph is None:
            self.eager += 1
            if stream is not self.main and not stream.running:
                stream.run(len(stream.tasks))  # a kernel comes after what its stream has to do
            with np.errstate(all="ignore"):
                result = function(
                    *map(fake_cupy._reveal, arguments),
                    **{n: fake_cupy._reveal(v) for n, v in options.items()},
                )
            return out if out is not None else self._wrapped(result, arguments, options)
        self._check(stream.graph, name)
        if out is not None or name in IN_PLACE:
            self._keep(stream.graph, function, arguments, options, ())
            return out
        with np.errstate(all="ignore"):
            result = function(
                *map(fake_cupy._reveal, arguments),
                **{n: fake_cupy._reveal(v) for n, v in options.items()},
            )
        several = result if isinstance(result, tuple) else (result,)
        roots = [root_of(a.on_host) for a in _arrays((arguments, tuple(options.values())))]
        if any(root_of(np.asarray(r)) is root for r in several for root in roots):
            return self._wrapped(result, arguments, options)  # a view: the host's business
        made = [self._allocated(np.shape(r), r.dtype) for r in several]
        self._keep(stream.graph, function, arguments, options, tuple(made))
        return tuple(made) if isinstance(result, tuple) else made[0]

    def _check(self, graph: Graph, name: str) -> None:
        if name in PRODUCTS:
            raise NotImplementedError(
                "calling cuBLAS API during stream capture is currently unsupported"
            )
        if name == "argsort":
            graph.spoilt = True
            raise RuntimeError("cudaErrorStreamCaptureUnsupported: thrust waits for the stream")

    def _allocated(self, shape: Any, dtype: Any) -> Array:
        assert self.allocators, "a capture took memory from the common pool"
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        lent = self.allocators[-1](size)
        values = lent[:size].view(dtype).reshape(shape)
        return Array(values, self.device())

    def _keep(self, graph: Graph, function: Any, args: Any, options: Any, outs: Any) -> None:
        positional, named = _placed(args), {n: _placed(v) for n, v in options.items()}
        targets = [Place(o) for o in outs]

        def node() -> None:
            with np.errstate(all="ignore"):
                result = function(*_found(positional), **{n: _found(v) for n, v in named.items()})
            found = result if isinstance(result, tuple) else (result,)
            for target, value in zip(targets, found, strict=False):
                target.now()[...] = value

        graph.nodes.append(node)

    def _wrapped(self, result: Any, arguments: Any, options: Any) -> Any:
        wrapped = self.device().wrap(result)
        if isinstance(wrapped, Array):
            for a in _arrays((arguments, tuple(options.values()))):
                if a.on_host is result:
                    return a
                if root_of(a.on_host) is root_of(wrapped.on_host):
                    wrapped.above = a if a.above is None else a.above
                    break
        return wrapped

    def product(self, plan: lt.Plan, run: Callable[[], None], addresses: tuple[int, ...]) -> None:
        """A product of cuBLASLt, which knows its arrays by their addresses."""
        graph = self.stream_now().graph
        if graph is None:
            run()
            return
        roots = [
            weakref.ref(r)
            for at in addresses
            for r in self.roots.values()
            if r.ctypes.data <= at < r.ctypes.data + max(r.nbytes, 1)
        ]
        assert len(roots) >= len(addresses), "an argument of a product lies nowhere"
        if plan.workspace:
            self._allocated((plan.workspace,), np.uint8)  # out of the pool of the capture

        def node() -> None:
            if any(r() is None for r in roots):
                raise RuntimeError("cudaErrorIllegalAddress: an argument of a product was freed")
            eager = self.eager
            run()
            self.eager = eager

        graph.nodes.append(node)

    def concatenate(self, arrays: Any, axis: int = 0, out: Any = None) -> Array:
        if len(arrays) > 8:
            self.pinned_allocator(8 * len(arrays))  # a table of addresses
            assert not self.stream_now().is_capturing()
        options = {} if out is None else {"out": out}
        return self.device().call(np.concatenate, arrays, axis=axis, **options)

    def asarray(self, data: Any, dtype: Any = None) -> Array:
        if isinstance(data, Array):
            return data if dtype in (None, data.dtype) else data.astype(dtype)
        values = np.array(data, dtype)
        if values.ndim:
            self.pinned_allocator(values.nbytes)
        if not self.stream_now().is_capturing():
            return Array(values, self.device())
        assert not values.ndim, "a captured copy reads a buffer that is used again"
        made = self._allocated(values.shape, values.dtype)
        made.fill(values[()])
        return made

    def asnumpy(self, x: Array) -> np.ndarray:
        self.waited("a copy to the host")
        return super().asnumpy(x)

    def RawModule(self, **options: Any) -> Any:  # noqa: N802 - CuPy's name
        inner = super().RawModule(**options)

        def get_function(expression: str) -> Any:
            function = inner.get_function(expression)

            def launch(grid: tuple[int], block: tuple[int], arguments: tuple) -> None:
                graph = self.stream_now().graph
                arguments = tuple(map(_flat, arguments))
                if graph is None:
                    self.eager += 1
                    function(grid, block, arguments)
                    return
                kept, device = _placed(arguments), self.device()

                def node() -> None:
                    found = [
                        Array(v, device)
                        if isinstance(v, np.ndarray) and isinstance(k, Place)
                        else v
                        for k, v in zip(kept, _found(kept), strict=True)
                    ]
                    function(grid, block, tuple(found))

                graph.nodes.append(node)

            return launch

        return SimpleNamespace(get_function=get_function)


def products_captured() -> Any:
    """A patch under which products of cuBLASLt are captured as they are on a GPU."""
    run = lt.Plan.run

    def captured(
        plan: lt.Plan,
        library: lt.CublasLt,
        a: int,
        b: int,
        d: int,
        alpha: float = 1.0,
        beta: float = 0.0,
        *beside: int,
    ) -> None:
        cupy, call = library._cupy, partial(run, plan, library, a, b, d, alpha, beta, *beside)
        if isinstance(cupy, GraphCuPy):
            cupy.product(plan, call, (a, b, d, *(at for at in beside if at)))
        else:
            call()

    return mock.patch.object(lt.Plan, "run", captured)


def _flat(value: Any) -> Any:
    """An array without gaps whose axes are in another order, or one number that is repeated, as a
    kernel sees it: by its address."""
    if not isinstance(value, Array) or value.on_host.flags.c_contiguous:
        return value
    values = value.on_host
    if all(n == 1 or step == 0 for n, step in zip(values.shape, values.strides, strict=True)):
        one = values[(slice(0, 1),) * values.ndim].reshape(-1)  # for all
        return Array(one, value.device)
    turned = values.transpose(sorted(range(values.ndim), key=lambda i: -values.strides[i]))
    if not turned.flags.c_contiguous:
        return value  # the shim refuses it
    return Array(turned.reshape(-1), value.device)


def _placed(value: Any) -> Any:
    if isinstance(value, Array):
        return Place(value)
    return type(value)(map(_placed, value)) if isinstance(value, (tuple, list)) else value


def _found(value: Any) -> Any:
    if isinstance(value, Place):
        return value.now()
    return type(value)(map(_found, value)) if isinstance(value, (tuple, list)) else value


def _arrays(value: Any) -> Iterator[Array]:
    if isinstance(value, Array):
        yield value
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _arrays(v)
