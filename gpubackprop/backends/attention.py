"""Kernels of attention: scaled dot products of queries and keys, and rotary positions.

Definitions, like those of ``composites.py``: a backend may override any of them. They work through
blocks of queries, so that memory grows with the length of the sequences and not with its square
(Rabe & Staats 2021; Dao et al. 2022, "FlashAttention"): of the weights only the logarithm of each
row's sum is kept, and the derivative computes them again. Scores and weights are of float32 at
least, as in FlashAttention: half precision ends at 65504, and a score can be beyond.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.composites import Composites, is_half
from gpubackprop.backends.primitives import Array, Shape

TILE = 2**20
"""Weights that are held at once: 4 MiB in float32."""
_WORDS = 4  # random words of a Philox block
_OFFSETS = 2**64 - 1


class Options(NamedTuple):
    """The arguments of the kernels of attention behind the arrays, as the contract lists them."""

    causal: bool = False
    past: int = 0
    scale: float = 1.0
    p: float = 0.0
    seed: int = 0
    stream: int = 0
    offset: int = 0


def query_blocks(queries: int, per_row: int) -> Iterator[tuple[int, int]]:
    """Bounds of blocks of queries that need at most TILE weights each (or are a single row)."""
    step = max(1, min(queries, TILE // max(per_row, 1)))
    for start in range(0, queries, step):
        yield start, min(start + step, queries)


def keep_row(keys: int) -> int:
    """Random words that a row of weights is given: whole blocks of the sequence."""
    return -(-keys // _WORDS) * _WORDS


def keep_offset(offset: int, row: int, keys: int) -> int:
    """The block of random words at which row number `row` of the weights begins."""
    return (offset + row * (keep_row(keys) // _WORDS)) & _OFFSETS


class AttentionKernels(Composites):
    """Kernels of attention: scaled dot products of queries and keys, and rotary positions."""

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
        """softmax(scale * q k^T + mask) v (Vaswani et al. 2017, section 3.2.1).

        Parameters
        ----------
        q : (B, H, Tq, D) queries.
        k, v : (B, Hkv, Tk, D) keys and (B, Hkv, Tk, Dv) values. Hkv divides H, and each of them
            serves H / Hkv consecutive heads (grouped queries, Ainslie et al. 2023).
        mask : None, booleans (True where a query may attend to a key) or numbers to add to the
            scores; at most 4 axes, which broadcast to (B, H, Tq, Tk).
        causal : query i attends to keys j <= i + past only.
        past : keys that lie before the first query, such as those of a cache; not negative.
        scale : factor of the scores.
        p : each weight is dropped with this probability and the others are divided by 1 - p. Weight
            (b, h, i, j) is kept where word ``((b * H + h) * Tq + i) * W + j`` of ``random_bits``
            says so, as in ``bernoulli``; W is Tk rounded up to a multiple of four.
        seed, stream, offset : where these words are.

        Returns
        -------
        y : (B, H, Tq, Dv). A query that may attend to nothing gives zeros.
        lse : (B, H, Tq) logarithm of the sum of the exponentials of each row of scores, at least in
            float32; +infinity for a query that may attend to nothing.
        """
        options = Options(causal, past, scale, p, seed, stream, offset)
        given = (q, k, v, mask)
        if any(map(is_half, given)):
            q, k, v, mask = self._attention_wide(given)
            y, lse = self.attention(q, k, v, mask, *options)
            return self.astype(y, _joint(given)), lse
        (b, h, tq, _), (tk, dv) = q.shape, v.shape[-2:]
        if not tk:
            y = self.zeros((b, h, tq, dv), _joint(given))
            return y, self.full((b, h, tq), math.inf, _joint((q, k, mask)))
        ys, sums = [], []
        for rows in query_blocks(tq, b * h * tk):
            s = self._attention_scores(q, k, mask, options, rows)
            top = self.detach(self.max(s, axis=-1, keepdims=True))
            top = self.where(self.isfinite(top), top, 0.0)
            e = self.exp(self.subtract(s, top))
            total = self.sum(e, axis=-1, keepdims=True)
            nothing = self.equal(total, 0)
            total = self.where(nothing, 1.0, total)
            w = self.divide(e, total)
            if p:
                w = self.dropout_backward(w, self._attention_keep(q, tk, options, rows), p)
            ys.append(self._attention_per_head(self.matmul(self._attention_grouped(w, k), v), q))
            sums.append(self.where(nothing, math.inf, self.add(self.log(total), top)))
        if not ys:
            s = self._attention_scores(q, k, mask, options, (0, 0))
            ys = [self._attention_per_head(self.matmul(self._attention_grouped(s, k), v), q)]
            sums = [self.sum(s, axis=-1, keepdims=True)]
        return self._attention_joined(ys), self.reshape(self._attention_joined(sums), (b, h, tq))

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
        """Cotangents of queries, keys and values.

        With weights w, v's is w^T dy. The weights' is dw = dy v^T, that of the scores
        ds = w * (dw - sum(dw * w)), where the inner sum over a row equals sum(dy * y) (Dao et al.
        2022, appendix B.2); then dq = scale * ds k and dk = scale * ds^T q.
        """
        options = Options(causal, past, scale, p, seed, stream, offset)
        given = (dy, q, k, v, mask, y)
        if any(map(is_half, given)):
            dy, q, k, v, mask, y = self._attention_wide(given)
            found = self.attention_backward(dy, q, k, v, mask, y, lse, *options)
            dq, dk, dv = (self.astype(x, _joint(given)) for x in found)
            return dq, dk, dv
        tq, tk = q.shape[2], k.shape[2]
        dqs: list[Array] = []
        dks: list[Array] = []
        dvs: list[Array] = []
        for rows in query_blocks(tq, q.shape[0] * q.shape[1] * tk) if tk else ():
            ds, w = self._attention_scores_backward(dy, q, k, v, mask, y, lse, options, rows)
            dqs.append(self._attention_per_head(self.matmul(self._attention_grouped(ds, k), k), q))
            for parts, left, right in ((dks, ds, q), (dvs, w, dy)):
                right = self._attention_grouped(self._attention_rows(right, rows), k)
                parts.append(
                    self.matmul(self._attention_swapped(self._attention_grouped(left, k)), right)
                )
        if not dqs:
            return self.multiply(q, 0.0), self.multiply(k, 0.0), self.multiply(v, 0.0)
        return (
            self.multiply(self._attention_joined(dqs), scale),
            self.multiply(self._attention_total(dks), scale),
            self._attention_total(dvs),
        )

    def attention_mask_backward(
        self,
        dy: Array,
        q: Array,
        k: Array,
        v: Array,
        mask: Array,
        y: Array,
        lse: Array,
        causal: bool = False,
        past: int = 0,
        scale: float = 1.0,
        p: float = 0.0,
        seed: int = 0,
        stream: int = 0,
        offset: int = 0,
    ) -> Array:
        """Cotangent of a mask of numbers: that of the scores, summed over what was broadcast."""
        options = Options(causal, past, scale, p, seed, stream, offset)
        given = (dy, q, k, v, mask, y)
        if any(map(is_half, given)):
            dy, q, k, v, mask, y = self._attention_wide(given)
            dmask = self.attention_mask_backward(dy, q, k, v, mask, y, lse, *options)
            return self.astype(dmask, _joint(given))
        tq, tk = q.shape[2], k.shape[2]
        shape = (1,) * (4 - mask.ndim) + mask.shape
        parts = []
        for rows in query_blocks(tq, q.shape[0] * q.shape[1] * tk) if tk else ():
            ds, _ = self._attention_scores_backward(dy, q, k, v, mask, y, lse, options, rows)
            height = 1 if shape[2] == 1 else rows[1] - rows[0]
            parts.append(self.sum_to(ds, (*shape[:2], height, shape[3])))
        if not parts:
            return self.multiply(mask, 0.0)
        total = self._attention_total(parts) if shape[2] == 1 else self._attention_joined(parts)
        return self.reshape(total, mask.shape)

    def rotary(self, x: Array, cos: Array, sin: Array, interleaved: bool = False) -> Array:
        """Rotate pairs of features: (a, b) becomes (a cos - b sin, b cos + a sin) (Su et al. 2021,
        equation 34).

        Parameters
        ----------
        x : (..., T, D), D even.
        cos, sin : (T, D / 2), or what broadcasts to (..., T, D / 2).
        interleaved : feature 2 i is paired with 2 i + 1 (as in the paper); otherwise feature i
            with i + D / 2 (as in GPT-NeoX and LLaMA).
        """
        a, b = self._rotary_pairs(x, interleaved)
        first = self.subtract(self.multiply(a, cos), self.multiply(b, sin))
        second = self.add(self.multiply(b, cos), self.multiply(a, sin))
        if not interleaved:
            return self.concatenate([first, second], axis=-1)
        column = (*first.shape, 1)
        both = [self.reshape(first, column), self.reshape(second, column)]
        return self.reshape(self.concatenate(both, axis=-1), x.shape)

    def _rotary_pairs(self, x: Array, interleaved: bool) -> tuple[Array, Array]:
        """The first and the second feature of each pair."""
        half = x.shape[-1] // 2
        cuts = (
            (slice(0, None, 2), slice(1, None, 2))
            if interleaved
            else (slice(0, half), slice(half, None))
        )
        first, second = (self.getitem(x, (..., cut)) for cut in cuts)
        return first, second

    def _attention_wide(self, given: tuple[Array | None, ...]) -> list[Any]:
        """The arrays of numbers, in float32 at least."""
        dtype = np.result_type(_joint(given), np.float32)
        return [x if x is None or x.dtype == np.bool_ else self.astype(x, dtype) for x in given]

    # A block of queries, from the first row up to the second.
    def _attention_rows(self, x: Array, rows: tuple[int, int]) -> Array:
        if rows == (0, x.shape[2]):
            return x
        return self.getitem(x, (slice(None), slice(None), slice(*rows)))

    def _attention_joined(self, parts: list[Array]) -> Array:
        return parts[0] if len(parts) == 1 else self.concatenate(parts, axis=2)

    def _attention_total(self, parts: list[Array]) -> Array:
        total = parts[0]
        for part in parts[1:]:
            total = self.add(total, part)
        return total

    def _attention_swapped(self, x: Array) -> Array:
        return self.transpose(x, (0, 1, 3, 2))

    def _attention_grouped(self, x: Array, k: Array) -> Array:
        """The rows of all heads that share keys, under one another."""
        b, h, rows, columns = x.shape
        groups = k.shape[1]
        return x if groups == h else self.reshape(x, (b, groups, h // groups * rows, columns))

    def _attention_per_head(self, x: Array, q: Array) -> Array:
        """The inverse of ``_grouped``."""
        heads = q.shape[1]
        b, groups, rows, columns = x.shape
        return (
            x if groups == heads else self.reshape(x, (b, heads, rows * groups // heads, columns))
        )

    def _attention_scores(
        self,
        q: Array,
        k: Array,
        mask: Array | None,
        options: Options,
        rows: tuple[int, int],
    ) -> Array:
        """Scores of a block of queries, -infinity where a query may not attend to a key."""
        keys, past = k.shape[2], options.past
        part = self.multiply(self._attention_rows(q, rows), options.scale)
        s = self._attention_per_head(
            self.matmul(self._attention_grouped(part, k), self._attention_swapped(k)), q
        )
        if mask is not None:
            mask = self.reshape(mask, (1,) * (4 - mask.ndim) + tuple(mask.shape))
            mask = mask if mask.shape[2] == 1 else self._attention_rows(mask, rows)
            if mask.dtype == np.bool_:
                s = self.where(mask, s, -math.inf)
            else:
                s = self.add(s, mask)
        if options.causal and rows[0] + past + 1 < keys:
            places = self.arange(rows[0] + past, rows[1] + past, 1, np.int64)
            seen = self.less_equal(
                self.arange(0, keys, 1, np.int64), self.reshape(places, (places.shape[0], 1))
            )
            s = self.where(seen, s, -math.inf)
        return s

    def _attention_keep(
        self, q: Array, keys: int, options: Options, rows: tuple[int, int]
    ) -> Array:
        """Which weights of a block of queries are kept."""
        b, h, tq, _ = q.shape
        height, width = rows[1] - rows[0], keep_row(keys)
        # The words of all rows of a head follow one another; those of a block do within a head.
        heads = (
            [range(b * h)] if height == tq or not b * h else [range(i, i + 1) for i in range(b * h)]
        )
        parts = [
            self.bernoulli(
                (len(part), height, width),
                1.0 - options.p,
                options.seed,
                options.stream,
                keep_offset(options.offset, part.start * tq + rows[0], keys),
            )
            for part in heads
        ]
        kept = parts[0] if len(parts) == 1 else self.concatenate(parts, axis=0)
        kept = self.reshape(kept, (b, h, height, width))
        return kept if width == keys else self.getitem(kept, (..., slice(0, keys)))

    def _attention_scores_backward(
        self,
        dy: Array,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None,
        y: Array,
        lse: Array,
        options: Options,
        rows: tuple[int, int],
    ) -> tuple[Array, Array]:
        """Cotangents of a block's scores, and its weights as they met the values."""
        s = self._attention_scores(q, k, mask, options, rows)
        total = self.reshape(lse, (*lse.shape, 1))
        w = self.exp(self.subtract(s, self._attention_rows(total, rows)))
        dy, y = self._attention_rows(dy, rows), self._attention_rows(y, rows)
        dw = self._attention_per_head(
            self.matmul(self._attention_grouped(dy, k), self._attention_swapped(v)), q
        )
        dropped = w
        if options.p:
            keep = self._attention_keep(q, k.shape[2], options, rows)
            dw = self.dropout_backward(dw, keep, options.p)
            dropped = self.dropout_backward(w, keep, options.p)
        inner = self.sum(self.multiply(dy, y), axis=-1, keepdims=True)
        return self.multiply(w, self.subtract(dw, inner)), dropped


