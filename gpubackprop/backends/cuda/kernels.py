"""Compiling the kernels at their first use, and launching them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        self._ready: dict[tuple[str, tuple[Any, ...]], Function] = {}
        self._written: dict[tuple[str, str, tuple[Any, ...]], Function] = {}

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
            signature = sources.signatures()[name]
            values = dict(zip(signature.parameters, map(str, template), strict=True))
            code = sources.source(signature.file, values.get("T", "float"))
            ready = self._ready[name, template] = self._compiled(code, signature, template)
        ready(shape, *arguments)

    def written(self, text: str, code: str, name: str, template: tuple[Any, ...] = ()) -> Function:
        """A kernel that was written at run time; the same text is compiled once.

        Parameters
        ----------
        text : declares the kernel.
        code : all that is compiled, `text` within it.
        name, template : see :meth:`launch`.
        """
        key = (text, name, template)
        if key not in self._written:
            signature = sources.declared(text)[name]
            self._written[key] = self._compiled(code, signature, template)
        return self._written[key]

    def _compiled(
        self, code: str, signature: sources.Signature, template: tuple[Any, ...]
    ) -> Function:
        expression = signature.expression(*map(str, template))
        module = self._cupy.RawModule(
            code=code, options=sources.OPTIONS, name_expressions=(expression,)
        )
        return Function(module.get_function(expression), signature)


class Function:
    """A compiled kernel.

    Parameters
    ----------
    launch : CuPy's function: grid, block, arguments.
    signature : what it takes.
    """

    def __init__(self, launch: Any, signature: sources.Signature) -> None:
        self.launch = launch
        self._wrappers = tuple(
            None if t.endswith("*") else _SCALARS[t] for t in signature.arguments
        )

    def __call__(self, shape: Launch, *arguments: Any) -> None:
        """Run it on the current stream."""
        self.launch((shape.grid,), (shape.block,), self.wrapped(arguments))

    def wrapped(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """Arguments as CuPy's function takes them: numbers of the width that the kernel reads, None
        as a null pointer."""
        return tuple(
            (_NULL if value is None else value) if wrap is None else wrap(value)
            for wrap, value in zip(self._wrappers, arguments, strict=True)
        )
