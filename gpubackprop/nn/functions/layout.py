"""Images in the layout of the kernels and in the user's.

Inside, images are channels last. Given channels first, as PyTorch has them, a function hands the
kernels a transposed view and gives one back: no element moves.
"""

from __future__ import annotations

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.errors import DTypeError, ShapeError

TRANSPOSE = REGISTRY["transpose"]


def inward(name: str, input: Tensor, n: int, channels_last: bool) -> Tensor:
    """An image of `n` spatial axes as (N, *spatial, C): a view.

    Raises
    ------
    DTypeError
        If it is no tensor.
    ShapeError
        If it has another number of axes.
    """
    if not isinstance(input, Tensor):
        raise DTypeError(
            f"{name}: input is a {type(input).__name__}; make a tensor of it with gb.tensor(...)"
        )
    if input.ndim not in (n + 1, n + 2):
        axes = ("D", "H", "W")[-n:] if n > 1 else ("L",)
        wanted = (*axes, "C") if channels_last else ("C", *axes)
        listed = ", ".join(wanted)
        raise ShapeError(
            f"{name}: input must be (N, {listed}), or ({listed}) without a batch axis, not of "
            f"shape {input.shape}"
        )
    x = input if input.ndim == n + 2 else input.reshape(1, *input.shape)
    return x if channels_last else apply(TRANSPOSE, x, axes=(0, *range(2, n + 2), 1))


def outward(y: Tensor, input: Tensor, channels_last: bool) -> Tensor:
    """A result (N, *spatial, C) in the layout of the input: a view."""
    if not channels_last:
        y = apply(TRANSPOSE, y, axes=(0, y.ndim - 1, *range(1, y.ndim - 1)))
    return y if input.ndim == y.ndim else y.reshape(*y.shape[1:])
