"""Kernels of convolutions on any number of spatial axes, channels last.

Three kernels, each linear in both of its arrays, and each the derivative of another: ``conv``,
``conv_transpose`` (its transpose by the image) and ``conv_weight`` (its transpose by the weight).
So derivatives of any order stay among them.

What the three have in common. Images are (N, *spatial, C), weights (O, C / groups, *kernel) as in
PyTorch. `stride` and `dilation` are a number for each spatial axis, `padding` a pair for each:
zeros before and after. As in all of deep learning the kernel is not flipped (cross-correlation).
The channels of an image fall into `groups` equal runs, and those of the result likewise; each run
of the result sees one run of the image.

Definitions, like those of ``composites.py``: a backend may override any of them.
"""

from __future__ import annotations

import math

from gpubackprop.backends.composites import Composites
from gpubackprop.backends.primitives import Array, Shape

Padding = tuple[tuple[int, int], ...]


class ConvolutionKernels(Composites):
    """Convolution, its transpose, and its gradient by the weight."""

    def conv(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        stride: Shape,
        padding: Padding,
        dilation: Shape,
        groups: int,
    ) -> Array:
        """y[n, o, j] = bias[j] + sum over k, c of x[n, o * stride + k * dilation - before, c] *
        weight[j, c, k] (Goodfellow et al. 2016, equation 9.6; Dumoulin & Visin 2016, relationship
        15).

        Parameters
        ----------
        x : (N, *spatial, C).
        weight : (O, C / groups, *kernel).
        bias : (O,), or None.

        Returns
        -------
        Array
            (N, *out, O) with ``out`` as ``windows`` has it of the padded x.
        """
        columns, lead = self._columns(x, weight.shape[2:], stride, padding, dilation, groups)
        rows = self.matmul(columns, self._matrix(weight, groups))
        y = self.reshape(self.transpose(rows, (1, 0, 2)), (*lead, weight.shape[0]))
        return y if bias is None else self.add(y, bias)

    def conv_transpose(
        self,
        dy: Array,
        weight: Array,
        spatial: Shape,
        stride: Shape,
        padding: Padding,
        dilation: Shape,
        groups: int,
    ) -> Array:
        """The transpose of ``conv`` by x: the cotangent of x for the cotangent `dy` of y, and the
        forward pass of a transposed convolution (Dumoulin & Visin 2016, section 4).

        Parameters
        ----------
        dy : (N, *out, O).
        weight : (O, C / groups, *kernel).
        spatial : sizes of the result's spatial axes; several have the same ``out``.

        Returns
        -------
        Array
            (N, *spatial, C).
        """
        n, outputs, kernel = len(spatial), weight.shape[0], weight.shape[2:]
        rows = math.prod(dy.shape[: 1 + n])
        split = self.reshape(dy, (rows, groups, outputs // groups))
        columns = self.matmul(
            self.transpose(split, (1, 0, 2)),
            self.transpose(self._matrix(weight, groups), (0, 2, 1)),
        )
        channels = weight.shape[1]
        apart = self.reshape(columns, (groups, rows, math.prod(kernel), channels))
        seen = self.reshape(
            self.transpose(apart, (1, 2, 0, 3)),
            (*dy.shape[: 1 + n], *kernel, groups * channels),
        )
        padded = tuple(s + a + b for s, (a, b) in zip(spatial, padding, strict=True))
        dx = self.scatter_windows(seen, padded, stride, dilation)
        if padded == spatial:
            return dx
        inner = (slice(a, a + s) for s, (a, _) in zip(spatial, padding, strict=True))
        return self.getitem(dx, (slice(None), *inner))

    def conv_weight(
        self,
        x: Array,
        dy: Array,
        kernel: Shape,
        stride: Shape,
        padding: Padding,
        dilation: Shape,
        groups: int,
    ) -> Array:
        """The transpose of ``conv`` by the weight: its cotangent for the cotangent `dy` of y.

        Parameters
        ----------
        x : (N, *spatial, C).
        dy : (N, *out, O).
        kernel : sizes of the weight's spatial axes.

        Returns
        -------
        Array
            (O, C / groups, *kernel).
        """
        columns, lead = self._columns(x, kernel, stride, padding, dilation, groups)
        outputs, channels = dy.shape[-1], x.shape[-1] // groups
        split = self.reshape(dy, (math.prod(lead), groups, outputs // groups))
        found = self.matmul(self.transpose(split, (1, 2, 0)), columns)
        apart = self.reshape(found, (outputs, math.prod(kernel), channels))
        return self.reshape(self.transpose(apart, (0, 2, 1)), (outputs, channels, *kernel))

    def _columns(
        self,
        x: Array,
        kernel: Shape,
        stride: Shape,
        padding: Padding,
        dilation: Shape,
        groups: int,
    ) -> tuple[Array, Shape]:
        """What each window sees, (groups, N * out, kernel * C / groups), and (N, *out)."""
        if any(width for pair in padding for width in pair):
            x = self.pad(x, ((0, 0), *padding, (0, 0)))
        seen = self.windows(x, kernel, stride, dilation)
        lead = seen.shape[: 1 + len(kernel)]
        rows, places, channels = math.prod(lead), math.prod(kernel), x.shape[-1] // groups
        split = self.reshape(seen, (rows, places, groups, channels))
        apart = self.transpose(split, (2, 0, 1, 3))
        return self.reshape(apart, (groups, rows, places * channels)), lead

    def _matrix(self, weight: Array, groups: int) -> Array:
        """The weight as matrices that columns are multiplied by, (groups, kernel * C / groups, O /
        groups)."""
        outputs, channels = weight.shape[0] // groups, weight.shape[1]
        places = math.prod(weight.shape[2:])
        split = self.reshape(weight, (groups, outputs, channels, places))
        apart = self.transpose(split, (0, 3, 2, 1))
        return self.reshape(apart, (groups, places * channels, outputs))
