"""PyTorch's counterparts of the operations on images: called with an operation's inputs and
parameters, on PyTorch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def windows(x: Any, kernel: Any, stride: Any, dilation: Any) -> Any:
    """By slices: one for each place in the window."""
    n = len(kernel)
    counts = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(x.shape[1:-1], kernel, stride, dilation, strict=True)
    ]
    places = torch.cartesian_prod(*[torch.arange(k) for k in kernel]).reshape(-1, n).tolist()
    parts = [
        x[
            (
                slice(None),
                *(
                    slice(k * d, k * d + (o - 1) * s + 1, s)
                    for k, d, o, s in zip(place, dilation, counts, stride, strict=True)
                ),
            )
        ]
        for place in places
    ]
    return torch.stack(parts, dim=-2).reshape(x.shape[0], *counts, *kernel, x.shape[-1])


def scatter_windows(dy: Any, spatial: Any, stride: Any, dilation: Any) -> Any:
    """The transpose of the above, by PyTorch's own chain rule."""
    n = len(spatial)
    kernel = dy.shape[1 + n : -1]
    x = torch.zeros(dy.shape[0], *spatial, dy.shape[-1], dtype=dy.dtype, requires_grad=True)
    seen = windows(x, kernel, stride, dilation)
    (found,) = torch.autograd.grad(seen, x, dy, create_graph=True)
    return found


def first(x: Any) -> Any:
    """Channels before the spatial axes, as PyTorch has them."""
    return torch.movedim(x, -1, 1)


def last(x: Any) -> Any:
    """Channels after the spatial axes."""
    return torch.movedim(x, 1, -1)


def max_pool(
    x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool = False
) -> Any:
    pool = getattr(torch.nn.functional, f"max_pool{len(kernel)}d")
    return last(pool(first(x), kernel, stride, padding, dilation, ceil))


def avg_pool(
    x: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    n = len(kernel)
    pool = getattr(torch.nn.functional, f"avg_pool{n}d")
    more = (divisor_override,) if n > 1 else ()
    return last(pool(first(x), kernel, stride, padding, ceil, count_include_pad, *more))


def avg_pool_backward(dy: Any, spatial: Any, **options: Any) -> Any:
    """By PyTorch's own chain rule."""
    x = torch.zeros(dy.shape[0], *spatial, dy.shape[-1], dtype=dy.dtype, requires_grad=True)
    (found,) = torch.autograd.grad(avg_pool(x, **options), x, dy, create_graph=True)
    return found


TORCH: dict[str, Callable[..., Any]] = {
    "windows": windows,
    "scatter_windows": scatter_windows,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "avg_pool_backward": avg_pool_backward,
}