def _joint(given: tuple[Array | None, ...]) -> np.dtype:
    """The dtype of what arrays of numbers are combined to."""
    return np.result_type(*[x.dtype for x in given if x is not None and x.dtype != np.bool_])


def broadcasts(mask: Shape, scores: Shape) -> bool:
    """Whether a mask of a shape can stand beside scores (B, H, Tq, Tk)."""
    return len(mask) <= 4 and all(
        n in (1, m) for n, m in zip(mask, scores[4 - len(mask) :], strict=True)
    )


def shapes_fit(q: Any, k: Any, v: Any, mask: Any) -> str:
    """Why arrays of these shapes cannot be attended with, or an empty string."""
    if not len(q.shape) == len(k.shape) == len(v.shape) == 4:
        return "q, k and v must have the 4 axes (batch, heads, length, features)"
    (b, h, tq, d), (_, hkv, tk, _) = q.shape, k.shape
    if k.shape[0] != b or v.shape[0] != b:
        return "q, k and v must have the same number of batches"
    if k.shape[3] != d:
        return f"k must have the {d} features that q has"
    if v.shape[1:3] != (hkv, tk):
        return f"v must have the {hkv} heads and the {tk} keys that k has"
    if not hkv or h % hkv:
        return f"the {hkv} heads of k and v must divide the {h} heads of q"
    if mask is not None and not broadcasts(tuple(mask.shape), (b, h, tq, tk)):
        return f"mask must broadcast to {(b, h, tq, tk)} (batch, heads, queries, keys)"
    return ""
