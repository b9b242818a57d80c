"""What the cross-entropy of the softmax makes of logits, on NumPy arrays.

Rows are taken in blocks, shared among threads. Half logits are widened block by block, so that
nothing of their size is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends.cpu.shared import in_blocks

# Elements of a block, and how many are worth a thread.
BLOCK, SHARE = 1 << 18, 1 << 18
# Of a matrix with few columns, reductions over a row are slow: it is transposed for them.
NARROW = 32
MANY_ROWS = 64

# Any: NumPy's stubs know `out` by name only.
_add_over: Any = np.add.reduce
_max_over: Any = np.maximum.reduce


def is_narrow(x: np.ndarray) -> bool:
    """Whether a matrix is transposed for reductions over its rows."""
    return x.shape[1] <= NARROW and len(x) >= MANY_ROWS


def spread(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's largest element, and the sum of the exponentials of what the others fall short of
    it; in float32 for half precision."""
    wide = _wide(x)
    top, total = np.empty(len(x), wide), np.empty(len(x), wide)

    def columns(start: int, stop: int) -> None:
        e, most = x[start:stop].T.astype(wide, "C"), top[start:stop]
        np.subtract(e, _max_over(e, 0, None, most), e)
        _add_over(np.exp(e, e), 0, None, total[start:stop])

    def rows(start: int, stop: int) -> None:
        part, most = x[start:stop].astype(wide, copy=False), top[start:stop]
        e = np.subtract(part, _max_over(part, 1, None, most)[:, None])
        _add_over(np.exp(e, e), 1, None, total[start:stop])

    _each(columns if is_narrow(x) else rows, x)
    return top, total


def cotangents(
    dy: np.ndarray,
    x: np.ndarray,
    top: np.ndarray,
    total: np.ndarray,
    target: np.ndarray,
    dx: np.ndarray,
) -> None:
    """dx = dy * (softmax(x) - onehot(target)), where top and total are what `spread` gives; all
    targets are classes. dx has the dtype of x, and no gaps."""
    wide, scale = _wide(x), np.divide(dy, total)

    def rows(start: int, stop: int) -> None:
        part = slice(start, stop)
        e = dx[part] if dx.dtype == wide else np.empty((stop - start, x.shape[1]), wide)
        np.subtract(x[part].astype(wide, copy=False), top[part, None], e)
        np.multiply(np.exp(e, e), scale[part, None], e)
        e.reshape(-1)[places(target[part], x.shape[1])] -= dy[part]
        if dx.dtype != wide:
            dx[part] = e

    _each(rows, x)


def places(target: np.ndarray, classes: int) -> np.ndarray:
    """Where each row's class is in a flat (rows, classes) array."""
    first = np.arange(0, len(target) * classes, classes)
    return np.add(first, target, first, casting="unsafe")


def _wide(x: np.ndarray) -> np.dtype:
    return np.dtype(np.float32) if x.dtype.itemsize == 2 else x.dtype


def _each(work: Callable[[int, int], None], x: np.ndarray) -> None:
    rows, columns = x.shape
    if x.size <= BLOCK:
        work(0, rows)
    else:
        in_blocks(work, rows, max(BLOCK // columns, 1), max(SHARE // columns, 1))
