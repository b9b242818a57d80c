"""Writing the loop of a chain as Python, keeping it on disk, and compiling it from there.

The folder is ``GPUBACKPROP_CACHE``, or ``gpubackprop`` in the user's cache folder. A loop's file is
named by its contents, so it is written once; Numba keeps the machine code beside it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.abc
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gpubackprop.backends.caches import cache_folder
from gpubackprop.backends.chains.expressions import BOOL, Node
from gpubackprop.backends.chains.layouts import COLUMNS, EACH, FLAT, ROWS, SCALAR, SPREAD, VIEW
from gpubackprop.backends.cpu.native import abi, mathematics
from gpubackprop.backends.cpu.native.abi import Kernel
from gpubackprop.backends.cpu.native.expressions import Writer
from gpubackprop.version import __version__

READERS = {"f": ("floats", 4), "?": ("octets", 1), "l": ("longs", 8), "q": ("longs", 8)}

HEADER = '''"""A fused loop, written by gpubackprop {version}."""

import numpy as np

from gpubackprop.backends.cpu.native import mathematics as m
from gpubackprop.backends.cpu.native.abi import doubles, floats, longs, number, octets, share

f32 = np.float32


def chain(frame, part, parts):
    """In: {inputs}.

    Out: {results}.
    """
'''


class Input(NamedTuple):
    """How an input of a loop is read.

    Attributes
    ----------
    kind : see ``layouts.py``.
    char : dtype.
    slot : of its address.
    steps : slot of the first of its strides.
    """

    kind: str
    char: str
    slot: int
    steps: int = -1


class Output(NamedTuple):
    """What a loop writes.

    Attributes
    ----------
    node : the value of each element.
    how, op : ``"flat"``, or how it is reduced (``"rows"``, ``"columns"``, ``"all"``) and by what
        (``"sum"``, ``"max"``).
    char : dtype.
    slots : of the address; over columns of a part's block, of its total, and of the distance of
        two parts' totals.
    """

    node: Node
    how: str
    op: str
    char: str
    slots: tuple[int, ...]


class ChainSource(NamedTuple):
    """What decides the text of a loop.

    Attributes
    ----------
    inputs, outputs : in order.
    numbers : slot of each number, the dtype that it is used as, and whether its slot holds a
        float.
    lengths : slot of the first length of the axes that make up the rows, and how many there are.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    numbers: tuple[tuple[int, str, bool], ...]
    lengths: tuple[int, int]


def loop(source: ChainSource) -> Kernel:
    """The native kernel of a loop."""
    return _kernel(text_of(source))


Add = Callable[[int, str], None]
START = {"sum": "f32(0.0)", "max": "-m.INFINITY"}
COMBINE = {"sum": "m.added({0}, {1})", "max": "m.larger({0}, {1})"}


def text_of(source: ChainSource) -> str:
    """The loop as Python source."""
    lines: list[str] = []

    def add(depth: int, text: str) -> None:
        lines.append("    " * depth + text)

    add(1, "rows, columns = frame[0], frame[1]")
    add(1, "top, bottom, left, right = np.int64(0), rows, np.int64(0), columns")
    add(1, "if frame[2]:")
    add(2, "left, right = share(columns, part, parts, 64)")
    add(1, "else:")
    add(2, "top, bottom = share(rows, part, parts, 1)")
    add(1, "n = right - left")
    for i, (slot, char, real) in enumerate(source.numbers):
        bits = f"number(frame[{slot}])" if real else f"frame[{slot}]"
        add(1, f"k{i} = " + {"f": f"f32({bits})", "?": f"{bits} != 0"}.get(char, bits))
    for i, x in enumerate(source.inputs):
        if x.kind == SCALAR:
            add(1, f"v{i} = " + _element(x.char, f"frame[{x.slot}]"))
        elif x.kind == COLUMNS:
            add(1, f"x{i} = {READERS[x.char][0]}(frame[{x.slot}], columns)[left:right]")
    _open_sums(source, add)
    add(1, "for r in range(top, bottom):")
    _rows(source, add)
    add(2, "for c in range(n):")
    for i, x in enumerate(source.inputs):
        if x.kind in (FLAT, COLUMNS, VIEW):
            add(3, f"v{i} = x{i}[c]" + (" != 0" if x.char == "?" else ""))
        elif x.kind == SPREAD:
            add(3, f"v{i} = " + _element(x.char, f"x{i} + (left + c) * step{i}"))
    writer = Writer([out.node for out in source.outputs])
    for line in writer.lines:
        add(3, line)
    for j, out in enumerate(source.outputs):
        name = writer.name(out.node)
        if out.how == FLAT:
            add(3, f"y{j}[c] = " + (f"1 if {name} else 0" if out.char == "?" else name))
            continue
        if out.how == "all" and out.op == "sum":
            name = f"1.0 if {name} else 0.0" if out.node.dtype == BOOL else f"np.float64({name})"
        held = f"block{j}[c]" if out.how == COLUMNS else f"{out.op}{j}"
        add(3, f"{held} = " + COMBINE[out.op].format(held, name))
    _close_rows(source, add)
    for j, out in enumerate(source.outputs):
        if out.how == "all":
            reader = "doubles" if out.op == "sum" else "floats"
            add(1, f"{reader}(frame[{out.slots[0]}], parts)[part] = {out.op}{j}")
    header = HEADER.format(
        version=__version__,
        inputs=", ".join(f"v{i} {x.kind}" for i, x in enumerate(source.inputs)) or "nothing",
        results=", ".join(
            f"{writer.name(out.node)} " + (FLAT if out.how == FLAT else f"{out.op} by {out.how}")
            for out in source.outputs
        ),
    )
    return header + "\n".join(lines) + "\n"


