"""The stand-in for cuDNN beside the stand-in for CuPy that captures.

A run of a plan within a capture is kept with its addresses; each launch repeats it on what lies
there by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.backends.support.fake_cudnn import FakeCudnn
from tests.compile.support.graph_cupy import GraphCuPy


class CapturedCudnn(FakeCudnn):
    """The module; nothing may be built while a capture lasts."""

    cupy: GraphCuPy

    def _watch(self, cupy: Any) -> None:
        """The arrays of this CuPy are known by their roots."""

    def pygraph(self, **settings: Any) -> Any:
        assert not self.cupy.stream_now().is_capturing(), "a graph is built within a capture"
        return super().pygraph(**settings)

    def current_stream(self) -> int:
        return self.cupy.stream_now().ptr

    def enqueue(self, task: Callable[[], None]) -> None:
        stream = self.cupy.stream_now()
        if stream.graph is None:
            stream.do(task)
        else:
            stream.graph.nodes.append(task)

    def alive(self, place: int, size: int) -> bool:
        return any(
            root.ctypes.data <= place and place + size <= root.ctypes.data + root.nbytes
            for root in list(self.cupy.roots.values())
        )
