"""Pooling as modules."""

from __future__ import annotations

from typing import Any

from gpubackprop.autograd import Tensor
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation
from gpubackprop.nn.functions.adaptive_pooling import OutputSize
from gpubackprop.nn.functions.convolution import sizes
from gpubackprop.nn.functions.pooling import Size
from gpubackprop.nn.module import Module


class _Pool(Module):
    """Base of pooling over windows. The number of axes is the digit in the class's name."""

    axes: int

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None,
        padding: Size,
        ceil_mode: bool,
        channels_last: bool,
    ) -> None:
        name = type(self).__name__
        sizes(name, "kernel_size", kernel_size, self.axes)
        sizes(name, "padding", padding, self.axes, 0)
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = kernel_size if stride is None else stride
        sizes(name, "stride", self.stride, self.axes)
        self.ceil_mode = bool(ceil_mode)
        self.channels_last = bool(channels_last)

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return text + _flags(self, "ceil_mode", "channels_last")


def _flags(module: Any, *names: str) -> str:
    """``, name=True`` of each attribute that is set."""
    return "".join(f", {name}=True" for name in names if getattr(module, name))


class _MaxPool(_Pool):
    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        channels_last: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, channels_last)
        sizes(type(self).__name__, "dilation", dilation, self.axes)
        self.dilation = dilation
        self.return_indices = bool(return_indices)

    def forward(self, input: Tensor) -> Any:
        """The largest elements; with `return_indices` a pair of them and their places."""
        function = getattr(F, f"max_pool{self.axes}d")
        return function(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
            channels_last=self.channels_last,
        )

    def extra_repr(self) -> str:
        more = f", dilation={self.dilation}{_flags(self, 'return_indices')}"
        return super().extra_repr() + more


class MaxPool1d(_MaxPool):
    """The largest element of each window of (N, C, L) or (C, L); see :class:`MaxPool2d`."""

    axes = 1


class MaxPool2d(_MaxPool):
    """The largest element of each window of each channel.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, return_indices, ceil_mode : as for
        :func:`~gpubackprop.nn.functional.max_pool2d`; the stride is the kernel's size by default.
    channels_last : whether input and result are (N, H, W, C) instead of (N, C, H, W).
    """

    axes = 2


class MaxPool3d(_MaxPool):
    """The largest element of each window of (N, C, D, H, W) or (C, D, H, W); see
    :class:`MaxPool2d`."""

    axes = 3


class AvgPool1d(_Pool):
    """The mean of each window of (N, C, L) or (C, L); see :class:`AvgPool2d`."""

    axes = 1

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        *,
        channels_last: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, channels_last)
        self.count_include_pad = bool(count_include_pad)

    def forward(self, input: Tensor) -> Tensor:
        """The means."""
        return F.avg_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            channels_last=self.channels_last,
        )


class AvgPool2d(_Pool):
    """The mean of each window of each channel.

    Parameters
    ----------
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override : as for
        :func:`~gpubackprop.nn.functional.avg_pool2d`; the stride is the kernel's size by default.
    channels_last : whether input and result are (N, H, W, C) instead of (N, C, H, W).
    """

    axes = 2

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        channels_last: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, channels_last)
        self.count_include_pad = bool(count_include_pad)
        self.divisor_override = divisor_override

    def forward(self, input: Tensor) -> Tensor:
        """The means."""
        function = getattr(F, f"avg_pool{self.axes}d")
        return function(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
            channels_last=self.channels_last,
        )


class AvgPool3d(AvgPool2d):
    """The mean of each window of (N, C, D, H, W) or (C, D, H, W); see :class:`AvgPool2d`."""

    axes = 3


# To a given size.


class _AdaptivePool(Module):
    axes: int
    kind: str

    def __init__(self, output_size: OutputSize, *, channels_last: bool = False) -> None:
        self.output_size = output_size
        self.channels_last = bool(channels_last)

    def forward(self, input: Tensor) -> Any:
        """As many windows as wanted."""
        function = getattr(F, f"adaptive_{self.kind}_pool{self.axes}d")
        return function(input, self.output_size, channels_last=self.channels_last)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}{_flags(self, 'channels_last')}"


class AdaptiveAvgPool1d(_AdaptivePool):
    """Means over as many windows as wanted; see :class:`AdaptiveAvgPool2d`."""

    axes, kind = 1, "avg"


class AdaptiveAvgPool2d(_AdaptivePool):
    """Means over as many windows as wanted.

    Parameters
    ----------
    output_size : number of windows of each spatial axis; one number for all, None for as many as
        there are pixels.
    channels_last : whether input and result are (N, H, W, C) instead of (N, C, H, W).
    """

    axes, kind = 2, "avg"


class AdaptiveAvgPool3d(_AdaptivePool):
    """Means over as many windows as wanted; see :class:`AdaptiveAvgPool2d`."""

    axes, kind = 3, "avg"


class _AdaptiveMaxPool(_AdaptivePool):
    kind = "max"

    def __init__(
        self, output_size: OutputSize, return_indices: bool = False, *, channels_last: bool = False
    ) -> None:
        super().__init__(output_size, channels_last=channels_last)
        self.return_indices = bool(return_indices)

    def forward(self, input: Tensor) -> Any:
        """As many windows as wanted; with `return_indices` a pair of them and their places."""
        function = getattr(F, f"adaptive_max_pool{self.axes}d")
        return function(
            input, self.output_size, self.return_indices, channels_last=self.channels_last
        )


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """Largest elements of as many windows as wanted; see :class:`AdaptiveMaxPool2d`."""

    axes = 1


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """Largest elements of as many windows as wanted.

    Parameters
    ----------
    output_size, channels_last : as for :class:`AdaptiveAvgPool2d`.
    return_indices : give the places of the largest elements as well.
    """

    axes = 2


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """Largest elements of as many windows as wanted; see :class:`AdaptiveMaxPool2d`."""

    axes = 3


# Over everything.


class GlobalAvgPool2d(AdaptiveAvgPool2d):
    """The mean of each channel: (N, C, H, W) to (N, C, 1, 1), as ``AdaptiveAvgPool2d(1)``."""

    def __init__(self, *, channels_last: bool = False) -> None:
        super().__init__(1, channels_last=channels_last)


class GlobalMaxPool2d(AdaptiveMaxPool2d):
    """The largest element of each channel: (N, C, H, W) to (N, C, 1, 1)."""

    def __init__(self, *, channels_last: bool = False) -> None:
        super().__init__(1, channels_last=channels_last)
