"""CuPy's memory pool on one GPU: counting what it has handed out, limiting it, knowing when it is
empty."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from gpubackprop.backends.memory import MemoryState

# cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY; CUBLAS_STATUS_ALLOC_FAILED.
_NO_ROOM = {"CUDARuntimeError": 2, "CUDADriverError": 2, "CUBLASError": 3}


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


def pool_state(cupy: Any, index: int) -> MemoryState:
    """The memory of one GPU as it is now."""
    with cupy.cuda.Device(index):
        pool = cupy.get_default_memory_pool()
        available, total = cupy.cuda.runtime.memGetInfo()
        limit = pool.get_limit()
        return MemoryState(pool.used_bytes(), pool.free_bytes(), limit or None, available, total)


def limit_pool(cupy: Any, index: int, nbytes: int | None) -> None:
    """Let the pool of one GPU take no more than `nbytes` from the driver; None lifts the limit.

    What libraries allocate for themselves (cuBLAS, cuDNN, the driver) is not counted, nor are pools
    of captured graphs.
    """
    with cupy.cuda.Device(index):
        cupy.get_default_memory_pool().set_limit(size=nbytes or 0)


def lacks_memory(error: BaseException) -> bool:
    """Whether CuPy's pool, the driver or a CUDA library says that the GPU's memory is used up."""
    if isinstance(error, MemoryError):  # CuPy's OutOfMemoryError is one
        return True
    wanted = _NO_ROOM.get(type(error).__name__)
    return wanted is not None and getattr(error, "status", None) == wanted