def _element(char: str, address: str) -> str:
    return f"{READERS[char][0]}({address}, 1)[0]" + (" != 0" if char == "?" else "")


def _open_sums(source: ChainSource, add: Add) -> None:
    for j, out in enumerate(source.outputs):
        if out.how == COLUMNS:
            block, total, step = out.slots
            add(1, f"block{j} = floats(frame[{block}] + 4 * part * columns, columns)[left:right]")
            add(1, f"total{j} = frame[{total}] + part * frame[{step}]")
            add(1, f"total{j} = floats(total{j}, columns)[left:right]")
            add(1, "for c in range(n):")
            add(2, f"block{j}[c] = {START[out.op]}")
            add(2, f"total{j}[c] = {START[out.op]}")
        elif out.how == "all":
            add(1, f"{out.op}{j} = " + ("0.0" if out.op == "sum" else START[out.op]))


def _rows(source: ChainSource, add: Add) -> None:
    """Lines that find a row of each array. Arrays at one place share a name, so that the compiler
    knows that they are one."""
    first, count = source.lengths
    if any(x.kind in (VIEW, EACH, SPREAD) for x in source.inputs):
        add(2, "rest = r")
        for a in reversed(range(1, count)):
            add(2, f"i{a} = rest % frame[{first + a}]")
            add(2, f"rest = rest // frame[{first + a}]")
        add(2, "i0 = rest")
    at: dict[int, str] = {}

    def flat(name: str, char: str, slot: int) -> None:
        reader, size = READERS[char]
        text = f"{reader}(frame[{slot}] + {size} * r * columns, columns)[left:right]"
        add(2, f"{name} = {at.setdefault(slot, name) if slot in at else text}")
        at.setdefault(slot, name)

    for i, x in enumerate(source.inputs):
        reader, size = READERS[x.char]
        if x.kind == FLAT:
            flat(f"x{i}", x.char, x.slot)
        elif x.kind == ROWS:
            add(2, f"v{i} = " + _element(x.char, f"frame[{x.slot}] + {size} * r"))
        elif x.steps >= 0:
            parts = [f"frame[{x.slot}]"]
            parts += [f"i{a} * frame[{x.steps + a}]" for a in range(count)]
            row = " + ".join(parts)
            if x.kind == EACH:
                add(2, f"v{i} = " + _element(x.char, row))
            elif x.kind == VIEW:
                add(2, f"x{i} = {reader}({row}, columns)[left:right]")
            else:
                add(2, f"x{i} = {row}")
                add(2, f"step{i} = frame[{x.steps + count}]")
    for j, out in enumerate(source.outputs):
        if out.how == FLAT:
            flat(f"y{j}", out.char, out.slots[0])
        elif out.how == ROWS:
            add(2, f"{out.op}{j} = {START[out.op]}")


def _close_rows(source: ChainSource, add: Add) -> None:
    for j, out in enumerate(source.outputs):
        if out.how == COLUMNS:
            total, block = f"total{j}[c]", f"block{j}[c]"
            add(2, "if r % 32 == 31 or r == bottom - 1:")
            add(3, "for c in range(n):")
            add(4, f"{total} = " + COMBINE[out.op].format(total, block))
            add(4, f"{block} = {START[out.op]}")
        elif out.how == ROWS:
            add(2, f"floats(frame[{out.slots[0]}], rows)[r] = {out.op}{j}")


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
    place = cache_folder() / f"loops-{__version__}-{fingerprint()}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        if os.access(place, os.W_OK):
            return place
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="gpubackprop-loops-"))


class _InMemory(importlib.abc.InspectLoader):
    """Loads a loop that could not be written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def get_source(self, fullname: str) -> str:
        """The module's text."""
        return self.text


@functools.cache
def _kernel(text: str) -> Kernel:
    name = "gpubackprop_loop_" + hashlib.sha256(text.encode()).hexdigest()[:20]
    path = folder() / f"{name}.py"
    options = abi.EXACT
    try:
        if not path.exists():
            _write(path, text)
        spec = importlib.util.spec_from_file_location(name, path)
    except OSError:  # the disk is full: the loop serves this process alone
        spec = importlib.util.spec_from_loader(name, _InMemory(text))
        options = abi.EXACT | {"cache": False}
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where the machine code that was kept looks for its globals
    spec.loader.exec_module(module)
    made = Kernel(module.chain, options)
    made.name = name
    return made


def _write(path: Path, text: str) -> None:
    """Write a file that another process may be writing too."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
