"""Normalisation as functions, under PyTorch's names: over a batch, over groups of channels, over
each image, over the last axes, and by the root mean square.

Images are channels first, (N, C, *spatial), unless ``channels_last=True`` says (N, *spatial, C).
Either way the same kernels run: they are handed a view with the channels last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpubackprop.autograd import REGISTRY, STATE, Tensor, apply
from gpubackprop.backends import Array
from gpubackprop.errors import ConfigError, ShapeError

BATCH_NORM = REGISTRY["batch_norm"]
SCALE_SHIFT = REGISTRY["scale_shift"]
GROUP_NORM = REGISTRY["group_norm"]
LAYER_NORM = REGISTRY["layer_norm"]
RMS_NORM = REGISTRY["rms_norm"]
SQRT = REGISTRY["sqrt"]
TRANSPOSE = REGISTRY["transpose"]

Stats = Tensor | None


def batch_norm(
    input: Tensor,
    running_mean: Stats,
    running_var: Stats,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Array = 0.1,
    eps: float = 1e-5,
    *,
    channels_last: bool = False,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias for each channel (Ioffe & Szegedy 2015).

    Parameters
    ----------
    input : (N, C, *spatial), or (N, *spatial, C) with `channels_last`.
    running_mean, running_var : (C,) averages over the batches of the past, or None. In training
        they are moved towards the batch's own, in place: ``running += momentum * (own - running)``,
        with the variance divided by n - 1. Otherwise they are what is normalised by.
    weight, bias : (C,), or None.
    training : whether to normalise by the batch's own mean and variance (divided by n).
    momentum : weight of the newest batch in the running averages; a number, or a 0-d array of the
        device.
    eps : added to the variance.

    Raises
    ------
    ShapeError
        If a channel has a single value in training, or a shape does not fit.
    ConfigError
        If there are no running averages to evaluate with.
    """
    channels = _channels("batch_norm", input, channels_last)
    stats = {"running_mean": running_mean, "running_var": running_var}
    _check_length("batch_norm", channels, input, **stats, weight=weight, bias=bias)
    if not training:
        return _by_running(
            "batch_norm", input, running_mean, running_var, weight, bias, eps, channels_last
        )
    n = input.size // channels if channels else 0
    if n == 1:
        raise ShapeError(
            f"batch_norm: input (shape {input.shape}) has a single value for each channel, which "
            "has no variance to train with; use a larger batch, or evaluation mode"
        )
    moments: list[Tensor] = []

    def normalise(x: Tensor) -> Tensor:
        y, *found = apply(BATCH_NORM, x, weight, bias, eps=eps)
        moments.extend(found)
        return y

    result = _on_last(input, channels_last, normalise)
    if n:
        mean, var = (m.array for m in moments)
        unbiased = input.backend.multiply(var, n / (n - 1))
        _move_towards(running_mean, mean, momentum)
        _move_towards(running_var, unbiased, momentum)
    return result


