"""Convolution layers of one, two and three spatial axes, and transposed ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError
from gpubackprop.nn import init
from gpubackprop.nn.functions import convolution
from gpubackprop.nn.functions.convolution import Size
from gpubackprop.nn.functions.padding import pad
from gpubackprop.nn.layers import Device, _empty, _size
from gpubackprop.nn.module import Module
from gpubackprop.nn.parameter import Parameter
from gpubackprop.suggest import unknown

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _Convolution(Module):
    """What all of them share: settings, parameters, initial values."""

    axes: ClassVar[int]
    transposed: ClassVar[bool] = False
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        padding: Size | str,
        dilation: Size,
        groups: int,
        bias: bool,
        padding_mode: str,
        channels_last: bool,
        generator: Generator | None,
        device: Device,
        dtype: Any,
    ) -> None:
        owner, n = type(self).__name__, self.axes
        self.in_channels = _size(owner, "in_channels", in_channels)
        self.out_channels = _size(owner, "out_channels", out_channels)
        channels = {"in_channels": self.in_channels, "out_channels": self.out_channels}
        self.groups = convolution.check_groups(owner, groups, **channels)
        self.kernel_size = convolution.sizes(owner, "kernel_size", kernel_size, n)
        self.stride = convolution.sizes(owner, "stride", stride, n)
        self.dilation = convolution.sizes(owner, "dilation", dilation, n)
        geometry = (self.kernel_size, self.stride, self.dilation)
        self._pairs = convolution.pairs(owner, padding, *geometry)
        self.padding: tuple[int, ...] | str = (
            padding if isinstance(padding, str) else tuple(a for a, _ in self._pairs)
        )
        if padding_mode not in PADDING_MODES:
            raise ConfigError(f"{owner}: {unknown('padding_mode', padding_mode, PADDING_MODES)}")
        self.padding_mode = padding_mode
        self.channels_last = bool(channels_last)
        first, second = self.out_channels, self.in_channels
        if self.transposed:
            first, second = second, first
        shape = (first, second // self.groups, *self.kernel_size)
        self.weight = _empty(shape, device, dtype)
        self.register_parameter(
            "bias", _empty((self.out_channels,), device, dtype) if bias else None
        )
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw new initial values."""
        bound = 1.0 / math.sqrt(math.prod(self.weight.shape[1:]))
        init.uniform_(self.weight, -bound, bound, generator=generator)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound, generator=generator)

    def extra_repr(self) -> str:
        parts = [str(self.in_channels), str(self.out_channels), f"kernel_size={self.kernel_size}"]
        parts.append(f"stride={self.stride}")
        usual = {"padding": (0,) * self.axes, "dilation": (1,) * self.axes, "groups": 1}
        usual |= {"padding_mode": "zeros", "channels_last": False}
        for name, value in usual.items():
            if getattr(self, name) != value:
                parts.append(f"{name}={getattr(self, name)!r}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


class _Conv(_Convolution):
    function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        channels_last: bool = False,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        geometry = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        made = (channels_last, generator, device, dtype)
        super().__init__(in_channels, out_channels, *geometry, *made)

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of the input, in its layout."""
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = self._padded(input), 0
        geometry = (self.stride, padding, self.dilation, self.groups)
        function = type(self).function
        return function(input, self.weight, self.bias, *geometry, channels_last=self.channels_last)

    def _padded(self, x: Tensor) -> Tensor:
        widths = [width for pair in reversed(self._pairs) for width in pair]
        if not self.channels_last:
            return pad(x, widths, self.padding_mode)
        lead = x.ndim - 1 - self.axes
        forth = (*range(lead), x.ndim - 1, *range(lead, x.ndim - 1))
        back = (*range(lead), *range(lead + 1, x.ndim), lead)
        return pad(x.transpose(*forth), widths, self.padding_mode).transpose(*back)


class Conv1d(_Conv):
    """Convolution over one spatial axis, (N, in_channels, L) to (N, out_channels, L').

    Parameters, attributes and notes as of :class:`Conv2d`.
    """

    axes = 1
    function = convolution.conv1d


class Conv2d(_Conv):
    """Convolution over two spatial axes, (N, in_channels, H, W) to (N, out_channels, H', W').

    Parameters
    ----------
    in_channels, out_channels : channels of the input and of the result.
    kernel_size, stride, padding, dilation, groups : see
        :func:`gpubackprop.nn.functional.conv2d`; each a number, or one for each spatial axis.
    bias : whether a number is added to each channel of the result.
    padding_mode : what stands around the image: ``"zeros"``, its mirror image (``"reflect"``), its
        outermost pixels (``"replicate"``) or its other side (``"circular"``).
    channels_last : whether input and result are (N, H, W, channels).
    generator : where the initial values are drawn; None for the default generator.
    device, dtype : of the parameters.

    Attributes
    ----------
    weight : (out_channels, in_channels / groups, *kernel_size) parameter, in either layout.
    bias : (out_channels,) parameter, or None.

    Notes
    -----
    Weight and bias begin uniform on +-1/sqrt(fan-in), where the fan-in is the number of weights of
    a result: PyTorch's default.
    """

    axes = 2
    function = convolution.conv2d


class Conv3d(_Conv):
    """Convolution over three spatial axes, (N, in_channels, D, H, W) to (N, out_channels, D', H',
    W').

    Parameters, attributes and notes as of :class:`Conv2d`.
    """

    axes = 3
    function = convolution.conv3d


class _ConvTranspose(_Convolution):
    function: ClassVar[Callable[..., Tensor]]
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        *,
        channels_last: bool = False,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        owner = type(self).__name__
        if padding_mode != "zeros":
            raise ConfigError(f"{owner}: padding_mode must be 'zeros', not {padding_mode!r}")
        if isinstance(padding, str):
            raise ConfigError(f"{owner}: padding must be a number of pixels, not {padding!r}")
        geometry = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        made = (channels_last, generator, device, dtype)
        super().__init__(in_channels, out_channels, *geometry, *made)
        self.output_padding = convolution.sizes(
            owner, "output_padding", output_padding, self.axes, 0
        )

    def forward(self, input: Tensor) -> Tensor:
        """The transposed convolution of the input, in its layout."""
        geometry = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        function = type(self).function
        return function(input, self.weight, self.bias, *geometry, channels_last=self.channels_last)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return f"{text}, output_padding={self.output_padding}" if any(self.output_padding) else text


class ConvTranspose1d(_ConvTranspose):
    """Transposed convolution over one spatial axis, (N, in_channels, L) to (N, out_channels, L').

    Parameters, attributes and notes as of :class:`ConvTranspose2d`.
    """

    axes = 1
    function = convolution.conv_transpose1d


class ConvTranspose2d(_ConvTranspose):
    """Transposed convolution over two spatial axes, (N, in_channels, H, W) to (N, out_channels, H',
    W').

    Parameters
    ----------
    in_channels, out_channels : channels of the input and of the result.
    kernel_size, stride, padding, output_padding, groups, dilation : see
        :func:`gpubackprop.nn.functional.conv_transpose2d`; each a number, or one for each spatial
        axis.
    bias : whether a number is added to each channel of the result.
    padding_mode : only ``"zeros"``.
    channels_last : whether input and result are (N, H, W, channels).
    generator : where the initial values are drawn; None for the default generator.
    device, dtype : of the parameters.

    Attributes
    ----------
    weight : (in_channels, out_channels / groups, *kernel_size) parameter, in either layout.
    bias : (out_channels,) parameter, or None.

    Notes
    -----
    Weight and bias begin uniform on +-1/sqrt(n), where n is the number of elements of a row of the
    weight: PyTorch's default.
    """

    axes = 2
    function = convolution.conv_transpose2d


class ConvTranspose3d(_ConvTranspose):
    """Transposed convolution over three spatial axes, (N, in_channels, D, H, W) to (N,
    out_channels, D', H', W').

    Parameters, attributes and notes as of :class:`ConvTranspose2d`.
    """

    axes = 3
    function = convolution.conv_transpose3d
