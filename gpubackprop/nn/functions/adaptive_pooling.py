"""Pooling to a given size, and over everything, as functions of one to three spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.errors import ShapeError
from gpubackprop.nn.functions.convolution import sizes
from gpubackprop.nn.functions.layout import inward, outward
from gpubackprop.nn.functions.pooling import AVG_POOL, MAX_POOL, Result, positions

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "global_avg_pool",
    "global_max_pool",
]

TAKE = REGISTRY["take"]
MATMUL = REGISTRY["matmul"]

OutputSize = int | None | Sequence[int | None]


def adaptive_avg_pool1d(
    input: Tensor, output_size: OutputSize, *, channels_last: bool = False
) -> Tensor:
    """Means over as many windows as wanted; see :func:`adaptive_avg_pool2d`. `input` is (N, C, L)
    or (C, L)."""
    return _adaptive_avg_pool("adaptive_avg_pool1d", 1, input, output_size, channels_last)


def adaptive_avg_pool2d(
    input: Tensor, output_size: OutputSize, *, channels_last: bool = False
) -> Tensor:
    """Means over as many windows as wanted.

    Parameters
    ----------
    input : (N, C, H, W), or (C, H, W) without a batch axis; with `channels_last` (N, H, W, C).
    output_size : number of windows of each spatial axis; one number for all, None for as many as
        there are pixels.
    channels_last : whether input and result have their channels behind the spatial axes.

    Returns
    -------
    Tensor
        (N, C, out height, out width).

    Notes
    -----
    Window i of m on n pixels is ``[floor(i * n / m), ceil((i + 1) * n / m))``, as in PyTorch: the
    windows overlap where m does not divide n.
    """
    return _adaptive_avg_pool("adaptive_avg_pool2d", 2, input, output_size, channels_last)


def adaptive_avg_pool3d(
    input: Tensor, output_size: OutputSize, *, channels_last: bool = False
) -> Tensor:
    """Means over as many windows as wanted; see :func:`adaptive_avg_pool2d`. `input` is (N, C, D,
    H, W) or (C, D, H, W)."""
    return _adaptive_avg_pool("adaptive_avg_pool3d", 3, input, output_size, channels_last)


def adaptive_max_pool1d(
    input: Tensor,
    output_size: OutputSize,
    return_indices: bool = False,
    *,
    channels_last: bool = False,
) -> Result:
    """Largest elements of as many windows as wanted; see :func:`adaptive_max_pool2d`. `input` is
    (N, C, L) or (C, L)."""
    given = (input, output_size, return_indices, channels_last)
    return _adaptive_max_pool("adaptive_max_pool1d", 1, *given)


def adaptive_max_pool2d(
    input: Tensor,
    output_size: OutputSize,
    return_indices: bool = False,
    *,
    channels_last: bool = False,
) -> Result:
    """Largest elements of as many windows as wanted: the windows of :func:`adaptive_avg_pool2d`,
    the results of :func:`max_pool2d`."""
    given = (input, output_size, return_indices, channels_last)
    return _adaptive_max_pool("adaptive_max_pool2d", 2, *given)


def adaptive_max_pool3d(
    input: Tensor,
    output_size: OutputSize,
    return_indices: bool = False,
    *,
    channels_last: bool = False,
) -> Result:
    """Largest elements of as many windows as wanted; see :func:`adaptive_max_pool2d`. `input` is
    (N, C, D, H, W) or (C, D, H, W)."""
    given = (input, output_size, return_indices, channels_last)
    return _adaptive_max_pool("adaptive_max_pool3d", 3, *given)


def _adaptive_avg_pool(
    name: str, n: int, input: Tensor, output_size: OutputSize, channels_last: bool
) -> Tensor:
    x = inward(name, input, n, channels_last)
    wanted = _wanted(name, output_size, x, input)
    return outward(adaptive_means(x, wanted), input, channels_last)


def adaptive_means(x: Tensor, wanted: tuple[int, ...]) -> Tensor:
    """Means of an image (N, *spatial, C)."""
    spatial = x.shape[1:-1]
    if all(size % m == 0 for size, m in zip(spatial, wanted, strict=True)):
        kernel = tuple(size // m for size, m in zip(spatial, wanted, strict=True))
        return apply(AVG_POOL, x, kernel=kernel, stride=kernel, padding=(0,) * len(kernel))
    # A mean over a box is a mean over each axis: a product with a matrix of weights.
    for axis, m in enumerate(wanted, start=1):
        size = x.shape[axis]
        if m == size:
            continue
        begin, end = _bounds(size, m)
        inside = (np.arange(size) >= begin[:, None]) & (np.arange(size) < end[:, None])
        dtype = x.dtype if x.dtype.kind in "fV" else np.float64
        weights = (inside / (end - begin)[:, None]).astype(dtype)
        shape = (*x.shape[:axis], m, *x.shape[axis + 1 :])
        columns = x.reshape(int(np.prod(shape[:axis])), size, int(np.prod(shape[axis + 1 :])))
        mean = apply(MATMUL, Tensor(x.backend.asarray(weights), x.backend), columns)
        x = mean.reshape(*shape)
    return x


def _adaptive_max_pool(
    name: str,
    n: int,
    input: Tensor,
    output_size: OutputSize,
    return_indices: bool,
    channels_last: bool,
) -> Result:
    x = inward(name, input, n, channels_last)
    spatial, kernel, seen = x.shape[1:-1], [], []
    for axis, m in enumerate(_wanted(name, output_size, x, input), start=1):
        size = x.shape[axis]
        begin, end = _bounds(size, m)
        # Shorter windows see their last element again, which loses to itself.
        longest = int((end - begin).max())
        elements = np.minimum(begin[:, None] + np.arange(longest), end[:, None] - 1)
        if size % m:
            places = Tensor(x.backend.asarray(elements.reshape(-1)), x.backend)
            x = apply(TAKE, x, places, axis=axis)
        kernel.append(longest)
        seen.append(elements)
    params = dict.fromkeys(("kernel", "stride"), tuple(kernel))
    params |= {"padding": (0,) * n, "dilation": (1,) * n}
    y = outward(apply(MAX_POOL, x, **params), input, channels_last)
    if not return_indices:
        return y
    return y, outward(positions(x, spatial, params, seen), input, channels_last)


def _wanted(name: str, output_size: OutputSize, x: Tensor, input: Tensor) -> tuple[int, ...]:
    """The number of windows of each axis of x, the input with its channels last."""
    spatial = x.shape[1:-1]
    given: Any = output_size
    if not isinstance(given, Sequence):
        given = (given,) * len(spatial)
    if 0 in spatial:
        raise ShapeError(f"{name}: a spatial axis of input (shape {input.shape}) is empty")
    if len(given) == len(spatial):
        given = [size if m is None else m for m, size in zip(given, spatial, strict=True)]
    return sizes(name, "output_size", given, len(spatial))


def _bounds(n: int, windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of each of `windows` windows on n elements."""
    i = np.arange(windows)
    return i * n // windows, -(-(i + 1) * n // windows)


# Over everything.


def global_avg_pool(input: Tensor, *, channels_last: bool = False) -> Tensor:
    """The mean over all spatial axes (Lin, Chen & Yan, "Network in network", 2013, section 3.2).

    Parameters
    ----------
    input : (N, C, *spatial), or (N, *spatial, C) with `channels_last`.

    Returns
    -------
    Tensor
        The spatial axes have length 1, as ``AdaptiveAvgPool2d(1)`` leaves them.
    """
    n = _spatial_axes("global_avg_pool", input)
    return _adaptive_avg_pool("global_avg_pool", n, input, 1, channels_last)


def global_max_pool(input: Tensor, *, channels_last: bool = False) -> Tensor:
    """The largest element over all spatial axes, which then have length 1. `input` is (N, C,
    *spatial), or (N, *spatial, C) with `channels_last`."""
    n = _spatial_axes("global_max_pool", input)
    return _adaptive_max_pool("global_max_pool", n, input, 1, False, channels_last)


def _spatial_axes(name: str, input: Tensor) -> int:
    if input.ndim < 3:
        raise ShapeError(
            f"{name}: input needs spatial axes beside batch and channels; its shape is "
            f"{input.shape}"
        )
    return input.ndim - 2
