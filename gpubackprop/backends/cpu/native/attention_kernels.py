"""Kernels of native attention: for each head, blocks of queries whose scores stay in the cache.

Keys and values of a head are packed once: the right-hand sides of ``tiles``, with their width
rounded up to whole vectors, and keys transposed in panels, so that causal attention leaves out the
panels that a block of queries cannot see. Parts share the heads of keys and values, so every sum is
taken by one thread, in one order.
"""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.cpu.native.abi import (
    floats,
    inline,
    inline_fast,
    kernel,
    longs,
    number,
    octets,
    share,
)
from gpubackprop.backends.cpu.native.mathematics import as_bits, log
from gpubackprop.backends.cpu.native.packing import pack_lanes
from gpubackprop.backends.cpu.native.panels import WIDE
from gpubackprop.backends.cpu.native.row_kernels import exp_or_zero, exponentials, largest
from gpubackprop.backends.cpu.native.spans import clear, copy_rows
from gpubackprop.backends.cpu.native.tiles import tiles
from gpubackprop.backends.cpu.native.vectors import LANES, whole

f32 = np.float32
BLOCK = 24
"""Queries of a block: a multiple of the rows of a tile."""
SMALL = f32(30)
"""Scores below this need no shift: exp(30) is 1e13, far from the range of float32."""

NO_MASK, BOOLEANS, NUMBERS = 0, 1, 2

# Where in a frame things are. An array is its address and its strides of batch, head and row, in
# bytes; what follows ROOM is where in a part's own memory something begins.
BATCHES, GROUPS, GROUP, QUERIES, KEYS, WIDTH, OUT, CAUSAL, PAST, SCALE = range(10)
LSE, ZEROS, MASKED, MASK, Q, K, V, Y, DY, DQ, DK, DV = 10, 11, 12, *range(13, 49, 4)
ROOM, PART = 49, 50
SCORES, SLOPES, KEYS_T, VALUES_T, PACKED, DKEYS, DVALUES, FOUND = range(51, 59)
BLOCK_Q, BLOCK_DY, SUMS, TOPS, UNIT, Q_ROWS, DY_ROWS, S_ROWS, WIDTH_ROWS, OUT_ROWS = range(59, 69)
SLOTS = 69


# Pieces of kernels. Addresses and strides are in bytes.
@inline
def ramp(address, n, step):
    """0, step, 2 step, ..."""
    row = longs(address, n)
    for i in range(n):
        row[i] = i * step


@inline
def pack_keys(source, step, rows, width, scale, target):
    """Rows times a factor, transposed: panels (width, WIDE), filled up with zeros."""
    for first in range(0, rows, WIDE):
        panel = target + 4 * first * width
        for j in range(0, WIDE, LANES):
            at = source + (first + j) * step
            pack_lanes(width, rows - first - j, at, 4, step, panel + 4 * j, 4 * WIDE)
        if scale != f32(1):
            row = floats(panel, width * WIDE)
            for i in range(row.size):
                row[i] *= scale


@inline
def pack_rows(source, step, rows, width, target, room):
    """Rows behind one another, each filled up with zeros."""
    copy_rows(rows, width, source, step, target, 4 * room)
    if width < room:
        for i in range(rows):
            clear(room - width, target + 4 * (i * room + width))


@inline
def unpack_rows(source, room, rows, width, target, step, scale):
    """The reverse of ``pack_rows``, times a factor."""
    for i in range(rows):
        copy, row = floats(source + 4 * i * room, room), floats(target + i * step, width)
        for j in range(width):
            row[j] = copy[j] * scale


@inline
def whole_panels(n):
    """`n` rounded up to whole panels."""
    return (n + WIDE - 1) // WIDE * WIDE


@inline
def seen(row, keys, causal, past):
    """How many keys a query may attend to."""
    return min(keys, row + past + 1) if causal else keys


@inline
def bounded(scores):
    """Whether the magnitudes of all scores are below SMALL; not if one is NaN. Compared by their
    bits (see ``largest``)."""
    top = np.int32(0)
    for j in range(scores.size):
        bits = np.int32(as_bits(scores[j]) & np.int32(0x7FFFFFFF))
        top = bits if bits > top else top
    return top < as_bits(SMALL)


@inline
def apply_mask(kind, address, row):
    """What a mask says about a row of scores."""
    if kind == BOOLEANS:
        allowed = octets(address, row.size)
        for j in range(row.size):
            row[j] = row[j] if allowed[j] else f32(-np.inf)
    else:
        more = floats(address, row.size)
        for j in range(row.size):
            row[j] += more[j]


@inline
def panels_product(n, rows, starts, a, depth, panels, s_rows, out, unit, zeros):
    """Scores of some rows (at ``a + starts``) with the first `n` keys, n whole panels."""
    for first in range(0, n, WIDE):
        b = panels + 4 * first * depth
        tiles(
            WIDE, rows, starts, s_rows, a, out + 4 * first, b, unit, depth, 0, zeros, 0
        )  # fmt: skip


