"""Convolutions and attention by cuDNN, where that is asked for or was measured to be faster.

The kernels here mean what the contract says, and so do those behind them, which run where cuDNN is
not installed, has no engine, or is slower. Each call's shapes, layouts, dtypes and policy are
settled once: by a plan of cuDNN, or by the plain kernel.

What cuDNN never gets: float64; weights that are dropped, whose random bits the contract fixes; and
masks, booleans or numbers, since a query that attends to nothing is zeros in the contract and not a
number in cuDNN, and only the values of a mask say whether there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.backends.array_backend import windows_along
from gpubackprop.backends.convolution import Padding
from gpubackprop.backends.cuda import cudnn_graphs as graphs
from gpubackprop.backends.cuda.arrays import DeviceArrays, order_of
from gpubackprop.backends.cuda.choosing import Chooser
from gpubackprop.backends.cuda.cudnn import ALIGNMENT, Plan, Policy
from gpubackprop.backends.cuda.cudnn_graphs import Operation, Tensor
from gpubackprop.backends.offers import offer_again
from gpubackprop.backends.primitives import Array, Shape

_HALVES = ("float16", "bfloat16")
_EIGHT = 8
"""What the features of a head must be a multiple of."""
_QUERIES = 2
"""A single query, as when text is generated, meets one more key at each step: as many plans as
steps would be built, each for one use."""

ROLES = {
    "conv": ("x", "weight", "bias", "y"),
    "conv_transpose": ("y", "weight", "x"),
    "conv_weight": ("x", "y", "weight"),
}
"""What each kernel of convolutions takes, in cuDNN's order, and last what it gives."""


class Convolution(NamedTuple):
    """The shapes of x (N, *spatial, C), weight (O, C / groups, *kernel) and y (N, *places, O), and
    how the windows lie: what the three kernels have in common."""

    x: Shape
    weight: Shape
    y: Shape
    stride: Shape
    padding: Padding
    dilation: Shape

    def fits(self, groups: int) -> bool:
        """Whether the shapes belong together, and there is something to compute."""
        return (
            min((*self.x, *self.weight, *self.y)) > 0
            and self.x[-1] == self.weight[1] * groups
            and self.y == result_shape(self.x, self.weight, *self[3:])
        )

    def tensor(self, role: str, dtype: str) -> Tensor:
        """One of the arrays as cuDNN sees it."""
        if role == "bias":
            return graphs.per_channel(self.weight[0], len(self.stride), dtype)
        if role == "weight":
            return graphs.channels_last(self.weight[0], self.weight[1], self.weight[2:], dtype)
        shape = self.x if role == "x" else self.y
        return graphs.channels_last(shape[0], shape[-1], shape[1:-1], dtype)


