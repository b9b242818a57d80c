"""How the operands of an elementwise call lie over one another, as rows and columns.

Elementwise work is seen as a table of `rows` by `columns` in the order of memory. An operand is
``flat`` (an element for each place), ``columns`` (a row that repeats, such as a bias), ``rows`` (a
number for each row, such as a mean) or ``scalar``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

FLAT, COLUMNS, ROWS, SCALAR = "flat", "columns", "rows", "scalar"


class Table(NamedTuple):
    """Rows, columns, and the kind of each operand."""

    rows: int
    columns: int
    kinds: tuple[str, ...]


def memory_order(x: Any) -> list[int] | None:
    """The axes of a dense array from the slowest to the fastest; None where it has gaps."""
    order = sorted(range(len(x.shape)), key=lambda i: (-x.strides[i], i))
    step = x.dtype.itemsize
    for i in reversed(order):
        if x.shape[i] != 1:
            if x.strides[i] != step:
                return None
            step *= x.shape[i]
    return order


def table(out: Any, operands: Sequence[Any]) -> Table | None:
    """The table of a call that gives `out` from operands that broadcast to its shape; None where
    some operand lies otherwise.

    Parameters
    ----------
    out, operands : anything with ``shape``, ``strides`` (bytes) and ``dtype``.
    """
    order = memory_order(out)
    if order is None:
        return None
    shape = [out.shape[i] for i in order]
    size = 1
    for n in shape:
        size *= n
    if not size:
        return None
    kinds = []
    columns = None
    for x in operands:
        kind, width = _kind(x, out, order, shape)
        if kind is None or (width is not None and columns not in (None, width)):
            return None
        columns = width if width is not None else columns
        kinds.append(kind)
    if columns is None:
        return Table(1, size, tuple(kinds))
    return Table(size // columns, columns, tuple(kinds))


def _kind(x: Any, out: Any, order: list[int], shape: list[int]) -> tuple[str | None, int | None]:
    count = 1
    for n, s in zip(x.shape, x.strides, strict=True):
        count *= n if s else 1
    if count == 1:
        return SCALAR, None
    lead = len(out.shape) - len(x.shape)
    if lead < 0:
        return None, None
    step = x.dtype.itemsize
    strides = []
    for i in order:
        j = i - lead
        if j < 0 or x.shape[j] == 1:
            strides.append(0)
        else:
            strides.append(x.strides[j])
    dims = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]

    def dense(part: list[tuple[int, int]]) -> bool:
        width = step
        for n, s in reversed(part):
            if s != width:
                return False
            width *= n
        return True

    if dense(dims):
        return FLAT, None
    for k in range(1, len(dims)):
        width = 1
        for n, _ in dims[k:]:
            width *= n
        first, rest = dims[:k], dims[k:]
        if all(s == 0 for _, s in first) and dense(rest):
            return COLUMNS, width
        if all(s == 0 for _, s in rest) and dense(first):
            return ROWS, width
    return None, None
