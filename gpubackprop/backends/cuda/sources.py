"""The ``.cu`` files: their text, the kernels in them, and every instantiation that is used.

The signatures are read out of the files themselves, so there is no second list of arguments that
could drift from them.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent / "kernels"
FILES = (
    "philox",
    "softmax",
    "norm",
    "batch_norm",
    "optim",
    "gradient",
    "inner",
    "scatter",
    "activations",
    "convolution",
    "pooling",
    "recurrent",
    "attention",
)

# NumPy's dtype name -> the C++ type.
FLOATS = {
    "float32": "float",
    "float64": "double",
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
}
INDICES = {"int32": "int", "int64": "i64"}
# Compilation without fused multiply-add: elementwise kernels are limited by memory, and then round
# as NumPy does.
OPTIONS = ("-std=c++17", "-fmad=false")

_HEADERS = {"__half": "GPUBACKPROP_HALF", "__nv_bfloat16": "GPUBACKPROP_BFLOAT16"}
# Further texts that a file needs in front of it, beside the one that all of them need.
_BY_ROWS = ("rows.cuh", "uneven.cuh")
_PARTS = {"attention": ("tiles.cuh",), "softmax": _BY_ROWS, "norm": _BY_ROWS}
# What each template parameter other than the element type T may be, for some elements only a part.
_VALUES = {
    "I": tuple(INDICES.values()),
    "P": ("u8", "int"),
    "TEAM": ("32", "256"),
    "BLOCK": ("256",),
    "HELD": ("0", "2", "8"),
    "PACKED": ("0", "1"),
    "U": ("u32", "u64"),
    "FEATURES": ("32", "64", "128"),
    "TENSOR": ("0", "1"),
}
_PARTLY = {
    ("FEATURES", "double"): ("32", "64"),
    ("TENSOR", "double"): ("0",),
    ("TENSOR", "__half"): ("1",),
    ("TENSOR", "__nv_bfloat16"): ("1",),
}
# Threads that share a row, and how many packs of it each holds: what ``geometry.by_rows`` chooses.
SHARES = (("32", "2"), ("32", "8"), ("256", "8"), ("256", "0"))
_FUNCTIONS = {
    "activation": ("Erf", "Sigmoid", "LeakyRelu", "Elu", "Gelu", "GeluTanh", "Silu", "Softplus"),
    "activation_backward": (
        "Sigmoid",
        "Tanh",
        "Relu",
        "LeakyRelu",
        "Elu",
        "Gelu",
        "GeluTanh",
        "Silu",
    ),
}
_KERNEL = re.compile(
    r"(?:template <([^{};()]*)>\s*)?"
    r"__global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(([^)]*)\)"
)


@dataclass(frozen=True)
class Signature:
    """A kernel as its file declares it.

    Attributes
    ----------
    name : the kernel's name.
    file : the file's name without ``.cu``.
    parameters : names of the template parameters.
    arguments : C++ type of each argument.
    """

    name: str
    file: str
    parameters: tuple[str, ...]
    arguments: tuple[str, ...]

    def instantiations(self, element: str) -> Iterator[str]:
        """Every expression that names this kernel for elements of the C++ type `element`."""
        choices = [self._choices(p, element) for p in self.parameters]
        for values in itertools.product(*choices):
            given = dict(zip(self.parameters, values, strict=True))
            if "HELD" not in given or (given["TEAM"], given["HELD"]) in SHARES:
                yield self.expression(*values)

    def expression(self, *values: str) -> str:
        """The C++ expression for these template arguments."""
        return f"{self.name}<{', '.join(values)}>" if values else self.name

    def _choices(self, parameter: str, element: str) -> tuple[str, ...]:
        if parameter == "T":
            return (element,)
        if parameter == "X":  # as wide as T at least
            return (element, "float") if element in _HEADERS else (element,)
        if parameter == "F":
            return _FUNCTIONS[self.name]
        return _PARTLY.get((parameter, element), _VALUES[parameter])


@functools.cache
def source(file: str, element: str = "float") -> str:
    """Text to compile for one file and one element type."""
    define = f"#define {_HEADERS[element]}\n" if element in _HEADERS else ""
    parts = ("common.cuh", *_PARTS.get(file, ()), f"{file}.cu")
    return define + "\n".join((_FOLDER / p).read_text(encoding="utf-8") for p in parts)


@functools.cache
def signatures() -> dict[str, Signature]:
    """Every kernel of the files by its name."""
    found: dict[str, Signature] = {}
    for file in FILES:
        found |= declared((_FOLDER / f"{file}.cu").read_text(encoding="utf-8"), file)
    return found


def declared(text: str, file: str = "") -> dict[str, Signature]:
    """Every kernel that a text declares, by its name."""
    found: dict[str, Signature] = {}
    for template, name, arguments in _KERNEL.findall(text):
        parameters = tuple(p.split()[-1] for p in template.split(",") if p)
        types = tuple(a.strip().rpartition(" ")[0] for a in arguments.split(","))
        found[name] = Signature(name, file, parameters, types)
    return found


def around(text: str, elements: Iterable[str]) -> str:
    """What is compiled for kernels that are written at run time.

    Parameters
    ----------
    text : the kernels.
    elements : C++ types in them.
    """
    defines = "".join(f"#define {_HEADERS[e]}\n" for e in sorted(_HEADERS.keys() & set(elements)))
    parts = ("common.cuh", "activations.cu", "chain.cuh")
    return defines + "\n".join([*((_FOLDER / p).read_text(encoding="utf-8") for p in parts), text])


def instantiations(file: str, element: str) -> tuple[str, ...]:
    """Every kernel expression of a file for one element type."""
    return tuple(
        expression
        for signature in signatures().values()
        if signature.file == file
        for expression in signature.instantiations(element)
    )
