"""Reader of tables of numbers in CSV files, with errors that name the line and the column."""

from __future__ import annotations

import codecs
import csv
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop import suggest
from gpubackprop.backends import as_dtype
from gpubackprop.data.reading import MAX_BYTES, Unpacked, open_file
from gpubackprop.errors import ConfigError, DataError

TASKS = ("classification", "regression")
"""What a target column can be: names of classes, or numbers to predict."""

# Rows that are held as Python strings at once: enough that NumPy converts at full speed.
_BLOCK = 4096

Row = tuple[int, list[str]]


@dataclass(frozen=True)
class Table:
    """What ``read_csv`` found.

    Parameters
    ----------
    features : numpy.ndarray
        Shape (rows, feature columns), the dtype asked for.
    target : numpy.ndarray or None
        Shape (rows,): int64 class numbers, or numbers of the dtype asked for, or None where there
        is no target column.
    feature_names : tuple of str
        Names of the feature columns: from the header, or ``"column 1"`` and so on.
    target_name : str or None
        Name of the target column.
    class_names : tuple of str or None
        ``class_names[k]`` is the text that stands for class ``k``; None for a regression.
    header : bool
        Whether the names stand in the file.
    """

    features: np.ndarray[Any, Any]
    target: np.ndarray[Any, Any] | None
    feature_names: tuple[str, ...]
    target_name: str | None
    class_names: tuple[str, ...] | None
    header: bool = False


def read_csv(
    path: str | os.PathLike[str],
    *,
    target: str | int | None = -1,
    task: str | None = "classification",
    delimiter: str = ",",
    header: bool | None = None,
    encoding: str = "utf-8",
    dtype: Any = np.float32,
    max_bytes: int = MAX_BYTES,
) -> Table:
    """Read a table of numbers with one target column.

    Blank lines are passed over, cells may be quoted, a byte-order mark is passed over, and the
    file may be gzip-compressed.

    Parameters
    ----------
    path : str or path-like
        The file.
    target : str, int or None, optional
        The target column: its name in the header, or its number from 0 (from -1 backwards). The
        last column by default; None where every column is a feature.
    task : {"classification", "regression"} or None, optional
        ``"classification"``: each distinct text of the target column is a class; classes are
        numbered in sorted order, by value where all of them are numbers. ``"regression"``: the
        target is a number. None: the column is left out, whatever it holds.
    delimiter : str, optional
        The character between cells.
    header : bool, optional
        Whether the first line holds names. By default it does if no feature cell of it is a number
        (or, where all are, if its target cell is text above a number).
    encoding : str, optional
        Any encoding in which a line feed is one byte, such as UTF-8, Latin-1 or Windows-1252.
    dtype : dtype, optional
        Floating dtype of the features and of a regression's target.
    max_bytes : int, optional
        The most bytes that the file may hold, unpacked.

    Returns
    -------
    Table
        Features, target and names.

    Raises
    ------
    DataError
        The file is missing, empty or undecodable, its rows differ in length, a cell is no finite
        number, or there is no such target column. The error names the line (from 1) and the column.
    ConfigError
        An argument has a value that is not allowed.
    """
    if task is not None and task not in TASKS:
        raise ConfigError(suggest.unknown("task of a CSV file", task, TASKS))
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '\r\n\0"':
        raise ConfigError(f"delimiter of a CSV file must be one character, got {delimiter!r}")
    _check_encoding(encoding)
    with open_file(path, "CSV file") as stream:
        source = Unpacked(stream, path, "CSV file", max_bytes)
        reader = _Reader(source, delimiter, encoding, as_dtype(dtype), task)
        return reader.read(target, header)