@kernel
def attention_heads(frame, part, parts):
    """Results and the logarithms of the sums of the exponentials of the scores."""
    groups, group, tq, tk = frame[GROUPS], frame[GROUP], frame[QUERIES], frame[KEYS]
    width, out, causal, past = frame[WIDTH], frame[OUT], frame[CAUSAL], frame[PAST]
    scale, zeros, masked = f32(number(frame[SCALE])), frame[ZEROS], frame[MASKED]
    own = frame[ROOM] + part * frame[PART]
    scores, panels, values = own + frame[SCORES], own + frame[KEYS_T], own + frame[PACKED]
    found, unit, q_rows = own + frame[FOUND], own + frame[UNIT], own + frame[Q_ROWS]
    s_rows, out_rows = own + frame[S_ROWS], own + frame[OUT_ROWS]
    sums, tops = floats(own + frame[SUMS], BLOCK), floats(own + frame[TOPS], BLOCK)
    room = whole(out)
    ramp(unit, max(width, tk), 4)
    ramp(q_rows, BLOCK, frame[Q + 3])
    ramp(out_rows, BLOCK, 4 * room)
    start, stop = share(frame[BATCHES] * groups, part, parts, 1)
    for z in range(start * group, stop * group):
        b, h = z // (groups * group), z % (groups * group)
        if z % group == 0:
            k = frame[K] + b * frame[K + 1] + h // group * frame[K + 2]
            v = frame[V] + b * frame[V + 1] + h // group * frame[V + 2]
            pack_keys(k, frame[K + 3], tk, width, scale, panels)
            pack_rows(v, frame[V + 3], tk, out, values, room)
        q = frame[Q] + b * frame[Q + 1] + h * frame[Q + 2]
        y = frame[Y] + b * frame[Y + 1] + h * frame[Y + 2]
        mask = frame[MASK] + b * frame[MASK + 1] + h * frame[MASK + 2]
        lse = floats(frame[LSE] + 4 * z * tq, tq)
        for first in range(0, tq, BLOCK):
            rows = min(BLOCK, tq - first)
            n = seen(first + rows - 1, tk, causal, past)
            wide = whole_panels(n)
            ramp(s_rows, BLOCK, 4 * wide)
            panels_product(
                wide, rows, q_rows, q + first * frame[Q + 3], width, panels, s_rows, scores, unit,
                zeros,
            )  # fmt: skip
            shifted = masked != NO_MASK or not bounded(floats(scores, rows * wide))
            for i in range(rows):
                count = seen(first + i, tk, causal, past)
                row = floats(scores + 4 * i * wide, wide)
                part_of_row = row[: whole(count)]
                if masked != NO_MASK:
                    apply_mask(masked, mask + (first + i) * frame[MASK + 3], row[:count])
                for j in range(count, part_of_row.size):
                    row[j] = f32(-np.inf)
                top = f32(0)
                if shifted:
                    top = largest(part_of_row)
                    top = top if abs(top) < f32(np.inf) else f32(0)
                sums[i] = exponentials(part_of_row, top)
                tops[i] = top
                for j in range(part_of_row.size, wide):
                    row[j] = 0
            tiles(
                room, rows, s_rows, out_rows, scores, found, values, unit, n, 0, zeros, 0
            )  # fmt: skip
            for i in range(rows):
                nothing = sums[i] == f32(0)
                total = f32(1) if nothing else sums[i]
                lse[first + i] = f32(np.inf) if nothing else log(total) + tops[i]
                sums[i] = f32(1) / total
            for i in range(rows):
                a, c = (
                    floats(found + 4 * i * room, out),
                    floats(y + (first + i) * frame[Y + 3], out),
                )
                for j in range(out):
                    c[j] = a[j] * sums[i]


@inline_fast
def slopes_row(s, ds, dy, y, lse):
    """Weights from scores, and the cotangents of the scores from those of the weights."""
    inner = f32(0)
    for j in range(dy.size):
        inner += dy[j] * y[j]
    for j in range(s.size):
        w = exp_or_zero(s[j] - lse)
        s[j] = w
        ds[j] = w * (ds[j] - inner)


