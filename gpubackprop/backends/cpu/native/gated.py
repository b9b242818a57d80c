"""Native gated recurrent units, as in ``recurrent.py``."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native import mathematics as m
from gpubackprop.backends.cpu.native.abi import floats, kernel
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, lowers
from gpubackprop.backends.cpu.native.recurrent import (
    begin,
    given,
    layer,
    moment,
    multiply,
    own_part,
    running,
    stay,
    take,
)
from gpubackprop.backends.cpu.native.spans import clear

f32 = np.float32


@kernel
def gru(frame, part, parts):
    """Frame: the common slots; h0, b_hh (0 for none), hidden, gates, inner."""
    own = own_part(frame, part, parts, 3)
    size, padded, row = own.size, own.padded, own.row
    hidden = begin(own, frame[10], frame[12])
    for step in range(own.steps):
        t, before, after = moment(own, step)
        multiply(own, size, hidden + before)
        for n in range(own.rows):
            p = given(frame, own, t, n, 3 * size)
            a = floats(own.product + n * own.wide, 3 * padded)
            first = t * own.state + (own.top + n) * row
            gate, inner = floats(frame[13] + 3 * first, 3 * size), floats(frame[14] + first, size)
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
            if not running(own, n, t):
                stay(own, n, hidden, before, after)


@kernel
def gru_backward(frame, part, parts):
    """Frame: the common slots; dh, hidden, gates, inner, dprojected, drecurrent, dh0."""
    own = own_part(frame, part, parts, 1)
    size, row = own.size, own.row
    back = take(own, frame[10], frame[16])
    hidden = frame[11] + own.top * row
    for step in range(own.steps - 1, -1, -1):
        t, before, _ = moment(own, step)
        first = t * own.state + own.top * row
        for n in range(own.rows):
            at = first + n * row
            d, dq = floats(frame[14] + 3 * at, 3 * size), floats(frame[15] + 3 * at, 3 * size)
            if not running(own, n, t):
                clear(3 * size, frame[14] + 3 * at)
                clear(3 * size, frame[15] + 3 * at)
                continue
            gate, inner = floats(frame[12] + 3 * at, 3 * size), floats(frame[13] + at, size)
            r, z, new = gate[:size], gate[size : 2 * size], gate[2 * size :]
            old, dh = floats(hidden + before + n * row, size), floats(back + n * row, size)
            dy = given(frame, own, t, n, size)
            dr, dz, dn = d[:size], d[size : 2 * size], d[2 * size :]
            qr, qz, qn = dq[:size], dq[size : 2 * size], dq[2 * size :]
            for j in range(size):
                e, vz, vn = dh[j] + dy[j], z[j], new[j]
                slope = e * (f32(1.0) - vz) * (f32(1.0) - vn * vn)
                update = e * (old[j] - vn) * (vz * (f32(1.0) - vz))
                dn[j], dz[j], qz[j] = slope, update, update
                dh[j] = e * vz
            for j in range(size):
                slope, vr = dn[j], r[j]
                reset = slope * inner[j] * (vr * (f32(1.0) - vr))
                dr[j], qr[j], qn[j] = reset, reset, slope * vr
        multiply(own, 3 * size, frame[15] + 3 * first)
        for n in range(own.rows):
            dh, more = floats(back + n * row, size), floats(own.product + n * own.wide, size)
            if running(own, n, t):
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
    return layer(gru, site, outs, projected, w_hh, [h0, b_hh], lengths, reverse)


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
    reads = [dh, hidden, gates, inner]
    return layer(gru_backward, site, outs, dy, w_hh, reads, lengths, reverse, backward=True)
