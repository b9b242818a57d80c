"""Writing the loop of a chain as Python, keeping it on disk, and compiling it from there.

The folder is ``GPUBACKPROP_CACHE``, or ``gpubackprop`` in the user's cache folder. A loop's file is
named by its contents, so it is written once; Numba keeps the machine code beside it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.cpu.native import abi, mathematics
from gpubackprop.backends.cpu.native.abi import Kernel
from gpubackprop.backends.cpu.native.expressions import Node, Writer
from gpubackprop.version import __version__

READERS = {"f": ("floats", 4), "?": ("octets", 1), "l": ("longs", 8), "q": ("longs", 8)}

HEADER = '''"""A fused loop, written by gpubackprop {version}."""

import numpy as np

from gpubackprop.backends.cpu.native import mathematics as m
from gpubackprop.backends.cpu.native.abi import doubles, floats, longs, number, octets, share

f32 = np.float32


def chain(frame, part, parts):
'''


class ChainSource(NamedTuple):
    """What decides the text of a loop.

    Attributes
    ----------
    inputs : kind, dtype and slot of each.
    results : expression, how it is written, dtype and slots of each.
    numbers : slot of each number, and whether it is a float.
    single : whether the table has one row.
    """

    inputs: tuple[tuple[str, str, int], ...]
    results: tuple[tuple[Node, str, str, tuple[int, ...]], ...]
    numbers: tuple[tuple[int, bool], ...]
    single: bool


@functools.cache
def loop(source: ChainSource) -> Kernel:
    """The native kernel of a loop."""
    return _kernel(text_of(source))


class _Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, depth: int, text: str) -> None:
        self.lines.append("    " * depth + text)


def text_of(source: ChainSource) -> str:
    """The loop as Python source."""
    out = _Lines()
    add = out.add
    add(1, "rows, columns = frame[0], frame[1]")
    add(1, "top, bottom, left, right = np.int64(0), rows, np.int64(0), columns")
    add(1, "if frame[2]:")
    add(2, "left, right = share(columns, part, parts, 64)")
    add(1, "else:")
    add(2, "top, bottom = share(rows, part, parts, 1)")
    add(1, "n = right - left")
    for i, (slot, real) in enumerate(source.numbers):
        add(1, f"k{i} = " + (f"f32(number(frame[{slot}]))" if real else f"frame[{slot}]"))
    values = _inputs(source, add)
    _open_sums(source, add)
    add(1, "for r in range(top, bottom):")
    _rows(source, add, 2)
    writer = Writer(values)
    names = [writer.name(node) for node, _, _, _ in source.results]
    add(2, "for c in range(n):")
    for i, (kind, char, _) in enumerate(source.inputs):
        if kind in ("flat", "columns"):
            add(3, f"v{i} = x{i}[c]" + (" != 0" if char == "?" else ""))
    for line in writer.lines:
        add(3, line)
    for j, ((node, how, char, _), name) in enumerate(zip(source.results, names, strict=True)):
        if how == "flat":
            add(3, f"y{j}[c] = " + (f"1 if {name} else 0" if char == "?" else name))
        elif how == "columns":
            add(3, f"block{j}[c] += {name}")
        else:
            one = f"(1.0 if {name} else 0.0)" if node.dtype == np.bool_ else name
            add(3, f"sum{j} += {one}")
    _close_rows(source, add)
    _close_sums(source, add)
    return HEADER.format(version=__version__) + "\n".join(out.lines) + "\n"


def _inputs(source: ChainSource, add: Any) -> list[str]:
    """Lines that find what does not change from row to row; the name of each input's value."""
    for i, (kind, char, slot) in enumerate(source.inputs):
        reader, _ = READERS[char]
        if kind == "scalar":
            add(1, f"v{i} = {reader}(frame[{slot}], 1)[0]" + (" != 0" if char == "?" else ""))
        elif kind == "columns":
            add(1, f"x{i} = {reader}(frame[{slot}], columns)[left:right]")
    return [f"v{i}" for i in range(len(source.inputs))]


