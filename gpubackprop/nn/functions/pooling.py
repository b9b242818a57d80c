"""Pooling over windows as functions, with PyTorch's arguments, of one to three spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.nn.functions.convolution import sizes
from gpubackprop.nn.functions.layout import inward, outward

__all__ = [
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
]

MAX_POOL = REGISTRY["max_pool"]
AVG_POOL = REGISTRY["avg_pool"]

Size = int | Sequence[int]
Result = Any  # a tensor, or with `return_indices` two


# Over windows.


def max_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    channels_last: bool = False,
) -> Result:
    """The largest element of each window; see :func:`max_pool2d`. `input` is (N, C, L) or
    (C, L)."""
    options = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _max_pool("max_pool1d", 1, input, *options, channels_last)


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    channels_last: bool = False,
) -> Result:
    """The largest element of each window of each channel (Goodfellow, Bengio & Courville 2016,
    section 9.3).

    Parameters
    ----------
    input : (N, C, H, W), or (C, H, W) without a batch axis; with `channels_last` (N, H, W, C).
    kernel_size : size of the windows; a number, or one for each spatial axis.
    stride : pixels from one window to the next, likewise; None for windows side by side.
    padding : places added before and after each axis, which never are the largest; at most half
        the window.
    dilation : pixels from one element of a window to the next.
    ceil_mode : whether a last window may run over the end. It must begin inside the image or the
        padding before it.
    return_indices : give the places of the largest elements as well.
    channels_last : whether input and result have their channels behind the spatial axes.

    Returns
    -------
    Tensor
        (N, C, out height, out width). Equal elements: the first one gets the derivative. A NaN in a
        window is its largest element.
    Tensor, with `return_indices`
        int64 of the same shape: positions in the flattened spatial axes.

    Raises
    ------
    ConfigError, ShapeError
        In words, if a number is out of range or no window fits.
    """
    options = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _max_pool("max_pool2d", 2, input, *options, channels_last)


def max_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    channels_last: bool = False,
) -> Result:
    """The largest element of each window; see :func:`max_pool2d`. `input` is (N, C, D, H, W) or
    (C, D, H, W)."""
    options = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _max_pool("max_pool3d", 3, input, *options, channels_last)


def avg_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    channels_last: bool = False,
) -> Tensor:
    """The mean of each window; see :func:`avg_pool2d`. `input` is (N, C, L) or (C, L)."""
    options = (kernel_size, stride, padding, ceil_mode, count_include_pad, None)
    return _avg_pool("avg_pool1d", 1, input, *options, channels_last)


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    channels_last: bool = False,
) -> Tensor:
    """The mean of each window of each channel.

    Parameters
    ----------
    input : (N, C, H, W), or (C, H, W) without a batch axis; with `channels_last` (N, H, W, C).
    kernel_size, stride, padding, ceil_mode : as for :func:`max_pool2d`; the padding is zeros.
    count_include_pad : whether the zeros of the padding count as elements.
    divisor_override : what to divide each sum by, instead of the number of elements.
    channels_last : whether input and result have their channels behind the spatial axes.

    Returns
    -------
    Tensor
        (N, C, out height, out width).

    Raises
    ------
    ConfigError, ShapeError
        In words, if a number is out of range or no window fits.
    """
    options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _avg_pool("avg_pool2d", 2, input, *options, channels_last)


def avg_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    channels_last: bool = False,
) -> Tensor:
    """The mean of each window; see :func:`avg_pool2d`. `input` is (N, C, D, H, W) or
    (C, D, H, W)."""
    options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _avg_pool("avg_pool3d", 3, input, *options, channels_last)


def _max_pool(
    name: str,
    n: int,
    input: Tensor,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    dilation: Size,
    ceil_mode: bool,
    return_indices: bool,
    channels_last: bool,
) -> Result:
    params = _windows(name, n, kernel_size, stride, padding, ceil_mode)
    params["dilation"] = sizes(name, "dilation", dilation, n)
    x = inward(name, input, n, channels_last)
    y = apply(MAX_POOL, x, **params)
    if not return_indices:
        return outward(y, input, channels_last)
    names = ("kernel", "stride", "padding", "dilation")
    seen = [
        s * np.arange(out)[:, None] + d * np.arange(k) - p
        for out, k, s, p, d in zip(y.shape[1:-1], *[params[a] for a in names], strict=True)
    ]
    at = positions(x, x.shape[1:-1], params, seen)
    return outward(y, input, channels_last), outward(at, input, channels_last)


def _avg_pool(
    name: str,
    n: int,
    input: Tensor,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    channels_last: bool,
) -> Tensor:
    params = _windows(name, n, kernel_size, stride, padding, ceil_mode)
    if divisor_override is not None:
        (divisor_override,) = sizes(name, "divisor_override", divisor_override, 1)
    x = inward(name, input, n, channels_last)
    y = apply(
        AVG_POOL,
        x,
        **params,
        count_include_pad=bool(count_include_pad),
        divisor_override=divisor_override,
    )
    return outward(y, input, channels_last)


def _windows(
    name: str, n: int, kernel_size: Size, stride: Size | None, padding: Size, ceil_mode: bool
) -> dict[str, Any]:
    """What the two operations have in common."""
    kernel = sizes(name, "kernel_size", kernel_size, n)
    return {
        "kernel": kernel,
        "stride": kernel if stride is None else sizes(name, "stride", stride, n),
        "padding": sizes(name, "padding", padding, n, 0),
        "ceil": bool(ceil_mode),
    }


def positions(
    x: Tensor, spatial: tuple[int, ...], params: dict[str, Any], seen: Sequence[np.ndarray]
) -> Tensor:
    """Where the largest elements are, counted over the flattened axes of lengths `spatial`.

    Parameters
    ----------
    seen : (windows, kernel) of each axis: the number of the element at each place of each window.
    """
    backend = x.backend
    _, winner = backend.max_pool(x.array, **params)
    total: Any = 0
    for axis, elements in enumerate(seen):
        out, kernel = elements.shape
        # Of each place in a window, its place along this axis; then the row of its window.
        split = np.indices(params["kernel"])[axis].reshape(-1)
        rows = kernel * np.arange(out).reshape(-1, *(1,) * (len(seen) - axis))
        number = backend.add(backend.take(backend.asarray(split), winner), backend.asarray(rows))
        step = int(np.prod(spatial[axis + 1 :], dtype=np.int64))
        total = backend.add(
            backend.take(backend.asarray(step * elements.reshape(-1)), number), total
        )
    return Tensor(total, backend)
