"""Dropout of whole channels, as functions and as modules."""

from __future__ import annotations

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.backends.random import Generator, default_generator
from gpubackprop.errors import ConfigError, DTypeError
from gpubackprop.nn.functions.layout import inward
from gpubackprop.nn.module import Module

DROPOUT = REGISTRY["dropout"]


def dropout1d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    generator: Generator | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Dropout of whole channels of (N, C, L) or (C, L); see :func:`dropout2d`."""
    return _channels("dropout1d", 1, input, p, training, generator, channels_last)


def dropout2d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    generator: Generator | None = None,
    channels_last: bool = False,
) -> Tensor:
    """In training, set each channel of each sample to 0 with probability `p` and divide the others
    by 1 - p (Tompson et al., "Efficient object localization using convolutional networks", 2015,
    section 3.2).

    Neighbouring pixels tell nearly the same, so that dropping them one by one drops little.

    Parameters
    ----------
    input : (N, C, H, W), or (C, H, W) without a batch axis; with `channels_last` (N, H, W, C).
    p : between 0 and 1.
    training : False gives the input back as it is.
    generator : where the random numbers come from; it moves on by one word per channel of each
        sample. None takes the default generator.
    channels_last : whether the channels are behind the spatial axes.

    Raises
    ------
    ConfigError, ShapeError
        If `p` is no probability, or the input has another number of axes.
    """
    return _channels("dropout2d", 2, input, p, training, generator, channels_last)


def dropout3d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    generator: Generator | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Dropout of whole channels of (N, C, D, H, W) or (C, D, H, W); see :func:`dropout2d`."""
    return _channels("dropout3d", 3, input, p, training, generator, channels_last)


def _channels(
    name: str,
    n: int,
    input: Tensor,
    p: float,
    training: bool,
    generator: Generator | None,
    channels_last: bool,
) -> Tensor:
    if not 0.0 <= p <= 1.0:
        raise ConfigError(f"{name}: p must be a probability between 0 and 1, not {p}")
    if input.dtype.kind not in "fV":
        raise DTypeError(f"{name}: input must be of a float dtype, not {input.dtype}")
    x = inward(name, input, n, channels_last)
    if not training or p == 0.0:
        return input
    samples, channels = x.shape[0], x.shape[-1]
    seed, stream, offset = (generator or default_generator()).take(samples * channels)
    ones = Tensor(x.backend.ones((samples, channels), x.dtype), x.backend)
    kept = apply(DROPOUT, ones, p=p, seed=seed, stream=stream, offset=offset)
    inner = (*(1,) * n, channels) if channels_last else (channels, *(1,) * n)
    return input * kept.reshape(*inner if input.ndim == n + 1 else (samples, *inner))


class Dropout1d(Module):
    """Dropout of whole channels of (N, C, L) or (C, L); see :class:`Dropout2d`."""

    axes = 1

    def __init__(
        self,
        p: float = 0.5,
        *,
        generator: Generator | None = None,
        channels_last: bool = False,
    ) -> None:
        if not 0.0 <= p <= 1.0:
            raise ConfigError(f"{type(self).__name__}: p must be a probability in [0, 1], not {p}")
        self.p = float(p)
        self.generator = (generator or default_generator()).split()
        self.channels_last = bool(channels_last)

    def forward(self, input: Tensor) -> Tensor:
        """The input with channels dropped; the input itself in evaluation mode."""
        name = f"dropout{self.axes}d"
        given = (self.p, self.training, self.generator, self.channels_last)
        return _channels(name, self.axes, input, *given)

    def extra_repr(self) -> str:
        return f"p={self.p:g}{', channels_last=True' if self.channels_last else ''}"


class Dropout2d(Dropout1d):
    """In training, set each channel of each sample to 0 with probability p and scale the others by
    1 / (1 - p).

    Parameters
    ----------
    p : probability in [0, 1].
    generator : the random sequence to split one from; None for the default generator. The module
        owns the new sequence, and its place in it is part of ``random_state()``.
    channels_last : whether the channels are behind the spatial axes.
    """

    axes = 2


class Dropout3d(Dropout1d):
    """Dropout of whole channels of (N, C, D, H, W) or (C, D, H, W); see :class:`Dropout2d`."""

    axes = 3
