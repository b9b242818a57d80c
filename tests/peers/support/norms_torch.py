"""PyTorch's counterparts of the operations on norms: called with an operation's inputs and
parameters, on PyTorch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn import functional


def first(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of images with the channels first as one of images with the channels last."""

    def call(x: Any, *args: Any, **options: Any) -> Any:
        return function(x.movedim(-1, 1), *args, **options).movedim(1, -1)

    return call


def batch_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """With the moments that the running averages would take up."""
    over = tuple(range(x.ndim - 1))
    mean, var = x.mean(over), x.var(over, correction=0)
    if x.shape[:-1].numel() > 1:
        y = first(functional.batch_norm)(x, None, None, weight, bias, training=True, eps=eps)
    else:  # which PyTorch refuses
        y = scale_shift(x - mean, weight, bias)
    return y, mean, var


def scale_shift(x: Any, scale: Any, shift: Any) -> Any:
    """By arithmetic: PyTorch has no operation for it."""
    return x * scale if shift is None else x * scale + shift


def group_norm(x: Any, weight: Any, bias: Any, groups: int, eps: float = 1e-5) -> Any:
    """PyTorch refuses a group of one value."""
    if x.shape[:-1].numel() * x.shape[-1] // groups == 1:
        return scale_shift(0 * x, weight, bias)
    # Its derivative fails where there is a bias and no weight.
    y = first(functional.group_norm)(x, groups, weight, None, eps)
    return y if bias is None else y + bias


def rms_norm(x: Any, weight: Any, axes: int = 1, eps: float = 1e-6) -> Any:
    """Over the last axes."""
    return functional.rms_norm(x, x.shape[x.ndim - axes :], weight, eps)


TORCH: dict[str, Callable[..., Any]] = {
    "batch_norm": batch_norm,
    "scale_shift": scale_shift,
    "group_norm": group_norm,
    "rms_norm": rms_norm,
}
