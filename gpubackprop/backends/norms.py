"""Kernels of normalisation: over a batch, over groups of channels, over the last axes, and by the
root mean square.

Definitions, like those of ``composites.py``: a backend may override any of them. Arrays are
channels last, (N, *spatial, C); layer norm and the root mean square take any.
"""

from __future__ import annotations

import math
from typing import Any

from gpubackprop.backends.composites import Composites, is_half
from gpubackprop.backends.primitives import Array, Shape


class NormKernels(Composites):
    """Kernels of normalisation."""

    # Over the batch.
    def batch_norm(
        self, x: Array, weight: Array | None, bias: Array | None, eps: float
    ) -> tuple[Array, Array, Array, Array]:
        """(x - mean) / sqrt(var + eps) * weight + bias for each channel, with mean and variance
        over all axes but the last (Ioffe & Szegedy 2015, algorithm 1).

        Returns
        -------
        y, mean, var, rstd : the result, of half precision where x is, whatever weight and bias are;
            the channels' mean, their variance (divided by n) and 1/sqrt(var + eps), each (C,) and
            in float32 at least.
        """
        if is_half(x):
            wide, scale, shift = self._wide(x), self._wide(weight), self._wide(bias)
            y, mean, var, rstd = self.batch_norm(wide, scale, shift, eps)
            return self.astype(y, x.dtype), mean, var, rstd
        y, *moments = self._standardized(x, tuple(range(x.ndim - 1)), eps)
        mean, var, rstd = (self.reshape(m, x.shape[-1:]) for m in moments)
        return self._scaled(y, weight, bias), mean, var, rstd

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
        """Cotangents of x, of the weight and of the bias, from those of y and, where given, of the
        channels' mean and variance.

        With xhat = (x - mean) * rstd: dbias = sum(dy), dweight = sum(dy * xhat) and, for each
        channel of n values, dx = weight * rstd * (dy - dbias / n - xhat * dweight / n) + dmean / n
        + 2 * (x - mean) * dvar / n. Those of weight and bias are in float32 at least.
        """
        if is_half(x):
            out, wide, scale = self._wide(dy), self._wide(x), self._wide(weight)
            found = self.batch_norm_backward(out, wide, scale, mean, rstd, dmean, dvar)
            return self.astype(found[0], x.dtype), *found[1:]
        over = tuple(range(x.ndim - 1))
        centred = self.subtract(x, mean)
        xhat = self.multiply(centred, rstd)
        dx = self._standardized_backward(self._scaled(dy, weight, None), xhat, rstd, over)
        n = self.count(x.shape, over)
        if dvar is not None:
            dx = self.add(dx, self.multiply(centred, self.divide(dvar, n / 2)))
        if dmean is not None:
            dx = self.add(dx, self.divide(dmean, n))
        return dx, self.sum(self.multiply(dy, xhat), axis=over), self.sum(dy, axis=over)

    def scale_shift(self, x: Array, scale: Array, shift: Array | None = None) -> Array:
        """x * scale + shift with a number of each kind for each channel: batch normalisation by
        fixed moments. Of half precision where x is, and rounded once."""
        if is_half(x):
            wide, factor, term = self._wide(x), self._wide(scale), self._wide(shift)
            return self.astype(self.scale_shift(wide, factor, term), x.dtype)
        return self._scaled(x, scale, shift)

    # Over groups of channels.
    def group_norm(
        self, x: Array, weight: Array | None, bias: Array | None, groups: int, eps: float
    ) -> tuple[Array, Array, Array]:
        """(x - mean) / sqrt(var + eps) * weight + bias, with mean and variance over the spatial
        axes and over C / groups neighbouring channels of each sample (Wu & He 2018).

        Returns
        -------
        y, mean, rstd : the result, of half precision where x is, whatever weight and bias are; mean
            and 1/sqrt(var + eps), each (N, groups) and in float32 at least.
        """
        if is_half(x):
            wide, scale, shift = self._wide(x), self._wide(weight), self._wide(bias)
            y, mean, rstd = self.group_norm(wide, scale, shift, groups, eps)
            return self.astype(y, x.dtype), mean, rstd
        xhat, mean, _, rstd = self._standardized(self._grouped(x, groups), (1, 3), eps)
        kept = (x.shape[0], groups)
        y = self._scaled(self.reshape(xhat, x.shape), weight, bias)
        return y, self.reshape(mean, kept), self.reshape(rstd, kept)

    def group_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, groups: int
    ) -> tuple[Array, Array, Array]:
        """Cotangents of x, of the weight and of the bias.

        With xhat = (x - mean) * rstd and g = dy * weight: dx = rstd * (g - mean(g) - xhat * mean(g
        * xhat)) with the means over a group, dweight = sum(dy * xhat) and dbias = sum(dy), both in
        float32 at least.
        """
        if is_half(x):
            out, wide, scale = self._wide(dy), self._wide(x), self._wide(weight)
            found = self.group_norm_backward(out, wide, scale, mean, rstd, groups)
            return self.astype(found[0], x.dtype), *found[1:]
        kept = (x.shape[0], 1, groups, 1)
        mean, rstd = self.reshape(mean, kept), self.reshape(rstd, kept)
        xhat = self.multiply(self.subtract(self._grouped(x, groups), mean), rstd)
        g = self._grouped(self._scaled(dy, weight, None), groups)
        dx = self.reshape(self._standardized_backward(g, xhat, rstd, (1, 3)), x.shape)
        over = tuple(range(x.ndim - 1))
        product = self.multiply(dy, self.reshape(xhat, x.shape))
        return dx, self.sum(product, axis=over), self.sum(dy, axis=over)

    def _grouped(self, x: Array, groups: int) -> Array:
        """x as (N, places, groups, channels of a group)."""
        shape: Shape = x.shape
        places = math.prod(shape[1:-1])
        return self.reshape(x, (shape[0], places, groups, shape[-1] // groups))

    # Normalisation over the last axes.
    def layer_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        axes: int,
        eps: float,
        dtype: Any = None,
    ) -> tuple[Array, Array, Array]:
        """(x - mean) / sqrt(var + eps) * weight + bias over the last `axes` axes (Ba et al. 2016).

        Parameters
        ----------
        dtype : of the result; None: of half precision where x is, whatever weight and bias are. A
            float32 x may have a half result: that of a residual sum which is multiplied next.

        Returns
        -------
        y, mean, rstd : the result, rounded once; mean and 1/sqrt(var + eps) with the normalised
            axes kept at size one, in float32 at least.
        """
        if is_half(x) or dtype is not None:
            wide, scale, shift = self._wide(x), self._wide(weight), self._wide(bias)
            y, mean, rstd = self.layer_norm(wide, scale, shift, axes, eps)
            return self.astype(y, x.dtype if dtype is None else dtype), mean, rstd
        y, mean, _, rstd = self._standardized(x, tuple(range(-axes, 0)), eps)
        return self._scaled(y, weight, bias), mean, rstd

    def layer_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, axes: int
    ) -> tuple[Array, Array, Array]:
        """Cotangents of x, of the weight and of the bias. dy may be of half precision beside a
        float32 x.

        With xhat = (x - mean) * rstd and g = dy * weight: dx = rstd * (g - mean(g) - xhat * mean(g
        * xhat)), in the precision of x; dweight = sum(dy * xhat) and dbias = sum(dy) over the
        leading axes, in float32 at least.
        """
        if is_half(x) or is_half(dy):
            out, wide, scale = self._wide(dy), self._wide(x), self._wide(weight)
            dx, *sums = self.layer_norm_backward(out, wide, scale, mean, rstd, axes)
            return self.astype(dx, x.dtype), sums[0], sums[1]
        over, shape = tuple(range(-axes, 0)), x.shape[x.ndim - axes :]
        xhat = self.multiply(self.subtract(x, mean), rstd)
        dx = self._standardized_backward(self._scaled(dy, weight, None), xhat, rstd, over)
        return dx, self.sum_to(self.multiply(dy, xhat), shape), self.sum_to(dy, shape)

    # By the root mean square.
    def rms_norm(
        self, x: Array, weight: Array | None, axes: int, eps: float, dtype: Any = None
    ) -> tuple[Array, Array]:
        """x / sqrt(mean(x**2) + eps) * weight over the last `axes` axes (Zhang & Sennrich 2019).

        Parameters
        ----------
        dtype : of the result, as for ``layer_norm``.

        Returns
        -------
        y, rstd : the result, rounded once; and 1/sqrt(mean(x**2) + eps) with the normalised axes
            kept at size one, in float32 at least.
        """
        if is_half(x) or dtype is not None:
            y, rstd = self.rms_norm(self._wide(x), self._wide(weight), axes, eps)
            return self.astype(y, x.dtype if dtype is None else dtype), rstd
        power = self.mean(self.square(x), axis=tuple(range(-axes, 0)), keepdims=True)
        rstd = self.reciprocal(self.sqrt(self.add(power, eps)))
        return self._scaled(self.multiply(x, rstd), weight, None), rstd

    def rms_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, rstd: Array, axes: int
    ) -> tuple[Array, Array]:
        """Cotangents of x and of the weight. dy may be of half precision beside a float32 x.

        With xhat = x * rstd and g = dy * weight: dx = rstd * (g - xhat * mean(g * xhat)), in the
        precision of x, and dweight = sum(dy * xhat) over the leading axes, in float32 at least.
        """
        if is_half(x) or is_half(dy):
            out, wide, scale = self._wide(dy), self._wide(x), self._wide(weight)
            dx, dweight = self.rms_norm_backward(out, wide, scale, rstd, axes)
            return self.astype(dx, x.dtype), dweight
        xhat = self.multiply(x, rstd)
        g = self._scaled(dy, weight, None)
        slope = self.mean(self.multiply(g, xhat), axis=tuple(range(-axes, 0)), keepdims=True)
        dx = self.multiply(rstd, self.subtract(g, self.multiply(xhat, slope)))
        return dx, self.sum_to(self.multiply(dy, xhat), x.shape[x.ndim - axes :])

    # What every normalisation shares.
    def _standardized(self, x: Array, over: Shape, eps: float) -> tuple[Array, Array, Array, Array]:
        """(x - mean) / sqrt(var + eps) with the mean and the variance over the axes `over`; then
        mean, var and 1/sqrt(var + eps), with those axes kept at size one."""
        mean = self.mean(x, axis=over, keepdims=True)
        var = self.var(x, axis=over, keepdims=True)
        rstd = self.reciprocal(self.sqrt(self.add(var, eps)))
        return self.multiply(self.subtract(x, mean), rstd), mean, var, rstd

    def _standardized_backward(self, g: Array, xhat: Array, rstd: Array, over: Shape) -> Array:
        """rstd * (g - mean(g) - xhat * mean(g * xhat)): the cotangent of x where g is xhat's."""
        inner = self.add(
            self.mean(g, axis=over, keepdims=True),
            self.multiply(xhat, self.mean(self.multiply(g, xhat), axis=over, keepdims=True)),
        )
        return self.multiply(rstd, self.subtract(g, inner))

    def _scaled(self, x: Array, weight: Array | None, bias: Array | None) -> Array:
        """x * weight + bias, either of which may be absent."""
        if weight is not None:
            x = self.multiply(x, weight)
        return x if bias is None else self.add(x, bias)
