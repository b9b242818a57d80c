"""Kernels of ``attention.py`` on NumPy arrays, faster than by their definition.

Tiles of weights that fit a core's cache, without copies of queries, keys or values; of causal
attention only the keys that a tile can see; everything in place. The fast paths are for float32 and
float64 arrays of one dtype; all else runs the definition.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.attention import Options, keep_offset, keep_row
from gpubackprop.backends.cpu.shared import result_like
from gpubackprop.backends.primitives import Array

TILE = 2**18
"""Weights of a tile: 1 MiB in float32, about what a core's second-level cache holds."""
SMALL = 30.0
"""Scores below this need no shift: exp(30) is 1e13, far from the range of float32."""
FAST = (np.dtype(np.float32), np.dtype(np.float64))

# Any: NumPy's stubs know `out` and `keepdims` by name only.
add_over: Any = np.add.reduce
max_over: Any = np.maximum.reduce


class Tile(NamedTuple):
    """Batches, heads and queries of a tile, and the number of keys that they can see.

    Attributes
    ----------
    batches, heads, shared, rows : slices of the axes; `shared` of the heads of keys and values.
    keys : keys from this number on are invisible to all of these queries.
    whole : whether these are all the queries of their heads.
    """

    batches: slice
    heads: slice
    shared: slice
    rows: slice
    keys: int
    whole: bool

    @property
    def queries(self) -> tuple[slice, slice, slice]:
        """Where an array of the queries is cut."""
        return self.batches, self.heads, self.rows

    @property
    def seen(self) -> tuple[slice, slice, slice]:
        """Where an array of the keys is cut."""
        return self.batches, self.shared, slice(0, self.keys)


