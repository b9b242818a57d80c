"""The composite kernels: coarse kernels with a definition in terms of the primitives.

The definition *is* the specification. A backend may override any of them with a fused kernel, and
the parity suite then compares the override with the definition below. On the tape the definitions
run as they stand, on tensors, so that a coarse kernel that appears in a backward rule can itself be
differentiated without a further rule.

Kernels named ``f_backward`` take the cotangent ``dy`` (the partial derivative of the cost by the
result of ``f``) first and return the cotangent of the argument.
"""

from __future__ import annotations

import math
from numbers import Integral

from gpubackprop.backends.primitives import Array, Axis, DType, Shape
from gpubackprop.backends.products import Products

SQRT_HALF = math.sqrt(0.5)
INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
GELU_TANH_SCALE = math.sqrt(2.0 / math.pi)
GELU_TANH_CUBIC = 0.044715


def normalize_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """`axis` as a tuple of axes counted from the front."""
    if axis is None:
        return tuple(range(ndim))
    if isinstance(axis, int):
        axes: tuple[int, ...] = (axis,)
    else:
        axes = (int(axis),) if isinstance(axis, Integral) else tuple(axis)
    for a in axes:
        if not -ndim <= a < ndim:
            raise ValueError(f"axis {a} is out of range for {ndim} axes")
    return tuple(a % ndim for a in axes)


HALVES = "eE"
"""Characters of the dtypes float16, which ends at 65504, and bfloat16, which has 8 bits."""


def is_half(x: Array | None) -> bool:
    """Whether an array is of half precision."""
    return x is not None and x.dtype.char in HALVES


