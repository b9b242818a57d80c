"""Kernels of ``recurrent.py`` on a GPU, faster than by their definition.

A step is a matrix product and one kernel for all that follows it. The loop over the steps is here,
on the host, which waits for nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.cuda import geometry
from gpubackprop.backends.cuda.arrays import DeviceArrays
from gpubackprop.backends.primitives import Array
from gpubackprop.backends.recurrent import steps_in_order


class CudaRecurrent(DeviceArrays):
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
        element = self._element(projected, h0, w_hh)
        if element is None or not h0.size:
            return super().rnn_steps(projected, h0, w_hh, lengths, nonlinearity, reverse)
        hidden, before, after = _states(self, h0, projected.shape[0], reverse)
        projected, ends = self._packed(projected), _ends(self, lengths)
        for t in steps_in_order(projected.shape[0], reverse):
            self.matmul(before[t], w_hh.T, out=after[t])
            arrays = (projected[t], ends, before[t], after[t])
            _step(self, "rnn_step", element, arrays, t, h0.shape, int(nonlinearity == "relu"))
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
        element = self._element(hidden, dy, dh, w_hh)
        if element is None or not dh.size:
            return super().rnn_steps_backward(dy, dh, w_hh, hidden, lengths, nonlinearity, reverse)
        after, dy, ends = _after(self, hidden, reverse), self._packed(dy), _ends(self, lengths)
        d = self.empty(dy.shape, dy.dtype)
        through, carry = _cotangents(self, dh, lengths is not None)
        for t in steps_in_order(dy.shape[0], not reverse):
            arrays = (dy[t], after[t], ends, through, carry, d[t])
            relu = int(nonlinearity == "relu")
            _step(self, "rnn_step_backward", element, arrays, t, dh.shape, relu)
            self.matmul(d[t], w_hh, out=through)
        return d, _whole(self, through, carry)

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
        element = self._element(projected, h0, c0, w_hh)
        if element is None or not h0.size:
            return super().lstm_steps(projected, h0, c0, w_hh, lengths, reverse)
        hidden, h_before, h_after = _states(self, h0, projected.shape[0], reverse)
        cells, c_before, c_after = _states(self, c0, projected.shape[0], reverse)
        projected, ends = self._packed(projected), _ends(self, lengths)
        gates = self.empty(projected.shape, projected.dtype)
        for t in steps_in_order(projected.shape[0], reverse):
            self.matmul(h_before[t], w_hh.T, out=gates[t])
            states = (h_before[t], c_before[t], gates[t], h_after[t], c_after[t])
            _step(self, "lstm_step", element, (projected[t], ends, *states), t, h0.shape)
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
        element = self._element(gates, dy, dh, dc, w_hh, cells)
        if element is None or not dh.size:
            return super().lstm_steps_backward(dy, dh, dc, w_hh, cells, gates, lengths, reverse)
        before, after = _after(self, cells, not reverse), _after(self, cells, reverse)
        dy, gates, ends = self._packed(dy), self._packed(gates), _ends(self, lengths)
        d, dc = self.empty(gates.shape, gates.dtype), self.copy(dc)
        through, carry = _cotangents(self, dh, lengths is not None)
        for t in steps_in_order(dy.shape[0], not reverse):
            arrays = (dy[t], gates[t], before[t], after[t], ends, through, carry, dc, d[t])
            _step(self, "lstm_step_backward", element, arrays, t, dh.shape)
            self.matmul(d[t], w_hh, out=through)
        return d, _whole(self, through, carry), dc

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
        element = self._element(projected, h0, w_hh, b_hh)
        if element is None or not h0.size:
            return super().gru_steps(projected, h0, w_hh, b_hh, lengths, reverse)
        hidden, before, after = _states(self, h0, projected.shape[0], reverse)
        projected, ends = self._packed(projected), _ends(self, lengths)
        bias = None if b_hh is None else self._packed(b_hh)
        gates = self.empty(projected.shape, h0.dtype)
        inner = self.empty((projected.shape[0], *h0.shape), h0.dtype)
        product = self.empty(projected.shape[1:], h0.dtype)
        for t in steps_in_order(projected.shape[0], reverse):
            self.matmul(before[t], w_hh.T, out=product)
            given = (projected[t], product, bias, ends, before[t])
            _step(self, "gru_step", element, (*given, gates[t], inner[t], after[t]), t, h0.shape)
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
        element = self._element(gates, dy, dh, w_hh, hidden, inner)
        if element is None or not dh.size:
            return super().gru_steps_backward(dy, dh, w_hh, hidden, gates, inner, lengths, reverse)
        before, dy, ends = _after(self, hidden, not reverse), self._packed(dy), _ends(self, lengths)
        gates, inner = self._packed(gates), self._packed(inner)
        d, dq = self.empty(gates.shape, dy.dtype), self.empty(gates.shape, dy.dtype)
        through, carry = _cotangents(self, dh, True)
        for t in steps_in_order(dy.shape[0], not reverse):
            kept = (before[t], gates[t], inner[t], ends)
            arrays = (dy[t], *kept, through, carry, d[t], dq[t])
            _step(self, "gru_step_backward", element, arrays, t, dh.shape)
            self.matmul(dq[t], w_hh, out=through)
        return d, dq, _whole(self, through, carry)


# What the three share.


def _step(
    K: DeviceArrays,
    kernel: str,
    element: str,
    arrays: tuple[Any, ...],
    t: int,
    shape: tuple[int, ...],
    *more: int,
) -> None:
    batch, size = shape
    K.kernels.launch(
        kernel, (element,), geometry.over(batch * size), *arrays, t, batch, size, *more
    )


def _states(K: DeviceArrays, x0: Array, steps: int, reverse: bool) -> tuple[Array, Array, Array]:
    """States of all steps with the first one filled in, and views: before and after each step."""
    states = K.empty((steps + 1, *x0.shape), x0.dtype)
    K.copyto(states[steps if reverse else 0], x0)
    return states, _after(K, states, not reverse), _after(K, states, reverse)


def _after(K: DeviceArrays, states: Array, reverse: bool) -> Array:
    """The states after each step."""
    packed = K._packed(states)
    return packed[:-1] if reverse else packed[1:]


def _ends(K: DeviceArrays, lengths: Array | None) -> Array | None:
    return None if lengths is None else K._packed(K.astype(lengths, np.int64))


def _cotangents(K: DeviceArrays, dh: Array, carries: bool) -> tuple[Array, Array | None]:
    """Buffers for the parts of the state's cotangent: through the next product, and past it."""
    return K.copy(dh), K.zeros(dh.shape, dh.dtype) if carries else None


def _whole(K: DeviceArrays, through: Array, carry: Array | None) -> Array:
    return through if carry is None else K.add(through, carry, out=through)
