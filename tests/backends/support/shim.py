"""Builds the ``.cu`` files for the CPU (see ``shim.h``) and runs their kernels on NumPy arrays."""

from __future__ import annotations

import ctypes
import functools
import getpass
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from gpubackprop.backends.cuda import sources
from tests.backends.support.guarded import Guarded, apart

HEADERS = [Path(__file__).with_name(name) for name in ("shim.h", "shim_tensor.h")]
# -ffp-contract=off is the GPU compiler's -fmad=false.
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared")
FLAGS += ("-fvisibility=hidden",)  # what kernels share is each library's own
try:
    import ml_dtypes
except ImportError:  # then there are no arrays of it
    BFLOAT16 = None
else:
    BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WRONG = {
    1: "the threads wait for each other for ever",
    2: "misaligned address",
    3: "an address in shared memory where a global one is needed",
    4: "illegal address",
}
WITH_STEPS = {"attention", "attention_queries", "attention_keys"}
"""Kernels that are told how far apart the rows of their arrays are."""
_POINTED = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "__half": np.dtype(np.float16),
    "__nv_bfloat16": BFLOAT16,
    "int": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "u64": np.dtype(np.uint64),
    "u32": np.dtype(np.uint32),
    "u8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}


def missing() -> str:
    """Why kernels cannot be built here, or an empty string."""
    return "" if shutil.which("g++") else "g++ is not installed"


def pointed(argument: str, bindings: dict[str, str]) -> np.dtype | None:
    """The dtype that an argument of this C++ type points to (None for a scalar)."""
    if not argument.endswith("*"):
        return None
    name = argument.removeprefix("const ").removesuffix("*")
    if name == "typename Wide<T>::type":
        name = "double" if bindings["T"] == "double" else "float"
    return _POINTED.get(bindings.get(name, name))


class Kernel:
    """One instantiation of a kernel, built for the CPU."""

    def __init__(
        self, expression: str, function: ctypes._CFuncPtr, signature: sources.Signature
    ) -> None:
        rest = expression.partition("<")[2]
        self.signature = signature
        values = [v.strip() for v in rest.removesuffix(">").split(",")] if rest else []
        self.bindings = dict(zip(self.signature.parameters, values, strict=True))
        self.expression = expression
        self._function = function

    def __call__(self, grid: int, block: int, arguments: tuple, reverse: bool = False) -> None:
        """Run the kernel. `arguments` are NumPy scalars as CuPy wants them and arrays, without gaps
        but for the kernels in WITH_STEPS.

        Raises
        ------
        TypeError
            If an array is not of the type that the kernel reads, or a scalar not of its width.
        RuntimeError
            If the threads of a block wait for each other for ever, or several elements were moved
            at once across a boundary, or an instruction for global memory is given shared memory,
            or something beside the arrays was read or written.
        """
        cells = []
        pairs = list(zip(self.signature.arguments, arguments, strict=True))
        arrays = [value for _, value in pairs if isinstance(value, np.ndarray)]
        alone = iter(apart(arrays))
        guards: list[tuple[str, Guarded]] = []
        for argument, value in pairs:
            if isinstance(value, np.ndarray):
                wanted = pointed(argument, self.bindings)
                if not argument.endswith("*") or (wanted is not None and value.dtype != wanted):
                    raise TypeError(f"{self.expression}: {argument} cannot be {value.dtype} array")
                if not value.flags.c_contiguous and self.signature.name not in WITH_STEPS:
                    raise TypeError(f"{self.expression}: an array for {argument} has gaps")
                address = value.ctypes.data
                if next(alone):
                    guards.append((argument, Guarded(value)))
                    address = guards[-1][1].address
                cells.append(np.array(address, np.uint64))
            elif not isinstance(value, np.generic):
                raise TypeError(
                    f"{self.expression}: {argument} needs a NumPy scalar, not {value!r}"
                )
            elif argument.endswith("*"):
                if value.dtype != np.uint64 or value != 0:
                    raise TypeError(f"{self.expression}: {argument} cannot be {value!r}")
                cells.append(np.array(value))
            else:
                if value.dtype != _POINTED[argument]:
                    raise TypeError(f"{self.expression}: {argument} cannot be {value.dtype}")
                cells.append(np.array(value))
        pointers = (ctypes.c_void_p * len(cells))(*(c.ctypes.data for c in cells))
        if grid < 1 or block % 32 or not 32 <= block <= 1024:
            raise RuntimeError(f"{self.expression}: cannot launch {grid} blocks of {block} threads")
        wrong = self._function(pointers, grid, block, int(reverse))
        if wrong:
            raise RuntimeError(f"{self.expression}: {WRONG[wrong]}")
        for argument, guard in guards:
            if not argument.startswith("const ") and not guard.take_back():
                raise RuntimeError(f"{self.expression}: something beside {argument} was written")


