"""Kernel calls captured into a CUDA graph, and the numbers that it reads anew at each launch.

What CuPy allows during a capture decides what a graph may hold: elementwise kernels, reductions and
raw kernels are fine; its calls of cuBLAS raise an error, and so does whatever waits for the device.
A copy from the host is worse: it would be captured, together with the address of a pinned buffer
that is used again for something else. So pinned memory is refused while a capture lasts.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpubackprop.backends.cuda.arrays import DeviceArrays
from gpubackprop.backends.cuda.staging import Arrival, Arrivals, CudaStaging, pinned
from gpubackprop.backends.launching import Calls, Launchable, Numbers, Staging
from gpubackprop.backends.memory import HOLDERS
from gpubackprop.backends.primitives import Array

_ONE_AT_A_TIME = threading.Lock()
UNCAPTURABLE = frozenset({"to_numpy"})
"""Kernels that no graph can hold. Each module of the backend may have such a set."""

RUN_AHEAD = 8
"""How many fillings of device numbers may be under way before the host waits for the first."""

MOST_AT_ONCE = 8
"""CuPy joins more arrays than this by a kernel that reads their addresses from a copied table."""


class CudaGraphs(DeviceArrays):
    """The part of the contract that ``launching.py`` describes."""

    run_ahead = 4
    """More would only be waited for elsewhere: two batches are on their way to the device."""

    index: int
    _gpu: Any
    _capturing: int | None = None
    """The thread that captures now."""
    _arrivals: Arrivals | None = None

    def capture_trouble(self) -> str | None:
        return None

    def capture(self, calls: Calls) -> Launchable | str:
        barred = uncapturable(type(self))
        for i, (name, _) in enumerate(calls):
            if name in barred:
                return f"kernel call {i} ({name}) is one that cannot be captured"
        with self._gpu, _ONE_AT_A_TIME:
            try:
                if self.xp.cuda.get_current_stream().is_capturing():
                    return "the current stream is being captured into another graph already"
            except RuntimeError as error:
                return f"another stream is being captured ({_words(error)})"
            return self._captured(calls)

    def _captured(self, calls: Calls) -> Launchable | str:
        cupy = self.xp
        pool = cupy.cuda.MemoryPool(self._from_the_driver)
        usual = cupy.get_default_memory_pool()
        # What the runs call by call left there to be used again, the capture takes once more.
        usual.free_all_blocks()
        if limit := usual.get_limit():  # for both together
            pool.set_limit(size=max(limit - usual.used_bytes() - usual.free_bytes(), 1))
        stream = cupy.cuda.Stream(non_blocking=True)
        at = None
        try:
            with stream, cupy.cuda.using_allocator(pool.malloc), self._nothing_from_the_host():
                stream.begin_capture()
                try:
                    for i, (name, call) in enumerate(calls):
                        at = f"kernel call {i} ({name}): "
                        call()
                except BaseException:
                    # What was captured is of no use; CUDA reports the same failure once more.
                    with contextlib.suppress(Exception):
                        stream.end_capture()
                    raise
                at = None
                graph = stream.end_capture()
            graph.upload()
        except Exception as error:
            return f"{at or ''}{_words(error)}"
        made = Captured(self._gpu, graph, pool, calls)
        made.backend = self
        HOLDERS.add(made)
        return made

    def _from_the_driver(self, size: int) -> Any:
        """Memory for the pool of a graph, or an error that ends the capture. Told by the driver's
        own error, a pool would give its free blocks back and ask again: blocks whose addresses are
        part of the graph."""
        cuda = self.xp.cuda
        try:
            return cuda.MemoryPointer(cuda.Memory(size), 0)
        except RuntimeError as error:
            raise MemoryError(f"the graph's pool cannot have {size} bytes more: {error}") from error

    @contextlib.contextmanager
    def _nothing_from_the_host(self) -> Iterator[None]:
        """Within the block this thread gets no pinned memory, and no garbage is collected: a
        finaliser of somebody else's might ask CUDA for what a capture forbids."""
        cupy, owner = self.xp, threading.get_ident()
        usual = cupy.get_default_pinned_memory_pool().malloc

        def refuse(size: int) -> Any:
            if threading.get_ident() == owner:
                raise RuntimeError("it copies from the host, which a graph would do only once")
            return usual(size)

        collecting = gc.isenabled()
        gc.disable()
        cupy.cuda.set_pinned_memory_allocator(refuse)
        self._capturing = owner
        try:
            yield
        finally:
            self._capturing = None
            cupy.cuda.set_pinned_memory_allocator(usual)
            if collecting:
                gc.enable()

    def concatenate(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        if self._capturing != threading.get_ident() or len(arrays) <= MOST_AT_ONCE:
            return super().concatenate(arrays, axis)
        parts = [
            super(CudaGraphs, self).concatenate(arrays[i : i + MOST_AT_ONCE], axis)
            for i in range(0, len(arrays), MOST_AT_ONCE)
        ]
        return self.concatenate(parts, axis)

    def follow(self, last: Any) -> Any:
        with self._gpu:
            now = self.xp.cuda.get_current_stream()
            if last is not None and last.ptr != now.ptr and not now.is_capturing():
                there = self.xp.cuda.Event(disable_timing=True)
                there.record(last)
                now.wait_event(there)
            return now

    def device_numbers(self, dtypes: Sequence[str]) -> Numbers:
        return DeviceNumbers(self, dtypes)

    def staging(self) -> Staging | None:
        return CudaStaging(self, self._gpu)

    def fetch(self, x: Array) -> Arrival:
        if self._arrivals is None:
            self._arrivals = Arrivals(self.xp, self._gpu)
        return self._arrivals.bring(x)


def capturing(cupy: Any) -> bool:
    """Whether the current stream is being captured, or another one so that asking is an error."""
    try:
        return bool(cupy.cuda.get_current_stream().is_capturing())
    except RuntimeError:
        return True


def uncapturable(backend: type) -> set[str]:
    """The kernels that the modules of a backend's classes say cannot be captured."""
    names: set[str] = set()
    for cls in backend.__mro__:
        names.update(getattr(sys.modules.get(cls.__module__), "UNCAPTURABLE", ()))
    return names


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class Captured:
    """A graph that is ready to be launched, and what it needs alive.

    Parameters
    ----------
    gpu : its device, a context.
    graph : CuPy's graph.
    pool : where its calls found memory. A graph repeats their addresses, so nobody else may be
        given that memory as long as it exists.
    calls : what was captured; they hold the arrays that they read and write.
    """

    def __init__(self, gpu: Any, graph: Any, pool: Any, calls: Calls) -> None:
        self._gpu, self._graph, self._pool, self._kept = gpu, graph, pool, tuple(calls)
        self.calls = len(calls)
        self.nbytes = int(pool.total_bytes())

    backend: Any = None  # whose memory it holds

    def holdings(self) -> Iterator[tuple[str, int]]:
        """Its own pool, for the error that says what holds a device's memory."""
        yield "captured graphs", self.nbytes

    def launch(self) -> None:
        with self._gpu:
            self._graph.launch()


class DeviceNumbers:
    """Numbers of eight bytes each in one array of a device.

    The host writes them into a row of pinned memory and asks for its copy on the current stream. A
    row is used again when its copy is done.
    """

    def __init__(self, backend: CudaGraphs, dtypes: Sequence[str]) -> None:
        self._cupy, self._gpu = backend.xp, backend._gpu
        self._real = [dtype == "float64" for dtype in dtypes]
        n = len(dtypes)
        with self._gpu:
            self._array = backend.zeros((n,), np.float64)
            owner = backend.owner(self._array)
            self.views = [
                backend.view_at(owner, 8 * i, (), (), np.dtype(d)) for i, d in enumerate(dtypes)
            ]
            self._rows = [pinned(self._cupy, (n,), np.float64) for _ in range(RUN_AHEAD)]
            self._copied = [self._cupy.cuda.Event(disable_timing=True) for _ in range(RUN_AHEAD)]
        self._fillings = 0

    def fill(self, values: Sequence[float | int]) -> None:
        turn, again = self._fillings % RUN_AHEAD, self._fillings >= RUN_AHEAD
        row, copied = self._rows[turn], self._copied[turn]
        with self._gpu:
            if again:
                copied.synchronize()
            words = row.view(np.uint64)
            for i, (real, value) in enumerate(zip(self._real, values, strict=True)):
                if real:
                    row[i] = value
                else:
                    words[i] = int(value) & 0xFFFFFFFFFFFFFFFF
            stream = self._cupy.cuda.get_current_stream()
            self._array.set(row, stream=stream)
            copied.record(stream)
        self._fillings += 1

    def __del__(self) -> None:
        # The rows go back to their pool; no copy may still read them.
        with contextlib.suppress(Exception), self._gpu:
            self._copied[(self._fillings - 1) % RUN_AHEAD].synchronize()
