"""Kernels that join a product with the kernels before or after it.

No rule calls them. A compiled step has them in the place of the others, where its backend says by
``joins`` that it makes them without the passes over memory in between.
"""

from __future__ import annotations

import math

import numpy as np

from gpubackprop.backends.composites import Composites
from gpubackprop.backends.primitives import Array, Shape

MASK = 128
"""A row of the mask of a relu has a multiple of this many bits."""


def mask_shape(shape: Shape) -> Shape:
    """Shape of the mask (uint8) of a relu whose result has `shape`: a row of bits for each row."""
    return math.prod(shape[:-1]), -(-shape[-1] // MASK) * MASK // 8


class JoinedKernels(Composites):
    """Products with their activations and sums."""

    def linear_activation(
        self, x: Array, weight: Array, bias: Array | None, activation: str, keep: bool = False
    ) -> tuple[Array, Array | None]:
        """``activation(linear(x, weight, bias))`` for ``"relu"`` and ``"gelu_tanh"``.

        Returns
        -------
        y : the result.
        kept : what ``matmul_activation_backward`` is given, None unless `keep`: what gelu_tanh was
            applied to, or for relu a mask of ``mask_shape(y.shape)``, uint8, which only a kernel of
            the same backend can read (here it is empty).
        """
        z = self.linear(x, weight, bias)
        if activation == "relu":
            y = self.relu(z)
            return y, self.zeros(mask_shape(y.shape), np.uint8) if keep else None
        return self.gelu_tanh(z), z if keep else None

    def matmul_activation_backward(
        self,
        x1: Array,
        x2: Array,
        value: Array,
        kept: Array | None,
        activation: str,
        summed: bool = False,
    ) -> tuple[Array, Array | None]:
        """The cotangent of what an activation was applied to, of ``x1 @ x2``, that of its result.

        Parameters
        ----------
        x1, x2 : (..., k) and (k, n).
        value : (..., n), what the slope is computed from: y for ``"relu"``, z for ``"gelu_tanh"``.
        kept : the mask that ``linear_activation`` gave beside y, for ``"relu"``; or None.
        summed : whether the sum over all axes but the last is wanted too: a bias's cotangent.

        Returns
        -------
        dz, total : (..., n), and (n,) or None.
        """
        dy = self.matmul(x1, x2)
        relu = activation == "relu"
        dz = self.relu_backward(dy, value) if relu else self.gelu_tanh_backward(dy, value)
        return dz, self.sum(dz, axis=tuple(range(dz.ndim - 1))) if summed else None

    def matmul_row_sums(self, x1: Array, x2: Array) -> tuple[Array, Array]:
        """``x1 @ x2`` and the sums of the rows of x1, for x1 (m, k) and x2 (k, n): the cotangents
        of a weight and a bias, where x1 is the transpose of the result's."""
        return self.matmul(x1, x2), self.sum(x1, axis=1)