class _Reader:
    """One reading of one file."""

    def __init__(
        self,
        source: Unpacked,
        delimiter: str,
        encoding: str,
        dtype: np.dtype[Any],
        task: str | None,
    ) -> None:
        self.source = source
        self.delimiter = delimiter
        self.encoding = encoding
        self.dtype = dtype
        self.task = task
        self.line = 0
        self.width = 0
        self.first_line = 0
        self.names: list[str] = []
        self.header = False

    def read(self, target: str | int | None, header: bool | None) -> Table:
        rows = self.rows()
        head = [row for row in (next(rows, None), next(rows, None)) if row is not None]
        if not head:
            raise self.source.error("it holds no row")
        column = self.begin(head, target, header)
        kept = [index for index in range(self.width) if index != column]
        if not kept:
            raise self.source.error(self.one_column())
        blocks: list[np.ndarray[Any, Any]] = []
        texts: list[str] = []
        lines: list[int] = []
        for block in _blocks(head, rows):
            if column is not None:
                texts += [cells[column].strip() for _, cells in block]
                lines += [line for line, _ in block]
            blocks.append(self.numbers(block, kept))
        if not blocks:
            raise self.source.error("it holds a header, but no row")
        features = np.concatenate(blocks)
        names = tuple(self.names[index] for index in kept)
        if column is None:
            return Table(features, None, names, None, None, self.header)
        if self.task is None:
            return Table(features, None, names, self.names[column], None, self.header)
        values, classes = self.target(texts, lines, column)
        return Table(features, values, names, self.names[column], classes, self.header)

    def rows(self) -> Iterator[Row]:
        """Yield the line number and the cells of every row that is not blank."""
        reader = csv.reader(self.decoded(), delimiter=self.delimiter, strict=True)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self.source.error(f"line {self.line}: {error}") from error
            if not cells or (len(cells) == 1 and not cells[0].strip()):
                continue
            if not self.width:
                self.width, self.first_line = len(cells), self.line
            if len(cells) != self.width:
                raise self.source.error(
                    f"line {self.line} has {len(cells)} column(s), but line {self.first_line} "
                    f"has {self.width}"
                )
            yield self.line, cells

    def decoded(self) -> Iterator[str]:
        for number, raw in enumerate(self.source.lines(), 1):
            self.line = number
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if b"\0" in raw:
                raise self.source.error(
                    f"line {number} has a NUL byte; it is not a text file, or one in UTF-16 "
                    "(save it as UTF-8)"
                )
            try:
                yield raw.decode(self.encoding)
            except UnicodeError as error:
                where = f"byte {error.start + 1}, " if isinstance(error, UnicodeDecodeError) else ""
                raise self.source.error(
                    f"line {number}: {where}is not valid {self.encoding}; pass the encoding of the "
                    "file or save it as UTF-8"
                ) from error

    def begin(self, head: list[Row], target: str | int | None, header: bool | None) -> int | None:
        """Settle header, names and target column; take the header off ``head``."""
        first = [cell.strip() for cell in head[0][1]]
        if isinstance(target, str):
            if header is False:
                raise ConfigError(
                    f"target={target!r} names a column, but header=false says there are no names; "
                    "give the number of the column"
                )
            if target not in first:
                words = suggest.unknown("target column", target, first)
                raise self.source.error(f"{words} (from line {head[0][0]})")
            column: int | None = first.index(target)
            header = True
        else:
            column = self.position(target)
        if header is None:
            header = self.looks_like_header(head, column)
        if header:
            repeated = sorted({name for name in first if name and first.count(name) > 1})
            if repeated:
                raise self.source.error(f"line {head[0][0]} names {repeated[0]!r} twice")
            head.pop(0)
        self.header = header
        self.names = [
            name if header and name else f"column {index + 1}" for index, name in enumerate(first)
        ]
        return column

    def position(self, target: int | None) -> int | None:
        if target is None:
            return None
        if isinstance(target, bool) or not isinstance(target, int):
            raise ConfigError(f"target must be a column's name or number, got {target!r}")
        if not -self.width <= target < self.width:
            raise self.source.error(
                f"there is no target column {target}: line {self.first_line} has {self.width} "
                f"column(s), numbered 0 to {self.width - 1}"
            )
        return target % self.width

    def looks_like_header(self, head: list[Row], column: int | None) -> bool:
        first = head[0][1]
        features = [_is_number(cell) for i, cell in enumerate(first) if i != column]
        if not any(features):
            return bool(features)
        # Columns named 0, 1, 2, ..., target: numbers, but the target cell gives it away.
        return (
            all(features)
            and column is not None
            and len(head) > 1
            and not _is_number(first[column])
            and _is_number(head[1][1][column])
        )

    def numbers(self, block: list[Row], kept: list[int]) -> np.ndarray[Any, Any]:
        """Convert the columns ``kept`` of some rows."""
        if len(kept) == self.width:
            cells = [row for _, row in block]
        else:
            before, after = _around(kept, self.width)
            cells = [row[:before] + row[after:] for _, row in block]
        try:
            values = np.array(cells, dtype=np.float64)
        except ValueError:
            raise self.bad_cell(block, kept) from None
        with np.errstate(over="ignore"):
            values = values.astype(self.dtype)
        if not np.isfinite(values).all():
            raise self.bad_cell(block, kept)
        return values

    def bad_cell(self, block: list[Row], kept: list[int]) -> DataError:
        """Find the cell that made the conversion fail and return its error."""
        for line, cells in block:
            for index in kept:
                words = self.fault(cells[index])
                if words:
                    return self.source.error(
                        f"line {line}, column {index + 1} ({self.names[index]!r}): {words}"
                    )
        raise AssertionError("a block of sound cells was refused")

    def fault(self, cell: str) -> str:
        """Return why a cell is no finite number, or an empty string."""
        if not cell.strip():
            return "the cell is empty; fill it in, or leave the row out"
        shown = repr(cell if len(cell) <= 40 else cell[:37] + "...")
        if not _is_number(cell):
            return f"{shown} is not a number; write words as numbers, or leave the column out"
        with np.errstate(over="ignore"):
            if not np.isfinite(np.array(cell, dtype=np.float64).astype(self.dtype)):
                return f"{shown} is not a finite {self.dtype.name} number"
        return ""

    def target(
        self, texts: list[str], lines: list[int], column: int
    ) -> tuple[np.ndarray[Any, Any], tuple[str, ...] | None]:
        """Turn the texts of the target column into class numbers or numbers."""
        name = self.names[column]
        if self.task == "regression":
            try:
                with np.errstate(over="ignore"):
                    values = np.array(texts, dtype=np.float64).astype(self.dtype)
            except ValueError:
                values = np.array([np.nan])
            if not np.isfinite(values).all():
                row, words = next((i, w) for i, t in enumerate(texts) if (w := self.fault(t)))
                raise self.source.error(
                    f"line {lines[row]}, target column {column + 1} ({name!r}): {words}; "
                    "for classes set task = 'classification'"
                )
            return values, None
        found = set(texts)
        if "" in found:
            raise self.source.error(
                f"line {lines[texts.index('')]}, target column {column + 1} ({name!r}): the cell "
                "is empty"
            )
        if len(texts) >= 20 and 2 * len(found) > len(texts):
            raise self.source.error(
                f"target column {column + 1} ({name!r}) has {len(found):,} distinct values in "
                f"{len(texts):,} rows, too many for classes; if it is a number to predict, set "
                "task = 'regression'"
            )
        classes = sorted(found, key=_sort_key(found))
        number = {text: index for index, text in enumerate(classes)}
        return np.array([number[text] for text in texts], dtype=np.int64), tuple(classes)

    def one_column(self) -> str:
        words = f"only one column was found with the delimiter {self.delimiter!r}"
        return f"{words}; pass the delimiter of the file, or target=None if there is no target"


