"""Layers of normalisation: over a batch, groups of channels, an image, by the root mean square."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from gpubackprop.autograd import STATE, Tensor
from gpubackprop.backends import as_dtype, get_backend
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.nn import init
from gpubackprop.nn.functions import norms as F  # noqa: N812 - the field's abbreviation
from gpubackprop.nn.layers import Device, _Affine, _empty, _size
from gpubackprop.nn.module import Module
from gpubackprop.nn.parameter import Parameter


class _Tracking(_Affine):
    """What batch and instance normalisation share: a scale and a shift for each channel, and
    running averages of mean and variance."""

    axes: ClassVar[tuple[int, ...]]
    plain_mean: ClassVar[bool]  # whether momentum=None stands for the mean of all batches
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        channels_last: bool = False,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        owner = type(self).__name__
        self.num_features = _size(owner, "num_features", num_features)
        self.eps = _eps(owner, eps)
        known = self.plain_mean if momentum is None else 0.0 <= momentum <= 1.0
        if not known:
            more = ", or None for the mean of all batches" if self.plain_mean else ""
            raise ConfigError(
                f"{owner}: momentum must be a number in [0, 1]{more}, not {momentum!r}"
            )
        self.momentum = momentum
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        self.channels_last = bool(channels_last)
        self._make_parameters((self.num_features,), affine, bias, device, dtype)
        backend, shape = get_backend(device), (self.num_features,)
        wide = self._buffer_dtype(as_dtype(dtype))
        tracked = {
            "running_mean": backend.zeros(shape, wide),
            "running_var": backend.ones(shape, wide),
            "num_batches_tracked": backend.zeros((), np.dtype(np.int64)),
        }
        for name, array in tracked.items():
            self.register_buffer(name, Tensor(array, backend) if track_running_stats else None)

    def _buffer_dtype(self, dtype: np.dtype) -> np.dtype:
        return np.result_type(dtype, np.float32)  # half precision ends at 65504, or 256 squared

    def reset_running_stats(self) -> None:
        """Begin the running averages anew: mean 0, variance 1, no batches."""
        buffers = (self.running_mean, self.running_var, self.num_batches_tracked)
        for buffer, value in zip(buffers, (0, 1, 0), strict=True):
            if buffer is not None:
                full = buffer.backend.full(buffer.shape, value, buffer.dtype)
                buffer.backend.copyto(buffer.array, full)
                buffer.mark_changed()

    def _check(self, input: Tensor) -> None:
        """Refuse what has other axes or another number of channels, in the layer's own words."""
        if input.ndim not in self.axes:
            wanted = " or ".join(map(str, self.axes))
            raise ShapeError(
                f"{type(self).__name__}: input (shape {input.shape}) must have {wanted} axes "
                f"(channels_last={self.channels_last})"
            )
        _check_channels(self, input, self._channel_axis(input), self.num_features)

    def _channel_axis(self, input: Tensor) -> int:
        return -1 if self.channels_last else 1

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps:g}, momentum={self.momentum}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}"
        )


class _BatchNorm(_Tracking):
    plain_mean = True

    def forward(self, input: Tensor) -> Tensor:
        """The normalised input, of its shape."""
        self._check(input)
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            self._momentum(),
            self.eps,
            channels_last=self.channels_last,
        )

    def _momentum(self) -> Any:
        """The momentum of this batch; in training the batch is counted."""
        count = self.num_batches_tracked
        if count is None or self.running_mean is None or not self.training:
            return 0.0 if self.momentum is None else self.momentum
        if not STATE.recomputing:
            count.backend.add(count.array, 1, out=count.array)
            count.mark_changed()
        if self.momentum is not None:
            return self.momentum
        return F.cumulative_momentum(count, self.running_mean.dtype)


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) or (N, C, L); parameters and attributes are
    :class:`BatchNorm2d`'s."""

    axes = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Bring each channel to mean 0 and variance 1 over the batch and the image, then scale and
    shift: (N, C, H, W) to the same shape.

    Parameters
    ----------
    num_features : number of channels C.
    eps : added to the variance.
    momentum : weight of the newest batch in the running averages; None for the plain mean of all
        batches.
    affine : whether there is a weight (and a bias).
    track_running_stats : whether there are running averages, to normalise by in evaluation mode.
        Without them the batch's own mean and variance serve then too.
    bias : whether there is a bias beside the weight.
    channels_last : whether the input is (N, H, W, C) instead.
    device, dtype : of parameters and running averages.

    Attributes
    ----------
    weight, bias : (C,) parameters, ones and zeros at first, or None.
    running_mean, running_var : (C,) buffers in float32 at least, or None. The variance is unbiased.
    num_batches_tracked : how many batches they have seen (int64), or None.

    Raises
    ------
    ShapeError
        If a channel has a single value in training, or the input's axes or channels do not fit.

    Notes
    -----
    Ioffe & Szegedy, "Batch normalization" (2015), algorithms 1 and 2. A block that gradient
    checkpointing computes twice counts its batch once.
    """

    axes = (4,)


class BatchNorm3d(_BatchNorm):
    """Batch normalisation of (N, C, D, H, W); parameters and attributes are
    :class:`BatchNorm2d`'s."""

    axes = (5,)


