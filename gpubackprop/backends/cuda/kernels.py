"""Compiling the kernels at their first use, and launching them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from gpubackprop.backends.cuda import sources
from gpubackprop.backends.cuda.geometry import Launch

# A scalar argument is passed by its bytes, so each must have exactly the width that the kernel
# reads.
_SCALARS: dict[str, Callable[[Any], Any]] = {
    "i64": np.int64,
    "u64": np.uint64,
    "u32": np.uint32,
    "int": np.int32,
    "double": np.float64,
}
_NULL = np.uint64(0)


class Kernels:
    """The kernels of the ``.cu`` files over one CuPy.

    Each instantiation is compiled by itself when it is first launched (0.1 to 0.2 s), so a run pays
    for those that it uses; CuPy keeps the binaries on disk for the runs after it.

    Parameters
    ----------
    cupy : the CuPy module.
    """

    def __init__(self, cupy: ModuleType) -> None:
        self._cupy = cupy
        self._ready: dict[tuple[str, tuple[str, ...]], tuple[Any, tuple[Any, ...]]] = {}

    def launch(self, name: str, template: tuple[Any, ...], shape: Launch, *arguments: Any) -> None:
        """Run a kernel on the current stream.

        Parameters
        ----------
        name : the kernel.
        template : its template arguments as C++ writes them.
        shape : blocks and threads.
        arguments : C-contiguous arrays (or None for a null pointer) and Python numbers, in the
            kernel's order.
        """
        ready = self._ready.get((name, template))
        if ready is None:
            ready = self._prepare(name, template)
        function, wrappers = ready
        function(
            (shape.grid,),
            (shape.block,),
            tuple(
                (_NULL if value is None else value) if wrap is None else wrap(value)
                for wrap, value in zip(wrappers, arguments, strict=True)
            ),
        )

    def _prepare(self, name: str, template: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        signature = sources.signatures()[name]
        values = tuple(map(str, template))
        element = dict(zip(signature.parameters, values, strict=True)).get("T", "float")
        expression = signature.expression(*values)
        module = self._cupy.RawModule(
            code=sources.source(signature.file, element),
            options=sources.OPTIONS,
            name_expressions=(expression,),
        )
        function = module.get_function(expression)
        wrappers = tuple(None if t.endswith("*") else _SCALARS[t] for t in signature.arguments)
        self._ready[name, template] = function, wrappers
        return function, wrappers
