"""Windows over the spatial axes of a channels-last array: what convolution and pooling look
through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.backends import Shape
from gpubackprop.backends.array_backend import windows_along
from gpubackprop.errors import ShapeError


def window_counts(
    name: str, spatial: Shape, kernel: Shape, stride: Shape, dilation: Shape, of: str = "x"
) -> Shape:
    """How many whole windows fit along each spatial axis.

    Raises
    ------
    ShapeError
        In words: a size is below 1, the axes are not as many, or a window does not fit.
    """
    n = len(spatial)
    for what, sizes in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
        if len(sizes) != n or min(sizes, default=1) < 1:
            raise ShapeError(
                f"{name}: {what} must be {n} numbers of at least 1, one for each spatial axis of "
                f"{of}, not {tuple(sizes)}"
            )
    for size, k, d in zip(spatial, kernel, dilation, strict=True):
        span = d * (k - 1) + 1
        if size < span:
            raise ShapeError(
                f"{name}: a window of {span} (kernel {k}, dilation {d}) does not fit in the "
                f"{size} elements of a spatial axis of {of}, padding included"
            )
    return windows_along(spatial, kernel, stride, dilation)


def _windows_forward(K: Any, x: Any, *, kernel: Shape, stride: Shape, dilation: Shape) -> Any:
    return K.windows(x, kernel, stride, dilation)


def _windows_backward(
    K: Any, call: Any, dy: Any, *, kernel: Shape, stride: Shape, dilation: Shape
) -> Any:
    return (K.scatter_windows(dy, call.shapes[0][1:-1], stride, dilation),)


def _windows_infer(x: Spec, *, kernel: Shape, stride: Shape, dilation: Shape) -> Spec:
    if len(x.shape) != len(kernel) + 2:
        raise ShapeError(
            f"windows: x ({x}) must have {len(kernel)} spatial axes between batch and channels"
        )
    counts = window_counts("windows", x.shape[1:-1], kernel, stride, dilation)
    return Spec((x.shape[0], *counts, *kernel, x.shape[-1]), x.dtype)


CASES: tuple[tuple[Shape, Shape, Shape, Shape], ...] = (
    ((2, 7, 3), (3,), (1,), (1,)),
    ((2, 7, 3), (2,), (3,), (2,)),
    ((1, 1, 1), (1,), (1,), (1,)),
    ((2, 5, 6, 3), (3, 2), (1, 2), (1, 1)),
    ((1, 6, 5, 2), (2, 3), (2, 1), (2, 2)),
    ((0, 4, 4, 1), (2, 2), (1, 1), (1, 1)),
    ((2, 3, 4, 3, 2), (2, 2, 3), (1, 2, 1), (1, 1, 1)),
)
"""Shape of x, kernel, stride, dilation."""


def _windows_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, kernel, stride, dilation in CASES:
        params = {"kernel": kernel, "stride": stride, "dilation": dilation}
        yield Sample((rng.standard_normal(shape),), params)
    x = rng.standard_normal((2, 3, 5, 4)).transpose(0, 2, 3, 1)
    params = {"kernel": (2, 2), "stride": (1, 1), "dilation": (1, 1)}
    yield Sample((x,), params, note="channels first in memory")


WINDOWS = Operation(
    "windows", _windows_forward, _windows_backward, _windows_infer, _windows_samples, strict=True
).register()


def _scatter_windows_forward(
    K: Any, dy: Any, *, spatial: Shape, stride: Shape, dilation: Shape
) -> Any:
    return K.scatter_windows(dy, spatial, stride, dilation)


def _scatter_windows_backward(
    K: Any, call: Any, dy: Any, *, spatial: Shape, stride: Shape, dilation: Shape
) -> Any:
    n = len(spatial)
    return (K.windows(dy, call.shapes[0][1 + n : 1 + 2 * n], stride, dilation),)


def _scatter_windows_infer(dy: Spec, *, spatial: Shape, stride: Shape, dilation: Shape) -> Spec:
    n = len(spatial)
    if len(dy.shape) != 2 * n + 2:
        raise ShapeError(
            f"scatter_windows: dy ({dy}) must have the axes (N, *out, *kernel, C) of {n} spatial "
            "axes"
        )
    kernel = dy.shape[1 + n : -1]
    counts = window_counts("scatter_windows", spatial, kernel, stride, dilation, "the result")
    if dy.shape[1 : 1 + n] != counts:
        raise ShapeError(
            f"scatter_windows: dy ({dy}) must have {counts} windows of {kernel} on {spatial}"
        )
    return Spec((dy.shape[0], *spatial, dy.shape[-1]), dy.dtype)


def _scatter_windows_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, kernel, stride, dilation in CASES:
        counts = window_counts("windows", shape[1:-1], kernel, stride, dilation)
        dy = rng.standard_normal((shape[0], *counts, *kernel, shape[-1]))
        yield Sample((dy,), {"spatial": shape[1:-1], "stride": stride, "dilation": dilation})


SCATTER_WINDOWS = Operation(
    "scatter_windows",
    _scatter_windows_forward,
    _scatter_windows_backward,
    _scatter_windows_infer,
    _scatter_windows_samples,
    strict=True,
).register()
