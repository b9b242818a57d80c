"""Kernels of ``norms.py`` on a GPU, faster than by their definition.

Each falls back to its definition where the ``.cu`` source has no version for the arguments.
"""

from __future__ import annotations

import math

import numpy as np

from gpubackprop.backends.cuda import geometry
from gpubackprop.backends.cuda.rows import RowKernels
from gpubackprop.backends.primitives import Array, Shape


class CudaNorm(RowKernels):
    """Overrides of the kernels of ``norms.py``."""

    def batch_norm(
        self, x: Array, weight: Array | None, bias: Array | None, eps: float
    ) -> tuple[Array, Array, Array, Array]:
        element = self._norm_element((x,), (weight, bias))
        if element is None or not x.size or x.ndim < 2:
            return super().batch_norm(x, weight, bias, eps)
        sizes, moments = _as_one_sample(x.shape), x.shape[-1:]
        mean, var, rstd = (self.empty(moments, _wide(element)) for _ in range(3))
        y = self._normalised(element, x, weight, bias, sizes, mean, var, rstd, eps)
        return y, mean, var, rstd

    def batch_norm_backward(
        self,
        dy: Array,
        x: Array,
        weight: Array | None,
        mean: Array,
        rstd: Array,
        dmean: Array | None = None,
        dvar: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        element = self._slopes_element((x, dy), (mean, rstd, dmean, dvar), weight)
        if element is None or not x.size or x.ndim < 2 or dy.shape != x.shape:
            return super().batch_norm_backward(dy, x, weight, mean, rstd, dmean, dvar)
        sizes = _as_one_sample(x.shape)
        return self._cotangents(element, dy, x, weight, mean, rstd, dmean, dvar, sizes)

    def scale_shift(self, x: Array, scale: Array, shift: Array | None = None) -> Array:
        element = self._norm_element((x,), (scale, shift))
        if element is None or not x.size or scale.shape != x.shape[-1:]:
            return super().scale_shift(x, scale, shift)
        x, y = self._packed(x), self.empty(x.shape, x.dtype)
        arrays = (x, *self._widened(element, scale, shift), y)
        rows, channels = x.size // x.shape[-1], x.shape[-1]
        self.kernels.launch("scale_shift", (element,), _places(x), *arrays, rows, channels)
        return y

    def group_norm(
        self, x: Array, weight: Array | None, bias: Array | None, groups: int, eps: float
    ) -> tuple[Array, Array, Array]:
        element = self._element(x, weight, bias)
        if element is None or not x.size:
            return super().group_norm(x, weight, bias, groups, eps)
        sizes, moments = _as_samples(x.shape, groups), (x.shape[0], groups)
        mean, rstd = (self.empty(moments, _wide(element)) for _ in range(2))
        y = self._normalised(element, x, weight, bias, sizes, mean, None, rstd, eps)
        return y, mean, rstd

    def group_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, groups: int
    ) -> tuple[Array, Array, Array]:
        element = self._slopes_element((x, dy, weight), (mean, rstd))
        if element is None or not x.size or dy.shape != x.shape:
            return super().group_norm_backward(dy, x, weight, mean, rstd, groups)
        sizes = _as_samples(x.shape, groups)
        return self._cotangents(element, dy, x, weight, mean, rstd, None, None, sizes)

    def _norm_element(
        self, given: tuple[Array, ...], parameters: tuple[Array | None, ...]
    ) -> str | None:
        """The C++ type of the given arrays' elements where the kernels know it, and the parameters
        are of it or of the type that it is computed in; else None."""
        element = self._element(*given)
        if element is None:
            return None
        mixed = [p for p in parameters if p is not None and p.dtype != given[0].dtype]
        return element if all(p.dtype == _wide(element) for p in mixed) else None

    def _slopes_element(
        self,
        given: tuple[Array | None, ...],
        moments: tuple[Array | None, ...],
        weight: Array | None = None,
    ) -> str | None:
        """The C++ type of the given arrays' elements where the kernels know it, the moments are of
        the type that it is computed in, and the weight of either; else None."""
        element = self._norm_element(given, (weight,))
        if element is None or any(m is not None and m.dtype != _wide(element) for m in moments):
            return None
        return element

    def _widened(self, element: str, *parameters: Array | None) -> list[Array | None]:
        """Numbers of the channels, in the type that elements are computed in."""
        wide = _wide(element)
        return [
            p if p is None or p.dtype == wide else self.astype(p, wide)
            for p in self._all_packed(*parameters)
        ]

    def _normalised(
        self,
        element: str,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        sizes: tuple[int, int, int, int],
        mean: Array,
        var: Array | None,
        rstd: Array,
        eps: float,
    ) -> Array:
        """y; writes the moments."""
        samples, rows, channels, groups = sizes
        x = self._packed(x)
        weight, bias = self._widened(element, weight, bias)
        span, spans, each = _spans(x, samples, rows)
        part = self.empty((2, samples, spans, channels), _wide(element))
        self.kernels.launch(
            "channel_moments", (element,), each, x, part, samples, rows, channels, span
        )
        team, shape = geometry.over_rows(samples * groups, spans * (channels // groups))
        found = (part, mean, var, rstd)
        self.kernels.launch("group_moment", (element, team), shape, *found, *sizes, span, eps)
        y = self.empty(x.shape, x.dtype)
        arrays = (x, mean, rstd, weight, bias, y)
        self.kernels.launch("group_norm", (element,), _places(x), *arrays, *sizes)
        return y

    def _cotangents(
        self,
        element: str,
        dy: Array,
        x: Array,
        weight: Array | None,
        mean: Array,
        rstd: Array,
        dmean: Array | None,
        dvar: Array | None,
        sizes: tuple[int, int, int, int],
    ) -> tuple[Array, Array, Array]:
        """Cotangents of x, of the weight and of the bias."""
        samples, rows, channels, groups = sizes
        dy, x, mean, rstd = self._all_packed(dy, x, mean, rstd)
        (weight,) = self._widened(element, weight)
        dmean, dvar = self._all_packed(dmean, dvar)
        wide = _wide(element)
        span, spans, each = _spans(x, samples, rows)
        part = self.empty((2 * samples, spans, channels), wide)
        given = (dy, x, mean, rstd, part)
        self.kernels.launch("channel_slopes", (element,), each, *given, *sizes, span)
        sums = self.empty((2, samples, channels), wide)
        team, shape = geometry.over_rows(sums.size, spans)
        self.kernels.launch(
            "span_sum", (element, team), shape, part, sums, 2 * samples, spans, channels
        )
        dbias, dweight = sums[0, 0], sums[1, 0]
        if samples > 1:
            dweight, dbias = self.empty((channels,), wide), self.empty((channels,), wide)
            each = geometry.over_column_sums(channels)
            template = ("double" if wide is np.float64 else "float",)
            for total, out in ((sums[0], dbias), (sums[1], dweight)):
                self.kernels.launch("column_sum", template, each, total, out, samples, channels)
        factors = self.empty((2, samples, groups), wide)
        team, shape = geometry.over_rows(samples * groups, channels // groups)
        count = x.size // (samples * groups)
        known = (sums, weight, rstd, dmean, dvar, factors[0], factors[1])
        inner = (samples, channels, groups, count)
        self.kernels.launch("group_slopes", (element, team), shape, *known, *inner)
        dx = self.empty(x.shape, x.dtype)
        arrays = (dy, x, weight, mean, rstd, factors[0], factors[1], dx)
        self.kernels.launch("group_norm_backward", (element,), _places(x), *arrays, *sizes)
        return dx, dweight, dbias

    # Over the last axes.
    def layer_norm(
        self, x: Array, weight: Array | None, bias: Array | None, axes: int, eps: float
    ) -> tuple[Array, Array, Array]:
        element = self._element(x, weight, bias)
        if element is None or not x.size:
            return super().layer_norm(x, weight, bias, axes, eps)
        rows, cols, kept = _as_rows(x.shape, axes)
        y = self.empty(x.shape, x.dtype)
        mean, rstd = (self.empty(kept, _wide(element)) for _ in range(2))
        share = geometry.by_rows(rows, cols, x.dtype.itemsize)
        arrays = (*self._all_packed(x, weight, bias), y, mean, rstd)
        self._launch_rows(
            "layer_norm", (element,), arrays, share, (rows, cols), eps, kept=2, stages=(1, 2, 3)
        )
        return y, mean, rstd

    def layer_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, axes: int
    ) -> tuple[Array, Array]:
        element = self._slopes_element((x, dy, weight), (mean, rstd))
        if element is None or not x.size or dy.shape != x.shape:
            return super().layer_norm_backward(dy, x, weight, mean, rstd, axes)
        rows, cols, _ = _as_rows(x.shape, axes)
        dy, x, weight, mean, rstd = self._all_packed(dy, x, weight, mean, rstd)
        dx, dweight = self.empty(x.shape, x.dtype), self.empty(x.shape[x.ndim - axes :], x.dtype)
        share, sums = self._row_sums(element, rows, cols, x.dtype.itemsize)
        arrays = (dy, x, weight, mean, rstd, dx, sums)
        self._launch_rows("layer_norm_backward", (element,), arrays, share, (rows, cols), kept=2)
        self._by_columns(element, dy, x, mean, rstd, sums, dweight)
        return dx, dweight

    def rms_norm(
        self, x: Array, weight: Array | None, axes: int, eps: float
    ) -> tuple[Array, Array]:
        element = self._element(x, weight)
        if element is None or not x.size:
            return super().rms_norm(x, weight, axes, eps)
        rows, cols, kept = _as_rows(x.shape, axes)
        y, rstd = self.empty(x.shape, x.dtype), self.empty(kept, _wide(element))
        share = geometry.by_rows(rows, cols, x.dtype.itemsize)
        arrays = (*self._all_packed(x, weight), y, rstd)
        self._launch_rows("rms_norm", (element,), arrays, share, (rows, cols), eps)
        return y, rstd

    def rms_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, rstd: Array, axes: int
    ) -> tuple[Array, Array]:
        element = self._slopes_element((x, dy, weight), (rstd,))
        if element is None or not x.size or dy.shape != x.shape:
            return super().rms_norm_backward(dy, x, weight, rstd, axes)
        rows, cols, _ = _as_rows(x.shape, axes)
        dy, x, weight, rstd = self._all_packed(dy, x, weight, rstd)
        dx, dweight = self.empty(x.shape, x.dtype), self.empty(x.shape[x.ndim - axes :], x.dtype)
        share, sums = self._row_sums(element, rows, cols, x.dtype.itemsize)
        arrays = (dy, x, weight, rstd, dx, sums)
        self._launch_rows("rms_norm_backward", (element,), arrays, share, (rows, cols))
        self._by_columns(element, dy, x, None, rstd, sums, dweight)
        return dx, dweight

    def _row_sums(
        self, element: str, rows: int, cols: int, itemsize: int
    ) -> tuple[geometry.RowShare, Array | None]:
        """How rows are shared backwards, and where each block leaves its rows' part of the weight's
        cotangent; None where that takes a pass of its own."""
        share = geometry.by_rows(rows, cols, itemsize)
        if not share.sums_columns(itemsize):
            return share, None
        share = share.in_blocks_of_many()
        return share, self.empty((share.launch.grid, cols), _wide(element))

    def _by_columns(
        self,
        element: str,
        dy: Array,
        x: Array,
        mean: Array | None,
        rstd: Array,
        sums: Array | None,
        dweight: Array,
    ) -> None:
        """The weight's cotangent: the sum of the blocks' parts, or of those of spans of rows."""
        cols = dweight.size
        if sums is None:
            rows = x.size // cols
            span = geometry.row_span(rows)
            sums = self.empty((-(-rows // span), cols), _wide(element))
            shape, arrays = geometry.over(sums.size), (dy, x, mean, rstd, sums)
            self.kernels.launch("layer_norm_weight", (element,), shape, *arrays, rows, cols, span)
        shape = geometry.over_column_sums(cols)
        self.kernels.launch("column_sum", (element,), shape, sums, dweight, len(sums), cols)


def _as_rows(shape: Shape, axes: int) -> tuple[int, int, Shape]:
    """Rows, columns, and the shape with the last `axes` axes at size one."""
    lead = shape[: len(shape) - axes]
    return math.prod(lead), math.prod(shape[len(lead) :]), lead + (1,) * axes


def _as_one_sample(shape: Shape) -> tuple[int, int, int, int]:
    """Samples, rows, channels and groups of batch normalisation."""
    return 1, math.prod(shape[:-1]), shape[-1], shape[-1]


def _as_samples(shape: Shape, groups: int) -> tuple[int, int, int, int]:
    """Samples, rows, channels and groups of group normalisation."""
    return shape[0], math.prod(shape[1:-1]), shape[-1], groups


def _packs(x: Array) -> int:
    """Neighbouring channels that a thread of ``batch_norm.cu`` takes at once."""
    lanes = geometry.PACK_BYTES // x.dtype.itemsize
    return 1 if x.shape[-1] % lanes else lanes


def _spans(x: Array, samples: int, rows: int) -> tuple[int, int, geometry.Launch]:
    """Rows that a thread adds up, how many such spans there are, and the launch. A quarter of the
    threads that other sums take: each has the loads of several rows on their way."""
    columns = samples * x.shape[-1] // _packs(x)
    span = geometry.channel_span(rows, 4 * columns)
    spans = -(-rows // span)
    return span, spans, geometry.over(spans * columns)


def _places(x: Array) -> geometry.Launch:
    """A launch whose threads have four packs each, for which they read their channels' numbers
    once."""
    return geometry.over(-(-x.size // (4 * _packs(x))))


def _wide(element: str) -> type:
    """The type that a kernel computes in."""
    return np.float64 if element == "double" else np.float32
