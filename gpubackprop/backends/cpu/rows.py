"""Normalisation of each row of a large matrix, on NumPy arrays.

``layer_norm`` and ``rms_norm`` over blocks of rows, shared among threads. NumPy's loops over a row
are short where a row is, so sums over a row are left to einsum and the BLAS, and what is multiplied
by or added to each row stands beside several rows at once.
"""

from __future__ import annotations

import math

import numpy as np

from gpubackprop.backends.cpu.shared import in_blocks, result

# Elements of a block, and how many are worth a thread.
BLOCK, SHARE = 1 << 17, 1 << 18
# Elements of the rows that are taken together, at most.
WIDE = 8192
# Longer rows are added up in pairs, which keeps more digits.
LONG = 4096

Rows = tuple[np.ndarray, int, tuple[int, ...]]


def of_features(x: np.ndarray, axes: int, *values: np.ndarray | None) -> bool:
    """Whether arrays have the shape of the last axes of x."""
    return all(v is None or v.shape == x.shape[x.ndim - axes :] for v in values)


def normalised(
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    axes: int,
    eps: float,
    centred: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What ``layer_norm`` gives, or without `centred` ``rms_norm``, whose means count as 0.

    Parameters
    ----------
    x : not empty; weight and bias have its dtype and the shape of its last `axes` axes.
    """
    rows, several, kept = _rows(x, axes)
    n = rows.shape[1]
    y, mean = result(x.shape, x.dtype).reshape(rows.shape), np.zeros((len(rows), 1), x.dtype)
    rstd = np.empty(len(rows), x.dtype)
    by, plus = _beside(weight, several), _beside(bias, several)

    def work(start: int, stop: int) -> None:
        part, out, scale = rows[start:stop], y[start:stop], rstd[start:stop]
        if centred:
            mean[start:stop, 0] = _sums(part)
            np.divide(mean[start:stop], n, mean[start:stop])
            part = np.subtract(part, mean[start:stop], out)
        np.vecdot(part, part, out=scale)
        np.divide(scale, n, scale)
        np.add(scale, eps, scale)
        np.sqrt(scale, scale)
        np.reciprocal(scale, scale)
        np.multiply(part, scale[:, None], out)
        if by is not None:
            _each(np.multiply, out, by, out)
        if plus is not None:
            _each(np.add, out, plus, out)

    in_blocks(work, len(rows), *_sizes(n, several))
    return y.reshape(x.shape), mean.reshape(kept), rstd.reshape(kept)


def cotangents(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray | None,
    rstd: np.ndarray,
    axes: int,
) -> tuple[np.ndarray, ...]:
    """What ``layer_norm_backward`` gives, or without a mean ``rms_norm_backward``."""
    rows, several, _ = _rows(x, axes)
    n = rows.shape[1]
    given, scale = np.ascontiguousarray(dy).reshape(rows.shape), rstd.reshape(-1, 1)
    middle = None if mean is None else mean.reshape(-1, 1)
    by, dx = _beside(weight, several), result(x.shape, x.dtype).reshape(rows.shape)
    block, share = _sizes(n, several)
    kinds = 1 if middle is None else 2
    sums = np.empty((kinds, -(-len(rows) // block), n), x.dtype)

    def work(start: int, stop: int) -> None:
        part, out, found, r = (a[start:stop] for a in (rows, given, dx, scale))
        xhat = found
        if middle is not None:
            part = np.subtract(part, middle[start:stop], xhat)
        np.multiply(part, r, xhat)
        np.einsum("ij,ij->j", out, xhat, out=sums[0, start // block])
        if middle is not None:
            np.add.reduce(out, 0, out=sums[1, start // block])
        g = out
        if by is not None:
            g = np.empty(out.shape, out.dtype)
            _each(np.multiply, out, by, g)
        slope = np.vecdot(g, xhat)[:, None]
        np.divide(slope, n, slope)
        np.multiply(xhat, slope, xhat)
        if middle is not None:
            offset = _sums(g)[:, None]
            np.divide(offset, n, offset)
            np.add(xhat, offset, xhat)
        np.subtract(g, xhat, found)
        np.multiply(found, r, found)

    in_blocks(work, len(rows), block, share)
    found = (np.add.reduce(s, 0).reshape(x.shape[x.ndim - axes :]) for s in sums)
    return dx.reshape(x.shape), *found


def _rows(x: np.ndarray, axes: int) -> Rows:
    """x as (rows, values of the last `axes` axes); how many rows are taken together; the shape of
    x with those axes at size one."""
    lead = x.shape[: x.ndim - axes]
    rows = np.ascontiguousarray(x).reshape(math.prod(lead), -1)
    return rows, max(1, min(WIDE // rows.shape[1], len(rows))), lead + (1,) * axes


def _sizes(n: int, several: int) -> tuple[int, int]:
    """Rows of a block, and rows that are worth a thread."""
    return max(BLOCK // (n * several), 1) * several, max(SHARE // n, 1)


def _beside(values: np.ndarray | None, several: int) -> np.ndarray | None:
    """Numbers of the features, for several rows that lie behind one another."""
    return None if values is None else np.tile(values.reshape(-1), several)


def _each(ufunc: np.ufunc, rows: np.ndarray, values: np.ndarray, result: np.ndarray) -> None:
    """Multiply each row by what ``_beside`` gave, or add it."""
    flat, out = rows.reshape(-1), result.reshape(-1)
    whole = flat.size - flat.size % values.size
    ufunc(flat[:whole].reshape(-1, values.size), values, out=out[:whole].reshape(-1, values.size))
    if whole < flat.size:
        ufunc(flat[whole:], values[: flat.size - whole], out=out[whole:])


def _sums(rows: np.ndarray) -> np.ndarray:
    """The sum of each row."""
    return np.einsum("ij->i", rows) if rows.shape[1] <= LONG else np.add.reduce(rows, 1)
