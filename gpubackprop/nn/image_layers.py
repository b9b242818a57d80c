"""Layers of images without parameters: resizing, channels as pixels, and an axis in parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpubackprop.autograd import Tensor
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation
from gpubackprop.nn.functions.convolution import sizes
from gpubackprop.nn.functions.resize import MODES, Factor
from gpubackprop.nn.module import Module
from gpubackprop.suggest import unknown


def _last(module: Module) -> str:
    return ", channels_last=True" if getattr(module, "channels_last", False) else ""


class Upsample(Module):
    """An image of another size.

    Parameters
    ----------
    size, scale_factor, mode, align_corners, recompute_scale_factor, channels_last : as for
        :func:`~gpubackprop.nn.functional.interpolate`.
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: Factor | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
        *,
        channels_last: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"Upsample: {unknown('mode', mode, MODES)}")
        if (size is None) == (scale_factor is None):
            raise ConfigError("Upsample: give either size or scale_factor")
        self.size, self.scale_factor, self.mode = size, scale_factor, mode
        self.align_corners = align_corners
        self.recompute_scale_factor = recompute_scale_factor
        self.channels_last = bool(channels_last)

    def forward(self, input: Tensor) -> Tensor:
        """The resized image."""
        return F.interpolate(
            input,
            self.size,
            self.scale_factor,
            self.mode,
            self.align_corners,
            self.recompute_scale_factor,
            channels_last=self.channels_last,
        )

    def extra_repr(self) -> str:
        given = "scale_factor" if self.size is None else "size"
        return f"{given}={getattr(self, given)}, mode={self.mode!r}{_last(self)}"


class PixelShuffle(Module):
    """Channels as pixels: (N, C * r**2, H, W) to (N, C, H * r, W * r); see
    :func:`~gpubackprop.nn.functional.pixel_shuffle`.

    Parameters
    ----------
    upscale_factor : r.
    channels_last : whether input and result have their channels behind the spatial axes.
    """

    def __init__(self, upscale_factor: int, *, channels_last: bool = False) -> None:
        (self.upscale_factor,) = sizes("PixelShuffle", "upscale_factor", upscale_factor, 1)
        self.channels_last = bool(channels_last)

    def forward(self, input: Tensor) -> Tensor:
        """More pixels, fewer channels."""
        return F.pixel_shuffle(input, self.upscale_factor, channels_last=self.channels_last)

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}{_last(self)}"


class PixelUnshuffle(Module):
    """Pixels as channels, the inverse of :class:`PixelShuffle`.

    Parameters
    ----------
    downscale_factor : r.
    channels_last : whether input and result have their channels behind the spatial axes.
    """

    def __init__(self, downscale_factor: int, *, channels_last: bool = False) -> None:
        (self.downscale_factor,) = sizes("PixelUnshuffle", "downscale_factor", downscale_factor, 1)
        self.channels_last = bool(channels_last)

    def forward(self, input: Tensor) -> Tensor:
        """Fewer pixels, more channels."""
        return F.pixel_unshuffle(input, self.downscale_factor, channels_last=self.channels_last)

    def extra_repr(self) -> str:
        return f"downscale_factor={self.downscale_factor}{_last(self)}"


class Unflatten(Module):
    """One axis as several.

    Parameters
    ----------
    dim : the axis; negative counts from the end.
    unflattened_size : lengths of the new axes; one may be -1.
    """

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        lengths = tuple(unflattened_size) if isinstance(unflattened_size, Sequence) else ()
        whole = all(isinstance(m, int) and not isinstance(m, bool) and m >= -1 for m in lengths)
        if not lengths or not whole or lengths.count(-1) > 1:
            raise ConfigError(
                "Unflatten: unflattened_size must be lengths, of which one may be -1, not "
                f"{unflattened_size!r}"
            )
        self.dim, self.unflattened_size = dim, lengths

    def forward(self, input: Tensor) -> Tensor:
        """The same elements with more axes."""
        if not -input.ndim <= self.dim < input.ndim:
            raise ShapeError(f"Unflatten: dim {self.dim} is no axis of input (shape {input.shape})")
        axis = self.dim % input.ndim
        known = math.prod(m for m in self.unflattened_size if m != -1)
        size = input.shape[axis]
        if (size % known if known else size) if -1 in self.unflattened_size else size != known:
            raise ShapeError(
                f"Unflatten: axis {axis} of input (shape {input.shape}) has {size} elements, which "
                f"do not make {self.unflattened_size}"
            )
        shape = (*input.shape[:axis], *self.unflattened_size, *input.shape[axis + 1 :])
        return input.reshape(*shape)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
