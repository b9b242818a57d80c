"""How the operands of an elementwise call lie over one another, as rows and columns.

Elementwise work is seen as a table of `rows` by `columns` in the order of memory. An operand is
``flat`` (an element for each place), ``columns`` (a row that repeats, such as a bias), ``rows`` (a
number for each row, such as a mean) or ``scalar``.

Where this does not say it (a slice with gaps, a middle axis that repeats), the rows are those of
several axes, and an operand is found by its strides over them: ``view`` (its rows are dense),
``each`` (one element for each row) or ``spread`` (its rows have a stride of their own).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

FLAT, COLUMNS, ROWS, SCALAR = "flat", "columns", "rows", "scalar"
VIEW, EACH, SPREAD = "view", "each", "spread"


class Table(NamedTuple):
    """How operands lie.

    Attributes
    ----------
    rows, columns : the table's; rows times columns elements in all.
    kinds : of each operand.
    lengths : axes that make up the rows, where some operand is found by strides.
    strides : of each operand over these axes and over the columns, in bytes; empty for one that
        needs none.
    """

    rows: int
    columns: int
    kinds: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    strides: tuple[tuple[int, ...], ...] = ()

    def split(self, columns: int) -> Table | None:
        """The same elements as rows of another length; None where an operand forbids it."""
        if columns == self.columns:
            return self
        if self.rows * self.columns % columns or any(k not in (FLAT, SCALAR) for k in self.kinds):
            return None
        return Table(self.rows * self.columns // columns, columns, self.kinds)


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
    `out` has gaps or no elements.

    Parameters
    ----------
    out, operands : anything with ``shape``, ``strides`` (bytes) and ``dtype``.
    """
    order = memory_order(out)
    if order is None:
        return None
    shape = [out.shape[i] for i in order]
    size = math.prod(shape)
    if not size:
        return None
    kinds: list[str] = []
    columns = None
    for x in operands:
        if len(x.shape) > len(out.shape):
            return None
        kind, width = _kind(x, out, order, shape)
        if kind is None or (width is not None and columns not in (None, width)):
            return _general(out, operands, order)
        columns = width if width is not None else columns
        kinds.append(kind)
    if columns is None:
        return Table(1, size, tuple(kinds))
    return Table(size // columns, columns, tuple(kinds))


def _strides(x: Any, out: Any, order: list[int]) -> list[int]:
    """An operand's strides over the axes of the result, 0 where it repeats."""
    lead = len(out.shape) - len(x.shape)
    return [0 if i < lead or x.shape[i - lead] == 1 else x.strides[i - lead] for i in order]


def _general(out: Any, operands: Sequence[Any], order: list[int]) -> Table:
    """The table of operands that lie in any way: axes that no operand tells apart are one."""
    all_strides = [_strides(x, out, order) for x in operands]
    axes: list[tuple[int, list[int]]] = []
    for k, i in enumerate(order):
        n, steps = out.shape[i], [s[k] for s in all_strides]
        if n == 1:
            continue
        if axes and all(a == n * b for a, b in zip(axes[-1][1], steps, strict=True)):
            axes[-1] = (axes[-1][0] * n, steps)
        else:
            axes.append((n, steps))
    *outer, (columns, inner) = axes
    lengths = tuple(n for n, _ in outer)
    kinds: list[str] = []
    strides: list[tuple[int, ...]] = []
    for j, x in enumerate(operands):
        steps = [a[1][j] for a in outer]
        if not any((*steps, inner[j])):
            kinds.append(SCALAR)
            strides.append(())
            continue
        kinds.append(VIEW if inner[j] == x.dtype.itemsize else SPREAD if inner[j] else EACH)
        strides.append((*steps, inner[j]))
    return Table(math.prod(lengths), columns, tuple(kinds), lengths, tuple(strides))


def _kind(x: Any, out: Any, order: list[int], shape: list[int]) -> tuple[str | None, int | None]:
    """The kind of an operand that needs no strides (None where it does), and the columns that this
    takes."""
    if math.prod(n for n, s in zip(x.shape, x.strides, strict=True) if s) == 1:
        return SCALAR, None
    step = x.dtype.itemsize
    strides = _strides(x, out, order)
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
        first, rest = dims[:k], dims[k:]
        width = math.prod(n for n, _ in rest)
        if all(s == 0 for _, s in first) and dense(rest):
            return COLUMNS, width
        if all(s == 0 for _, s in rest) and dense(first):
            return ROWS, width
    return None, None