class Composites(Products):
    """Kernels defined by primitives."""

    # Shapes and means.
    def sum_to(self, x: Array, shape: Shape) -> Array:
        """Sum away what broadcasting `shape` to ``x.shape`` repeated: the transpose of
        ``broadcast_to``."""
        if x.shape == shape:
            return x
        lead = x.ndim - len(shape)
        if lead < 0 or any(n != m and n != 1 for n, m in zip(shape, x.shape[lead:], strict=True)):
            raise ValueError(f"shape {shape} does not broadcast to {x.shape}")
        axes = tuple(range(lead)) + tuple(
            i + lead for i, n in enumerate(shape) if n == 1 and x.shape[i + lead] != 1
        )
        return self.reshape(self.sum(x, axis=axes), shape) if axes else self.reshape(x, shape)

    def mean(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        """Arithmetic mean; integers give float64."""
        wide = self._wide(x)  # the sum may be beyond half precision where the mean is not
        mean = self.divide(self.sum(wide, axis=axis, keepdims=keepdims), self.count(x.shape, axis))
        return mean if wide is x else self.astype(mean, x.dtype)

    def var(self, x: Array, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Array:
        """Mean squared deviation, divided by ``n - ddof``; two passes, so that a large mean costs
        no digits."""
        wide = self._wide(x)
        deviation = self.subtract(wide, self.mean(wide, axis=axis, keepdims=True))
        total = self.sum(self.square(deviation), axis=axis, keepdims=keepdims)
        var = self.divide(total, max(self.count(x.shape, axis) - ddof, 0))
        return var if wide is x else self.astype(var, x.dtype)

    def _wide(self, x: Array) -> Array:
        """x, as float32 where it is of half precision: squares of float16 overflow from 256 on."""
        return self.astype(x, "float32") if is_half(x) else x

    def logsumexp(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        """log(sum(exp(x))) without overflow: the largest element is taken out first (a constant to
        the chain rule)."""
        top = self.detach(self.max(x, axis=axis, keepdims=True))
        top = self.where(self.isfinite(top), top, 0.0)
        total = self.log(self.sum(self.exp(self.subtract(x, top)), axis=axis, keepdims=True))
        result = self.add(total, top)
        if keepdims:
            return result
        axes = normalize_axes(axis, x.ndim)
        return self.reshape(result, tuple(n for i, n in enumerate(x.shape) if i not in axes))

    @staticmethod
    def count(shape: Shape, axis: Axis) -> int:
        """How many elements a reduction of `shape` over `axis` combines."""
        return math.prod(shape[a] for a in normalize_axes(axis, len(shape)))

    def detach(self, x: Array) -> Array:
        """`x`, held constant by the chain rule (arrays have no derivative to cut; the tape
        overrides this)."""
        return x

    # Activations and their slopes.
    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + exp(-x)), written with tanh so that no argument overflows."""
        return self.multiply(self.add(self.tanh(self.multiply(x, 0.5)), 1.0), 0.5)

    def sigmoid_backward(self, dy: Array, y: Array) -> Array:
        """dy * y * (1 - y): the slope of the sigmoid by its value."""
        return self.multiply(dy, self.multiply(y, self.subtract(1.0, y)))

    def tanh_backward(self, dy: Array, y: Array) -> Array:
        """dy * (1 - y**2)."""
        return self.multiply(dy, self.subtract(1.0, self.square(y)))

    def relu(self, x: Array) -> Array:
        """max(x, 0); NaN stays NaN."""
        return self.maximum(x, 0)

    def relu_backward(self, dy: Array, y: Array) -> Array:
        """dy where the unit was active; the slope at 0 is taken as 0."""
        return self.where(self.greater(y, 0), dy, 0.0)

    def leaky_relu(self, x: Array, negative_slope: float = 0.01) -> Array:
        """x for x > 0, else negative_slope * x."""
        return self.where(self.greater(x, 0), x, self.multiply(x, negative_slope))

    def leaky_relu_backward(self, dy: Array, x: Array, negative_slope: float = 0.01) -> Array:
        """dy for x > 0, else negative_slope * dy."""
        return self.where(self.greater(x, 0), dy, self.multiply(dy, negative_slope))

    def elu(self, x: Array, alpha: float = 1.0) -> Array:
        """x for x > 0, else alpha * (exp(x) - 1) (Clevert et al. 2015)."""
        return self.where(
            self.greater(x, 0), x, self.multiply(self.expm1(self.minimum(x, 0)), alpha)
        )

    def elu_backward(self, dy: Array, x: Array, alpha: float = 1.0) -> Array:
        """dy for x > 0, else dy * alpha * exp(x)."""
        slope = self.multiply(self.exp(self.minimum(x, 0)), alpha)
        return self.where(self.greater(x, 0), dy, self.multiply(dy, slope))

    def gelu(self, x: Array) -> Array:
        """x * Phi(x) with the normal distribution function Phi (Hendrycks & Gimpel 2016)."""
        return self.multiply(
            self.multiply(x, 0.5), self.add(self.erf(self.multiply(x, SQRT_HALF)), 1.0)
        )

    def gelu_backward(self, dy: Array, x: Array) -> Array:
        """dy * (Phi(x) + x * phi(x)) with the normal density phi."""
        cdf = self.multiply(self.add(self.erf(self.multiply(x, SQRT_HALF)), 1.0), 0.5)
        pdf = self.multiply(self.exp(self.multiply(self.square(x), -0.5)), INV_SQRT_2PI)
        return self.multiply(dy, self.add(cdf, self.multiply(x, pdf)))

    def gelu_tanh(self, x: Array) -> Array:
        """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x**3))): the approximation in Hendrycks &
        Gimpel 2016."""
        return self.multiply(self.multiply(x, 0.5), self.add(self.tanh(self._gelu_inner(x)), 1.0))

    def gelu_tanh_backward(self, dy: Array, x: Array) -> Array:
        """The product rule on x/2 and 1 + tanh(u), the chain rule on u."""
        t = self.tanh(self._gelu_inner(x))
        # Far from 0, x (1 - t**2) is 0: first, so that the squares behind it do not overflow.
        near = self.multiply(x, self.subtract(1.0, self.square(t)))
        cubic = self.multiply(self.multiply(self.multiply(near, x), x), 3 * GELU_TANH_CUBIC)
        inner = self.multiply(self.add(near, cubic), GELU_TANH_SCALE)
        return self.multiply(dy, self.multiply(self.add(self.add(t, 1.0), inner), 0.5))

    def _gelu_inner(self, x: Array) -> Array:
        cubic = self.multiply(self.multiply(self.square(x), x), GELU_TANH_CUBIC)
        return self.multiply(self.add(x, cubic), GELU_TANH_SCALE)

    def silu(self, x: Array) -> Array:
        """x * sigmoid(x) (Elfwing et al. 2017)."""
        return self.multiply(x, self.sigmoid(x))

    def silu_backward(self, dy: Array, x: Array) -> Array:
        """dy * s * (1 + x * (1 - s)) with s = sigmoid(x)."""
        s = self.sigmoid(x)
        return self.multiply(
            dy, self.multiply(s, self.add(self.multiply(x, self.subtract(1.0, s)), 1.0))
        )

    def softplus(self, x: Array) -> Array:
        """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), which does not overflow."""
        return self.add(self.maximum(x, 0), self.log1p(self.exp(self.negative(self.absolute(x)))))

    # Softmax family, along one axis.
    def softmax(self, x: Array, axis: int = -1) -> Array:
        """exp(x) / sum(exp(x)), shifted by the largest element so that nothing overflows."""
        e = self.exp(self.subtract(x, self.detach(self.max(x, axis=axis, keepdims=True))))
        return self.divide(e, self.sum(e, axis=axis, keepdims=True))

    def softmax_backward(self, dy: Array, y: Array, axis: int = -1) -> Array:
        """y * (dy - sum(dy * y)): the Jacobian diag(y) - y y^T applied to dy."""
        inner = self.sum(self.multiply(dy, y), axis=axis, keepdims=True)
        return self.multiply(y, self.subtract(dy, inner))

    def log_softmax(self, x: Array, axis: int = -1) -> Array:
        """x - logsumexp(x)."""
        shifted = self.subtract(x, self.detach(self.max(x, axis=axis, keepdims=True)))
        return self.subtract(
            shifted, self.log(self.sum(self.exp(shifted), axis=axis, keepdims=True))
        )

    def log_softmax_backward(self, dy: Array, y: Array, axis: int = -1) -> Array:
        """dy - softmax(x) * sum(dy), with softmax(x) = exp(y)."""
        return self.subtract(dy, self.multiply(self.exp(y), self.sum(dy, axis=axis, keepdims=True)))

    def softmax_cross_entropy(
        self,
        x: Array,
        target: Array,
        weight: Array | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> tuple[Array, Array, Array]:
        """Cross-entropy of each row of logits with a class index.

        Parameters
        ----------
        x : (N, C) logits. Of half precision, they are computed with in float32, and so are all
            results.
        target : (N,) integers in [0, C), or `ignore_index`.
        weight : (C,) weight of each class, or None for ones.
        ignore_index : rows with this target cost nothing.
        label_smoothing : share of the target spread evenly over all classes (Szegedy et al. 2016).

        Returns
        -------
        loss : (N,) cost of each row, already weighted.
        top, total : (N,) the row's largest logit and the sum of ``exp(x - top)``, for the backward
            rule. They are two: their one number ``top + log(total)`` would lose digits of large
            logits.

        Notes
        -----
        A target outside the range raises ``IndexError`` on the host; on a device that would have to
        stop to look, the row's loss is NaN instead.
        """
        x, rows = self._wide(x), target.shape
        top = self.detach(self.max(x, axis=1, keepdims=True))
        shifted = self.subtract(x, top)
        total = self.sum(self.exp(shifted), axis=1, keepdims=True)
        q = self.smoothed_targets(
            target, x.shape[1], x.dtype, weight, ignore_index, label_smoothing
        )
        # A class without a share costs nothing, even at a logit of -inf.
        logp = self.subtract(shifted, self.log(total))
        cost = self.multiply(q, self.where(self.equal(q, 0), 0.0, logp))
        loss = self.negative(self.sum(cost, axis=1))
        return loss, self.reshape(top, rows), self.reshape(total, rows)

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
        """dy * (softmax(x) * sum(q) - q) with the (smoothed, weighted) target q; dy, top and total
        have shape (N,), the result that of x, (N, C), and its dtype where that is of half
        precision."""
        wide, column = self._wide(x), (target.shape[0], 1)
        q = self.smoothed_targets(
            target, x.shape[1], wide.dtype, weight, ignore_index, label_smoothing
        )
        e = self.exp(self.subtract(wide, self.reshape(top, column)))
        softmax = self.divide(e, self.reshape(total, column))
        slope = self.subtract(self.multiply(softmax, self.sum(q, axis=1, keepdims=True)), q)
        dx = self.multiply(self.reshape(dy, column), slope)
        # An ignored row gets exactly 0, also where its logits or dy (of a mean of nothing) are not
        # finite.
        dx = self.where(self.equal(self.reshape(target, column), ignore_index), 0.0, dx)
        return dx if wide is x else self.astype(dx, x.dtype)

    def smoothed_targets(
        self,
        target: Array,
        classes: int,
        dtype: DType,
        weight: Array | None,
        ignore_index: int,
        label_smoothing: float,
    ) -> Array:
        """(N, C) rows of ``(1 - s) * onehot + s / C``, times the class weights; zero for ignored
        rows, NaN for a row whose target is no class."""
        column = self.reshape(target, (target.shape[0], 1))
        hit = self.equal(column, self.arange(0, classes, 1, target.dtype))
        q = self.astype(hit, dtype)
        if label_smoothing:
            q = self.add(self.multiply(q, 1.0 - label_smoothing), label_smoothing / classes)
        if weight is not None:
            q = self.multiply(q, self._wide(weight))
        q = self.where(self.any(hit, axis=1, keepdims=True), q, math.nan)
        return self.where(self.equal(column, ignore_index), 0.0, q)

    # Random draws on the device.
    def bernoulli(self, shape: Shape, p: float, seed: int, stream: int, offset: int) -> Array:
        """Booleans that are true with probability `p`: word i of ``random_bits`` below ``round(p *
        2**32)``; exact on every backend."""
        if p >= 1.0:
            return self.full(shape, True, bool)
        words = self.random_bits(seed, stream, offset, math.prod(shape))
        threshold = self.full((), min(round(p * 2**32), 2**32 - 1), words.dtype)
        return self.reshape(self.less(words, threshold), shape)

    def uniform(self, shape: Shape, seed: int, stream: int, offset: int) -> Array:
        """float32 in [0, 1): the upper 24 bits of each word times 2**-24; exact on every
        backend."""
        words = self.random_bits(seed, stream, offset, math.prod(shape))
        scaled = self.multiply(
            self.floor(self.divide(self.astype(words, "float64"), 256.0)), 2.0**-24
        )
        return self.reshape(self.astype(scaled, "float32"), shape)

    def dropout(
        self, x: Array, p: float, seed: int, stream: int, offset: int
    ) -> tuple[Array, Array]:
        """Zero each element with probability `p` and scale the rest by 1/(1-p) (Srivastava et al.
        2014).

        Returns
        -------
        y, keep : the result, and the mask ``bernoulli(x.shape, 1 - p, seed, stream, offset)``.
        """
        keep = self.bernoulli(x.shape, 1.0 - p, seed, stream, offset)
        return self.dropout_backward(x, keep, p), keep

    def dropout_backward(self, dy: Array, keep: Array, p: float) -> Array:
        """dy / (1 - p) where the element was kept, else 0."""
        return self.where(keep, self.multiply(dy, 0.0 if p >= 1.0 else 1.0 / (1.0 - p)), 0.0)
