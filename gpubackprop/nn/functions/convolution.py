"""Convolutions as functions, with PyTorch's arguments: of one, two and three spatial axes, and
transposed.

Inside, images are channels last. Given channels first, as PyTorch has them, these functions hand
the kernels a transposed view and give one back: no element moves, and NumPy keeps the order in
memory through elementwise operations, so a network of channels-first layers runs at the speed of a
channels-last one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.nn.functions.layout import inward, outward

CONV = REGISTRY["conv"]
CONV_TRANSPOSE = REGISTRY["conv_transpose"]
PAD = REGISTRY["pad"]

Size = int | Sequence[int]
Pairs = tuple[tuple[int, int], ...]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    channels_last: bool = False,
) -> Tensor:
    """Convolution over one spatial axis; see :func:`conv2d`. `input` is (N, in, L) or (in, L)."""
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups, channels_last)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    channels_last: bool = False,
) -> Tensor:
    """Convolution over two spatial axes: each result is a weighted sum of what a window sees
    (Goodfellow, Bengio & Courville 2016, equation 9.6; Dumoulin & Visin 2016).

    Parameters
    ----------
    input : (N, in, H, W), or (in, H, W) without a batch axis; with `channels_last` (N, H, W, in).
    weight : (out, in / groups, kernel height, kernel width).
    bias : (out,), or None.
    stride : pixels from one window to the next; a number, or one for each spatial axis.
    padding : zeros around the image, likewise; ``"valid"`` is 0, and ``"same"`` gives as many
        windows as there are pixels (an odd number of zeros has the larger part behind, as in
        PyTorch), for which the stride must be 1.
    dilation : pixels from one element of the kernel to the next.
    groups : equal parts of the channels, each convolved by itself.
    channels_last : whether input and result have their channels behind the spatial axes.

    Returns
    -------
    Tensor
        (N, out, H', W') with ``H' = (H + 2 padding - dilation (kernel - 1) - 1) // stride + 1``.

    Raises
    ------
    ConfigError
        If a setting is ill.
    ShapeError
        If the shapes do not fit one another.
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups, channels_last)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    channels_last: bool = False,
) -> Tensor:
    """Convolution over three spatial axes; see :func:`conv2d`. `input` is (N, in, D, H, W) or
    (in, D, H, W)."""
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups, channels_last)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    channels_last: bool = False,
) -> Tensor:
    """Transposed convolution over one spatial axis; see :func:`conv_transpose2d`."""
    settings = (stride, padding, output_padding, groups, dilation, channels_last)
    return _conv_transpose("conv_transpose1d", 1, input, weight, bias, *settings)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    channels_last: bool = False,
) -> Tensor:
    """The transpose of a convolution over two spatial axes: from its result's shape to its input's
    (Zeiler et al. 2010; Dumoulin & Visin 2016, section 4).

    Parameters
    ----------
    input : (N, in, H, W), or (in, H, W) without a batch axis; with `channels_last` (N, H, W, in).
    weight : (in, out / groups, kernel height, kernel width).
    bias : (out,), or None.
    stride, padding, dilation, groups : of the convolution that is transposed.
    output_padding : rows and columns that the result gets beyond the smallest shape that the
        convolution takes to this input; smaller than stride or dilation.
    channels_last : whether input and result have their channels behind the spatial axes.

    Returns
    -------
    Tensor
        (N, out, H', W') with ``H' = (H - 1) stride - 2 padding + dilation (kernel - 1) +
        output_padding + 1``.

    Raises
    ------
    ConfigError
        If a setting is ill.
    ShapeError
        If the shapes do not fit one another.
    """
    settings = (stride, padding, output_padding, groups, dilation, channels_last)
    return _conv_transpose("conv_transpose2d", 2, input, weight, bias, *settings)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    channels_last: bool = False,
) -> Tensor:
    """Transposed convolution over three spatial axes; see :func:`conv_transpose2d`."""
    settings = (stride, padding, output_padding, groups, dilation, channels_last)
    return _conv_transpose("conv_transpose3d", 3, input, weight, bias, *settings)


# Settings.


def sizes(name: str, argument: str, value: Size, n: int, smallest: int = 1) -> tuple[int, ...]:
    """A number for each of `n` spatial axes.

    Raises
    ------
    ConfigError
        Naming the argument, if it is neither one integer nor `n` of them, or one is too small.
    """
    many = isinstance(value, Sequence) and not isinstance(value, str)
    given: tuple[Any, ...] = tuple(value) if many else (value,) * n  # type: ignore[arg-type]
    if len(given) == 1:
        given *= n
    whole = all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in given)
    if len(given) != n or not whole or min(given) < smallest:
        count = "" if n == 1 else f" or {n} of them, one for each spatial axis"
        raise ConfigError(
            f"{name}: {argument} must be an integer of at least {smallest}{count}, not {value!r}"
        )
    return tuple(int(v) for v in given)


