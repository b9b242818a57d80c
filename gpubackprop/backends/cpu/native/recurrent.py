"""Native recurrent layers: each thread runs all time steps for its own sequences, so that nobody
waits for anybody between two steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native import mathematics as m
from gpubackprop.backends.cpu.native.abi import floats, kernel, share
from gpubackprop.backends.cpu.native.blas import sgemm
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers
from gpubackprop.backends.cpu.native.reductions import copy_instruction

f32 = np.float32


@kernel
def lstm(frame, part, parts):
    """Frame: projected, h0, c0, w_hh transposed (H, 4H), hidden, cells, gates, T, N, H, reverse."""
    steps, batch, size = frame[7], frame[8], frame[9]
    wide = 4 * size
    top, bottom = share(batch, part, parts, 1)
    rows = bottom - top
    if rows <= 0:
        return
    here, last = 4 * top * size, frame[10]
    state = 4 * batch * size
    begin = steps * state if last else np.int64(0)
    count = rows * size
    for source, target in ((frame[1], frame[4]), (frame[2], frame[5])):
        a, b = floats(source + here, count), floats(target + begin + here, count)
        for j in range(count):
            b[j] = a[j]
    for step in range(steps):
        t = steps - 1 - step if last else step
        before = (t + 1 if last else t) * state + here
        after = (t if last else t + 1) * state + here
        gate = frame[6] + 4 * (t * batch + top) * wide
        given = frame[0] + 4 * (t * batch + top) * wide
        sgemm(0, 0, rows, wide, size, frame[4] + before, size, frame[3], wide, 0.0, gate, wide)
        for n in range(rows):
            p = floats(given + 4 * n * wide, wide)
            a = floats(gate + 4 * n * wide, wide)
            c = floats(frame[5] + before + 4 * n * size, size)
            new = floats(frame[5] + after + 4 * n * size, size)
            h = floats(frame[4] + after + 4 * n * size, size)
            i, f, g, o = a[:size], a[size : 2 * size], a[2 * size : 3 * size], a[3 * size :]
            pi, pf = p[:size], p[size : 2 * size]
            pg, po = p[2 * size : 3 * size], p[3 * size :]
            for j in range(size):
                vi, vf = m.sigmoid(i[j] + pi[j]), m.sigmoid(f[j] + pf[j])
                vg = m.tanh(g[j] + pg[j])
                i[j], f[j], g[j] = vi, vf, vg
                new[j] = vf * c[j] + vi * vg
            for j in range(size):
                vo = m.sigmoid(o[j] + po[j])
                o[j] = vo
                h[j] = vo * m.tanh(new[j])


@kernel
def lstm_backward(frame, part, parts):
    """Frame: dy, dh, dc, w_hh (4H, H), cells, gates, dprojected, dh0, dc0, T, N, H, reverse."""
    steps, batch, size = frame[9], frame[10], frame[11]
    wide = 4 * size
    top, bottom = share(batch, part, parts, 1)
    rows = bottom - top
    if rows <= 0:
        return
    here, reverse, state = 4 * top * size, frame[12], 4 * batch * size
    count = rows * size
    dh, dc = floats(frame[7] + here, count), floats(frame[8] + here, count)
    a, b = floats(frame[1] + here, count), floats(frame[2] + here, count)
    for j in range(count):
        dh[j] = a[j]
        dc[j] = b[j]
    for step in range(steps):
        t = step if reverse else steps - 1 - step
        before = (t + 1 if reverse else t) * state + here
        after = (t if reverse else t + 1) * state + here
        gate = frame[5] + 4 * (t * batch + top) * wide
        slope = frame[6] + 4 * (t * batch + top) * wide
        for n in range(rows):
            a, d = floats(gate + 4 * n * wide, wide), floats(slope + 4 * n * wide, wide)
            i, f, g, o = a[:size], a[size : 2 * size], a[2 * size : 3 * size], a[3 * size :]
            di, df = d[:size], d[size : 2 * size]
            dg, do = d[2 * size : 3 * size], d[3 * size :]
            old = floats(frame[4] + before + 4 * n * size, size)
            new = floats(frame[4] + after + 4 * n * size, size)
            y = floats(frame[0] + t * state + here + 4 * n * size, size)
            dhn, dcn = dh[n * size : (n + 1) * size], dc[n * size : (n + 1) * size]
            for j in range(size):
                s, e = m.tanh(new[j]), dhn[j] + y[j]
                vo = o[j]
                do[j] = e * s * (vo * (f32(1.0) - vo))
                dcn[j] += e * vo * (f32(1.0) - s * s)
            for j in range(size):
                e, vi, vf, vg = dcn[j], i[j], f[j], g[j]
                di[j] = e * vg * (vi * (f32(1.0) - vi))
                df[j] = e * old[j] * (vf * (f32(1.0) - vf))
                dg[j] = e * vi * (f32(1.0) - vg * vg)
                dcn[j] = e * vf
        sgemm(0, 0, rows, size, wide, slope, wide, frame[3], size, 0.0, frame[7] + here, size)


@lowers("lstm_steps")
def lower_lstm(
    site: Site,
    outs: Any,
    projected: Any,
    h0: Any,
    c0: Any,
    w_hh: Any,
    lengths: Any = None,
    reverse: bool = False,
) -> list[Instruction] | None:
    """Sequences of one length."""
    if lengths is not None or not fit(projected, h0, c0, *outs) or w_hh.dtype != np.float32:
        return None
    steps, batch, wide = projected.shape
    if not projected.size:
        return None
    weight = site.scratch((wide // 4, wide))
    packed = copy_instruction(weight, w_hh.T)
    if packed is None:
        return None
    slots = [projected, h0, c0, weight, *outs, steps, batch, wide // 4, bool(reverse)]
    return [packed, Instruction(lstm, slots, parallel=projected.size > 1 << 14)]


@lowers("lstm_steps_backward")
def lower_lstm_backward(
    site: Site,
    outs: Any,
    dy: Any,
    dh: Any,
    dc: Any,
    w_hh: Any,
    cells: Any,
    gates: Any,
    lengths: Any = None,
    reverse: bool = False,
) -> list[Instruction] | None:
    """Its cotangents."""
    if lengths is not None or not fit(dh, dc, w_hh, cells, gates, *outs) or not gates.size:
        return None
    before = []
    if not fit(dy):
        spread = site.scratch(dy.shape)
        made = copy_instruction(spread, dy)
        if made is None:
            return None
        before, dy = [made], spread
    steps, batch, wide = gates.shape
    slots = [dy, dh, dc, w_hh, cells, gates, *outs, steps, batch, wide // 4, bool(reverse)]
    return [*before, Instruction(lstm_backward, slots, parallel=gates.size > 1 << 14)]