@functools.cache
def library(file: str, element: str) -> dict[str, Kernel]:
    """Every kernel of a file for one element type, by its expression."""
    return build(sources.source(file, element), sources.instantiations(file, element))


def build(source: str, expressions: tuple[str, ...]) -> dict[str, Kernel]:
    """Compile kernels for the CPU, or take them from the cache of an earlier run."""
    kernels, declared = [], sources.declared(source)
    for number, expression in enumerate(expressions):
        name, _, rest = expression.partition("<")
        signature = declared[name]
        values = [v.strip() for v in rest.removesuffix(">").split(",")] if rest else []
        bindings = "".join(
            f"  constexpr int {p} = {v};\n" if v.isdigit() else f"  typedef {v} {p};\n"
            for p, v in zip(signature.parameters, values, strict=True)
        )
        passed = ", ".join(f"*({t}*)a[{i}]" for i, t in enumerate(signature.arguments))
        call = f"{name}<{', '.join(signature.parameters)}>" if values else name
        kernels.append(
            'extern "C" __attribute__((visibility("default")))\n'
            f"int k{number}(void** a, unsigned grid, unsigned block, int reversed) {{\n"
            f"{bindings}  return shim::launch(grid, block, reversed,\n"
            f"                      [&] {{ {call}({passed}); }});\n}}\n"
        )
    body = source.replace("#include <cuda_fp16.h>", "").replace("#include <cuda_bf16.h>", "")
    text, header = "\n".join([body, *kernels]), _header()
    folder = Path(tempfile.gettempdir()) / f"gpubackprop-shim-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{_key(header, text)}.so"
    if not target.exists():
        _compile(text, target, "-include", str(_compiled_header(folder)), "-x", "c++", "-")
    loaded = ctypes.CDLL(str(target))
    return {
        e: Kernel(e, getattr(loaded, f"k{n}"), declared[e.partition("<")[0]])
        for n, e in enumerate(expressions)
    }


@functools.cache
def _compiler() -> str:
    return subprocess.run(
        ["g++", "-dumpfullversion"], capture_output=True, text=True, check=True
    ).stdout


def _key(*texts: str) -> str:
    """A name for what is compiled from these texts."""
    return hashlib.sha256("\0".join([*texts, *FLAGS, _compiler()]).encode()).hexdigest()[:24]


@functools.cache
def _header() -> str:
    return "\n".join(h.read_text() for h in HEADERS)


@functools.cache
def _compiled_header(folder: Path) -> Path:
    """What all kernels need, which takes longer to compile than most of them, compiled once; the
    compiler looks for it beside the text."""
    header = folder / f"{_key(_header())}.h"
    ready = header.with_suffix(".h.gch")
    if not ready.exists():
        handle, part = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "w") as file:
            file.write(_header())
        os.replace(part, header)
        _compile("", ready, "-x", "c++-header", str(header))
    return header


def _compile(text: str, target: Path, *options: str) -> None:
    handle, part = tempfile.mkstemp(dir=target.parent, suffix=target.suffix)
    os.close(handle)
    command = ["g++", *FLAGS, *options, "-o", part]
    run = subprocess.run(command, input=text, capture_output=True, text=True)
    if run.returncode:
        os.unlink(part)
        raise RuntimeError(f"g++ refused the kernels:\n{run.stderr[:4000]}")
    os.replace(part, target)  # several workers may build the same file at once


class RawModule:
    """What ``cupy.RawModule`` is to the loader, over kernels that run on the CPU.

    ``reverse`` turns the order in which a block's threads are served, for every kernel.
    """

    reverse = False

    def __init__(self, *, code: str, options: tuple[str, ...], name_expressions: tuple[str, ...]):
        assert options == sources.OPTIONS
        self._expressions = name_expressions
        self._code = code

    def get_function(self, expression: str):
        """The kernel, to be called as CuPy's: (grid,), (block,), arguments."""
        if expression not in self._expressions:
            raise KeyError(f"{expression} was not named when the module was made")
        kernel = self._library(expression)[expression]

        def call(grid: tuple[int], block: tuple[int], arguments: tuple) -> None:
            on_host = tuple(getattr(a, "on_host", a) for a in arguments)
            kernel(*grid, *block, on_host, RawModule.reverse)

        return call

    def _library(self, expression: str) -> dict[str, Kernel]:
        for file in sources.FILES:
            for element in sources.FLOATS.values():
                known = expression in sources.instantiations(file, element)
                if known and sources.source(file, element) == self._code:
                    return library(file, element)
        if expression.partition("<")[0] in sources.declared(self._code):
            return build(self._code, self._expressions)  # written at run time
        raise LookupError(f"no kernel file has {expression} and this code")