def _open_sums(source: ChainSource, add: Any) -> None:
    for j, (_, how, _, slots) in enumerate(source.results):
        if how == "columns":
            block, total = slots
            add(1, f"block{j} = floats(frame[{block}] + 4 * part * columns, columns)[left:right]")
            add(
                1,
                f"total{j} = floats(frame[{total}] + part * frame[{_step(source, j)}], columns)"
                "[left:right]",
            )
            add(1, "for c in range(n):")
            add(2, f"block{j}[c] = 0")
            add(2, f"total{j}[c] = 0")
        elif how == "all":
            add(1, f"sum{j} = 0.0")


def _step(source: ChainSource, j: int) -> int:
    """The slot of the distance between two parts' totals: it lies behind the total's."""
    block, total = source.results[j][3]
    return max(block, total) + 1


def _rows(source: ChainSource, add: Any, depth: int) -> None:
    """Lines that find a row of each array. Arrays at one place share a name, so that the compiler
    knows that they are one."""
    at: dict[int, str] = {}
    for i, (kind, char, slot) in enumerate(source.inputs):
        reader, size = READERS[char]
        if kind == "flat":
            if slot in at:
                add(depth, f"x{i} = {at[slot]}")
                continue
            add(
                depth, f"x{i} = {reader}(frame[{slot}] + {size} * r * columns, columns)[left:right]"
            )
            at[slot] = f"x{i}"
        elif kind == "rows":
            add(
                depth, f"v{i} = {reader}(frame[{slot}], rows)[r]" + (" != 0" if char == "?" else "")
            )
    for j, (_, how, char, slots) in enumerate(source.results):
        if how == "flat":
            reader, size = READERS[char]
            if slots[0] in at:
                add(depth, f"y{j} = {at[slots[0]]}")
                continue
            text = f"{reader}(frame[{slots[0]}] + {size} * r * columns, columns)[left:right]"
            add(depth, f"y{j} = {text}")
        elif how == "rows":
            add(depth, f"sum{j} = f32(0.0)")


def _close_rows(source: ChainSource, add: Any) -> None:
    for j, (_, how, _, slots) in enumerate(source.results):
        if how == "columns":
            add(2, "if r % 32 == 31 or r == bottom - 1:")
            add(3, "for c in range(n):")
            add(4, f"total{j}[c] += block{j}[c]")
            add(4, f"block{j}[c] = 0")
        elif how == "rows":
            add(2, f"floats(frame[{slots[0]}], rows)[r] = sum{j}")


def _close_sums(source: ChainSource, add: Any) -> None:
    for j, (_, how, _, slots) in enumerate(source.results):
        if how == "all":
            add(1, f"doubles(frame[{slots[0]}], parts)[part] = sum{j}")


@functools.cache
def fingerprint() -> str:
    """Changes with what the loops call."""
    found = hashlib.sha256()
    for module in (abi, mathematics):
        found.update(Path(str(module.__file__)).read_bytes())
    return found.hexdigest()[:12]


@functools.cache
def folder() -> Path:
    """Where loops are kept: the first place of the list that can be written."""
    chosen = os.environ.get("GPUBACKPROP_CACHE")
    if chosen:
        base = Path(chosen)
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", tempfile.gettempdir())) / "gpubackprop"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches" / "gpubackprop"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpubackprop"
    place = base / f"loops-{__version__}-{fingerprint()}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        if os.access(place, os.W_OK):
            return place
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="gpubackprop-loops-"))


def _kernel(text: str) -> Kernel:
    name = "gpubackprop_loop_" + hashlib.sha256(text.encode()).hexdigest()[:20]
    path = folder() / f"{name}.py"
    if not path.exists():
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where the machine code that was kept looks for its globals
    spec.loader.exec_module(module)
    made = Kernel(module.chain, abi.FAST)
    made.name = name
    return made