def result_shape(
    x: Shape, weight: Shape, stride: Shape, padding: Padding, dilation: Shape
) -> Shape:
    """The shape of y."""
    padded = tuple(s + a + b for s, (a, b) in zip(x[1:-1], padding, strict=True))
    return (x[0], *windows_along(padded, weight[2:], stride, dilation), weight[0])


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
        window = (stride, padding, dilation)

        def plain() -> Array:
            return super(CudnnKernels, self).conv(x, weight, bias, *window, groups)

        if not self._convolves(x, weight, bias):
            return plain()
        sizes = Convolution(
            x.shape, weight.shape, result_shape(x.shape, weight.shape, *window), *window
        )
        return self._convolved("conv", sizes, groups, plain, x=x, weight=weight, bias=bias)

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
        window = (stride, padding, dilation)

        def plain() -> Array:
            return super(CudnnKernels, self).conv_transpose(dy, weight, spatial, *window, groups)

        if not self._convolves(dy, weight):
            return plain()
        x = (dy.shape[0], *spatial, weight.shape[1] * groups)
        sizes = Convolution(x, weight.shape, dy.shape, *window)
        return self._convolved("conv_transpose", sizes, groups, plain, y=dy, weight=weight)

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
        window = (stride, padding, dilation)

        def plain() -> Array:
            return super(CudnnKernels, self).conv_weight(x, dy, kernel, *window, groups)

        if not self._convolves(x, dy):
            return plain()
        weight = (dy.shape[-1], x.shape[-1] // groups, *kernel)
        sizes = Convolution(x.shape, weight, dy.shape, *window)
        return self._convolved("conv_weight", sizes, groups, plain, x=x, y=dy)

    def _convolved(
        self,
        kind: str,
        sizes: Convolution,
        groups: int,
        plain: Callable[[], Array],
        **given: Array | None,
    ) -> Array:
        """The array of a convolution that is not given, by cuDNN or by `plain`."""
        if not sizes.fits(groups):
            return plain()
        *taken, result = ROLES[kind]
        arrays = {role: a for role in taken if (a := given[role]) is not None}
        dtype = arrays[taken[0]].dtype
        laid_out = getattr(sizes, result)
        if result == "weight":
            laid_out = (laid_out[0], *laid_out[2:], laid_out[1])

        def operation() -> Operation:
            tensors = tuple(sizes.tensor(role, dtype.name) for role in (*arrays, result))
            return Operation(kind, tensors, (graphs.geometry_of(*sizes[3:]),))

        def with_cudnn(plan: Plan) -> Array:
            found = self._room(laid_out, dtype)
            ready = [
                self._filters(a) if role == "weight" else self._ready(a)
                for role, a in arrays.items()
            ]
            self.cudnn.library.run(plan, *ready, found)
            if result != "weight":
                return found
            n = found.ndim
            return self._packed(self.transpose(found, (0, n - 1, *range(1, n - 1))))

        return self._settled(kind, (sizes, *arrays, dtype.name), operation, with_cudnn, plain)

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
        results = ((*q.shape[:3], v.shape[3]), 0), (q.shape[:3], None)
        return self._attended("attention", (q, k, v), results, causal, past, scale, plain)

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
        given, results = (q, k, v, y, dy, lse), tuple((a.shape, i) for i, a in enumerate((q, k, v)))
        return self._attended("attention_backward", given, results, causal, past, scale, plain)

    def _attended(
        self,
        kind: str,
        given: tuple[Array, ...],
        results: tuple[tuple[Shape, int | None], ...],
        causal: bool,
        past: int,
        scale: float,
        plain: Callable[[], Any],
    ) -> Any:
        """Arrays of the shapes `results`, by cuDNN or by `plain`.

        Those with four axes are heads (B, H, T, D), and lie in memory as the given array of the
        number beside the shape, so that heads which lie side by side need not be brought there.
        Those with three are float32 numbers for each row of the scores.
        """
        q, k = given[:2]
        ready = [self._vectors(a) if a.ndim == 4 else self._ready(a) for a in given]
        name = q.dtype.name
        band = graphs.band_of(causal, past, q.shape[2], k.shape[2])
        scores = graphs.Scores(float(scale), band)
        places = [None if i is None else self._heads_wanted(s, q.dtype) for s, i in results]

        def operation() -> Operation:
            there = [
                graphs.rows(a.shape) if a.ndim == 3 else graphs.heads(a.shape, _steps(a), name)
                for a in ready
            ]
            made = [
                graphs.heads(s, place.strides, name)
                if place is not None
                else graphs.rows(s)
                if i is None
                else graphs.in_order(s, order_of(ready[i]), name)
                for (s, i), place in zip(results, places, strict=True)
            ]
            return Operation(kind, (*there, *made), (scores,))

        def with_cudnn(plan: Plan) -> Any:
            found = [
                place
                if place is not None
                else self._room(s, np.float32)
                if i is None
                else self._in_order(ready[i], s)
                for (s, i), place in zip(results, places, strict=True)
            ]
            self.cudnn.library.run(plan, *ready, *found)
            return tuple(found)

        def plainly() -> Any:
            offer_again([place for place in places if place is not None])
            return plain()

        wanted = tuple(None if place is None else place.strides for place in places)
        key = (*_layouts(ready), wanted, name, scores)
        return self._settled(kind, key, operation, with_cudnn, plainly)

    def _settled(
        self,
        kind: str,
        key: Hashable,
        operation: Callable[[], Operation],
        with_cudnn: Callable[[Plan], Any],
        plain: Callable[[], Any],
    ) -> Any:
        """The call's results, by what was settled for its `key`."""
        plan = self.cudnn.plan(kind, key, self._policy(), operation, with_cudnn, plain)
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

    def _room(self, shape: Shape, dtype: Any) -> Array:
        """A new array at an address that engines may write to; what is on offer (``offers.py``) may
        begin elsewhere."""
        made = self.empty(shape, dtype)
        return made if int(made.data.ptr) % ALIGNMENT == 0 else self.xp.empty(shape, dtype)

    def _heads_wanted(self, shape: Shape, dtype: Any) -> Array | None:
        """What is on offer for heads, as engines may write them; None where nothing is."""

        def lies(out: Array) -> bool:
            return (
                out.strides[-1] == out.itemsize
                and all(s > 0 and s % ALIGNMENT == 0 for s in out.strides[:-1])
                and int(out.data.ptr) % ALIGNMENT == 0
            )

        return self._wanted(shape, dtype, lies)

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


def _steps(x: Array) -> Shape:
    """The strides in bytes; those of an array without gaps where it has none, whatever it says of
    axes of length 1."""
    if not x.flags.c_contiguous:
        return tuple(x.strides)
    return tuple(x.dtype.itemsize * math.prod(x.shape[i + 1 :]) for i in range(x.ndim))


def _layouts(arrays: list[Array]) -> tuple[Hashable, ...]:
    return tuple(entry for a in arrays for entry in (a.shape, _steps(a)))
