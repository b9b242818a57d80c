"""A chain of elementwise calls written as CUDA C++.

A thread works on packs of neighbouring elements, as many as 16 bytes of the widest array hold, and
computes halves in float. What decides which thread adds what up is the *scheme*:

``flat``
    packs are dealt out in turn; sums over everything are kept by each thread.
``rows``
    a team of threads (a warp, or the block) shares each row, and its sum.
``columns``
    a thread keeps to its columns and adds up a span of rows.

Sums of a block go to memory, and a second kernel adds them up in the order of the blocks: no
atomics, so the shapes alone decide the order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpubackprop.backends.chains import expressions
from gpubackprop.backends.chains.expressions import (
    BOOL,
    COMPARE,
    INT,
    TESTS,
    Node,
    is_float,
    nodes_of,
)
from gpubackprop.backends.chains.layouts import COLUMNS, FLAT, ROWS, SCALAR
from gpubackprop.backends.cuda import sources
from gpubackprop.backends.cuda.geometry import PACK_BYTES

MOST_LANES = 8

STORED = {**sources.FLOATS, "bool": "bool", "int64": "i64"}
"""NumPy's dtype name -> the C++ type in memory."""

_FLOAT_CODE = {
    "negative": "-{0}",
    "absolute": "fabs({0})",
    "square": "{0} * {0}",
    "sign": "sign_of({0})",
    "reciprocal": "{W}(1) / {0}",
    "sigmoid": "Sigmoid::value({0}, {0})",
    "gelu": "Gelu::value({0}, {0})",
    "gelu_slope": "Gelu::slope({W}(1), {0}, {0})",
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "power": "pow({0}, {1})",
    "isfinite": "is_finite({0})",
    "isnan": "{0} != {0}",
    **{f"arc{name}": f"a{name}({{0}})" for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    "arctan2": "atan2({0}, {1})",
}
_WHOLE_CODE = {
    "negative": "wrapped_subtract(0, {0})",
    "absolute": "({0} < 0 ? wrapped_subtract(0, {0}) : {0})",
    "square": "wrapped_multiply({0}, {0})",
    "add": "wrapped_add({0}, {1})",
    "subtract": "wrapped_subtract({0}, {1})",
    "multiply": "wrapped_multiply({0}, {1})",
}
_ANY_CODE = {
    "maximum": "maximum({0}, {1})",
    "minimum": "minimum({0}, {1})",
    "equal": "{0} == {1}",
    "not_equal": "{0} != {1}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
    "logical_and": "{0} && {1}",
    "logical_or": "{0} || {1}",
    "logical_not": "!{0}",
    "where": "{0} ? {1} : {2}",
}
# What is left is called in C++ as in the contract.
_SAME = ("sqrt", "floor", "ceil", "rint", "exp", "expm1", "log", "log1p", "sin", "cos", "tan")
_FLOAT_CODE |= {name: f"{name}({{0}})" for name in (*_SAME, "sinh", "cosh", "tanh", "erf")}


class Number(NamedTuple):
    """A number of a chain: the dtype that it is used as, whether it is given as a float, and
    whether it may be given by its place on the device."""

    dtype: np.dtype
    real: bool
    live: bool


class Written(NamedTuple):
    """A result: the node, how it is reduced (``"flat"`` for not at all) and by what, and the dtype
    of its array."""

    node: Node
    how: str
    op: str
    dtype: np.dtype


class ChainSource(NamedTuple):
    """What decides the text of a chain's kernels.

    Attributes
    ----------
    scheme : see the module.
    inputs : kind and dtype of each.
    outputs : in order.
    numbers : in order.
    lanes : elements of a pack.
    single : whether the table is one row, and no input has a value for it.
    """

    scheme: str
    inputs: tuple[tuple[str, np.dtype], ...]
    outputs: tuple[Written, ...]
    numbers: tuple[Number, ...]
    lanes: int
    single: bool


def lanes_of(itemsizes: list[int]) -> int:
    """How many elements a thread takes at once where arrays have these widths."""
    return min(PACK_BYTES // max(itemsizes, default=PACK_BYTES), MOST_LANES)


def computed(dtype: np.dtype) -> str:
    """The C++ type in which elements of a dtype are computed with."""
    if is_float(dtype):
        return "double" if dtype == np.float64 else "float"
    return "bool" if dtype == BOOL else "i64"


def summed(out: Written) -> tuple[str, np.dtype]:
    """The C++ type and the dtype in which the blocks' part of a reduction is kept."""
    if out.node.dtype in (BOOL, INT):
        return "i64", INT
    if out.op == "sum" and out.how == "all":
        return "double", np.dtype(np.float64)
    wide = computed(out.node.dtype)
    return wide, np.dtype(np.float64 if wide == "double" else np.float32)


class Writer(expressions.Writer):
    """Turns nodes into lines of C++, each value computed once."""

    def text(self, node: Node, args: list[str]) -> str:
        if node.op == "cast":
            return _cast(args[0], node.args[0].dtype, node.dtype)
        if node.op in COMPARE:  # with a number as the narrow type holds it, as NumPy does
            pairs = zip(node.args, args, strict=True)
            args = [f"{a}r" if n.op == "constant" and _narrow(n.dtype) else a for n, a in pairs]
        of = node.args[0].dtype if node.op in TESTS else node.dtype
        table = _FLOAT_CODE if is_float(of) else _WHOLE_CODE
        code = _ANY_CODE.get(node.op) or table[node.op]
        return code.format(*args, W=computed(of))

    def line(self, node: Node, name: str, text: str) -> str:
        return f"const {computed(node.dtype)} {name} = {text};"


def _narrow(dtype: np.dtype) -> bool:
    return is_float(dtype) and dtype.itemsize == 2


def _cast(name: str, source: np.dtype, target: np.dtype) -> str:
    if target == BOOL:
        return f"{name} != 0"
    wide = computed(target)
    if _narrow(target) and source != BOOL:  # to what memory would hold
        return f"static_cast<float>(static_cast<{STORED[target.name]}>(static_cast<float>({name})))"
    return f"({name} ? {wide}(1) : {wide}(0))" if source == BOOL else f"static_cast<{wide}>({name})"


Add = Callable[[int, str], None]
_START = {"sum": "{A}(0)", "max": "log({A}(0))"}
_COMBINE = {"sum": "Plus()", "max": "Largest()"}


@functools.lru_cache(maxsize=512)
def code_of(source: ChainSource) -> str:
    """Everything that is compiled: the headers, the formulas of activations, the kernels."""
    dtypes = [d for _, d in source.inputs]
    for out in source.outputs:
        dtypes += [out.dtype, *(n.dtype for n in nodes_of([out.node]))]
    return sources.around(text_of(source), {STORED[d.name] for d in dtypes})


def text_of(source: ChainSource) -> str:
    """The chain's own kernels: ``chain``, and ``finish`` where something is reduced over blocks."""
    lines: list[str] = []

    def add(depth: int, text: str) -> None:
        lines.append("  " * depth + text)

    writer = Writer([out.node for out in source.outputs])
    needed = {n.args[0] for n in nodes_of([o.node for o in source.outputs]) if n.op == "input"}
    _element(source, writer, add)
    _open(source, needed, add)
    {"flat": _flat, "rows": _rows, "columns": _columns}[source.scheme](source, needed, add)
    for j, out in enumerate(source.outputs):
        if out.how == "all":
            wide, _ = summed(out)
            add(1, f"{wide} total{j} = team_reduce<256>(static_cast<{wide}>(s{j}), "
                   f"{_COMBINE[out.op]});")  # fmt: skip
            add(1, f"if (threadIdx.x == 0) y{j}[blockIdx.x] = total{j};")
    add(0, "}")
    _finish(source, add)
    return "\n".join(lines) + "\n"


def _element(source: ChainSource, writer: Writer, add: Add) -> None:
    """The function of one element, and what it gives."""
    outs = source.outputs
    results = "; ".join(f"{computed(o.node.dtype)} r{j}" for j, o in enumerate(outs))
    add(0, f"struct Values {{ {results}; }};")
    arguments = [f"{computed(d)} v{i}" for i, (_, d) in enumerate(source.inputs)]
    for i, number in enumerate(source.numbers):
        arguments += [f"{computed(number.dtype)} k{i}"]
        if _narrow(number.dtype):
            arguments += [f"float k{i}r"]
    add(0, f"__device__ __forceinline__ Values element({', '.join(arguments)}) {{")
    for line in writer.lines:
        add(1, line)
    names = ", ".join(writer.name(o.node) for o in outs)
    add(1, f"Values values = {{{names}}};")
    add(1, "return values;")
    add(0, "}")
    add(0, "")


def _open(source: ChainSource, needed: set[int], add: Add) -> None:
    """The kernel's arguments, and what is read once."""
    arguments = [f"const {STORED[d.name]}* x{i}" for i, (_, d) in enumerate(source.inputs)]
    for j, out in enumerate(source.outputs):
        kept = out.how in (COLUMNS, "all")
        arguments.append(f"{summed(out)[0] if kept else STORED[out.dtype.name]}* y{j}")
    for i, number in enumerate(source.numbers):
        given = "double" if number.real else "i64"
        arguments += [f"const {given}* place{i}"] if number.live else []
        arguments.append(f"{given} number{i}")
    arguments += ["i64 rows", "i64 columns", "i64 spans", "i64 height", "int whole"]
    template = "template <int TEAM> " if source.scheme != "flat" else ""
    add(0, f"{template}__global__ void chain({', '.join(arguments)}) {{")
    add(1, f"constexpr int L = {source.lanes};")
    add(1, "const i64 packs = (columns + L - 1) / L;")
    for i, number in enumerate(source.numbers):
        value = f"given(place{i}, number{i})" if number.live else f"number{i}"
        add(1, f"const {computed(number.dtype)} k{i} = {_used(value, number.dtype)};")
        if _narrow(number.dtype):
            stored = STORED[number.dtype.name]
            add(1, f"const float k{i}r = static_cast<float>(static_cast<{stored}>(k{i}));")
    for i, (kind, dtype) in enumerate(source.inputs):
        if kind == SCALAR and i in needed:
            add(1, f"const {computed(dtype)} v{i} = static_cast<{computed(dtype)}>(x{i}[0]);")
    for j, out in enumerate(source.outputs):
        if out.how == "all":
            wide = computed(out.node.dtype) if is_float(out.node.dtype) else "i64"
            add(1, f"{wide} s{j} = {_START[out.op].format(A=wide)};")


def _used(value: str, dtype: np.dtype) -> str:
    return f"{value} != 0" if dtype == BOOL else f"static_cast<{computed(dtype)}>({value})"


def _flat(source: ChainSource, needed: set[int], add: Add) -> None:
    total = "packs" if source.single else "rows * packs"
    add(1, f"for (i64 i = thread_index(); i < {total}; i += thread_count()) {{")
    if source.single:
        add(2, "const i64 c = i * L, at = c;")
    else:
        add(2, "const i64 r = quotient(i, packs), c = (i - r * packs) * L, at = r * columns + c;")
    _row_values(source, needed, add, 2)
    _pack(source, needed, add, 2)
    add(1, "}")


def _rows(source: ChainSource, needed: set[int], add: Add) -> None:
    add(1, "for (i64 r = first_row<TEAM>(); r < rows; r += row_step<TEAM>()) {")
    _row_values(source, needed, add, 2)
    reduced = [(j, o, summed(o)[0]) for j, o in enumerate(source.outputs) if o.how == ROWS]
    for j, out, wide in reduced:
        add(2, f"{wide} s{j} = {_START[out.op].format(A=wide)};")
    add(2, "for (i64 p = first_column<TEAM>(); p < packs; p += TEAM) {")
    add(3, "const i64 c = p * L, at = r * columns + c;")
    _pack(source, needed, add, 3)
    add(2, "}")
    for j, out, _ in reduced:
        add(2, f"s{j} = team_reduce<TEAM>(s{j}, {_COMBINE[out.op]});")
        stored = STORED[out.dtype.name]
        add(2, f"if (first_column<TEAM>() == 0) y{j}[r] = static_cast<{stored}>(s{j});")
    add(1, "}")


def _columns(source: ChainSource, needed: set[int], add: Add) -> None:
    add(1, "const i64 tiles = (packs + TEAM - 1) / TEAM;")
    add(1, "for (i64 w = blockIdx.x; w < tiles * spans; w += gridDim.x) {")
    add(
        2,
        "const i64 span = quotient(w, tiles), p = (w - span * tiles) * TEAM + threadIdx.x % TEAM;",
    )
    add(2, "const i64 c = p * L, first = span * height;")
    add(2, "const i64 last = p < packs ? (first + height < rows ? first + height : rows) : 0;")
    reduced = [(j, o, summed(o)[0]) for j, o in enumerate(source.outputs) if o.how == COLUMNS]
    for j, out, wide in reduced:
        add(2, f"{wide} s{j}[L];")
        add(2, f"for (int k = 0; k < L; ++k) s{j}[k] = {_START[out.op].format(A=wide)};")
    add(2, "for (i64 r = first + threadIdx.x / TEAM; r < last; r += 256 / TEAM) {")
    add(3, "const i64 at = r * columns + c;")
    _row_values(source, needed, add, 3)
    _pack(source, needed, add, 3)
    add(2, "}")
    for j, out, _ in reduced:
        target = f"y{j} + span * columns"
        add(2, f"fold_columns<TEAM, L>(s{j}, {target}, c, columns, {_COMBINE[out.op]});")
    add(1, "}")


def _row_values(source: ChainSource, needed: set[int], add: Add, depth: int) -> None:
    for i, (kind, dtype) in enumerate(source.inputs):
        if kind == ROWS and i in needed:
            add(depth, f"const {computed(dtype)} v{i} = static_cast<{computed(dtype)}>(x{i}[r]);")


def _pack(source: ChainSource, needed: set[int], add: Add, depth: int) -> None:
    """Lines that read a pack, compute its elements, and write or add up what they give."""
    add(depth, "const int count = columns - c < L ? static_cast<int>(columns - c) : L;")
    add(depth, "const bool full = whole && count == L;")
    values = []
    for i, (kind, dtype) in enumerate(source.inputs):
        if kind in (FLAT, COLUMNS) and i in needed:
            add(depth, f"Pack<{STORED[dtype.name]}, L> p{i};")
            add(depth, f"load_pack(p{i}, x{i} + {'at' if kind == FLAT else 'c'}, full, count);")
            values.append(f"static_cast<{computed(dtype)}>(p{i}.item[k])")
        else:
            values.append(f"v{i}" if i in needed else f"{computed(dtype)}(0)")
    for i, number in enumerate(source.numbers):
        values += [f"k{i}", f"k{i}r"] if _narrow(number.dtype) else [f"k{i}"]
    flat = [(j, out) for j, out in enumerate(source.outputs) if out.how == FLAT]
    for j, out in flat:
        add(depth, f"Pack<{STORED[out.dtype.name]}, L> q{j};")
    add(0, "#pragma unroll")
    add(depth, "for (int k = 0; k < L; ++k) {")
    add(depth + 1, f"const Values e = element({', '.join(values)});")
    for j, out in flat:
        add(depth + 1, f"q{j}.item[k] = static_cast<{STORED[out.dtype.name]}>(e.r{j});")
    reduced = [(j, out) for j, out in enumerate(source.outputs) if out.how != FLAT]
    if reduced:
        add(depth + 1, "if (k < count) {")
        for j, out in reduced:
            wide = "i64" if out.node.dtype in (BOOL, INT) else computed(out.node.dtype)
            held = f"s{j}[k]" if out.how == COLUMNS else f"s{j}"
            value = f"static_cast<{wide}>(e.r{j})"
            add(depth + 2, f"{held} = {_COMBINE[out.op]}({held}, {value});")
        add(depth + 1, "}")
    add(depth, "}")
    for j, _ in flat:
        add(depth, f"store_pack(y{j} + at, q{j}, full, count);")


def finished(source: ChainSource) -> list[int]:
    """Numbers of the results that the second kernel writes."""
    return [j for j, out in enumerate(source.outputs) if out.how in (COLUMNS, "all")]


def _finish(source: ChainSource, add: Add) -> None:
    last = [(j, source.outputs[j], summed(source.outputs[j])[0]) for j in finished(source)]
    if not last:
        return
    arguments = []
    for j, out, wide in last:
        arguments += [f"const {wide}* s{j}", f"{STORED[out.dtype.name]}* y{j}"]
    arguments += ["i64 spans", "i64 columns", "i64 blocks"]
    add(0, "")
    add(0, f"__global__ void finish({', '.join(arguments)}) {{")
    for j, out, wide in last:
        start, combine = _START[out.op].format(A=wide), _COMBINE[out.op]
        if out.how == "all":
            add(1, f"finish_all(s{j}, y{j}, blocks, {start}, {combine});")
        else:
            add(1, f"finish_columns(s{j}, y{j}, spans, columns, {start}, {combine});")
    add(0, "}")
