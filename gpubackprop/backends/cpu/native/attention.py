"""Native attention: for each head, blocks of queries whose scores stay in a core's cache.

Scores are made by the BLAS straight from the views of queries, keys and values, wherever the heads
lie between the features. Parts share the heads, so every sum is taken by one thread, in one order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native import mathematics as m
from gpubackprop.backends.cpu.native.abi import floats, inline_fast, kernel, number, share
from gpubackprop.backends.cpu.native.blas import sgemm
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers

f32 = np.float32
BLOCK = 64
"""Queries of a block."""


@inline_fast
def seen(row, keys, causal, past):
    """How many keys a query may attend to."""
    return min(keys, row + past + 1) if causal else keys


@inline_fast
def softmax_row(s, count, scale):
    """Scores become weights; gives the logarithm of the sum of their exponentials."""
    top = s[0] * scale
    for j in range(count):
        x = s[j] * scale
        s[j] = x
        top = x if x > top else top
    total = f32(0)
    for j in range(count):
        e = m.exp(s[j] - top)
        s[j] = e
        total += e
    for j in range(count):
        s[j] /= total
    for j in range(count, s.size):
        s[j] = 0
    return top + m.log(total)


@kernel
def attention_heads(frame, part, parts):
    """Frame: B, H, Tq, Tk, D, Dv, causal, past, scale, scratch, lse, then address and strides of
    batch, head and row of q, k, v, y (bytes)."""
    heads, tq, tk, width, out = frame[1], frame[2], frame[3], frame[4], frame[5]
    causal, past, scale = frame[6], frame[7], f32(number(frame[8]))
    start, stop = share(frame[0] * heads, part, parts, 1)
    scores = frame[9] + part * 4 * BLOCK * tk
    for z in range(start, stop):
        b, h = z // heads, z % heads
        q = frame[11] + b * frame[12] + h * frame[13]
        k = frame[15] + b * frame[16] + h * frame[17]
        v = frame[19] + b * frame[20] + h * frame[21]
        y = frame[23] + b * frame[24] + h * frame[25]
        lse = floats(frame[10] + 4 * z * tq, tq)
        for first in range(0, tq, BLOCK):
            rows = min(BLOCK, tq - first)
            n = seen(first + rows - 1, tk, causal, past)
            sgemm(
                0, 1, rows, n, width,
                q + first * frame[14], frame[14] // 4, k, frame[18] // 4, 0.0, scores, n,
            )  # fmt: skip
            for i in range(rows):
                s = floats(scores + 4 * i * n, n)
                lse[first + i] = softmax_row(s, seen(first + i, tk, causal, past), scale)
            sgemm(
                0, 0, rows, out, n,
                scores, n, v, frame[22] // 4, 0.0, y + first * frame[26], frame[26] // 4,
            )  # fmt: skip


@inline_fast
def scores_slope(s, ds, dy, y, count, scale, lse):
    """Weights from scores, and the cotangents of the scores from those of the weights, for one
    query."""
    inner = f32(0)
    for j in range(dy.size):
        inner += dy[j] * y[j]
    for j in range(count):
        w = m.exp(s[j] * scale - lse)
        s[j] = w
        ds[j] = scale * (w * (ds[j] - inner))
    for j in range(count, s.size):
        s[j] = 0
        ds[j] = 0


@kernel
def attention_heads_backward(frame, part, parts):
    """Frame as that of ``attention_heads``, then dy, dq, dk, dv; blocks from the last to the first,
    since the last sees the most keys."""
    heads, tq, tk, width, out = frame[1], frame[2], frame[3], frame[4], frame[5]
    causal, past, scale = frame[6], frame[7], f32(number(frame[8]))
    start, stop = share(frame[0] * heads, part, parts, 1)
    scores = frame[9] + part * 8 * BLOCK * tk
    slopes = scores + 4 * BLOCK * tk
    for z in range(start, stop):
        b, h = z // heads, z % heads
        q = frame[11] + b * frame[12] + h * frame[13]
        k = frame[15] + b * frame[16] + h * frame[17]
        v = frame[19] + b * frame[20] + h * frame[21]
        y = frame[23] + b * frame[24] + h * frame[25]
        dy = frame[27] + b * frame[28] + h * frame[29]
        dq = frame[31] + b * frame[32] + h * frame[33]
        dk = frame[35] + b * frame[36] + h * frame[37]
        dv = frame[39] + b * frame[40] + h * frame[41]
        lq, lk, lv, ly, ldy = frame[14], frame[18], frame[22], frame[26], frame[30]
        ldq, ldk, ldv = frame[34], frame[38], frame[42]
        lse = floats(frame[10] + 4 * z * tq, tq)
        blocks = (tq + BLOCK - 1) // BLOCK
        for back in range(blocks):
            first = (blocks - 1 - back) * BLOCK
            rows = min(BLOCK, tq - first)
            n = seen(first + rows - 1, tk, causal, past)
            qi, dyi = q + first * lq, dy + first * ldy
            sgemm(0, 1, rows, n, width, qi, lq // 4, k, lk // 4, 0.0, scores, n)
            sgemm(0, 1, rows, n, out, dyi, ldy // 4, v, lv // 4, 0.0, slopes, n)
            for i in range(rows):
                s, ds = floats(scores + 4 * i * n, n), floats(slopes + 4 * i * n, n)
                a, c = floats(dyi + i * ldy, out), floats(y + (first + i) * ly, out)
                count = seen(first + i, tk, causal, past)
                scores_slope(s, ds, a, c, count, scale, lse[first + i])
            more = 0.0 if back == 0 else 1.0
            sgemm(1, 0, n, out, rows, scores, n, dyi, ldy // 4, more, dv, ldv // 4)
            sgemm(0, 0, rows, width, n, slopes, n, k, lk // 4, 0.0, dq + first * ldq, ldq // 4)
            sgemm(1, 0, n, width, rows, slopes, n, qi, lq // 4, more, dk, ldk // 4)
            if back == 0:
                for j in range(n, tk):
                    a, c = floats(dk + j * ldk, width), floats(dv + j * ldv, out)
                    for i in range(width):
                        a[i] = 0
                    for i in range(out):
                        c[i] = 0


def _served(arrays: tuple[np.ndarray, ...], mask: Any, p: float) -> bool:
    """Whether every array has heads of its own, rows of contiguous float32, and nothing is masked
    or dropped."""
    heads = arrays[0].shape[1]
    return (
        mask is None
        and not p
        and all(
            x.dtype == np.float32
            and x.ndim == 4
            and x.size
            and x.shape[1] == heads
            and (x.strides[3] == 4 or x.shape[3] == 1)
            and x.strides[2] >= 4 * x.shape[3]
            for x in arrays
        )
    )


def _places(arrays: tuple[np.ndarray, ...]) -> list[Any]:
    slots: list[Any] = []
    for x in arrays:
        slots += [x, *x.strides[:3]]
    return slots


@lowers("attention")
def lower_attention(
    site: Site,
    outs: Any,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    causal: bool = False,
    past: int = 0,
    scale: float = 1.0,
    p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
    offset: int = 0,
) -> list[Instruction] | None:
    """Attention without a mask of its own, dropout or shared heads."""
    y, lse = outs
    if not _served((q, k, v, y), mask, p) or not fit(lse):
        return None
    b, h, tq, d = q.shape
    tk = k.shape[2]
    scratch = site.scratch((site.parts, BLOCK, tk))
    slots = [b, h, tq, tk, d, v.shape[3], bool(causal), int(past), float(scale), scratch, lse]
    work = b * h * tq * tk * d
    parallel = work > 50_000 and b * h > 1
    return [Instruction(attention_heads, [*slots, *_places((q, k, v, y))], parallel=parallel)]


@lowers("attention_backward")
def lower_attention_backward(
    site: Site,
    outs: Any,
    dy: Any,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    y: Any,
    lse: Any,
    causal: bool = False,
    past: int = 0,
    scale: float = 1.0,
    p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
    offset: int = 0,
) -> list[Instruction] | None:
    """Its cotangents."""
    if not _served((q, k, v, y, dy, *outs), mask, p) or not fit(lse):
        return None
    b, h, tq, d = q.shape
    tk = k.shape[2]
    scratch = site.scratch((site.parts, 2, BLOCK, tk))
    slots = [b, h, tq, tk, d, v.shape[3], bool(causal), int(past), float(scale), scratch, lse]
    places = _places((q, k, v, y, dy, *outs))
    parallel = b * h * tq * tk * d > 50_000 and b * h > 1
    return [Instruction(attention_heads_backward, [*slots, *places], parallel=parallel)]
