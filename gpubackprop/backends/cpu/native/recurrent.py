"""Native recurrent layers: the plain network and long short-term memory.

Each thread runs all steps for its own sequences, so that nobody waits for anybody between two
steps, and squashes the gates of a step while they are in the cache. The weight is rearranged once
for all steps (``panels.py``).

All kernels begin their frames alike: T, N, H, whether the steps run backward in time, lengths (0
for none), panels of the weight, scratch memory of (N, whole vectors) for products.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from gpubackprop.backends.cpu.native import mathematics as m
from gpubackprop.backends.cpu.native.abi import FAST, floats, inline, kernel, longs, share
from gpubackprop.backends.cpu.native.copies import copy_instruction
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers
from gpubackprop.backends.cpu.native.panels import multiply_rows, packed
from gpubackprop.backends.cpu.native.tiles import LANES, whole

f32 = np.float32
SERIAL = 600_000
"""Multiply-adds, with some for the gates, of a layer that is left to one thread."""


@inline
def running(lengths, n, t):
    """Whether sequence `n` has a step `t`."""
    return True if lengths == 0 else longs(lengths, n + 1)[n] > t


@numba.njit(**FAST)
def copy_floats(count, source, target):
    """Copy float32 numbers between addresses."""
    a, b = floats(source, count), floats(target, count)
    for j in range(count):
        b[j] = a[j]


@numba.njit(**FAST)
def take_back(lengths, t, top, rows, size, padded, product, dh):
    """Cotangents of the states before step `t`, which a product has left in rows of `padded`, for
    the sequences that have this step; those of the others stay."""
    for n in range(rows):
        if running(lengths, top + n, t):
            copy_floats(size, product + 4 * n * padded, dh + 4 * n * size)


@kernel
def rnn(frame, part, parts):
    """Frame: the common ones; projected, its distances of steps and of sequences in bytes, h0,
    hidden, whether relu."""
    steps, batch, size = frame[0], frame[1], frame[2]
    reverse, lengths, panels, scratch = frame[3], frame[4], frame[5], frame[6]
    top, bottom = share(batch, part, parts, 1)
    rows, padded = bottom - top, (size + LANES - 1) // LANES * LANES
    if rows <= 0:
        return
    row, state = 4 * size, 4 * batch * size
    product = scratch + 4 * top * padded
    hidden = frame[11] + top * row
    copy_floats(rows * size, frame[10] + top * row, hidden + (steps * state if reverse else 0))
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        before = (t + 1 if reverse else t) * state
        after = (t if reverse else t + 1) * state
        multiply_rows(rows, padded, size, hidden + before, row, panels, product, 4 * padded)
        for n in range(rows):
            p = floats(frame[7] + t * frame[8] + (top + n) * frame[9], size)
            a = floats(product + 4 * n * padded, size)
            h = floats(hidden + after + n * row, size)
            if not running(lengths, top + n, t):
                copy_floats(size, hidden + before + n * row, hidden + after + n * row)
            elif frame[12]:
                for j in range(size):
                    h[j] = m.maximum(p[j] + a[j], f32(0.0))
            else:
                for j in range(size):
                    h[j] = m.tanh(p[j] + a[j])


@kernel
def rnn_backward(frame, part, parts):
    """Frame: the common ones; dy, its distances of steps and of sequences in bytes, dh, hidden,
    dprojected, dh0, whether relu."""
    steps, batch, size = frame[0], frame[1], frame[2]
    reverse, lengths, panels, scratch = frame[3], frame[4], frame[5], frame[6]
    top, bottom = share(batch, part, parts, 1)
    rows, padded = bottom - top, (size + LANES - 1) // LANES * LANES
    if rows <= 0:
        return
    row, state = 4 * size, 4 * batch * size
    product = scratch + 4 * top * padded
    back, slope = frame[13] + top * row, frame[12] + top * row
    copy_floats(rows * size, frame[10] + top * row, back)
    for step in range(steps):
        t = step if reverse else steps - 1 - step
        after = frame[11] + (t if reverse else t + 1) * state + top * row
        for n in range(rows):
            d = floats(slope + t * state + n * row, size)
            y = floats(after + n * row, size)
            dh = floats(back + n * row, size)
            given = floats(frame[7] + t * frame[8] + (top + n) * frame[9], size)
            if not running(lengths, top + n, t):
                for j in range(size):
                    d[j] = f32(0.0)
            elif frame[14]:
                for j in range(size):
                    e = dh[j] + given[j]
                    d[j] = e if y[j] > f32(0.0) else f32(0.0)
            else:
                for j in range(size):
                    d[j] = (dh[j] + given[j]) * (f32(1.0) - y[j] * y[j])
        multiply_rows(rows, padded, size, slope + t * state, row, panels, product, 4 * padded)
        take_back(lengths, t, top, rows, size, padded, product, back)


@kernel
def lstm(frame, part, parts):
    """Frame: the common ones; projected, its distances of steps and of sequences in bytes, h0, c0,
    hidden, cells, gates."""
    steps, batch, size = frame[0], frame[1], frame[2]
    reverse, lengths, panels, scratch = frame[3], frame[4], frame[5], frame[6]
    top, bottom = share(batch, part, parts, 1)
    rows, padded = bottom - top, (size + LANES - 1) // LANES * LANES
    if rows <= 0:
        return
    row, state = 4 * size, 4 * batch * size
    product, wide = scratch + 16 * top * padded, 16 * padded
    hidden, cells = frame[12] + top * row, frame[13] + top * row
    begin = steps * state if reverse else 0
    copy_floats(rows * size, frame[10] + top * row, hidden + begin)
    copy_floats(rows * size, frame[11] + top * row, cells + begin)
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        before = (t + 1 if reverse else t) * state
        after = (t if reverse else t + 1) * state
        multiply_rows(rows, 4 * padded, size, hidden + before, row, panels, product, wide)
        for n in range(rows):
            p = floats(frame[7] + t * frame[8] + (top + n) * frame[9], 4 * size)
            a = floats(product + n * wide, 4 * padded)
            gate = floats(frame[14] + 4 * (t * state + (top + n) * row), 4 * size)
            old = floats(cells + before + n * row, size)
            new, h = floats(cells + after + n * row, size), floats(hidden + after + n * row, size)
            pi, pf = p[:size], p[size : 2 * size]
            pg, po = p[2 * size : 3 * size], p[3 * size :]
            ai, af = a[:padded], a[padded : 2 * padded]
            ag, ao = a[2 * padded : 3 * padded], a[3 * padded :]
            i, f = gate[:size], gate[size : 2 * size]
            g, o = gate[2 * size : 3 * size], gate[3 * size :]
            for j in range(size):
                vi, vf = m.sigmoid(ai[j] + pi[j]), m.sigmoid(af[j] + pf[j])
                vg = m.tanh(ag[j] + pg[j])
                i[j], f[j], g[j] = vi, vf, vg
                new[j] = vf * old[j] + vi * vg
            for j in range(size):
                vo = m.sigmoid(ao[j] + po[j])
                o[j] = vo
                h[j] = vo * m.tanh(new[j])
            if not running(lengths, top + n, t):
                copy_floats(size, cells + before + n * row, cells + after + n * row)
                copy_floats(size, hidden + before + n * row, hidden + after + n * row)


@kernel
def lstm_backward(frame, part, parts):
    """Frame: the common ones; dy, its distances of steps and of sequences in bytes, dh, dc, cells,
    gates, dprojected, dh0, dc0."""
    steps, batch, size = frame[0], frame[1], frame[2]
    reverse, lengths, panels, scratch = frame[3], frame[4], frame[5], frame[6]
    top, bottom = share(batch, part, parts, 1)
    rows, padded = bottom - top, (size + LANES - 1) // LANES * LANES
    if rows <= 0:
        return
    row, state = 4 * size, 4 * batch * size
    product = scratch + 4 * top * padded
    back, inside = frame[15] + top * row, frame[16] + top * row
    copy_floats(rows * size, frame[10] + top * row, back)
    copy_floats(rows * size, frame[11] + top * row, inside)
    for step in range(steps):
        t = step if reverse else steps - 1 - step
        before = frame[12] + (t + 1 if reverse else t) * state + top * row
        after = frame[12] + (t if reverse else t + 1) * state + top * row
        slopes = frame[14] + 4 * (t * state + top * row)
        for n in range(rows):
            d = floats(slopes + 4 * n * row, 4 * size)
            if not running(lengths, top + n, t):
                for j in range(4 * size):
                    d[j] = f32(0.0)
                continue
            gate = floats(frame[13] + 4 * (t * state + (top + n) * row), 4 * size)
            i, f = gate[:size], gate[size : 2 * size]
            g, o = gate[2 * size : 3 * size], gate[3 * size :]
            di, df = d[:size], d[size : 2 * size]
            dg, do = d[2 * size : 3 * size], d[3 * size :]
            old, new = floats(before + n * row, size), floats(after + n * row, size)
            given = floats(frame[7] + t * frame[8] + (top + n) * frame[9], size)
            dh, dc = floats(back + n * row, size), floats(inside + n * row, size)
            for j in range(size):
                s, e = m.tanh(new[j]), dh[j] + given[j]
                vo = o[j]
                do[j] = e * s * (vo * (f32(1.0) - vo))
                dc[j] += e * vo * (f32(1.0) - s * s)
            for j in range(size):
                e, vi, vf, vg = dc[j], i[j], f[j], g[j]
                di[j] = e * vg * (vi * (f32(1.0) - vi))
                df[j] = e * old[j] * (vf * (f32(1.0) - vf))
                dg[j] = e * vi * (f32(1.0) - vg * vg)
                dc[j] = e * vf
        multiply_rows(rows, padded, 4 * size, slopes, 4 * row, panels, product, 4 * padded)
        take_back(lengths, t, top, rows, size, padded, product, back)


class Layer:
    """What the lowerings of all recurrent layers share.

    Parameters
    ----------
    site : where the call stands.
    given : (T, N, columns): what the input gives, or the cotangents of the outputs.
    w_hh : (blocks * H, H), the weight of the state.
    forward : whether the states are multiplied, not their cotangents.
    lengths, reverse : of the call.
    """

    def __init__(
        self,
        site: Site,
        given: np.ndarray,
        w_hh: np.ndarray,
        forward: bool,
        lengths: np.ndarray | None,
        reverse: bool,
    ) -> None:
        self.site, self.before = site, list[Instruction]()
        wide, size = w_hh.shape
        blocks = wide // size
        (steps, batch), source = given.shape[:2], self.in_rows(given)
        pack, panels = packed(site, w_hh.T if forward else w_hh, blocks if forward else 1)
        self.before.append(pack)
        product = site.scratch((batch, (blocks if forward else 1) * whole(size)))
        self.common = [steps, batch, size, reverse, 0 if lengths is None else lengths]
        self.common += [panels, product, source, *source.strides[:2]]
        self.parallel = batch > 1 and steps * batch * wide * (size + 30) > SERIAL

    def in_rows(self, x: np.ndarray) -> np.ndarray:
        """An array whose last axis lies in order; a copy where it does not."""
        if x.strides[-1] == x.itemsize or x.shape[-1] == 1:
            return x
        return self.in_order(x)

    def in_order(self, x: np.ndarray) -> np.ndarray:
        """An array that lies in order; a copy where it does not."""
        if x.flags.c_contiguous:
            return x
        spread = self.site.scratch(x.shape)
        made = copy_instruction(spread, x)
        assert made is not None  # float32 of at most three axes
        self.before.append(made)
        return spread

    def instructions(self, runs: Any, *more: Any) -> list[Instruction]:
        """The call, as a kernel with more slots: arrays it reads in order, arrays it writes,
        numbers."""
        return [*self.before, Instruction(runs, [*self.common, *more], parallel=self.parallel)]


def served(lengths: Any, *arrays: Any) -> bool:
    """Whether all are float32, none is empty, and lengths are int64 in order."""
    if lengths is not None and not fit(lengths, dtype=np.int64):
        return False
    return all(a.dtype == np.float32 and a.size for a in arrays)


@lowers("rnn_steps")
def lower_rnn(
    site: Site,
    outs: Any,
    projected: Any,
    h0: Any,
    w_hh: Any,
    lengths: Any = None,
    nonlinearity: str = "tanh",
    reverse: bool = False,
) -> list[Instruction] | None:
    """All steps."""
    if not served(lengths, projected, h0, w_hh) or not fit(*outs):
        return None
    made = Layer(site, projected, w_hh, True, lengths, reverse)
    return made.instructions(rnn, made.in_order(h0), *outs, nonlinearity == "relu")


@lowers("rnn_steps_backward")
def lower_rnn_backward(
    site: Site,
    outs: Any,
    dy: Any,
    dh: Any,
    w_hh: Any,
    hidden: Any,
    lengths: Any = None,
    nonlinearity: str = "tanh",
    reverse: bool = False,
) -> list[Instruction] | None:
    """Its cotangents."""
    if not served(lengths, dy, dh, w_hh, hidden) or not fit(*outs):
        return None
    made = Layer(site, dy, w_hh, False, lengths, reverse)
    reads = made.in_order(dh), made.in_order(hidden)
    return made.instructions(rnn_backward, *reads, *outs, nonlinearity == "relu")


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
    """All steps."""
    if not served(lengths, projected, h0, c0, w_hh) or not fit(*outs):
        return None
    made = Layer(site, projected, w_hh, True, lengths, reverse)
    return made.instructions(lstm, made.in_order(h0), made.in_order(c0), *outs)


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
    if not served(lengths, dy, dh, dc, w_hh, cells, gates) or not fit(*outs):
        return None
    made = Layer(site, dy, w_hh, False, lengths, reverse)
    reads = (made.in_order(x) for x in (dh, dc, cells, gates))
    return made.instructions(lstm_backward, *reads, *outs)