def tiles(q: np.ndarray, k: np.ndarray, causal: bool, past: int) -> Iterator[Tile]:
    """Tiles of whole batches where several fit, else of heads, else of some queries of a head."""
    (b, h, tq, _), (hkv, tk) = q.shape, k.shape[1:3]
    group = h // hkv
    per_head = max(group * tq * tk, 1)
    batches = max(1, TILE // (per_head * hkv))
    shared = hkv if batches > 1 else max(1, min(hkv, TILE // per_head))
    rows = max(1, tq if per_head <= TILE else TILE // (group * tk))
    for b0 in range(0, b, batches):
        for s0 in range(0, hkv, shared):
            s1 = min(s0 + shared, hkv)
            for i0 in range(0, tq, rows):
                i1 = min(i0 + rows, tq)
                yield Tile(
                    slice(b0, min(b0 + batches, b)),
                    slice(s0 * group, s1 * group),
                    slice(s0, s1),
                    slice(i0, i1),
                    min(tk, i1 + past) if causal else tk,
                    rows == tq,
                )


@functools.lru_cache(maxsize=16)
def future(rows: int, columns: int, dtype: np.dtype) -> np.ndarray:
    """What causal attention adds to the scores of keys that come after a tile's first query."""
    bias = np.zeros((rows, columns), dtype)
    bias[np.arange(columns) >= np.arange(rows)[:, None]] = -math.inf
    bias.flags.writeable = False
    return bias


def swapped(x: np.ndarray) -> np.ndarray:
    """The last two axes exchanged."""
    return x.swapaxes(-1, -2)


def joined(x: np.ndarray, groups: int) -> np.ndarray:
    """The rows of all heads that share keys, under one another."""
    b, h, rows, columns = x.shape
    return x if groups == h else x.reshape(b, groups, h // groups * rows, columns)


def like(x: np.ndarray, features: int, dtype: np.dtype) -> np.ndarray:
    """An array for results of the shape of `x`, but with this many features; axes in the same order
    of memory, so that heads come back between the features where they came from there."""
    if x.shape[-1] == features:
        return result_like(x) if x.dtype == dtype else np.empty_like(x, dtype)
    b, h, rows, _ = x.shape
    return np.empty((b, rows, h, features), dtype).transpose(0, 2, 1, 3)


class NumPyAttention(ArrayBackend):
    """Overrides of the kernels of ``attention.py``."""

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        causal: bool = False,
        past: int = 0,
        scale: float = 1.0,
        p: float = 0.0,
        seed: int = 0,
        stream: int = 0,
        offset: int = 0,
    ) -> tuple[Array, Array]:
        options = Options(causal, past, scale, p, seed, stream, offset)
        if not _fast(q, k, v, mask) or not k.shape[2]:
            return super().attention(q, k, v, mask, *options)
        b, h, tq, _ = q.shape
        y, lse = like(q, v.shape[-1], q.dtype), np.empty((b, h, tq), q.dtype)
        shifted = _additive(mask) or _may_be_large(q, k, scale)
        for tile in tiles(q, k, causal, past):
            groups = tile.shared.stop - tile.shared.start
            e = _scores(q, k, mask, options, tile)
            top: Any = 0.0
            if shifted:
                top = max_over(e, -1, None, None, True)
                np.copyto(top, 0.0, where=np.isneginf(top))
                np.subtract(e, top, e)
            np.exp(e, e)
            total = add_over(e, -1, None, None, True)
            if p:
                _drop(e, self._kept(q, k, options, tile), p)
            part = y[tile.queries]
            if part.shape[1] == groups:
                np.matmul(e, v[tile.seen], part)
            else:
                part[...] = np.matmul(joined(e, groups), v[tile.seen]).reshape(part.shape)
            logarithm = lse[tile.queries][..., None]
            if mask is None:
                np.divide(part, total, part)
                np.add(np.log(total), top, logarithm)
                continue
            nothing = total == 0.0
            total[nothing] = 1.0
            np.divide(part, total, part)
            np.add(np.log(total), top, logarithm)
            logarithm[nothing] = math.inf
        return y, lse

    def attention_backward(
        self,
        dy: Array,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None,
        y: Array,
        lse: Array,
        causal: bool = False,
        past: int = 0,
        scale: float = 1.0,
        p: float = 0.0,
        seed: int = 0,
        stream: int = 0,
        offset: int = 0,
    ) -> tuple[Array, Array, Array]:
        options = Options(causal, past, scale, p, seed, stream, offset)
        if not _fast(q, k, v, mask, dy, y, lse) or not k.shape[2] or not q.size:
            return super().attention_backward(dy, q, k, v, mask, y, lse, *options)
        dq, dk, dv = result_like(q), result_like(k), result_like(v)
        inner = add_over(np.multiply(dy, y), -1, None, None, True)
        total = lse[..., None]
        for tile in tiles(q, k, causal, past):
            groups = tile.shared.stop - tile.shared.start
            at, seen = tile.queries, tile.seen
            w = _scores(q, k, mask, options, tile)
            np.subtract(w, total[at], w)
            np.exp(w, w)
            out = joined(dy[at], groups)
            ds = np.matmul(out, swapped(v[seen])).reshape(w.shape)
            weights = w
            if p:
                keep = self._kept(q, k, options, tile)
                weights = _drop(w.copy(), keep, p)
                _drop(ds, keep, p)
            np.subtract(ds, inner[at], ds)
            np.multiply(ds, w, ds)
            ds = joined(ds, groups)
            part = dq[at]
            if part.shape[1] == groups:
                np.matmul(ds, k[seen], part)
            else:
                part[...] = np.matmul(ds, k[seen]).reshape(part.shape)
            pairs = ((dk, ds, joined(q[at], groups)), (dv, joined(weights, groups), out))
            for target, left, right in pairs:
                piece = target[seen]
                if tile.rows.start == 0:
                    np.matmul(swapped(left), right, piece)
                    target[tile.batches, tile.shared, tile.keys :] = 0.0
                else:
                    np.add(piece, np.matmul(swapped(left), right), piece)
        np.multiply(dq, scale, dq)
        np.multiply(dk, scale, dk)
        return dq, dk, dv

    def _kept(self, q: Array, k: Array, options: Options, tile: Tile) -> Array:
        """Which weights of a tile are kept: stretches of the random sequence, one for each batch,
        or each head where the tile has only some of its queries."""
        h, tq, tk = q.shape[1], q.shape[2], k.shape[2]
        width, rows = keep_row(tk), tile.rows.stop - tile.rows.start
        heads, batches = (range(x.start, x.stop) for x in (tile.heads, tile.batches))
        first = batches.start * h + heads.start
        if tile.whole and (len(heads) == h or len(batches) == 1):
            starts = [first * tq]
        else:  # one batch, and queries of one head or of the few that share keys
            starts = [(first + i) * tq + tile.rows.start for i in range(len(heads))]
        count = len(batches) * len(heads) // len(starts)
        parts = [
            self.bernoulli(
                (count, rows, width),
                1.0 - options.p,
                options.seed,
                options.stream,
                keep_offset(options.offset, start, tk),
            )
            for start in starts
        ]
        kept = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return kept.reshape(len(batches), len(heads), rows, width)[..., : tile.keys]


def _fast(*arrays: np.ndarray | None) -> bool:
    """Whether all arrays have the dtype of the first, one that the fast paths are for; a mask may
    be of booleans."""
    first = arrays[0]
    assert first is not None
    return first.dtype in FAST and all(
        a is None or a.dtype == first.dtype or (i == 3 and a.dtype.char == "?")
        for i, a in enumerate(arrays)
    )


def _additive(mask: np.ndarray | None) -> bool:
    return mask is not None and mask.dtype.char != "?"


def _may_be_large(q: np.ndarray, k: np.ndarray, scale: float) -> bool:
    """Whether a score may be beyond SMALL, by the Cauchy-Schwarz inequality (NaN: it may)."""
    squares = [np.einsum("bhtd,bhtd->bht", x, x).max(initial=0.0) for x in (q, k)]
    return not abs(scale) * math.sqrt(float(squares[0]) * float(squares[1])) < SMALL


def _scores(
    q: np.ndarray,
    k: np.ndarray,
    mask: np.ndarray | None,
    options: Options,
    tile: Tile,
) -> np.ndarray:
    """Scores of a tile, (batches, heads, rows, keys)."""
    groups = tile.shared.stop - tile.shared.start
    part = np.multiply(q[tile.queries], options.scale)
    seen = swapped(k[tile.seen])
    s = np.matmul(joined(part, groups), seen).reshape(*part.shape[:3], tile.keys)
    if mask is not None:
        full = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        cuts = (*tile.queries, slice(0, tile.keys))
        full = full[
            tuple(c if n > 1 else slice(None) for n, c in zip(full.shape, cuts, strict=True))
        ]
        if mask.dtype.char == "?":
            np.copyto(s, -math.inf, where=np.logical_not(full))
        else:
            np.add(s, full, s)
    start = tile.rows.start + options.past + 1
    if options.causal and start < tile.keys:
        late = s[..., start:]
        np.add(late, future(s.shape[2], tile.keys - start, s.dtype), late)
    return s


def _drop(w: np.ndarray, keep: np.ndarray, p: float) -> np.ndarray:
    """Weights that are not kept become 0, the others are divided by 1 - p; in place."""
    np.multiply(w, keep, w)
    return np.multiply(w, 0.0 if p >= 1.0 else 1.0 / (1.0 - p), w)