def pairs(
    name: str,
    padding: Size | str,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Pairs:
    """Zeros (before, after) on each spatial axis, out of PyTorch's `padding`.

    Raises
    ------
    ConfigError
        If it is none of those that :func:`conv2d` lists.
    """
    if not isinstance(padding, str):
        return tuple((p, p) for p in sizes(name, "padding", padding, len(kernel), 0))
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding != "same":
        raise ConfigError(
            f"{name}: padding must be 'same', 'valid' or a number of zeros, not {padding!r}"
        )
    if max(stride) > 1:
        raise ConfigError(
            f"{name}: padding='same' needs stride 1, not {stride}; give the zeros as a number"
        )
    spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((span // 2, span - span // 2) for span in spans)


def check_groups(name: str, groups: int, **channels: int) -> int:
    """Raise ConfigError unless every number of channels falls into that many parts."""
    if isinstance(groups, bool) or not isinstance(groups, (int, np.integer)) or groups < 1:
        raise ConfigError(f"{name}: groups must be an integer of at least 1, not {groups!r}")
    for argument, count in channels.items():
        if count % groups:
            raise ConfigError(
                f"{name}: {argument}={count} must be divisible by groups={groups}, so that the "
                "channels fall into equal parts"
            )
    return int(groups)


def _key(value: Any) -> Any:
    """A setting that can be looked up: lists as tuples."""
    return tuple(value) if isinstance(value, list) else value


@functools.lru_cache(maxsize=1024, typed=True)  # a layer has the same ones in every step
def _settings(
    name: str, kernel: tuple[int, ...], stride: Size, padding: Size | str, dilation: Size
) -> tuple[tuple[int, ...], Pairs, tuple[int, ...]]:
    """Stride, zeros and dilation of each spatial axis."""
    n = len(kernel)
    strides, dilations = sizes(name, "stride", stride, n), sizes(name, "dilation", dilation, n)
    return strides, pairs(name, padding, kernel, strides, dilations), dilations


# The work.


def _conv(
    name: str,
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    channels_last: bool,
) -> Tensor:
    _check_weight(name, weight, n, "(out, in / groups, *kernel)")
    groups = check_groups(name, groups)
    settings = (_key(stride), _key(padding), _key(dilation))
    strides, zeros, dilations = _settings(name, weight.shape[2:], *settings)
    x = inward(name, input, n, channels_last)
    _check_channels(name, input, x, weight, weight.shape[1] * groups, channels_last)
    y = apply(
        CONV,
        x,
        weight,
        bias,
        stride=strides,
        padding=zeros,
        dilation=dilations,
        groups=groups,
    )
    return outward(y, input, channels_last)


def _conv_transpose(
    name: str,
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    output_padding: Size,
    groups: int,
    dilation: Size,
    channels_last: bool,
) -> Tensor:
    _check_weight(name, weight, n, "(in, out / groups, *kernel)")
    groups = check_groups(name, groups)
    strides, dilations = sizes(name, "stride", stride, n), sizes(name, "dilation", dilation, n)
    widths = sizes(name, "padding", padding, n, 0)
    extra = sizes(name, "output_padding", output_padding, n, 0)
    x = inward(name, input, n, channels_last)
    _check_channels(name, input, x, weight, weight.shape[0], channels_last)
    spatial, windows = [], []
    for i, k in enumerate(weight.shape[2:]):
        s, d, e, m = strides[i], dilations[i], extra[i], x.shape[1 + i]
        if e >= max(s, d):
            raise ConfigError(
                f"{name}: output_padding {e} must be smaller than stride {s} or dilation {d}"
            )
        spatial.append((m - 1) * s - 2 * widths[i] + d * (k - 1) + e + 1)
        windows.append(e // s)
    if min(spatial) < 1:
        raise ShapeError(
            f"{name}: the result of input {input.shape} would have the spatial axes "
            f"{tuple(spatial)}; use less padding"
        )
    if any(windows):
        # An output padding of a stride or more makes room for windows that the input lacks.
        x = apply(PAD, x, pad_width=((0, 0), *((0, w) for w in windows), (0, 0)), value=0.0)
    y = apply(
        CONV_TRANSPOSE,
        x,
        weight,
        spatial=tuple(spatial),
        stride=strides,
        padding=tuple((w, w) for w in widths),
        dilation=dilations,
        groups=groups,
    )
    if bias is not None:
        if bias.shape != y.shape[-1:]:
            raise ShapeError(f"{name}: bias must have shape {y.shape[-1:]}, not {bias.shape}")
        y = y + bias
    return outward(y, input, channels_last)


def _check_weight(name: str, weight: Any, n: int, wanted: str) -> None:
    if getattr(weight, "ndim", None) != n + 2:
        raise ShapeError(
            f"{name}: weight must have the axes {wanted} with {n} spatial "
            f"ax{'is' if n == 1 else 'es'}, not shape {getattr(weight, 'shape', weight)}"
        )


def _check_channels(
    name: str, input: Tensor, x: Tensor, weight: Tensor, taken: int, channels_last: bool
) -> None:
    if x.shape[-1] == taken:
        return
    place = "last axis" if channels_last else "axis before the spatial ones"
    elsewhere = x.shape[1 if channels_last else -2]  # where the other layout has them
    hint = ""
    if elsewhere == taken:
        hint = f"; if they are elsewhere, {'drop' if channels_last else 'pass'} channels_last=True"
    elif input.ndim < x.ndim and taken == 1:
        new = "x[..., None]" if channels_last else "x[:, None]"
        hint = (
            f"; it was taken as one image without a batch axis: {new} makes a batch of one channel"
        )
    raise ShapeError(
        f"{name}: input (shape {input.shape}) has {x.shape[-1]} channels in its {place}, but "
        f"weight (shape {weight.shape}) takes {taken}{hint}"
    )