@kernel
def attention_heads_backward(frame, part, parts):
    """Cotangents of queries, keys and values. Blocks of queries from the last to the first, since
    the last sees the most keys: its sums begin those of the others."""
    groups, group, tq, tk = frame[GROUPS], frame[GROUP], frame[QUERIES], frame[KEYS]
    width, out, causal, past = frame[WIDTH], frame[OUT], frame[CAUSAL], frame[PAST]
    scale, zeros, masked = f32(number(frame[SCALE])), frame[ZEROS], frame[MASKED]
    own = frame[ROOM] + part * frame[PART]
    scores, slopes = own + frame[SCORES], own + frame[SLOPES]
    key_panels, value_panels = own + frame[KEYS_T], own + frame[VALUES_T]
    keys, dkeys, dvalues = own + frame[PACKED], own + frame[DKEYS], own + frame[DVALUES]
    found, block_q, block_dy = own + frame[FOUND], own + frame[BLOCK_Q], own + frame[BLOCK_DY]
    unit, q_rows, dy_rows = own + frame[UNIT], own + frame[Q_ROWS], own + frame[DY_ROWS]
    s_rows = own + frame[S_ROWS]
    width_rows, out_rows = own + frame[WIDTH_ROWS], own + frame[OUT_ROWS]
    room, out_room = whole(width), whole(out)
    ramp(unit, max(width, out, tk), 4)
    ramp(q_rows, BLOCK, frame[Q + 3])
    ramp(dy_rows, BLOCK, frame[DY + 3])
    ramp(width_rows, max(BLOCK, tk), 4 * room)
    ramp(out_rows, max(BLOCK, tk), 4 * out_room)
    blocks = (tq + BLOCK - 1) // BLOCK
    start, stop = share(frame[BATCHES] * groups, part, parts, 1)
    for z in range(start * group, stop * group):
        b, h = z // (groups * group), z % (groups * group)
        if z % group == 0:
            k = frame[K] + b * frame[K + 1] + h // group * frame[K + 2]
            v = frame[V] + b * frame[V + 1] + h // group * frame[V + 2]
            pack_keys(k, frame[K + 3], tk, width, scale, key_panels)
            pack_keys(v, frame[V + 3], tk, out, f32(1), value_panels)
            pack_rows(k, frame[K + 3], tk, width, keys, room)
        q = frame[Q] + b * frame[Q + 1] + h * frame[Q + 2]
        y = frame[Y] + b * frame[Y + 1] + h * frame[Y + 2]
        dy = frame[DY] + b * frame[DY + 1] + h * frame[DY + 2]
        dq = frame[DQ] + b * frame[DQ + 1] + h * frame[DQ + 2]
        mask = frame[MASK] + b * frame[MASK + 1] + h * frame[MASK + 2]
        lse = floats(frame[LSE] + 4 * z * tq, tq)
        for back in range(blocks):
            first = (blocks - 1 - back) * BLOCK
            rows = min(BLOCK, tq - first)
            n = seen(first + rows - 1, tk, causal, past)
            wide = whole_panels(n)
            q_block, dy_block = q + first * frame[Q + 3], dy + first * frame[DY + 3]
            ramp(s_rows, BLOCK, 4 * wide)
            panels_product(
                wide, rows, q_rows, q_block, width, key_panels, s_rows, scores, unit, zeros
            )  # fmt: skip
            panels_product(
                wide, rows, dy_rows, dy_block, out, value_panels, s_rows, slopes, unit, zeros
            )  # fmt: skip
            for i in range(rows):
                count = seen(first + i, tk, causal, past)
                s, ds = floats(scores + 4 * i * wide, wide), floats(slopes + 4 * i * wide, wide)
                if masked != NO_MASK:
                    apply_mask(masked, mask + (first + i) * frame[MASK + 3], s[:count])
                near = whole(count)
                for j in range(count, near):
                    s[j] = f32(-np.inf)
                    ds[j] = 0
                slopes_row(
                    s[:near], ds[:near], floats(dy_block + i * frame[DY + 3], out),
                    floats(y + (first + i) * frame[Y + 3], out), lse[first + i],
                )  # fmt: skip
                for j in range(near, wide):
                    s[j] = 0
                    ds[j] = 0
            pack_rows(q_block, frame[Q + 3], rows, width, block_q, room)
            pack_rows(dy_block, frame[DY + 3], rows, out, block_dy, out_room)
            more = np.int64(0) if back == 0 and z % group == 0 else np.int64(1)
            tiles(
                out_room, n, unit, out_rows, scores, dvalues, block_dy, s_rows, rows, more, zeros, 0
            )  # fmt: skip
            tiles(
                room, n, unit, width_rows, slopes, dkeys, block_q, s_rows, rows, more, zeros, 0
            )  # fmt: skip
            if more == 0:
                clear(room * (tk - n), dkeys + 4 * room * n)
                clear(out_room * (tk - n), dvalues + 4 * out_room * n)
            tiles(
                room, rows, s_rows, width_rows, slopes, found, keys, unit, n, 0, zeros, 0
            )  # fmt: skip
            unpack_rows(
                found, room, rows, width, dq + first * frame[DQ + 3], frame[DQ + 3], scale
            )  # fmt: skip
        if (z + 1) % group == 0:
            dk = frame[DK] + b * frame[DK + 1] + h // group * frame[DK + 2]
            dv = frame[DV] + b * frame[DV + 1] + h // group * frame[DV + 2]
            unpack_rows(dkeys, room, tk, width, dk, frame[DK + 3], scale)
            unpack_rows(dvalues, out_room, tk, out, dv, frame[DV + 3], f32(1))
