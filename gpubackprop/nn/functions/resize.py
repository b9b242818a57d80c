"""Images in other sizes: interpolation, and channels as pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn.functions.adaptive_pooling import adaptive_means
from gpubackprop.nn.functions.convolution import sizes
from gpubackprop.nn.functions.layout import inward, outward
from gpubackprop.suggest import unknown

__all__ = ["interpolate", "pixel_shuffle", "pixel_unshuffle"]

TAKE = REGISTRY["take"]
BROADCAST_TO = REGISTRY["broadcast_to"]

LINEAR = {"linear": 1, "bilinear": 2, "trilinear": 3}  # and the number of axes each is for
MODES = ("nearest", "nearest-exact", *LINEAR, "area")

Factor = float | Sequence[float]


def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: Factor | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    *,
    channels_last: bool = False,
) -> Tensor:
    """An image of another size.

    Parameters
    ----------
    input : (N, C, L), (N, C, H, W) or (N, C, D, H, W); with `channels_last` (N, *spatial, C).
    size : of the result's spatial axes, a number or one for each.
    scale_factor : instead of `size`: the result has ``floor(n * scale_factor)`` pixels.
    mode : where the pixels come from.

        - ``"nearest"``: the pixel ``floor(i * scale)``, as in PyTorch and OpenCV;
        - ``"nearest-exact"``: the pixel under the centre, ``floor((i + 0.5) * scale)``;
        - ``"linear"``, ``"bilinear"``, ``"trilinear"``: a weighted sum of the two next pixels of
          each axis;
        - ``"area"``: the mean of what falls into it, as in adaptive pooling.
    align_corners : for the linear modes, what is kept: the centres of the corner pixels (True), or
        their corners (False, the default).
    recompute_scale_factor : take the scale from the two sizes even where `scale_factor` is given.
    channels_last : whether input and result have their channels behind the spatial axes.

    Returns
    -------
    Tensor
        (N, C, *size).

    Raises
    ------
    ConfigError, ShapeError
        In words, if the arguments do not fit each other or the input.
    """
    if mode not in MODES:
        raise ConfigError(f"interpolate: {unknown('mode', mode, MODES)}")
    n = input.ndim - 2
    if n not in (1, 2, 3) or (mode in LINEAR and LINEAR[mode] != n):
        wanted = LINEAR.get(mode)
        axes = (
            "one to three spatial axes"
            if wanted is None
            else f"{wanted} spatial ax" + ("is" if wanted == 1 else "es")
        )
        raise ShapeError(
            f"interpolate: mode {mode!r} is for an input with {axes} beside batch and channels, "
            f"not for shape {input.shape}"
        )
    if align_corners is not None and mode not in LINEAR:
        raise ConfigError(
            f"interpolate: align_corners is for modes {', '.join(LINEAR)}; mode {mode!r} takes none"
        )
    if mode in LINEAR and input.dtype.kind not in "fV":
        raise DTypeError(f"interpolate: mode {mode!r} needs a float dtype, not {input.dtype}")
    x = inward("interpolate", input, n, channels_last)
    if 0 in x.shape[1:-1]:
        raise ShapeError(f"interpolate: a spatial axis of input (shape {input.shape}) is empty")
    target, steps = _target(x.shape[1:-1], size, scale_factor, bool(recompute_scale_factor))
    if mode == "area":
        return outward(adaptive_means(x, target), input, channels_last)
    for axis, (wanted, step) in enumerate(zip(target, steps, strict=True), start=1):
        if mode in LINEAR:
            x = _linear(x, axis, wanted, step, bool(align_corners))
        else:
            x = _nearest(x, axis, wanted, step, 0.5 if mode == "nearest-exact" else 0.0)
    return outward(x, input, channels_last)


def _target(
    spatial: tuple[int, ...],
    size: int | Sequence[int] | None,
    scale_factor: Factor | None,
    recompute: bool,
) -> tuple[tuple[int, ...], list[float]]:
    """Sizes of the result, and how many pixels of the input one of it is wide."""
    n = len(spatial)
    if (size is None) == (scale_factor is None):
        raise ConfigError("interpolate: give either size or scale_factor")
    if size is not None:
        if recompute:
            raise ConfigError("interpolate: recompute_scale_factor needs a scale_factor")
        target = sizes("interpolate", "size", size, n)
    else:
        given = tuple(scale_factor) if isinstance(scale_factor, Sequence) else (scale_factor,) * n
        factors = [float(f) for f in given]  # type: ignore[arg-type]
        if len(factors) != n or not all(f > 0 and math.isfinite(f) for f in factors):
            raise ConfigError(
                f"interpolate: scale_factor must be a positive number, or {n} of them, one for "
                f"each spatial axis, not {scale_factor!r}"
            )
        target = tuple(math.floor(m * f) for m, f in zip(spatial, factors, strict=True))
        if 0 in target:
            raise ShapeError(
                f"interpolate: scale_factor {scale_factor!r} leaves no pixel of the sizes {spatial}"
            )
        if not recompute:
            return target, [1.0 / f for f in factors]
    return target, [m / t for m, t in zip(spatial, target, strict=True)]


def _nearest(x: Tensor, axis: int, wanted: int, step: float, shift: float) -> Tensor:
    size = x.shape[axis]
    if wanted % size == 0 and step * wanted == size:
        # Each pixel several times: a view and its copy, whose derivative is a sum.
        lead, tail = x.shape[: axis + 1], x.shape[axis + 1 :]
        each = x.reshape(*lead, 1, *tail)
        each = apply(BROADCAST_TO, each, shape=(*lead, wanted // size, *tail))
        return each.reshape(*lead[:-1], wanted, *tail)
    # PyTorch finds the pixel in single precision, and so which one it is where two are as near.
    at = (np.arange(wanted, dtype=np.float32) + np.float32(shift)) * np.float32(step)
    index = np.minimum(np.floor(at).astype(np.int64), size - 1)
    return apply(TAKE, x, Tensor(x.backend.asarray(index), x.backend), axis=axis)


def _linear(x: Tensor, axis: int, wanted: int, step: float, align_corners: bool) -> Tensor:
    size = x.shape[axis]
    if wanted == size:  # also where a factor such as 1.2 adds no pixel, as in PyTorch on a CPU
        return x
    i = np.arange(wanted)
    if align_corners:
        at = i * ((size - 1) / (wanted - 1) if wanted > 1 else 0.0)
    else:
        at = np.maximum((i + 0.5) * step - 0.5, 0.0)
    low = np.minimum(np.floor(at).astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    share = (at - low).reshape(-1, *(1,) * (x.ndim - axis - 1))

    def part(index: np.ndarray, weight: np.ndarray) -> Tensor:
        places = Tensor(x.backend.asarray(index), x.backend)
        weights = Tensor(x.backend.asarray(weight.astype(x.dtype)), x.backend)
        return apply(TAKE, x, places, axis=axis) * weights

    return part(low, 1.0 - share) + part(high, share)


# Channels as pixels.


def pixel_shuffle(input: Tensor, upscale_factor: int, *, channels_last: bool = False) -> Tensor:
    """Channels as pixels: (N, C * r**2, H, W) to (N, C, H * r, W * r) (Shi et al., "Real-time
    single image and video super-resolution", 2016, equation 4).

    Parameters
    ----------
    input : (N, C * r**2, H, W), or without N; with `channels_last` the channels come last.
    upscale_factor : r.

    Raises
    ------
    ShapeError
        If r**2 does not divide the channels.
    """
    (r,) = sizes("pixel_shuffle", "upscale_factor", upscale_factor, 1)
    x = inward("pixel_shuffle", input, 2, channels_last)
    samples, height, width, channels = x.shape
    if channels % (r * r):
        raise ShapeError(
            f"pixel_shuffle: upscale_factor {r} needs channels in multiples of {r * r}, not the "
            f"{channels} of input (shape {input.shape})"
        )
    inner = channels // (r * r)
    parts = x.reshape(samples, height, width, inner, r, r).permute(0, 1, 4, 2, 5, 3)
    return outward(parts.reshape(samples, height * r, width * r, inner), input, channels_last)


def pixel_unshuffle(input: Tensor, downscale_factor: int, *, channels_last: bool = False) -> Tensor:
    """The inverse of :func:`pixel_shuffle`: (N, C, H * r, W * r) to (N, C * r**2, H, W).

    Raises
    ------
    ShapeError
        If r does not divide the spatial axes.
    """
    (r,) = sizes("pixel_unshuffle", "downscale_factor", downscale_factor, 1)
    x = inward("pixel_unshuffle", input, 2, channels_last)
    samples, height, width, channels = x.shape
    if height % r or width % r:
        raise ShapeError(
            f"pixel_unshuffle: downscale_factor {r} must divide the {height} x {width} pixels of "
            f"input (shape {input.shape})"
        )
    parts = x.reshape(samples, height // r, r, width // r, r, channels)
    parts = parts.permute(0, 1, 3, 5, 2, 4)
    shape = (samples, height // r, width // r, channels * r * r)
    return outward(parts.reshape(*shape), input, channels_last)