def instance_norm(
    input: Tensor,
    running_mean: Stats = None,
    running_var: Stats = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float | Array = 0.1,
    eps: float = 1e-5,
    *,
    channels_last: bool = False,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias for each channel of each image (Ulyanov et
    al. 2016).

    Parameters
    ----------
    input, weight, bias, momentum, eps, channels_last : as for :func:`batch_norm`.
    running_mean, running_var : (C,) averages over the images of the past, or None.
    use_input_stats : whether to normalise by each image's own mean and variance; otherwise by the
        running averages.

    Raises
    ------
    ShapeError
        If a channel of an image has a single value to normalise by, or a shape does not fit.
    ConfigError
        If there are no running averages to evaluate with.
    """
    name = "instance_norm"
    channels = _channels(name, input, channels_last)
    stats = {"running_mean": running_mean, "running_var": running_var}
    _check_length(name, channels, input, **stats, weight=weight, bias=bias)
    if not use_input_stats:
        return _by_running(name, input, running_mean, running_var, weight, bias, eps, channels_last)
    spatial = input.shape[1:-1] if channels_last else input.shape[2:]
    n = math.prod(spatial)
    if n == 1:
        raise ShapeError(
            f"instance_norm: input (shape {input.shape}) has a single value for each channel of an "
            "image, which has no variance; use larger images, or running averages"
        )
    result = _on_last(
        input, channels_last, lambda x: apply(GROUP_NORM, x, weight, bias, groups=channels, eps=eps)
    )
    if input.size and not (running_mean is None and running_var is None):
        kernels, x = input.backend, input.array
        if x.dtype.itemsize < 4:  # float16 cannot hold a variance beyond 65504
            x = kernels.astype(x, np.float32)
        axes = tuple(range(1, x.ndim - 1) if channels_last else range(2, x.ndim))
        mean, var = kernels.mean(x, axis=axes), kernels.var(x, axis=axes, ddof=1)
        _move_towards(running_mean, kernels.mean(mean, axis=0), momentum)
        _move_towards(running_var, kernels.mean(var, axis=0), momentum)
    return result


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    channels_last: bool = False,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, with mean and variance over the spatial
    axes and C / num_groups neighbouring channels of each image (Wu & He 2018).

    Parameters
    ----------
    input : (N, C, *spatial), or (N, *spatial, C) with `channels_last`.
    num_groups : a divisor of C.
    weight, bias : (C,), or None.
    eps : added to the variance, which is the biased one (divided by n).

    Raises
    ------
    ShapeError
        If the channels cannot be split into so many groups, or a shape does not fit.
    """
    channels = _channels("group_norm", input, channels_last)
    _check_length("group_norm", channels, input, weight=weight, bias=bias)
    return _on_last(
        input,
        channels_last,
        lambda x: apply(GROUP_NORM, x, weight, bias, groups=num_groups, eps=eps),
    )


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, with mean and variance over the last axes
    (Ba et al. 2016).

    Parameters
    ----------
    input : (..., *normalized_shape).
    normalized_shape : lengths of the axes to normalise over.
    weight, bias : of shape `normalized_shape`, or None.
    eps : added to the variance, which is the biased one (divided by n).

    Raises
    ------
    ShapeError
        If the last axes of the input are not `normalized_shape`, or a weight has another shape.
    """
    shape = _normalized("layer_norm", input, normalized_shape, weight=weight, bias=bias)
    return apply(LAYER_NORM, input, weight, bias, axes=len(shape), eps=eps)


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """x / sqrt(mean(x**2) + eps) * weight over the last axes (Zhang & Sennrich 2019).

    Parameters
    ----------
    input : (..., *normalized_shape).
    normalized_shape : lengths of the axes to normalise over.
    weight : of shape `normalized_shape`, or None.
    eps : added to the mean of the squares; None for the distance from 1 to the next number: of
        float64 for such an input, else of float32.

    Raises
    ------
    ShapeError
        If the last axes of the input are not `normalized_shape`, or a weight has another shape.
    """
    shape = _normalized("rms_norm", input, normalized_shape, weight=weight)
    if eps is None:
        # As in PyTorch: half precision's own spacing is larger than many a mean square.
        eps = float(np.finfo(np.float64 if input.dtype == np.float64 else np.float32).eps)
    return apply(RMS_NORM, input, weight, axes=len(shape), eps=eps)


def cumulative_momentum(batches: Tensor, dtype: Any) -> Array:
    """1 / `batches` as a 0-d array: the momentum that makes a running average the plain mean of all
    batches so far. No value is read on the host."""
    kernels = batches.backend
    return kernels.astype(kernels.divide(1.0, batches.array), dtype)


def _normalized(
    name: str, input: Tensor, normalized_shape: int | Sequence[int], **given: Tensor | None
) -> tuple[int, ...]:
    """The lengths of the axes to normalise over, which must be those of the input and of what is
    multiplied or added."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or input.shape[-len(shape) :] != shape:
        raise ShapeError(
            f"{name}: the last axes of input (shape {input.shape}) must be normalized_shape {shape}"
        )
    for argument, s in given.items():
        if s is not None and s.shape != shape:
            raise ShapeError(
                f"{name}: {argument} (shape {s.shape}) must have the shape {shape}, which is "
                "normalized_shape"
            )
    return shape


def _channels(name: str, input: Tensor, channels_last: bool) -> int:
    if input.ndim < 2:
        raise ShapeError(
            f"{name}: input (shape {input.shape}) needs a batch axis and an axis of channels"
        )
    return input.shape[-1 if channels_last else 1]


def _check_length(name: str, channels: int, input: Tensor, **given: Stats) -> None:
    for argument, s in given.items():
        if s is not None and s.shape != (channels,):
            raise ShapeError(
                f"{name}: {argument} has shape {s.shape} and must have ({channels},), the channels "
                f"of input (shape {input.shape})"
            )


def _on_last(input: Tensor, channels_last: bool, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function` of a view with the channels last, its result in the input's order of axes."""
    n = input.ndim
    if channels_last or n == 2:
        return function(input)
    moved = apply(TRANSPOSE, input, axes=(0, *range(2, n), 1))
    return apply(TRANSPOSE, function(moved), axes=(0, n - 1, *range(1, n - 1)))


def _by_running(
    name: str,
    input: Tensor,
    mean: Stats,
    var: Stats,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    channels_last: bool,
) -> Tensor:
    """Normalise by fixed moments, folded into one scale and one shift for each channel."""
    if mean is None or var is None:
        raise ConfigError(
            f"{name}: evaluation needs running_mean and running_var; without them, normalise by "
            "the input's own mean and variance"
        )
    root = apply(SQRT, var + eps)
    scale = 1.0 / root if weight is None else weight / root
    shift = -mean * scale if bias is None else bias - mean * scale
    y = _on_last(input, channels_last, lambda x: apply(SCALE_SHIFT, x, scale, shift))
    # The averages may be wider than the input: the result is of the dtype that it has in training.
    dtype = input.dtype
    if dtype.itemsize >= 4:
        dtype = np.result_type(*[t.dtype for t in (input, weight, bias) if t is not None])
    return y if y.dtype == dtype else y.astype(dtype)


def _move_towards(running: Stats, value: Array, momentum: float | Array) -> None:
    """``running += momentum * (value - running)`` in place; nothing while a checkpointed function
    runs for the second time, for it has counted its batch already."""
    if running is None or STATE.recomputing:
        return
    kernels, array = running.backend, running.array
    step = kernels.multiply(kernels.subtract(value, array), momentum)
    kernels.add(array, step, out=array)
    running.mark_changed()
