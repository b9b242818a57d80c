"""Kernels of recurrent networks: all steps of one layer in one call.

Definitions, like those of ``composites.py``: a backend may override any of them.

What the kernels share: `projected` (T, N, G) is what the input gives to the pre-activations of
every step, computed before; `h0` (N, H) is the state at the beginning and `w_hh` (G, H) the weight
of the state, with one row of blocks for each gate. `lengths` (N,), integers, are the numbers of
steps of each sequence, or None where all have T: from its end on, a sequence's state stays as it
is. With `reverse` the steps run from T - 1 to 0, so that a short sequence begins, in state h0, at
its own last step. States are returned as (T + 1, N, H) in the order of time: entry t is the state
between the steps t - 1 and t, and h0 is entry 0, or with `reverse` entry T.
"""

from __future__ import annotations

from typing import Any

from gpubackprop.backends.composites import Composites
from gpubackprop.backends.primitives import Array


def steps_in_order(steps: int, reverse: bool) -> range:
    """The steps in the order in which they run."""
    return range(steps - 1, -1, -1) if reverse else range(steps)


class RecurrentKernels(Composites):
    """Kernels of recurrent networks."""

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
        """h_t = f(projected_t + w_hh h_{t-1}) with f tanh or relu (Elman 1990).

        Returns
        -------
        hidden : (T + 1, N, H), the states.
        """
        h, hidden = h0, [h0]
        for t in steps_in_order(projected.shape[0], reverse):
            new = self.add(self.getitem(projected, t), self.linear(h, w_hh, None))
            new = self.tanh(new) if nonlinearity == "tanh" else self.relu(new)
            h = _where_running(self, lengths, t, new, h)
            hidden.append(h)
        return _stacked(self, hidden, reverse)

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
        """Backpropagation through time (Werbos 1990).

        Parameters
        ----------
        dy : (T, N, H) cotangents of the states after each step, as outputs.
        dh : (N, H) cotangent of the last state.
        hidden : what ``rnn_steps`` returned.

        Returns
        -------
        dprojected, dh0 : cotangents of the pre-activations (T, N, H) and of the first state. From
            the former follow the weights', as one product over all steps.
        """
        found = []
        for t in steps_in_order(dy.shape[0], not reverse):
            y = self.getitem(hidden, t if reverse else t + 1)
            total = self.add(dh, self.getitem(dy, t))
            slope = self.tanh_backward if nonlinearity == "tanh" else self.relu_backward
            d = _where_running(self, lengths, t, slope(total, y), None)
            found.append(d)
            dh = _where_running(self, lengths, t, self.matmul(d, w_hh), dh)
        return _stacked(self, found, not reverse), dh

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
        """c_t = f * c_{t-1} + i * g and h_t = o * tanh(c_t), where the gates i, f, g, o are the
        four blocks of projected_t + w_hh h_{t-1} under sigmoid, and g under tanh (Hochreiter &
        Schmidhuber 1997; the forget gate f: Gers et al. 2000).

        Parameters
        ----------
        c0 : (N, H), the cells at the beginning.

        Returns
        -------
        hidden, cells : (T + 1, N, H), the states.
        gates : (T, N, 4 H), the gates' values in the order i, f, g, o.
        """
        size = h0.shape[-1]
        h, c = h0, c0
        hidden, cells, gates = [h0], [c0], []
        for t in steps_in_order(projected.shape[0], reverse):
            a = self.add(self.getitem(projected, t), self.linear(h, w_hh, None))
            i, f = self.sigmoid(_block(self, a, 0, size)), self.sigmoid(_block(self, a, 1, size))
            g, o = self.tanh(_block(self, a, 2, size)), self.sigmoid(_block(self, a, 3, size))
            new = self.add(self.multiply(f, c), self.multiply(i, g))
            h = _where_running(self, lengths, t, self.multiply(o, self.tanh(new)), h)
            c = _where_running(self, lengths, t, new, c)
            hidden.append(h)
            cells.append(c)
            gates.append(self.concatenate([i, f, g, o], axis=1))
        return (
            _stacked(self, hidden, reverse),
            _stacked(self, cells, reverse),
            _stacked(self, gates, reverse),
        )

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
        """Backpropagation through time; no truncation inside the call.

        Parameters
        ----------
        dy : (T, N, H) cotangents of the states after each step, as outputs.
        dh, dc : (N, H) cotangents of the last state and the last cells.
        cells, gates : what ``lstm_steps`` returned.

        Returns
        -------
        dprojected, dh0, dc0 : cotangents of the pre-activations (T, N, 4 H) and of the first state.
        """
        size = w_hh.shape[1]
        found = []
        for t in steps_in_order(dy.shape[0], not reverse):
            before = self.getitem(cells, t + 1 if reverse else t)
            squashed = self.tanh(self.getitem(cells, t if reverse else t + 1))
            i, f, g, o = (_block(self, self.getitem(gates, t), k, size) for k in range(4))
            total = self.add(dh, self.getitem(dy, t))
            inner = self.add(dc, self.tanh_backward(self.multiply(total, o), squashed))
            d = self.concatenate(
                [
                    self.sigmoid_backward(self.multiply(inner, g), i),
                    self.sigmoid_backward(self.multiply(inner, before), f),
                    self.tanh_backward(self.multiply(inner, i), g),
                    self.sigmoid_backward(self.multiply(total, squashed), o),
                ],
                axis=1,
            )
            d = _where_running(self, lengths, t, d, None)
            found.append(d)
            dh = _where_running(self, lengths, t, self.matmul(d, w_hh), dh)
            dc = _where_running(self, lengths, t, self.multiply(inner, f), dc)
        return _stacked(self, found, not reverse), dh, dc

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
        """h_t = (1 - z) * n + z * h_{t-1} with the gates r and z, sigmoids of the first two blocks
        of projected_t + w_hh h_{t-1} + b_hh, and n = tanh(p + r * q), where p and q are the third
        blocks of projected_t and of w_hh h_{t-1} + b_hh (Cho et al. 2014, with the reset gate after
        the product).

        Returns
        -------
        hidden : (T + 1, N, H), the states.
        gates : (T, N, 3 H), the values of r, z and n.
        inner : (T, N, H), the values of q.
        """
        size = h0.shape[-1]
        h = h0
        hidden, gates, inner = [h0], [], []
        for t in steps_in_order(projected.shape[0], reverse):
            p, q = self.getitem(projected, t), self.linear(h, w_hh, b_hh)
            r, z = (
                self.sigmoid(self.add(_block(self, p, k, size), _block(self, q, k, size)))
                for k in range(2)
            )
            q = _block(self, q, 2, size)
            n = self.tanh(self.add(_block(self, p, 2, size), self.multiply(r, q)))
            new = self.add(n, self.multiply(z, self.subtract(h, n)))
            h = _where_running(self, lengths, t, new, h)
            hidden.append(h)
            gates.append(self.concatenate([r, z, n], axis=1))
            inner.append(q)
        return (
            _stacked(self, hidden, reverse),
            _stacked(self, gates, reverse),
            _stacked(self, inner, reverse),
        )

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
        """Backpropagation through time.

        Parameters
        ----------
        dy : (T, N, H) cotangents of the states after each step, as outputs.
        dh : (N, H) cotangent of the last state.
        hidden, gates, inner : what ``gru_steps`` returned.

        Returns
        -------
        dprojected : (T, N, 3 H), cotangent of what the input gave.
        drecurrent : (T, N, 3 H), cotangent of ``w_hh h + b_hh``: the same but for the third block,
            which the reset gate multiplies.
        dh0 : (N, H), cotangent of the first state.
        """
        size = w_hh.shape[1]
        found, recurrent = [], []
        for t in steps_in_order(dy.shape[0], not reverse):
            before = self.getitem(hidden, t + 1 if reverse else t)
            r, z, n = (_block(self, self.getitem(gates, t), k, size) for k in range(3))
            total = self.add(dh, self.getitem(dy, t))
            dn = self.tanh_backward(self.multiply(total, self.subtract(1.0, z)), n)
            dz = self.sigmoid_backward(self.multiply(total, self.subtract(before, n)), z)
            dr = self.sigmoid_backward(self.multiply(dn, self.getitem(inner, t)), r)
            d = _where_running(self, lengths, t, self.concatenate([dr, dz, dn], axis=1), None)
            dq = self.concatenate([dr, dz, self.multiply(dn, r)], axis=1)
            dq = _where_running(self, lengths, t, dq, None)
            found.append(d)
            recurrent.append(dq)
            through = self.add(self.multiply(total, z), self.matmul(dq, w_hh))
            dh = _where_running(self, lengths, t, through, dh)
        return _stacked(self, found, not reverse), _stacked(self, recurrent, not reverse), dh


# What the definitions share.


def _block(K: Composites, x: Array, k: int, size: int) -> Array:
    """Block k of the columns of a matrix."""
    return K.getitem(x, (slice(None), slice(k * size, (k + 1) * size)))


def _stacked(K: Composites, arrays: list[Any], reverse: bool) -> Array:
    """Arrays of one shape along a new first axis."""
    rows = [K.reshape(a, (1, *a.shape)) for a in arrays]
    return K.concatenate(rows[::-1] if reverse else rows, axis=0)


def _where_running(
    K: Composites, lengths: Array | None, t: int, new: Array, old: Array | None
) -> Array:
    """`new` for the sequences that have a step t, and for the others `old` (None: zeros)."""
    if lengths is None:
        return new
    running = K.greater(K.reshape(lengths, (lengths.shape[0], 1)), t)
    return K.where(running, new, 0.0 if old is None else old)
