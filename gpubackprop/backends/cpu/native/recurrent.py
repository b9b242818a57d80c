"""Native recurrent layers: the plain network and long short-term memory.

Each thread runs all steps for its own sequences, so that nobody waits for anybody between two
steps, and squashes the gates of a step while they are in the cache. The weight is rearranged once
for all steps (``packing.py``).

All kernels begin their frames alike, as ``own_part`` and ``given`` read them: T, N, H, whether the
steps run backward in time, lengths (0 for none), panels of the weight, memory of (N, whole vectors)
for products; what the input gives or the cotangents of the outputs, its distances of steps and of
sequences in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.cpu.native import mathematics as m
from gpubackprop.backends.cpu.native.abi import Kernel, floats, inline, kernel, longs, share
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers
from gpubackprop.backends.cpu.native.order import in_order
from gpubackprop.backends.cpu.native.packing import packed
from gpubackprop.backends.cpu.native.panels import multiply_rows
from gpubackprop.backends.cpu.native.spans import clear, copy_row
from gpubackprop.backends.cpu.native.vectors import whole

f32 = np.float32
SERIAL = 600_000
"""Multiply-adds, with some for the gates, of a layer that is left to one thread."""


class Own(NamedTuple):
    """What a part works on: all steps of its own sequences.

    Attributes
    ----------
    steps, size : T and H.
    padded : H in whole vectors.
    top, rows : the first of the sequences, and how many there are.
    row, state : bytes of one sequence's state, and of the states of all.
    reverse, lengths, panels : as in the frame.
    product, wide : memory for products, and the bytes of one sequence's.
    """

    steps: int
    size: int
    padded: int
    top: int
    rows: int
    row: int
    state: int
    reverse: int
    lengths: int
    panels: int
    product: int
    wide: int


@inline
def own_part(frame, part, parts, blocks):
    """A part's share, for products of `blocks` times H columns."""
    batch, size = frame[1], frame[2]
    top, bottom = share(batch, part, parts, 1)
    padded = whole(size)
    wide = 4 * blocks * padded
    return Own(
        frame[0], size, padded, top, bottom - top, 4 * size, 4 * batch * size,
        frame[3], frame[4], frame[5], frame[6] + top * wide, wide,
    )  # fmt: skip


@inline
def given(frame, own, t, n, columns):
    """What the input gives, or the cotangents of the outputs, for a step of an own sequence."""
    return floats(frame[7] + t * frame[8] + (own.top + n) * frame[9], columns)


@inline
def moment(own, step):
    """Which step in time is taken as number `step`, and where in an array of all states, in bytes,
    those before it and those after it begin."""
    if own.reverse:
        t = own.steps - 1 - step
        return t, (t + 1) * own.state, t * own.state
    return step, step * own.state, (step + 1) * own.state


@inline
def running(own, n, t):
    """Whether the own sequence `n` has a step `t`."""
    return True if own.lengths == 0 else longs(own.lengths, own.top + n + 1)[own.top + n] > t


@inline
def multiply(own, depth, source):
    """Rows of `depth` numbers, one for each own sequence, times the weight."""
    multiply_rows(
        own.rows, own.wide // 4, depth, source, 4 * depth, own.panels, own.product, own.wide
    )


@inline
def take(own, source, target):
    """Copy the states of the own sequences over to `target`, which is told where they begin."""
    target += own.top * own.row
    copy_row(own.rows * own.size, source + own.top * own.row, target)
    return target


@inline
def begin(own, first, states):
    """Write the first states where the steps begin; tells where the own sequences' begin."""
    start = own.steps * own.state if own.reverse else 0
    return take(own, first, states + start) - start


@inline
def stay(own, n, states, before, after):
    """The state of a sequence that is over."""
    copy_row(own.size, states + before + n * own.row, states + after + n * own.row)


@inline
def take_back(own, t, dh):
    """Cotangents of the states before step `t`, which a product has left, for the sequences that
    have this step; those of the others stay."""
    for n in range(own.rows):
        if running(own, n, t):
            copy_row(own.size, own.product + n * own.wide, dh + n * own.row)


@kernel
def rnn(frame, part, parts):
    """Frame: the common slots; h0, hidden, whether relu."""
    own = own_part(frame, part, parts, 1)
    size = own.size
    hidden = begin(own, frame[10], frame[11])
    for step in range(own.steps):
        t, before, after = moment(own, step)
        multiply(own, size, hidden + before)
        for n in range(own.rows):
            p = given(frame, own, t, n, size)
            a = floats(own.product + n * own.wide, size)
            h = floats(hidden + after + n * own.row, size)
            if not running(own, n, t):
                stay(own, n, hidden, before, after)
            elif frame[12]:
                for j in range(size):
                    h[j] = m.maximum(p[j] + a[j], f32(0.0))
            else:
                for j in range(size):
                    h[j] = m.tanh(p[j] + a[j])


@kernel
def rnn_backward(frame, part, parts):
    """Frame: the common slots; dh, hidden, dprojected, dh0, whether relu."""
    own = own_part(frame, part, parts, 1)
    size = own.size
    back = take(own, frame[10], frame[13])
    hidden, slope = frame[11] + own.top * own.row, frame[12] + own.top * own.row
    for step in range(own.steps - 1, -1, -1):
        t, _, after = moment(own, step)
        slopes = slope + t * own.state
        for n in range(own.rows):
            d = floats(slopes + n * own.row, size)
            y = floats(hidden + after + n * own.row, size)
            dh = floats(back + n * own.row, size)
            dy = given(frame, own, t, n, size)
            if not running(own, n, t):
                clear(size, slopes + n * own.row)
            elif frame[14]:
                for j in range(size):
                    e = dh[j] + dy[j]
                    d[j] = e if y[j] > f32(0.0) else f32(0.0)
            else:
                for j in range(size):
                    d[j] = (dh[j] + dy[j]) * (f32(1.0) - y[j] * y[j])
        multiply(own, size, slopes)
        take_back(own, t, back)


