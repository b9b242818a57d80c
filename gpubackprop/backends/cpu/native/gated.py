"""Native gated recurrent units, as in ``recurrent.py``."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native import mathematics as m
from gpubackprop.backends.cpu.native.abi import floats, kernel, share
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers
from gpubackprop.backends.cpu.native.panels import multiply_rows
from gpubackprop.backends.cpu.native.recurrent import (
    Layer,
    copy_floats,
    running,
    served,
)
from gpubackprop.backends.cpu.native.tiles import LANES

f32 = np.float32


@kernel
def gru(frame, part, parts):
    """Frame: the common ones; projected, its distances of steps and of sequences in bytes, h0, b_hh
    (0 for none), hidden, gates, inner."""
    steps, batch, size = frame[0], frame[1], frame[2]
    reverse, lengths, panels, scratch = frame[3], frame[4], frame[5], frame[6]
    top, bottom = share(batch, part, parts, 1)
    rows, padded = bottom - top, (size + LANES - 1) // LANES * LANES
    if rows <= 0:
        return
    row, state = 4 * size, 4 * batch * size
    product, wide = scratch + 12 * top * padded, 12 * padded
    hidden = frame[12] + top * row
    copy_floats(rows * size, frame[10] + top * row, hidden + (steps * state if reverse else 0))
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        before = (t + 1 if reverse else t) * state
        after = (t if reverse else t + 1) * state
        multiply_rows(rows, 3 * padded, size, hidden + before, row, panels, product, wide)
        for n in range(rows):
            p = floats(frame[7] + t * frame[8] + (top + n) * frame[9], 3 * size)
            a = floats(product + n * wide, 3 * padded)
            gate = floats(frame[13] + 3 * (t * state + (top + n) * row), 3 * size)
            inner = floats(frame[14] + t * state + (top + n) * row, size)
            old, h = floats(hidden + before + n * row, size), floats(hidden + after + n * row, size)
            pr, pz, pn = p[:size], p[size : 2 * size], p[2 * size :]
            ar, az, an = a[:size], a[padded : padded + size], a[2 * padded : 2 * padded + size]
            r, z, new = gate[:size], gate[size : 2 * size], gate[2 * size :]
            if frame[11]:
                b = floats(frame[11], 3 * size)
                br, bz, bn = b[:size], b[size : 2 * size], b[2 * size :]
                for j in range(size):
                    ar[j] += br[j]
                    az[j] += bz[j]
                    an[j] += bn[j]
            for j in range(size):
                vr = m.sigmoid(pr[j] + ar[j])
                r[j] = vr
                inner[j] = an[j]
                new[j] = m.tanh(pn[j] + vr * an[j])
            for j in range(size):
                vz = m.sigmoid(pz[j] + az[j])
                z[j] = vz
                h[j] = new[j] + vz * (old[j] - new[j])
            if not running(lengths, top + n, t):
                copy_floats(size, hidden + before + n * row, hidden + after + n * row)


@kernel
def gru_backward(frame, part, parts):
    """Frame: the common ones; dy, its distances of steps and of sequences in bytes, dh, hidden,
    gates, inner, dprojected, drecurrent, dh0."""
    steps, batch, size = frame[0], frame[1], frame[2]
    reverse, lengths, panels, scratch = frame[3], frame[4], frame[5], frame[6]
    top, bottom = share(batch, part, parts, 1)
    rows, padded = bottom - top, (size + LANES - 1) // LANES * LANES
    if rows <= 0:
        return
    row, state = 4 * size, 4 * batch * size
    product = scratch + 4 * top * padded
    back = frame[16] + top * row
    copy_floats(rows * size, frame[10] + top * row, back)
    for step in range(steps):
        t = step if reverse else steps - 1 - step
        before = frame[11] + (t + 1 if reverse else t) * state + top * row
        first = t * state + top * row
        for n in range(rows):
            d = floats(frame[14] + 3 * (first + n * row), 3 * size)
            dq = floats(frame[15] + 3 * (first + n * row), 3 * size)
            if not running(lengths, top + n, t):
                for j in range(3 * size):
                    d[j] = f32(0.0)
                    dq[j] = f32(0.0)
                continue
            gate = floats(frame[12] + 3 * (first + n * row), 3 * size)
            r, z, new = gate[:size], gate[size : 2 * size], gate[2 * size :]
            inner = floats(frame[13] + first + n * row, size)
            old, dh = floats(before + n * row, size), floats(back + n * row, size)
            given = floats(frame[7] + t * frame[8] + (top + n) * frame[9], size)
            dr, dz, dn = d[:size], d[size : 2 * size], d[2 * size :]
            qr, qz, qn = dq[:size], dq[size : 2 * size], dq[2 * size :]
            for j in range(size):
                e, vz, vn = dh[j] + given[j], z[j], new[j]
                slope = e * (f32(1.0) - vz) * (f32(1.0) - vn * vn)
                update = e * (old[j] - vn) * (vz * (f32(1.0) - vz))
                dn[j], dz[j], qz[j] = slope, update, update
                dh[j] = e * vz
            for j in range(size):
                slope, vr = dn[j], r[j]
                reset = slope * inner[j] * (vr * (f32(1.0) - vr))
                dr[j], qr[j], qn[j] = reset, reset, slope * vr
        source = frame[15] + 3 * first
        multiply_rows(rows, padded, 3 * size, source, 3 * row, panels, product, 4 * padded)
        for n in range(rows):
            dh, more = floats(back + n * row, size), floats(product + 4 * n * padded, size)
            if running(lengths, top + n, t):
                for j in range(size):
                    dh[j] += more[j]


@lowers("gru_steps")
def lower_gru(
    site: Site,
    outs: Any,
    projected: Any,
    h0: Any,
    w_hh: Any,
    b_hh: Any = None,
    lengths: Any = None,
    reverse: bool = False,
) -> list[Instruction] | None:
    """All steps."""
    if not served(lengths, projected, h0, w_hh) or not fit(*outs):
        return None
    if b_hh is not None and b_hh.dtype != np.float32:
        return None
    made = Layer(site, projected, w_hh, True, lengths, reverse)
    bias = 0 if b_hh is None else made.in_order(b_hh)
    return made.instructions(gru, made.in_order(h0), bias, *outs)


@lowers("gru_steps_backward")
def lower_gru_backward(
    site: Site,
    outs: Any,
    dy: Any,
    dh: Any,
    w_hh: Any,
    hidden: Any,
    gates: Any,
    inner: Any,
    lengths: Any = None,
    reverse: bool = False,
) -> list[Instruction] | None:
    """Its cotangents."""
    if not served(lengths, dy, dh, w_hh, hidden, gates, inner) or not fit(*outs):
        return None
    made = Layer(site, dy, w_hh, False, lengths, reverse)
    reads = (made.in_order(x) for x in (dh, hidden, gates, inner))
    return made.instructions(gru_backward, *reads, *outs)
