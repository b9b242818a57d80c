"""Composite kernels as one CUDA kernel each, in place of a chain of elementwise passes.

Each falls back to its definition where the ``.cu`` source has no version for the arguments (another
dtype, another axis).
"""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.cuda import geometry, sources
from gpubackprop.backends.cuda.arrays import cpp_float
from gpubackprop.backends.cuda.rows import RowKernels
from gpubackprop.backends.primitives import Array


class FusedKernels(RowKernels):
    """Activations, softmax, cross-entropy and dropout's derivative."""

    def _last_axis(self, x: Array, axis: int) -> bool:
        return x.ndim > 0 and x.size > 0 and axis in (-1, x.ndim - 1)

    # Activations.
    def _activate(self, function: str, x: Array, parameter: float = 0.0) -> Array:
        x = self._packed(x)
        y = self.empty(x.shape, x.dtype)
        if x.size:
            template = (cpp_float(x.dtype), function)
            shape = geometry.over_packs(x.size, x.dtype.itemsize)
            self.kernels.launch("activation", template, shape, x, y, x.size, parameter)
        return y

    def _slope(self, function: str, dy: Array, x: Array, parameter: float = 0.0) -> Array:
        dy, x = self._packed(dy), self._packed(x)
        dx = self.empty(x.shape, x.dtype)
        if x.size:
            template = (cpp_float(x.dtype), function)
            shape = geometry.over_packs(x.size, x.dtype.itemsize)
            self.kernels.launch(
                "activation_backward", template, shape, dy, x, dx, x.size, parameter
            )
        return dx

    def _fits(self, x: Array) -> bool:
        return self._element(x) is not None

    def _pair_fits(self, dy: Array, x: Array) -> bool:
        return self._element(dy, x) is not None and dy.shape == x.shape

    def sigmoid(self, x: Array) -> Array:
        return self._activate("Sigmoid", x) if self._fits(x) else super().sigmoid(x)

    def sigmoid_backward(self, dy: Array, y: Array) -> Array:
        return (
            self._slope("Sigmoid", dy, y)
            if self._pair_fits(dy, y)
            else super().sigmoid_backward(dy, y)
        )

    def tanh_backward(self, dy: Array, y: Array) -> Array:
        return (
            self._slope("Tanh", dy, y) if self._pair_fits(dy, y) else super().tanh_backward(dy, y)
        )

    def relu_backward(self, dy: Array, y: Array) -> Array:
        return (
            self._slope("Relu", dy, y) if self._pair_fits(dy, y) else super().relu_backward(dy, y)
        )

    def leaky_relu(self, x: Array, negative_slope: float = 0.01) -> Array:
        if not self._fits(x):
            return super().leaky_relu(x, negative_slope)
        return self._activate("LeakyRelu", x, negative_slope)

    def leaky_relu_backward(self, dy: Array, x: Array, negative_slope: float = 0.01) -> Array:
        if not self._pair_fits(dy, x):
            return super().leaky_relu_backward(dy, x, negative_slope)
        return self._slope("LeakyRelu", dy, x, negative_slope)

    def elu(self, x: Array, alpha: float = 1.0) -> Array:
        return self._activate("Elu", x, alpha) if self._fits(x) else super().elu(x, alpha)

    def elu_backward(self, dy: Array, x: Array, alpha: float = 1.0) -> Array:
        if not self._pair_fits(dy, x):
            return super().elu_backward(dy, x, alpha)
        return self._slope("Elu", dy, x, alpha)

    def gelu(self, x: Array) -> Array:
        return self._activate("Gelu", x) if self._fits(x) else super().gelu(x)

    def gelu_backward(self, dy: Array, x: Array) -> Array:
        return (
            self._slope("Gelu", dy, x) if self._pair_fits(dy, x) else super().gelu_backward(dy, x)
        )

    def gelu_tanh(self, x: Array) -> Array:
        return self._activate("GeluTanh", x) if self._fits(x) else super().gelu_tanh(x)

    def gelu_tanh_backward(self, dy: Array, x: Array) -> Array:
        if not self._pair_fits(dy, x):
            return super().gelu_tanh_backward(dy, x)
        return self._slope("GeluTanh", dy, x)

    def silu(self, x: Array) -> Array:
        return self._activate("Silu", x) if self._fits(x) else super().silu(x)

    def silu_backward(self, dy: Array, x: Array) -> Array:
        return (
            self._slope("Silu", dy, x) if self._pair_fits(dy, x) else super().silu_backward(dy, x)
        )

    def softplus(self, x: Array) -> Array:
        return self._activate("Softplus", x) if self._fits(x) else super().softplus(x)

    def dropout_backward(self, dy: Array, keep: Array, p: float) -> Array:
        element = self._element(dy)
        if element is None or keep.shape != dy.shape or keep.dtype != np.bool_:
            return super().dropout_backward(dy, keep, p)
        dx = self.empty(dy.shape, dy.dtype)
        if dy.size:
            scale = 0.0 if p >= 1.0 else 1.0 / (1.0 - p)
            arrays = (self._packed(dy), self._packed(keep), dx)
            shape = geometry.over_packs(dy.size, dy.dtype.itemsize)
            self.kernels.launch("dropout_backward", (element,), shape, *arrays, dy.size, scale)
        return dx

    # Softmax and log-softmax along the last axis.
    def _by_rows(self, kernel: str, *arrays: Array) -> Array:
        packed = [self._packed(a) for a in arrays]
        out = self.empty(packed[0].shape, packed[0].dtype)
        cols = out.shape[-1]
        rows = out.size // cols
        element, kept = sources.FLOATS[out.dtype.name], 1 if kernel.endswith("backward") else 2
        share = geometry.by_rows(rows, cols, out.dtype.itemsize)
        self._launch_rows(kernel, (element,), (*packed, out), share, (rows, cols), kept=kept)
        return out

    def softmax(self, x: Array, axis: int = -1) -> Array:
        if self._fits(x) and self._last_axis(x, axis):
            return self._by_rows("softmax", x)
        return super().softmax(x, axis)

    def softmax_backward(self, dy: Array, y: Array, axis: int = -1) -> Array:
        if self._pair_fits(dy, y) and self._last_axis(y, axis):
            return self._by_rows("softmax_backward", dy, y)
        return super().softmax_backward(dy, y, axis)

    def log_softmax(self, x: Array, axis: int = -1) -> Array:
        if self._fits(x) and self._last_axis(x, axis):
            return self._by_rows("log_softmax", x)
        return super().log_softmax(x, axis)

    def log_softmax_backward(self, dy: Array, y: Array, axis: int = -1) -> Array:
        if self._pair_fits(dy, y) and self._last_axis(y, axis):
            return self._by_rows("log_softmax_backward", dy, y)
        return super().log_softmax_backward(dy, y, axis)

    # Cross-entropy of logits with class indices.
    def softmax_cross_entropy(
        self,
        x: Array,
        target: Array,
        weight: Array | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> tuple[Array, Array, Array]:
        weight = self._of_classes(x, weight)
        template = self._cross_entropy_template(x, target, weight)
        if template is None:
            return super().softmax_cross_entropy(x, target, weight, ignore_index, label_smoothing)
        (rows, cols), wide = x.shape, wide_of(x.dtype)
        results = [self.empty((rows,), wide) for _ in range(3)]
        arrays = (*self._all_packed(x, target, weight), *results)
        # Without smoothing a row is read once, and its cost is that of one element.
        passes, stages = (2, (1, 2, 3)) if label_smoothing else (1, (1, 2))
        share = geometry.by_rows(rows, cols, x.dtype.itemsize, passes)
        options = (ignore_index, label_smoothing)
        self._launch_rows(
            "cross_entropy", template, arrays, share, (rows, cols), *options, kept=3, stages=stages
        )
        return results[0], results[1], results[2]

    def softmax_cross_entropy_backward(
        self,
        dy: Array,
        x: Array,
        top: Array,
        total: Array,
        target: Array,
        weight: Array | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> Array:
        weight = self._of_classes(x, weight)
        template, wide = self._cross_entropy_template(x, target, weight), wide_of(x.dtype)
        if template is None or any(a.dtype != wide for a in (dy, top, total)):
            return super().softmax_cross_entropy_backward(
                dy, x, top, total, target, weight, ignore_index, label_smoothing
            )
        (rows, cols), dx = x.shape, self.empty(x.shape, x.dtype)
        arrays = (*self._all_packed(dy, x, top, total, target, weight), dx)
        share = geometry.by_rows(rows, cols, x.dtype.itemsize, passes=1)
        # A target's sum over the classes is known, but for weights of which each has a part.
        options, adds_up = (ignore_index, label_smoothing), label_smoothing and weight is not None
        stages = (1, 2) if adds_up else (2,)
        self._launch_rows(
            "cross_entropy_backward", template, arrays, share, (rows, cols), *options, stages=stages
        )
        return dx

    def _of_classes(self, x: Array, weight: Array | None) -> Array | None:
        """Weights of the classes, narrower ones in the type that logits are computed with in."""
        wide = wide_of(x.dtype)
        if weight is None or weight.dtype.itemsize >= wide.itemsize:
            return weight
        return self.astype(weight, wide)

    def _cross_entropy_template(
        self, x: Array, target: Array, weight: Array | None
    ) -> tuple[str, str] | None:
        """The C++ types of the elements and of the target where the kernels know them."""
        element, index = self._element(x), sources.INDICES.get(target.dtype.name)
        if element is None or index is None or not x.size:
            return None
        if weight is not None and weight.dtype != wide_of(x.dtype):
            return None
        return element, index


def wide_of(dtype: np.dtype) -> np.dtype:
    """The dtype that the kernels compute in."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype
