"""Kernels on large arrays, element by element, shared among threads.

An array is taken in blocks, in the order in which it lies in memory. The blocks are the same for
any number of threads, and so is each bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends.cpu.threads import in_parts, threads
from gpubackprop.backends.offers import taken

# Elements of a block. Smaller ones fit the L2 cache, but threads that call NumPy often wait for
# each other, and a pass beyond that cache costs less.
BLOCK = 1 << 18
# Fewer elements than this are not worth another thread (about 50 us to start its work).
SHARE = 1 << 18
# Where a number is made a row of this many, NumPy's loops are long.
ROW = 8192
WORDS = {np.dtype(f"f{n}"): np.dtype(f"i{n}") for n in (2, 4, 8)}
_ONE = np.int8(1)
_ZEROS = {np.dtype(f"f{n}"): np.zeros(ROW, f"f{n}") for n in (4, 8)}


def result(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory for a kernel's result: what is offered for it (see ``offers.py``), if that has the
    shape and lies in order, else new."""
    found = taken(lambda x: _like(x, shape, dtype) and x.flags.c_contiguous)
    return np.empty(shape, dtype) if found is None else found


def result_like(x: np.ndarray) -> np.ndarray:
    """:func:`result` with shape, dtype and layout of an array."""
    found = taken(lambda y: _like(y, x.shape, x.dtype) and y.strides == x.strides)
    return np.empty_like(x) if found is None else found


def _like(x: Any, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    return isinstance(x, np.ndarray) and x.shape == shape and x.dtype == dtype


def in_blocks(
    work: Callable[[int, int], None], n: int, block: int = BLOCK, share: int = SHARE
) -> None:
    """``work(start, stop)`` for every block of ``range(n)``.

    Parameters
    ----------
    share : how many elements are worth a thread.
    """

    def several(first: int, last: int) -> None:
        for start in range(first * block, min(last * block, n), block):
            work(start, min(start + block, n))

    blocks = -(-n // block)
    in_parts(several, blocks, min(threads(), n // share) if n >= 2 * share else 1)


def flat(*arrays: np.ndarray) -> tuple[np.ndarray, ...] | None:
    """Arrays of one shape as they lie in memory, with one axis; None where they lie differently or
    have gaps."""
    first = arrays[0]
    if any(a.strides != first.strides for a in arrays):
        return None
    if first.flags.c_contiguous:
        return tuple(a.reshape(-1) for a in arrays)
    order = sorted(range(first.ndim), key=lambda i: -first.strides[i])
    turned = tuple(a.transpose(order) for a in arrays)
    return tuple(a.reshape(-1) for a in turned) if turned[0].flags.c_contiguous else None


def relu(x: np.ndarray) -> np.ndarray | None:
    """max(x, 0) of float32 or float64, or None where the array has gaps.

    NumPy's maximum of two arrays is three times as fast as that of an array and a number.
    """
    y = result_like(x)
    both = flat(x, y)
    if both is None:
        return None
    source, target = both
    zeros = _ZEROS[x.dtype]

    def work(start: int, stop: int) -> None:
        whole = stop - (stop - start) % ROW
        rows = source[start:whole].reshape(-1, ROW)
        np.maximum(rows, zeros, out=target[start:whole].reshape(-1, ROW))
        if whole < stop:
            np.maximum(source[whole:stop], zeros[: stop - whole], out=target[whole:stop])

    in_blocks(work, x.size)
    return y


def relu_backward(dy: np.ndarray, y: np.ndarray, zero: np.ndarray) -> np.ndarray | None:
    """dy where y > 0, else 0; None where the arrays lie differently in memory."""
    dx = result_like(dy)
    three = flat(dy, y, dx)
    if three is None:
        return None
    given, seen, found = three

    def work(start: int, stop: int) -> None:
        part = slice(start, stop)
        _choose(np.greater(seen[part], zero), True, given[part], found[part])

    in_blocks(work, dy.size)
    return dx


def masked(condition: np.ndarray, kept: bool, x: np.ndarray) -> np.ndarray:
    """`x` where the booleans `condition` are `kept`, and 0.0 elsewhere."""
    y = result_like(x)
    both = flat(x, y) if condition.flags.c_contiguous and x.flags.c_contiguous else None
    if both is None:
        _choose(condition, kept, x, y)
        return y
    source, target = both
    where = condition.reshape(-1)

    def work(start: int, stop: int) -> None:
        part = slice(start, stop)
        _choose(where[part], kept, source[part], target[part])

    in_blocks(work, x.size)
    return y


def _choose(condition: np.ndarray, kept: bool, x: np.ndarray, y: np.ndarray) -> None:
    """Write x where the condition is as it should be, and 0.0 elsewhere, by bits: also in place of
    NaN and infinity."""
    word, seen = WORDS[x.dtype], condition.view(np.int8)
    bits = y.view(word)
    bits[...] = np.negative(seen) if kept else np.subtract(seen, _ONE)
    np.bitwise_and(bits, x.view(word), bits)
