"""Copies between pinned memory of the host and the device that run beside the kernels.

CuPy's pool of pinned memory knows of no streams: a buffer that is given back may be handed out
again while a copy still reads it. So the buffers here live as long as what they belong to, and are
written again only after an event that says that the copy is done.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.backends.primitives import Array, Shape, c_strides

SLOTS = 2
"""Batches under way: one that is worked on, one that is copied."""

ALIGNMENT = 256

Layout = tuple[tuple[tuple[int, ...], np.dtype, int], ...]


def pinned(cupy: Any, shape: Shape, dtype: Any) -> np.ndarray:
    """An array in memory of the host that the device can copy from and to by itself."""
    dtype, size = np.dtype(dtype), math.prod(shape)
    memory = cupy.cuda.alloc_pinned_memory(max(size * dtype.itemsize, 1))
    return np.frombuffer(memory, np.uint8, size * dtype.itemsize).view(dtype).reshape(shape)


class Slot:
    """Memory for one batch on both sides.

    Attributes
    ----------
    copied : the copy to the device is done.
    used : what reads the device's side is done.
    """

    def __init__(self, cupy: Any) -> None:
        self.copied = cupy.cuda.Event(disable_timing=True)
        self.used = cupy.cuda.Event(disable_timing=True)
        self.host: np.ndarray | None = None
        self.device: Array | None = None
        self.views: dict[Layout, tuple[list[np.ndarray], list[Array]]] = {}


class CudaStaging:
    """Two slots, and a stream of its own for their copies.

    Parameters
    ----------
    backend : whose arrays.
    gpu : its device, a context.
    """

    def __init__(self, backend: Any, gpu: Any) -> None:
        self._backend, self._gpu, self._cupy = backend, gpu, backend.xp
        with gpu:
            self._side = self._cupy.cuda.Stream(non_blocking=True)
            self._slots = [Slot(self._cupy) for _ in range(SLOTS)]
        self._free = deque(self._slots)
        self._coming: deque[tuple[Slot, list[Array]]] = deque()
        self._taken: Slot | None = None

    def put(self, arrays: Sequence[np.ndarray]) -> None:
        if not self._free:
            raise RuntimeError(
                f"staging: {SLOTS} batches are under way already; take one before the next is put"
            )
        arrays = [np.asarray(a) for a in arrays]
        slot = self._free.popleft()
        try:
            with self._gpu:
                if slot.host is not None:
                    slot.copied.synchronize()  # the host's side is still read until then
                sources, targets = self._views(slot, arrays)
                for source, array in zip(sources, arrays, strict=True):
                    np.copyto(source, array)
                self._side.wait_event(slot.used)
                for source, target in zip(sources, targets, strict=True):
                    if source.size:
                        target.set(source, stream=self._side)
                slot.copied.record(self._side)
        except BaseException:
            self._free.appendleft(slot)
            raise
        self._coming.append((slot, targets))

    def take(self) -> list[Array]:
        if not self._coming:
            raise RuntimeError("staging: nothing was put that could be taken")
        with self._gpu:
            stream = self._cupy.cuda.get_current_stream()
            if self._taken is not None:
                # All work on the slot before was asked for by now.
                self._taken.used.record(stream)
                self._free.append(self._taken)
            slot, arrays = self._coming.popleft()
            stream.wait_event(slot.copied)
            self._taken = slot
        return arrays

    def clear(self) -> None:
        with self._gpu:
            stream = self._cupy.cuda.get_current_stream()
            while self._coming:
                slot, _ = self._coming.popleft()
                stream.wait_event(slot.copied)
                self._free.append(slot)

    def __del__(self) -> None:
        # Memory goes back to its pools; no copy may still be at it. The host's pool knows of no
        # order of work, so its side is waited for.
        with contextlib.suppress(Exception):
            self.clear()
            with self._gpu:
                for slot in self._slots:
                    slot.copied.synchronize()

    def _views(
        self, slot: Slot, arrays: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], list[Array]]:
        """Arrays of these shapes on both sides of a slot, which grows where they need more."""
        parts, nbytes = [], 0
        for a in arrays:
            parts.append((a.shape, a.dtype, nbytes))
            nbytes += -(-a.nbytes // ALIGNMENT) * ALIGNMENT
        layout = tuple(parts)
        if slot.host is None or slot.device is None or slot.host.size < nbytes:
            slot.views.clear()
            slot.host = pinned(self._cupy, (max(nbytes, 1),), np.uint8)
            slot.device = self._backend.empty((max(nbytes, 1),), np.uint8)
            # Whoever had this memory before may still be at it, on the current stream.
            slot.used.record(self._cupy.cuda.get_current_stream())
        found = slot.views.get(layout)
        if found is None:
            host, owner = slot.host, self._backend.owner(slot.device)
            found = slot.views[layout] = (
                [
                    host[at : at + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
                    for shape, dtype, at in layout
                ],
                [
                    self._backend.view_at(owner, at, shape, c_strides(shape, dtype.itemsize), dtype)
                    for shape, dtype, at in layout
                ],
            )
        return found


class Arrival:
    """An array that is being copied to the host.

    Parameters
    ----------
    arrived : the event of its copy.
    host : where it comes to lie, in pinned memory.
    source : keeps the device's side alive.
    """

    def __init__(self, arrived: Any, host: np.ndarray, source: Array) -> None:
        self._arrived, self._host, self._source = arrived, host, source

    @property
    def done(self) -> bool:
        """Whether the numbers are there."""
        return bool(self._arrived.done)

    def __call__(self) -> np.ndarray:
        self._arrived.synchronize()
        return self._host


class Arrivals:
    """Arrays on their way to the host, on a stream of their own: the work goes on meanwhile.

    Parameters
    ----------
    cupy : the module.
    gpu : the device, a context.
    """

    def __init__(self, cupy: Any, gpu: Any) -> None:
        self._cupy, self._gpu = cupy, gpu
        with gpu:
            self._side = cupy.cuda.Stream(non_blocking=True)
        # What nobody asks for, and what has been asked for too early, stays here until its copy is
        # done: its memory on either side would go to somebody else before.
        self._under_way: deque[Arrival] = deque()

    def bring(self, x: Array) -> Arrival:
        """Ask for a copy of `x` as the current stream leaves it. Until it is done nothing may write
        to `x`."""
        with self._gpu:
            while self._under_way and self._under_way[0].done:
                self._under_way.popleft()
            host = pinned(self._cupy, x.shape, x.dtype)
            made = self._cupy.cuda.Event(disable_timing=True)
            arrived = self._cupy.cuda.Event(disable_timing=True)
            made.record(self._cupy.cuda.get_current_stream())
            self._side.wait_event(made)
            x.get(stream=self._side, out=host, blocking=False)
            arrived.record(self._side)
        found = Arrival(arrived, host, x)
        self._under_way.append(found)
        return found