@kernel
def lstm(frame, part, parts):
    """Frame: the common slots; h0, c0, hidden, cells, gates."""
    own = own_part(frame, part, parts, 4)
    size, padded, row = own.size, own.padded, own.row
    hidden, cells = begin(own, frame[10], frame[12]), begin(own, frame[11], frame[13])
    for step in range(own.steps):
        t, before, after = moment(own, step)
        multiply(own, size, hidden + before)
        for n in range(own.rows):
            p = given(frame, own, t, n, 4 * size)
            a = floats(own.product + n * own.wide, 4 * padded)
            gate = floats(frame[14] + 4 * (t * own.state + (own.top + n) * row), 4 * size)
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
            if not running(own, n, t):
                stay(own, n, cells, before, after)
                stay(own, n, hidden, before, after)


@kernel
def lstm_backward(frame, part, parts):
    """Frame: the common slots; dh, dc, cells, gates, dprojected, dh0, dc0."""
    own = own_part(frame, part, parts, 1)
    size, row = own.size, own.row
    back, inside = take(own, frame[10], frame[15]), take(own, frame[11], frame[16])
    cells = frame[12] + own.top * row
    for step in range(own.steps - 1, -1, -1):
        t, before, after = moment(own, step)
        first = 4 * (t * own.state + own.top * row)
        for n in range(own.rows):
            d = floats(frame[14] + first + 4 * n * row, 4 * size)
            if not running(own, n, t):
                clear(4 * size, frame[14] + first + 4 * n * row)
                continue
            gate = floats(frame[13] + first + 4 * n * row, 4 * size)
            i, f = gate[:size], gate[size : 2 * size]
            g, o = gate[2 * size : 3 * size], gate[3 * size :]
            di, df = d[:size], d[size : 2 * size]
            dg, do = d[2 * size : 3 * size], d[3 * size :]
            old, new = floats(cells + before + n * row, size), floats(cells + after + n * row, size)
            dy = given(frame, own, t, n, size)
            dh, dc = floats(back + n * row, size), floats(inside + n * row, size)
            for j in range(size):
                s, e = m.tanh(new[j]), dh[j] + dy[j]
                vo = o[j]
                do[j] = e * s * (vo * (f32(1.0) - vo))
                dc[j] += e * vo * (f32(1.0) - s * s)
            for j in range(size):
                e, vi, vf, vg = dc[j], i[j], f[j], g[j]
                di[j] = e * vg * (vi * (f32(1.0) - vi))
                df[j] = e * old[j] * (vf * (f32(1.0) - vf))
                dg[j] = e * vi * (f32(1.0) - vg * vg)
                dc[j] = e * vf
        multiply(own, 4 * size, frame[14] + first)
        take_back(own, t, back)


def layer(
    runs: Kernel,
    site: Site,
    outs: tuple[np.ndarray, ...],
    source: np.ndarray,
    w_hh: np.ndarray,
    reads: Sequence[np.ndarray | None],
    lengths: np.ndarray | None,
    reverse: bool,
    *numbers: Any,
    backward: bool = False,
) -> list[Instruction] | None:
    """The call of a layer's kernel, and the copies that it needs before it; None where an array is
    not float32 or empty, or lengths are not int64 in order.

    Parameters
    ----------
    runs : the kernel.
    source : (T, N, columns): what the input gives, or the cotangents of the outputs.
    w_hh : (blocks * H, H), the weight of the state.
    reads, outs, numbers : what the frame has behind the common slots: arrays to read (or None), to
        write, and more.
    lengths, reverse : of the call.
    backward : whether cotangents meet the weight, not states.
    """
    arrays = [a for a in (source, w_hh, *reads) if a is not None]
    if not fit(*outs) or not all(a.dtype == np.float32 and a.size for a in arrays):
        return None
    if lengths is not None and not fit(lengths, dtype=np.int64):
        return None
    (steps, batch), (wide, size) = source.shape[:2], w_hh.shape
    blocks = 1 if backward else wide // size
    before = list[Instruction]()

    def ready(x: np.ndarray) -> np.ndarray:
        copies, found = in_order(site, x)
        before.extend(copies)
        assert found is not None  # float32 of at most three axes
        return found

    if source.strides[-1] != source.itemsize and source.shape[-1] != 1:
        source = ready(source)
    pack, panels = packed(site, w_hh if backward else w_hh.T, blocks)
    product = site.scratch((batch, blocks * whole(size)))
    slots = [steps, batch, size, reverse, 0 if lengths is None else lengths, panels, product]
    slots += [source, *source.strides[:2]]
    slots += [0 if a is None else ready(a) for a in reads]
    parallel = batch > 1 and steps * batch * wide * (size + 30) > SERIAL
    return [*before, pack, Instruction(runs, [*slots, *outs, *numbers], parallel=parallel)]


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
    relu = nonlinearity == "relu"
    return layer(rnn, site, outs, projected, w_hh, [h0], lengths, reverse, relu)


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
    relu, reads = nonlinearity == "relu", [dh, hidden]
    return layer(rnn_backward, site, outs, dy, w_hh, reads, lengths, reverse, relu, backward=True)


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
    return layer(lstm, site, outs, projected, w_hh, [h0, c0], lengths, reverse)


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
    reads = [dh, dc, cells, gates]
    return layer(lstm_backward, site, outs, dy, w_hh, reads, lengths, reverse, backward=True)
