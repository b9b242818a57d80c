"""Convolutions and attention by cuDNN, where that is asked for or was measured to be faster.

The kernels here mean what the contract says, and so do those behind them, which run where cuDNN is
not installed, has no engine, or is slower. Each call's shapes, layouts, dtypes and policy are
settled once: by a plan of cuDNN, or by the plain kernel.

What cuDNN never gets: float64; weights that are dropped, whose random bits the contract fixes; and
masks, since a query that attends to nothing is zeros in the contract and not a number in cuDNN.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

import numpy as np

from gpubackprop.backends.array_backend import windows_along
from gpubackprop.backends.convolution import Padding
from gpubackprop.backends.cuda import cudnn_graphs as graphs
from gpubackprop.backends.cuda.arrays import DeviceArrays
from gpubackprop.backends.cuda.choosing import Chooser
from gpubackprop.backends.cuda.cudnn import ALIGNMENT, Plan, Policy
from gpubackprop.backends.cuda.cudnn_graphs import Operation
from gpubackprop.backends.primitives import Array, Shape

_HALVES = ("float16", "bfloat16")
_EIGHT = 8
"""What the features of a head must be a multiple of."""
_QUERIES = 2
"""A single query, as when text is generated, meets one more key at each step: as many plans as
steps would be built, each for one use."""


class CudnnKernels(DeviceArrays):
    """Overrides of kernels of ``convolution.py`` and ``attention.py``."""

    cudnn: Chooser

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
        def plain() -> Array:
            return super(CudnnKernels, self).conv(
                x, weight, bias, stride, padding, dilation, groups
            )

        if not self._convolves(x, weight, bias):
            return plain()
        outputs, dtype = weight.shape[0], x.dtype.name
        padded = tuple(s + a + b for s, (a, b) in zip(x.shape[1:-1], padding, strict=True))
        out = windows_along(padded, weight.shape[2:], stride, dilation)
        if not _all_there(x, weight, out) or x.shape[-1] != weight.shape[1] * groups:
            return plain()

        def operation() -> Operation:
            spatial = x.shape[1:-1]
            given = [
                graphs.channels_last(x.shape[0], x.shape[-1], spatial, dtype),
                graphs.channels_last(outputs, weight.shape[1], weight.shape[2:], dtype),
            ]
            if bias is not None:
                given.append(graphs.per_channel(outputs, len(out), dtype))
            y = graphs.channels_last(x.shape[0], outputs, out, dtype)
            geometry = graphs.geometry_of(stride, padding, dilation)
            return Operation("conv", (*given, y), (geometry,))

        def with_cudnn(plan: Plan) -> Array:
            y = self.empty((x.shape[0], *out, outputs), x.dtype)
            more = () if bias is None else (self._ready(bias),)
            arrays = (self._ready(x), self._filters(weight), *more, y)
            self.cudnn.library.run(plan, *arrays)
            return y

        key = (x.shape, weight.shape, bias is None, dtype, stride, padding, dilation)
        plan = self.cudnn.plan("conv", key, self._policy(), operation, with_cudnn, plain)
        return plain() if plan is None else with_cudnn(plan)

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
        def plain() -> Array:
            return super(CudnnKernels, self).conv_transpose(
                dy, weight, spatial, stride, padding, dilation, groups
            )

        if not self._convolves(dy, weight) or not _all_there(dy, weight, spatial):
            return plain()
        outputs, dtype, channels = weight.shape[0], dy.dtype.name, weight.shape[1] * groups
        padded = tuple(s + a + b for s, (a, b) in zip(spatial, padding, strict=True))
        if dy.shape[1:] != (*windows_along(padded, weight.shape[2:], stride, dilation), outputs):
            return plain()

        def operation() -> Operation:
            tensors = (
                graphs.channels_last(dy.shape[0], outputs, dy.shape[1:-1], dtype),
                graphs.channels_last(outputs, weight.shape[1], weight.shape[2:], dtype),
                graphs.channels_last(dy.shape[0], channels, spatial, dtype),
            )
            geometry = graphs.geometry_of(stride, padding, dilation)
            return Operation("conv_transpose", tensors, (geometry,))

        def with_cudnn(plan: Plan) -> Array:
            dx = self.empty((dy.shape[0], *spatial, channels), dy.dtype)
            self.cudnn.library.run(plan, self._ready(dy), self._filters(weight), dx)
            return dx

        key = (dy.shape, weight.shape, tuple(spatial), dtype, stride, padding, dilation, groups)
        plan = self.cudnn.plan("conv_transpose", key, self._policy(), operation, with_cudnn, plain)
        return plain() if plan is None else with_cudnn(plan)

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
        def plain() -> Array:
            return super(CudnnKernels, self).conv_weight(
                x, dy, kernel, stride, padding, dilation, groups
            )

        if not self._convolves(x, dy) or not _all_there(x, dy, kernel):
            return plain()
        outputs, channels, dtype = dy.shape[-1], x.shape[-1] // groups, x.dtype.name
        padded = tuple(s + a + b for s, (a, b) in zip(x.shape[1:-1], padding, strict=True))
        if dy.shape[:-1] != (x.shape[0], *windows_along(padded, kernel, stride, dilation)):
            return plain()

        def operation() -> Operation:
            tensors = (
                graphs.channels_last(x.shape[0], x.shape[-1], x.shape[1:-1], dtype),
                graphs.channels_last(x.shape[0], outputs, dy.shape[1:-1], dtype),
                graphs.channels_last(outputs, channels, kernel, dtype),
            )
            geometry = graphs.geometry_of(stride, padding, dilation)
            return Operation("conv_weight", tensors, (geometry,))

        def with_cudnn(plan: Plan) -> Array:
            dw = self.empty((outputs, *kernel, channels), x.dtype)
            self.cudnn.library.run(plan, self._ready(x), self._ready(dy), dw)
            axes = (0, len(kernel) + 1, *range(1, len(kernel) + 1))
            return self._packed(self.transpose(dw, axes))

        key = (x.shape, dy.shape, tuple(kernel), dtype, stride, padding, dilation, groups)
        plan = self.cudnn.plan("conv_weight", key, self._policy(), operation, with_cudnn, plain)
        return plain() if plan is None else with_cudnn(plan)

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        causal: bool = False,
        past: int = 0,
        scale: float = 1.0,
        p: float = 0.0,
        seed: int = 0,
        stream: int = 0,
        offset: int = 0,
    ) -> tuple[Array, Array]:
        def plain() -> tuple[Array, Array]:
            found: tuple[Array, Array] = super(CudnnKernels, self).attention(
                q, k, v, mask, causal, past, scale, p, seed, stream, offset
            )
            return found

        if not self._attends_with_cudnn(mask, p, q, k, v):
            return plain()
        given = [self._vectors(a) for a in (q, k, v)]
        shape, sums = (*q.shape[:3], v.shape[3]), q.shape[:3]
        dtype, band = q.dtype.name, graphs.band_of(causal, past, q.shape[2], k.shape[2])
        scores = graphs.Scores(float(scale), band)

        def operation() -> Operation:
            results = graphs.packed(shape, dtype), graphs.rows(sums)
            tensors = tuple(graphs.heads(a.shape, _steps(a), dtype) for a in given)
            return Operation("attention", (*tensors, *results), (scores,))

        def with_cudnn(plan: Plan) -> tuple[Array, Array]:
            y, lse = self.empty(shape, q.dtype), self.empty(sums, np.float32)
            self.cudnn.library.run(plan, *given, y, lse)
            return y, lse

        key = (*_layouts(given), dtype, scores)
        plan = self.cudnn.plan("attention", key, self._policy(), operation, with_cudnn, plain)
        return plain() if plan is None else with_cudnn(plan)

    def attention_backward(
        self,
        dy: Array,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None,
        y: Array,
        lse: Array,
        causal: bool = False,
        past: int = 0,
        scale: float = 1.0,
        p: float = 0.0,
        seed: int = 0,
        stream: int = 0,
        offset: int = 0,
    ) -> tuple[Array, Array, Array]:
        def plain() -> tuple[Array, Array, Array]:
            found: tuple[Array, Array, Array] = super(CudnnKernels, self).attention_backward(
                dy, q, k, v, mask, y, lse, causal, past, scale, p, seed, stream, offset
            )
            return found

        if not self._attends_with_cudnn(mask, p, q, k, v, y, dy) or lse.dtype != np.float32:
            return plain()
        given = [self._vectors(a) for a in (q, k, v, y, dy)]
        dtype, band = q.dtype.name, graphs.band_of(causal, past, q.shape[2], k.shape[2])
        scores = graphs.Scores(float(scale), band)

        def operation() -> Operation:
            tensors = [graphs.heads(a.shape, _steps(a), dtype) for a in given]
            results = [graphs.packed(a.shape, dtype) for a in (q, k, v)]
            tensors = [*tensors, graphs.rows(lse.shape), *results]
            return Operation("attention_backward", tuple(tensors), (scores,))

        def with_cudnn(plan: Plan) -> tuple[Array, Array, Array]:
            dq, dk, dv = (self.empty(a.shape, q.dtype) for a in (q, k, v))
            self.cudnn.library.run(plan, *given, self._ready(lse), dq, dk, dv)
            return dq, dk, dv

        key = (*_layouts(given), dtype, scores)
        policy = self._policy()
        plan = self.cudnn.plan("attention_backward", key, policy, operation, with_cudnn, plain)
        return plain() if plan is None else with_cudnn(plan)

    def _policy(self) -> Policy:
        return Policy(self.numerics == "deterministic", self.precision == "tf32")

    def _convolves(self, x: Array, *others: Array | None) -> bool:
        """Whether cuDNN may get arrays of this dtype, and with so many axes."""
        return (
            self.cudnn.active
            and self._element(x, *others) is not None
            and graphs.dtype_name(x.dtype) is not None
            and x.ndim - 2 <= graphs.AXES[1]
        )

    def _attends_with_cudnn(self, mask: Array | None, p: float, q: Array, *others: Array) -> bool:
        return (
            self.cudnn.active
            and mask is None
            and not p
            and self._element(q, *others) is not None
            and q.dtype.name in _HALVES
            and q.shape[2] >= _QUERIES
            and all(a.size and a.shape[3] % _EIGHT == 0 for a in (q, *others))
        )

    def _ready(self, x: Array) -> Array:
        """`x` without gaps, in C order, at an address that engines may read."""
        x = self._packed(x)
        return x if int(x.data.ptr) % ALIGNMENT == 0 else self.copy(x)

    def _filters(self, weight: Array) -> Array:
        """(O, C / groups, *kernel) as (O, *kernel, C / groups)."""
        n = weight.ndim
        if math.prod(weight.shape[2:]) == 1:
            return self._ready(weight)
        return self._ready(self.transpose(weight, (0, *range(2, n), 1)))

    def _vectors(self, x: Array) -> Array:
        """`x` (B, H, T, D), or a copy, so that each D numbers lie together where an engine can read
        16 bytes at once."""
        steps = _steps(x)
        if (
            steps[-1] == x.dtype.itemsize
            and all(s > 0 and s % ALIGNMENT == 0 for s in steps[:-1])
            and int(x.data.ptr) % ALIGNMENT == 0
        ):
            return x
        return self._ready(x)


def _all_there(x: Array, weight: Array, spatial: Shape) -> bool:
    return bool(x.size and weight.size and min(spatial, default=1) > 0)


def _steps(x: Array) -> Shape:
    """The strides in bytes; those of an array without gaps where it has none, whatever it says of
    axes of length 1."""
    if not x.flags.c_contiguous:
        return tuple(x.strides)
    return tuple(x.dtype.itemsize * math.prod(x.shape[i + 1 :]) for i in range(x.ndim))


def _layouts(arrays: list[Array]) -> tuple[Hashable, ...]:
    return tuple(entry for a in arrays for entry in (a.shape, _steps(a)))
