"""Kernels of ``norms.py`` on a GPU, faster than by their definition.

Each falls back to its definition where the ``.cu`` source has no version for the arguments.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubackprop.backends.cuda import geometry
from gpubackprop.backends.cuda.rows import RowKernels
from gpubackprop.backends.cuda.sources import FLOATS
from gpubackprop.backends.primitives import Array, Shape


class CudaNorm(RowKernels):
    """Overrides of the kernels of ``norms.py``."""

    rounds_norms = True

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
        element = self._norm_element((x,), (weight, bias))
        if element is None or not x.size:
            return super().group_norm(x, weight, bias, groups, eps)
        sizes, moments = _as_samples(x.shape, groups), (x.shape[0], groups)
        mean, rstd = (self.empty(moments, _wide(element)) for _ in range(2))
        y = self._normalised(element, x, weight, bias, sizes, mean, None, rstd, eps)
        return y, mean, rstd

    def group_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, groups: int
    ) -> tuple[Array, Array, Array]:
        element = self._slopes_element((x, dy), (mean, rstd), weight)
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
            template = (_wide_element(element),)
            for total, out in ((sums[0], dbias), (sums[1], dweight)):
                size = samples, channels, channels
                self.kernels.launch("column_sum", template, each, total, out, None, *size)
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
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        axes: int,
        eps: float,
        dtype: Any = None,
    ) -> tuple[Array, Array, Array]:
        types = self._row_types(x, dtype, (weight, bias))
        if types is None or not x.size:
            return super().layer_norm(x, weight, bias, axes, eps, dtype)
        rows, cols, kept = _as_rows(x.shape, axes)
        y = self.empty(x.shape, x.dtype if dtype is None else dtype)
        mean, rstd = (self.empty(kept, _wide(types[0])) for _ in range(2))
        share = geometry.by_rows(rows, cols, x.dtype.itemsize)
        arrays = (self._packed(x), *self._widened(types[0], weight, bias), y, mean, rstd)
        self._launch_rows(
            "layer_norm", types, arrays, share, (rows, cols), eps, kept=2, stages=(1, 2, 3)
        )
        return y, mean, rstd

    def layer_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, axes: int
    ) -> tuple[Array, Array, Array]:
        types = self._row_types(x, dy.dtype, (weight,), (mean, rstd))
        if types is None or not x.size or dy.shape != x.shape:
            return super().layer_norm_backward(dy, x, weight, mean, rstd, axes)
        moments = (mean, rstd)
        dx, dweight, dbias = self._row_cotangents(
            "layer_norm_backward", types, dy, x, weight, moments, axes
        )
        return dx, dweight, dbias

    def rms_norm(
        self, x: Array, weight: Array | None, axes: int, eps: float, dtype: Any = None
    ) -> tuple[Array, Array]:
        types = self._row_types(x, dtype, (weight,))
        if types is None or not x.size:
            return super().rms_norm(x, weight, axes, eps, dtype)
        rows, cols, kept = _as_rows(x.shape, axes)
        y = self.empty(x.shape, x.dtype if dtype is None else dtype)
        rstd = self.empty(kept, _wide(types[0]))
        share = geometry.by_rows(rows, cols, x.dtype.itemsize)
        arrays = (self._packed(x), *self._widened(types[0], weight), y, rstd)
        self._launch_rows("rms_norm", types, arrays, share, (rows, cols), eps)
        return y, rstd

    def rms_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, rstd: Array, axes: int
    ) -> tuple[Array, Array]:
        types = self._row_types(x, dy.dtype, (weight,), (rstd,))
        if types is None or not x.size or dy.shape != x.shape:
            return super().rms_norm_backward(dy, x, weight, rstd, axes)
        dx, dweight = self._row_cotangents("rms_norm_backward", types, dy, x, weight, (rstd,), axes)
        return dx, dweight

    def _row_types(
        self,
        x: Array,
        dtype: Any,
        parameters: tuple[Array | None, ...],
        moments: tuple[Array, ...] = (),
    ) -> tuple[str, str] | None:
        """The C++ types of the result's elements, or of its cotangent's, and of x's, where the
        kernels know them together; else None."""
        given = self._norm_element((x,), parameters)
        dtype = x.dtype if dtype is None else np.dtype(dtype)
        made = FLOATS.get(dtype.name)
        if given is None or made is None or any(m.dtype != _wide(given) for m in moments):
            return None
        rounded = given == "float" and dtype.itemsize < 4
        return (made, given) if made == given or rounded else None

    def _row_cotangents(
        self,
        kernel: str,
        types: tuple[str, str],
        dy: Array,
        x: Array,
        weight: Array | None,
        moments: tuple[Array, ...],
        axes: int,
    ) -> tuple[Array, ...]:
        """The cotangents of x and of the parameters, one for each kind of moments. Each block
        leaves its rows' part of the latter where it has room; else they take a pass of their
        own."""
        rows, cols, _ = _as_rows(x.shape, axes)
        dy, x = self._all_packed(dy, x)
        moments = tuple(self._all_packed(*moments))
        (weight,) = self._widened(types[0], weight)
        wide, itemsize = _wide(types[0]), x.dtype.itemsize
        dx, width = self.empty(x.shape, x.dtype), len(moments) * cols
        share, sums = geometry.by_rows(rows, cols, itemsize), None
        if share.sums_columns(itemsize):
            share = share.in_blocks_of_many()
            sums = self.empty((share.launch.grid, width), wide)
        arrays = (dy, x, weight, *moments, dx, sums)
        self._launch_rows(kernel, types, arrays, share, (rows, cols), kept=len(moments))
        if sums is None:
            span = geometry.row_span(rows)
            sums = self.empty((-(-rows // span), width), wide)
            mean, rstd = (None, *moments)[-2:]
            arrays, launch = (dy, x, mean, rstd, sums), geometry.over(len(sums) * cols)
            self.kernels.launch("layer_norm_weight", types, launch, *arrays, rows, cols, span)
        found = [self.empty(x.shape[x.ndim - axes :], wide) for _ in moments]
        launch, template = geometry.over_column_sums(width), (_wide_element(types[0]),)
        arrays = (sums, found[0], found[1] if len(found) > 1 else None)
        self.kernels.launch("column_sum", template, launch, *arrays, len(sums), width, cols)
        return dx, *found


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
    return geometry.lanes_of(x.shape[-1], x.dtype.itemsize)


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


def _wide_element(element: str) -> str:
    """The same in C++."""
    return "double" if element == "double" else "float"