class _InstanceNorm(_Tracking):
    plain_mean = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        bias: bool = True,
        channels_last: bool = False,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            bias=bias,
            channels_last=channels_last,
            device=device,
            dtype=dtype,
        )

    def forward(self, input: Tensor) -> Tensor:
        """The normalised input, of its shape."""
        self._check(input)
        single = input.ndim == self.axes[0]
        result = F.instance_norm(
            input.reshape(1, *input.shape) if single else input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            self.momentum,
            self.eps,
            channels_last=self.channels_last,
        )
        return result.reshape(*input.shape) if single else result

    def _channel_axis(self, input: Tensor) -> int:
        return -1 if self.channels_last else input.ndim - self.axes[0]


class InstanceNorm1d(_InstanceNorm):
    """Instance normalisation of (N, C, L), or of one (C, L); parameters and attributes are
    :class:`InstanceNorm2d`'s."""

    axes = (2, 3)


class InstanceNorm2d(_InstanceNorm):
    """Bring each channel of each image to mean 0 and variance 1: (N, C, H, W), or one (C, H, W), to
    the same shape.

    Parameters and attributes are :class:`BatchNorm2d`'s; here `affine` and `track_running_stats`
    are off by default, and `momentum` is a number. As in PyTorch, ``num_batches_tracked`` stays 0.

    Notes
    -----
    Ulyanov, Vedaldi & Lempitsky, "Instance normalization" (2016).
    """

    axes = (3, 4)


class InstanceNorm3d(_InstanceNorm):
    """Instance normalisation of (N, C, D, H, W), or of one (C, D, H, W); parameters and attributes
    are :class:`InstanceNorm2d`'s."""

    axes = (4, 5)


class GroupNorm(_Affine):
    """Bring each group of channels of each image to mean 0 and variance 1, then scale and shift:
    (N, C, *spatial) to the same shape.

    Parameters
    ----------
    num_groups : a divisor of `num_channels`.
    num_channels : number of channels C.
    eps : added to the variance.
    affine : whether there is a weight (and a bias), one number for each channel.
    bias : whether there is a bias beside the weight.
    channels_last : whether the input is (N, *spatial, C) instead.
    device, dtype : of the parameters.

    Notes
    -----
    Wu & He, "Group normalization" (2018).
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        channels_last: bool = False,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        self.num_groups = _size("GroupNorm", "num_groups", num_groups)
        self.num_channels = _size("GroupNorm", "num_channels", num_channels)
        if self.num_channels % self.num_groups:
            raise ConfigError(
                f"GroupNorm: {num_channels} channels cannot be split into {num_groups} groups of "
                "one size; num_groups must divide num_channels"
            )
        self.eps = _eps("GroupNorm", eps)
        self.affine = bool(affine)
        self.channels_last = bool(channels_last)
        self._make_parameters((self.num_channels,), affine, bias, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The normalised input, of its shape."""
        if input.ndim > 1:
            _check_channels(self, input, -1 if self.channels_last else 1, self.num_channels)
        return F.group_norm(
            input,
            self.num_groups,
            self.weight,
            self.bias,
            self.eps,
            channels_last=self.channels_last,
        )

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps:g}, affine={self.affine}"


class RMSNorm(Module):
    """Divide the last axes of each sample by the root of their mean square, then scale.

    Parameters
    ----------
    normalized_shape : lengths of the last axes, or the length of the last one.
    eps : added to the mean square; None for the distance from 1 to the next number of float64 for
        such an input, else of float32.
    elementwise_affine : whether there is a weight.
    device, dtype : of the weight.

    Notes
    -----
    Zhang & Sennrich, "Root mean square layer normalization" (2019).
    """

    weight: Parameter | None

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...] | list[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        lengths = [normalized_shape] if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape = tuple(_size("RMSNorm", "normalized_shape", n) for n in lengths)
        self.eps = None if eps is None else _eps("RMSNorm", eps)
        self.elementwise_affine = bool(elementwise_affine)
        weight = _empty(self.normalized_shape, device, dtype) if elementwise_affine else None
        self.register_parameter("weight", weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to ones."""
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """The normalised input, of its shape."""
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        eps = None if self.eps is None else f"{self.eps:g}"
        return f"{self.normalized_shape}, eps={eps}, elementwise_affine={self.elementwise_affine}"


def _check_channels(layer: Any, input: Tensor, axis: int, channels: int) -> None:
    found = input.shape[axis]
    if found != channels:
        raise ShapeError(
            f"{type(layer).__name__}: input (shape {input.shape}) has {found} channels, the layer "
            f"{channels}; channels are axis {axis} (channels_last={layer.channels_last})"
        )


def _eps(owner: str, eps: float) -> float:
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not eps >= 0.0:
        raise ConfigError(f"{owner}: eps must be a number of at least 0, not {eps!r}")
    return float(eps)
