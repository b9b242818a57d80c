"""PyTorch's counterparts of the convolutions: called with an operation's inputs and parameters, on
PyTorch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

CONVOLUTIONS = (None, torch.conv1d, torch.conv2d, torch.conv3d)


def channels_first(x: Any) -> Any:
    return x.movedim(-1, 1)


def channels_last(x: Any) -> Any:
    return x.movedim(1, -1)


def conv(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    widths = [width for pair in reversed(padding) for width in pair]
    padded = torch.nn.functional.pad(channels_first(x), widths)
    function = CONVOLUTIONS[len(stride)]
    y = function(padded, weight, bias, stride=stride, dilation=dilation, groups=groups)
    return channels_last(y)


def conv_transpose(dy: Any, weight: Any, spatial: Any, **geometry: Any) -> Any:
    """The transpose of the above by x, by PyTorch's own chain rule."""
    shape = (dy.shape[0], *spatial, weight.shape[1] * geometry["groups"])
    x = torch.zeros(shape, dtype=dy.dtype, requires_grad=True)
    (found,) = torch.autograd.grad(conv(x, weight, None, **geometry), x, dy, create_graph=True)
    return found


def conv_weight(x: Any, dy: Any, kernel: Any, **geometry: Any) -> Any:
    """The transpose by the weight, likewise."""
    shape = (dy.shape[-1], x.shape[-1] // geometry["groups"], *kernel)
    weight = torch.zeros(shape, dtype=x.dtype, requires_grad=True)
    (found,) = torch.autograd.grad(conv(x, weight, None, **geometry), weight, dy, create_graph=True)
    return found


TORCH: dict[str, Callable[..., Any]] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "conv_weight": conv_weight,
}
