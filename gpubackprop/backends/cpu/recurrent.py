"""Kernels of ``recurrent.py`` on NumPy arrays, faster than by their definition.

The states and gates of all steps are allocated once and written in place. What makes a step quick:
the weight lies in memory as the matrix product reads it fastest, for some sizes in panels; all
gates are squashed by one call of tanh, for sigmoid(x) = (1 + tanh(x / 2)) / 2; and constants are
whole matrices, since NumPy walks through rows one by one where a row is repeated or a matrix has
gaps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.cpu.fused import HALF, ONE, ZERO
from gpubackprop.backends.cpu.shared import result
from gpubackprop.backends.primitives import Array
from gpubackprop.backends.recurrent import steps_in_order

# Up to so many multiplications, OpenBLAS makes a matrix product in one thread without rearranging
# its operands first. Four such panels take as long as the whole by two threads, and less time of
# the processor.
PANEL = 10**6
PANELS = 4
# For fewer steps than these, or a batch of one, a weight is not worth rearranging.
FEW_STEPS = 8


class NumPyRecurrent(ArrayBackend):
    """Overrides of the kernels of ``recurrent.py``."""

    # Plain recurrent network.
    def rnn_steps(
        self,
        projected: Array,
        h0: Array,
        w_hh: Array,
        lengths: Array | None = None,
        nonlinearity: str = "tanh",
        reverse: bool = False,
    ) -> Array:
        if not _alike(projected, h0, w_hh):
            return super().rnn_steps(projected, h0, w_hh, lengths, nonlinearity, reverse)
        steps = len(projected)
        hidden, before, after = _states(h0, steps, reverse)
        weight, products = _panels(w_hh.T, after, steps)
        zero = ZERO[h0.dtype]
        for t in steps_in_order(steps, reverse):
            h, new = before[t], after[t]
            np.matmul(h, weight, products[t])
            np.add(new, projected[t], new)
            if nonlinearity == "tanh":
                np.tanh(new, new)
            else:
                np.maximum(new, zero, out=new)
            if lengths is not None:
                _keep(_ended(lengths, t), (new, h))
        return hidden

    def rnn_steps_backward(
        self,
        dy: Array,
        dh: Array,
        w_hh: Array,
        hidden: Array,
        lengths: Array | None = None,
        nonlinearity: str = "tanh",
        reverse: bool = False,
    ) -> tuple[Array, Array]:
        if not _alike(hidden, dy, dh, w_hh):
            return super().rnn_steps_backward(dy, dh, w_hh, hidden, lengths, nonlinearity, reverse)
        one, zero = ONE[dh.dtype], ZERO[dh.dtype]
        dprojected = result(dy.shape, dy.dtype)
        dh = dh.copy(order="C")
        weight, product = _panels(w_hh, dh, len(dy))
        after = hidden[:-1] if reverse else hidden[1:]
        for t in steps_in_order(len(dy), not reverse):
            d, y = dprojected[t], after[t]
            if nonlinearity == "tanh":
                np.square(y, d)
                np.subtract(one, d, d)
            else:
                np.greater(y, zero, d)
            ended = None if lengths is None else _ended(lengths, t)
            old = None if ended is None else dh[ended]
            np.add(dh, dy[t], dh)
            np.multiply(d, dh, d)
            if ended is not None:
                d[ended] = 0
            np.matmul(d, weight, product)
            if ended is not None:
                dh[ended] = old
        return dprojected, dh

    # Long short-term memory.
    def lstm_steps(
        self,
        projected: Array,
        h0: Array,
        c0: Array,
        w_hh: Array,
        lengths: Array | None = None,
        reverse: bool = False,
    ) -> tuple[Array, Array, Array]:
        if not _alike(projected, h0, c0, w_hh):
            return super().lstm_steps(projected, h0, c0, w_hh, lengths, reverse)
        steps, batch, width = projected.shape
        hidden, h_before, h_after = _states(h0, steps, reverse)
        cells, c_before, c_after = _states(c0, steps, reverse)
        gates = result(projected.shape, h0.dtype)
        weight, products = _panels(w_hh.T, gates, steps)
        scale, shift = _squash(batch, (0.5, 0.5, 1.0, 0.5), width // 4, h0.dtype)
        work = np.empty(h0.shape, h0.dtype)
        i, f, g, o = _blocks(gates, 4)
        for t in steps_in_order(steps, reverse):
            h, a, c, c_new = h_before[t], gates[t], c_before[t], c_after[t]
            np.matmul(h, weight, products[t])
            np.add(a, projected[t], a)
            np.multiply(a, scale, a)
            np.tanh(a, a)
            np.multiply(a, scale, a)
            np.add(a, shift, a)
            np.multiply(f[t], c, c_new)
            np.multiply(i[t], g[t], work)
            np.add(c_new, work, c_new)
            np.tanh(c_new, work)
            np.multiply(o[t], work, h_after[t])
            if lengths is not None:
                _keep(_ended(lengths, t), (h_after[t], h), (c_new, c))
        return hidden, cells, gates

    def lstm_steps_backward(
        self,
        dy: Array,
        dh: Array,
        dc: Array,
        w_hh: Array,
        cells: Array,
        gates: Array,
        lengths: Array | None = None,
        reverse: bool = False,
    ) -> tuple[Array, Array, Array]:
        if not _alike(gates, dy, dh, dc, w_hh, cells):
            return super().lstm_steps_backward(dy, dh, dc, w_hh, cells, gates, lengths, reverse)
        one = ONE[dh.dtype]
        dprojected = result(gates.shape, gates.dtype)
        dh, dc = dh.copy(order="C"), dc.copy(order="C")
        weight, product = _panels(w_hh, dh, len(dy))
        before, after = (cells[1:], cells[:-1]) if reverse else (cells[:-1], cells[1:])
        # A gate of value y has the slope (k + y) * (1 - y): k is 0 for a sigmoid, 1 for tanh.
        k = _repeated(len(dh), (0.0, 0.0, 1.0, 0.0), dh.shape[1], dh.dtype)
        slope, work = np.empty(k.shape, k.dtype), np.empty(dh.shape, dh.dtype)
        squashed = np.empty(dh.shape, dh.dtype)
        i, f, g, o = _blocks(gates, 4)
        di, df, dg, do = _blocks(dprojected, 4)
        for t in steps_in_order(len(dy), not reverse):
            a, d = gates[t], dprojected[t]
            ended = None if lengths is None else _ended(lengths, t)
            old = None if ended is None else (dh[ended], dc[ended])
            np.add(dh, dy[t], dh)
            np.tanh(after[t], squashed)
            np.multiply(dh, squashed, do[t])
            np.square(squashed, squashed)
            np.subtract(one, squashed, squashed)
            np.multiply(dh, o[t], work)
            np.multiply(work, squashed, work)
            np.add(dc, work, dc)
            np.multiply(dc, g[t], di[t])
            np.multiply(dc, before[t], df[t])
            np.multiply(dc, i[t], dg[t])
            np.multiply(dc, f[t], dc)
            np.add(a, k, slope)
            np.multiply(d, slope, d)
            np.subtract(one, a, slope)
            np.multiply(d, slope, d)
            if ended is not None:
                d[ended] = 0
            np.matmul(d, weight, product)
            if old is not None:
                dh[ended], dc[ended] = old
        return dprojected, dh, dc

    # Gated recurrent unit.
    def gru_steps(
        self,
        projected: Array,
        h0: Array,
        w_hh: Array,
        b_hh: Array | None = None,
        lengths: Array | None = None,
        reverse: bool = False,
    ) -> tuple[Array, Array, Array]:
        if not _alike(projected, h0, w_hh, h0 if b_hh is None else b_hh):
            return super().gru_steps(projected, h0, w_hh, b_hh, lengths, reverse)
        steps, batch, width = projected.shape
        size = width // 3
        hidden, before, after = _states(h0, steps, reverse)
        gates = result(projected.shape, h0.dtype)
        inner = np.empty((steps, batch, size), h0.dtype)
        half = HALF[h0.dtype]
        bias = None if b_hh is None else np.repeat(b_hh[None], batch, axis=0)
        product = np.empty((batch, width), h0.dtype)
        weight, panels = _panels(w_hh.T, product, steps)
        work, both = np.empty(h0.shape, h0.dtype), np.empty((batch, 2 * size), h0.dtype)
        r, z, n = _blocks(gates, 3)
        for t in steps_in_order(steps, reverse):
            h, q, p, new = before[t], inner[t], projected[t], after[t]
            np.matmul(h, weight, panels)
            if bias is not None:
                np.add(product, bias, product)
            q[...] = product[:, 2 * size :]
            np.add(product[:, : 2 * size], p[:, : 2 * size], both)
            np.multiply(both, half, both)
            np.tanh(both, both)
            np.multiply(both, half, both)
            np.add(both, half, gates[t, :, : 2 * size])
            np.multiply(r[t], q, work)
            np.add(work, p[:, 2 * size :], work)
            np.tanh(work, work)
            n[t] = work
            np.subtract(h, work, new)
            np.multiply(new, z[t], new)
            np.add(new, work, new)
            if lengths is not None:
                _keep(_ended(lengths, t), (new, h))
        return hidden, gates, inner

    def gru_steps_backward(
        self,
        dy: Array,
        dh: Array,
        w_hh: Array,
        hidden: Array,
        gates: Array,
        inner: Array,
        lengths: Array | None = None,
        reverse: bool = False,
    ) -> tuple[Array, Array, Array]:
        if not _alike(gates, dy, dh, w_hh, hidden, inner):
            return super().gru_steps_backward(dy, dh, w_hh, hidden, gates, inner, lengths, reverse)
        one = ONE[dh.dtype]
        dprojected = result(gates.shape, gates.dtype)
        drecurrent = np.empty(gates.shape, gates.dtype)
        dh = dh.copy(order="C")
        weight, product = _panels(w_hh, dh, len(dy))
        before = hidden[1:] if reverse else hidden[:-1]
        k = _repeated(len(dh), (0.0, 0.0, 1.0), dh.shape[1], dh.dtype)
        slope, rest = np.empty(k.shape, k.dtype), np.empty(k.shape, k.dtype)
        work = np.empty(dh.shape, dh.dtype)
        r, z, n = _blocks(gates, 3)
        rest_z = _blocks(rest, 3)[1]
        slope_r, slope_z, slope_n = _blocks(slope, 3)
        dr, dz, dn = _blocks(dprojected, 3)
        dq = _blocks(drecurrent, 3)[2]
        for t in steps_in_order(len(dy), not reverse):
            a, d, e = gates[t], dprojected[t], drecurrent[t]
            ended = None if lengths is None else _ended(lengths, t)
            old = None if ended is None else dh[ended]
            np.add(dh, dy[t], dh)
            np.subtract(one, a, rest)
            np.add(a, k, slope)
            np.multiply(slope, rest, slope)
            np.multiply(dh, rest_z, work)
            np.multiply(work, slope_n, work)
            dn[t] = work
            np.multiply(work, r[t], dq[t])
            np.multiply(work, inner[t], work)
            np.multiply(work, slope_r, dr[t])
            np.subtract(before[t], n[t], work)
            np.multiply(work, dh, work)
            np.multiply(work, slope_z, dz[t])
            np.multiply(dh, z[t], work)
            e[:, : 2 * dh.shape[1]] = d[:, : 2 * dh.shape[1]]
            if ended is not None:
                d[ended] = e[ended] = 0
            np.matmul(e, weight, product)
            np.add(dh, work, dh)
            if ended is not None:
                dh[ended] = old
        return dprojected, drecurrent, dh


def _alike(x: Any, *others: Any) -> bool:
    """Whether all are matrices of the one dtype that the fast paths are for."""
    return x.dtype in ONE and all(a.dtype == x.dtype for a in others)


def _panels(weight: np.ndarray, result: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """`weight` (K, M) as matmul multiplies by it fastest in so many steps, and the view of `result`
    (..., N, M) to write the product to."""
    rows, columns = result.shape[-2:]
    worth = rows > 1 and steps >= FEW_STEPS
    work = weight.size * rows
    split = worth and not columns % PANELS and work / PANELS <= PANEL < work
    parts = PANELS if split else 1
    shape = (*result.shape[:-1], parts, columns // parts)
    panels = weight.reshape(weight.shape[0], parts, columns // parts).swapaxes(0, 1)
    panels = np.ascontiguousarray(panels) if worth else panels
    return panels, result.reshape(shape).swapaxes(-3, -2)


def _states(x0: np.ndarray, steps: int, reverse: bool) -> tuple[np.ndarray, ...]:
    """States of all steps with the first one filled in, and views: before and after each step."""
    states = result((steps + 1, *x0.shape), x0.dtype)
    states[-1 if reverse else 0] = x0
    return (states, states[1:], states[:-1]) if reverse else (states, states[:-1], states[1:])


def _blocks(x: np.ndarray, count: int) -> list[np.ndarray]:
    """The blocks of the last axis."""
    size = x.shape[-1] // count
    return [x[..., k * size : (k + 1) * size] for k in range(count)]


def _repeated(rows: int, values: tuple[float, ...], size: int, dtype: Any) -> np.ndarray:
    """A matrix with a value in each block of columns."""
    return np.repeat(np.repeat(np.array([values], dtype), size, axis=1), rows, axis=0)


def _squash(
    rows: int, scales: tuple[float, ...], size: int, dtype: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift that make gates of ``tanh(a * scale) * scale + shift``: a sigmoid where the
    scale is 1/2, tanh where it is 1."""
    shifts = tuple(1.0 - s for s in scales)
    return _repeated(rows, scales, size, dtype), _repeated(rows, shifts, size, dtype)


def _ended(lengths: np.ndarray, t: int) -> np.ndarray | None:
    """Rows of the sequences that have no step t, None if there are none."""
    rows = np.flatnonzero(lengths <= t)
    return rows if rows.size else None


def _keep(ended: np.ndarray | None, *pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """Put the old state in the place of the new one where a sequence has ended."""
    if ended is not None:
        for new, old in pairs:
            new[ended] = old[ended]
