"""Rows of the table of layers for pictures, which have their channels last: (height, width,
channels)."""

from __future__ import annotations

from typing import Any

from gpubackprop import nn
from gpubackprop.recipes.layer_kind import (
    MAX_UNITS,
    LayerKind,
    Options,
    Shape,
    initialise,
    weight_options,
)
from gpubackprop.recipes.options import Option
from gpubackprop.recipes.residual import SHORTCUTS, ResidualBlock

MAX_KERNEL = 1024
"""The most rows or columns that a window may have, be moved by or be padded with."""

_KERNEL = Option(int, least=1, most=MAX_KERNEL)
_STRIDE = Option(int, 1, least=1, most=MAX_KERNEL)
_PADDING = Option(int, 0, least=0, most=MAX_KERNEL)
_EPS = Option(float, 1e-5, above=0.0, most=1.0)
_MOMENTUM = Option(float, 0.1, least=0.0, most=1.0)


def picture(shape: Shape) -> Shape:
    """`shape`, if it is that of a picture; ValueError, in words, if not."""
    if len(shape) == 3:
        return shape
    mend = "set channel_axis = true in [data]" if len(shape) == 2 else "take it before 'flatten'"
    raise ValueError(
        f"it needs pictures of shape [height, width, channels], but gets {list(shape)}; {mend}"
    )


def windows(shape: Shape, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """How many windows fit a picture, in each direction; ValueError where none does."""
    height, width, _ = picture(shape)
    if min(height, width) + 2 * padding < kernel:
        raise ValueError(
            f"a window of {kernel} x {kernel} does not fit pictures of {height} x {width} pixels"
            + (f" with a padding of {padding}" if padding else "")
        )
    return (height + 2 * padding - kernel) // stride + 1, (
        width + 2 * padding - kernel
    ) // stride + 1


def _conv_shape(shape: Shape, options: Options) -> Shape:
    channels = picture(shape)[2]
    filters, groups = options["filters"], options["groups"]
    if channels % groups or filters % groups:
        raise ValueError(
            f"groups = {groups} must divide the {channels} channels that it gets and its {filters} "
            "filters"
        )
    if options["padding"] != "same":
        return (*windows(shape, options["kernel"], options["stride"], options["padding"]), filters)
    if options["stride"] != 1:
        raise ValueError(
            "padding = 'same' is for stride = 1; with a stride give a number, such as padding = "
            f"{options['kernel'] // 2}"
        )
    return (*shape[:2], filters)


def _conv(shape: Shape, options: Options) -> nn.Module:
    module = nn.Conv2d(
        shape[2],
        options["filters"],
        options["kernel"],
        options["stride"],
        options["padding"],
        groups=options["groups"],
        bias=options["bias"],
        channels_last=True,
    )
    return initialise(module, options)