def _blocks(head: list[Row], rows: Iterator[Row]) -> Iterator[list[Row]]:
    block = list(head)
    for row in rows:
        block.append(row)
        if len(block) >= _BLOCK:
            yield block
            block = []
    if block:
        yield block


def _around(kept: list[int], width: int) -> tuple[int, int]:
    """Return the bounds of the one column that is not in ``kept``."""
    column = (set(range(width)) - set(kept)).pop()
    return column, column + 1


def _is_number(text: str) -> bool:
    try:
        np.array(text, dtype=np.float64)
    except ValueError:
        return False
    return True


def _sort_key(texts: set[str]) -> Any:
    """Sort by value where every text is a number, else by text."""
    # A NaN has no place in an order, so it counts as text here.
    if all(_is_number(text) and math.isfinite(float(text)) for text in texts):
        return lambda text: (float(text), text)
    return str


def _check_encoding(encoding: str) -> None:
    try:
        usable = "\n".encode(encoding).removeprefix(codecs.BOM_UTF8) == b"\n"
    except (LookupError, TypeError, UnicodeError):
        usable = False
    if not usable:
        raise ConfigError(
            f"encoding of a CSV file must be one with a one-byte line feed, such as utf-8, latin-1 "
            f"or cp1252; got {encoding!r}"
        )
