"""Counting the bytes that CuPy's memory pool has handed out on one GPU."""

from __future__ import annotations

from types import TracebackType
from typing import Any


class PoolMemory:
    """Memory of the pool in use, watched by a hook at every allocation and release of the thread.

    Sizes are the pool's: rounded up to its unit of 512 bytes. What the pool keeps for later is not
    counted.

    Parameters
    ----------
    cupy : the module.
    index : number of the GPU.
    """

    source = "CuPy's memory pool"

    def __init__(self, cupy: Any, index: int) -> None:
        self.now = self.most = 0
        meter = self

        class Hook(cupy.cuda.MemoryHook):
            name = "gpubackprop memory"

            def malloc_postprocess(self, **event: Any) -> None:
                if event["device_id"] == index and event["mem_ptr"]:
                    meter.now += event["mem_size"]
                    meter.most = max(meter.most, meter.now)

            def free_postprocess(self, **event: Any) -> None:
                if event["device_id"] == index:
                    meter.now -= event["mem_size"]

        self._cupy, self._index = cupy, index
        self._hook = Hook()

    def __enter__(self) -> PoolMemory:
        with self._cupy.cuda.Device(self._index):
            self.now = self.most = self._cupy.get_default_memory_pool().used_bytes()
        self._hook.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hook.__exit__(kind, error, traceback)

    def read(self) -> tuple[int, int]:
        """Bytes in use now, and the most since the reading before."""
        found = self.now, self.most
        self.most = self.now
        return found