def _conv_parameters(shape: Shape, options: Options) -> int:
    taps = options["kernel"] ** 2 * (shape[2] // options["groups"])
    return int(options["filters"] * (taps + options["bias"]))


def _pool_shape(shape: Shape, options: Options) -> Shape:
    kernel, padding = options["kernel"], options["padding"]
    if 2 * padding > kernel:
        raise ValueError(
            f"padding = {padding} is more than half of kernel = {kernel}: a window could hold "
            "nothing but padding"
        )
    return (*windows(shape, kernel, options["stride"] or kernel, padding), shape[2])


def _pool(kind: str) -> Any:
    def build(shape: Shape, options: Options) -> nn.Module:
        module = getattr(nn, kind)
        return module(options["kernel"], options["stride"], options["padding"], channels_last=True)

    return build


def _batch_norm_shape(shape: Shape, options: Options) -> Shape:
    if len(shape) not in (1, 3):
        raise ValueError(
            "it needs rows of numbers or pictures of shape [height, width, channels], but gets "
            f"{list(shape)}"
        )
    return shape


def _batch_norm(shape: Shape, options: Options) -> nn.Module:
    how = {"eps": options["eps"], "momentum": options["momentum"]}
    if len(shape) == 1:
        return nn.BatchNorm1d(shape[0], **how)
    return nn.BatchNorm2d(shape[2], channels_last=True, **how)


def _group_norm_shape(shape: Shape, options: Options) -> Shape:
    channels = picture(shape)[2]
    if channels % options["groups"]:
        raise ValueError(f"groups = {options['groups']} must divide the {channels} channels")
    return shape


def _block_shape(shape: Shape, options: Options) -> Shape:
    height, width, channels = picture(shape)
    if options["shortcut"] == "A" and options["filters"] < channels:
        raise ValueError(
            f"shortcut 'A' pads channels with zeros, so filters = {options['filters']} must not be "
            f"below the {channels} channels that it gets; take shortcut = 'B'"
        )
    stride = options["stride"]
    return ((height - 1) // stride + 1, (width - 1) // stride + 1, options["filters"])


IMAGE_LAYERS = (
    LayerKind(
        "conv2d",
        "convolution of pictures",
        _conv,
        {
            "filters": Option(int, least=1, most=MAX_UNITS),
            "kernel": _KERNEL,
            "stride": _STRIDE,
            "padding": Option(int, 0, least=0, most=MAX_KERNEL, choices=("same",)),
            "groups": Option(int, 1, least=1, most=MAX_UNITS),
            **weight_options(),
        },
        _conv_shape,
        _conv_parameters,
    ),
    LayerKind(
        "max-pool",
        "the largest value of each window; stride is the kernel's unless it is given",
        _pool("MaxPool2d"),
        {
            "kernel": _KERNEL,
            "stride": Option(int, None, least=1, most=MAX_KERNEL),
            "padding": _PADDING,
        },
        _pool_shape,
    ),
    LayerKind(
        "avg-pool",
        "the mean of each window; stride is the kernel's unless it is given",
        _pool("AvgPool2d"),
        {
            "kernel": _KERNEL,
            "stride": Option(int, None, least=1, most=MAX_KERNEL),
            "padding": _PADDING,
        },
        _pool_shape,
    ),
    LayerKind(
        "global-avg-pool",
        "the mean of each channel over the picture",
        lambda shape, o: nn.Sequential(nn.GlobalAvgPool2d(channels_last=True), nn.Flatten()),
        shape=lambda shape, o: picture(shape)[2:],
    ),
    LayerKind(
        "batch-norm",
        "each channel to mean 0 and variance 1 over the batch, then scale and shift",
        _batch_norm,
        {"eps": _EPS, "momentum": _MOMENTUM},
        _batch_norm_shape,
        lambda shape, o: 2 * shape[-1],
    ),
    LayerKind(
        "group-norm",
        "groups of channels of each picture to mean 0 and variance 1, then scale and shift",
        lambda shape, o: nn.GroupNorm(o["groups"], shape[2], eps=o["eps"], channels_last=True),
        {"groups": Option(int, least=1, most=MAX_UNITS), "eps": _EPS},
        _group_norm_shape,
        lambda shape, o: 2 * shape[2],
    ),
    LayerKind(
        "dropout2d",
        "in training, whole channels set to zero with probability p",
        lambda shape, o: nn.Dropout2d(o["p"], channels_last=True),
        {"p": Option(float, 0.5, least=0.0, below=1.0)},
        lambda shape, o: picture(shape),
    ),
    LayerKind(
        "residual-block",
        "two 3x3 convolutions with batch normalisation, added to what came in",
        lambda shape, o: ResidualBlock(shape[2], o["filters"], o["stride"], o["shortcut"]),
        {
            "filters": Option(int, least=1, most=MAX_UNITS),
            "stride": _STRIDE,
            "shortcut": Option(str, "A", choices=SHORTCUTS),
        },
        _block_shape,
        lambda shape, o: ResidualBlock.count(shape[2], o["filters"], o["stride"], o["shortcut"]),
    ),
)
"""Every row for pictures."""
