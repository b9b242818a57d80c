"""Initial values of parameters, written in place.

Names and formulas are PyTorch's. Every random number is drawn on the CPU from a Philox generator
and then copied, so that a network starts with the same bits on every device.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.backends import Shape
from gpubackprop.backends.random import Generator, default_generator
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.suggest import unknown

T = TypeVar("T", bound=Tensor)

_GAINS = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "conv3d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "leaky_relu": math.sqrt(2.0 / (1.0 + 0.01**2)),
    "selu": 0.75,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which weights before an activation are widened to keep the variance.

    Parameters
    ----------
    nonlinearity : ``"linear"``, ``"sigmoid"``, ``"tanh"``, ``"relu"``, ``"leaky_relu"``, ``"selu"``
        or ``"conv1d"`` to ``"conv3d"``.
    param : the negative slope of ``"leaky_relu"`` (0.01 if None).

    Notes
    -----
    For a leaky slope a the gain is sqrt(2 / (1 + a**2)) (He et al. 2015, section 2.2); 5/3 for tanh
    is the customary value.
    """
    if nonlinearity not in _GAINS:
        raise ConfigError(f"calculate_gain: {unknown('nonlinearity', nonlinearity, _GAINS)}")
    if nonlinearity == "leaky_relu" and param is not None:
        return math.sqrt(2.0 / (1.0 + param * param))
    return _GAINS[nonlinearity]


def fans(name: str, shape: Shape) -> tuple[int, int]:
    """How many values feed one output of a weight, and how many outputs one value feeds.

    Parameters
    ----------
    name : who asks, for the error.
    shape : (out, in, *kernel).
    """
    if len(shape) < 2:
        raise ShapeError(
            f"{name}: fan in and out need at least 2 axes (out, in), not shape {shape}"
        )
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def _write(t: T, values: Any) -> T:
    t.backend.copyto(t.array, t.backend.asarray(values))
    t.mark_changed()
    return t


def uniform_(t: T, a: float = 0.0, b: float = 1.0, *, generator: Generator | None = None) -> T:
    """Numbers spread evenly over [a, b)."""
    if not a <= b:
        raise ConfigError(f"uniform_: the bounds must be in order, not a={a}, b={b}")
    draw = generator or default_generator()
    return _write(t, draw.uniform(t.shape, low=a, high=b, dtype=t.dtype))


def normal_(t: T, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None) -> T:
    """Normally distributed numbers."""
    if not std >= 0:
        raise ConfigError(f"normal_: std must not be negative, not {std}")
    draw = generator or default_generator()
    return _write(t, draw.normal(t.shape, mean=mean, std=std, dtype=t.dtype))


def trunc_normal_(
    t: T,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    *,
    generator: Generator | None = None,
) -> T:
    """Normally distributed numbers, given that they lie in [a, b] (bounds of the result itself)."""
    if not (a < b and std > 0):
        raise ConfigError(f"trunc_normal_: needs a < b and std > 0, not a={a}, b={b}, std={std}")
    draw = generator or default_generator()
    values = draw.truncated_normal(t.shape, mean=mean, std=std, low=a, high=b, dtype=t.dtype)
    return _write(t, values)


def constant_(t: T, val: float) -> T:
    """One value everywhere."""
    return _write(t, t.backend.full(t.shape, val, t.dtype))


def zeros_(t: T) -> T:
    """Zeros."""
    return constant_(t, 0.0)


def ones_(t: T) -> T:
    """Ones."""
    return constant_(t, 1.0)


def eye_(t: T) -> T:
    """Ones on the diagonal of a matrix, zeros elsewhere."""
    if t.ndim != 2:
        raise ShapeError(f"eye_: needs 2 axes, not shape {t.shape}")
    return _write(t, np.eye(*t.shape, dtype=t.dtype))


def xavier_uniform_(t: T, gain: float = 1.0, *, generator: Generator | None = None) -> T:
    """Uniform on +-gain * sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, equation 16)."""
    bound = gain * math.sqrt(6.0 / max(1, sum(fans("xavier_uniform_", t.shape))))
    return uniform_(t, -bound, bound, generator=generator)


def xavier_normal_(t: T, gain: float = 1.0, *, generator: Generator | None = None) -> T:
    """Normal with standard deviation gain * sqrt(2 / (fan_in + fan_out))."""
    std = gain * math.sqrt(2.0 / max(1, sum(fans("xavier_normal_", t.shape))))
    return normal_(t, 0.0, std, generator=generator)


def _kaiming_std(name: str, shape: Shape, a: float, mode: str, nonlinearity: str) -> float:
    modes = ("fan_in", "fan_out")
    if mode not in modes:
        raise ConfigError(f"{name}: {unknown('mode', mode, modes)}")
    fan = fans(name, shape)[modes.index(mode)]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(1, fan))


def kaiming_uniform_(
    t: T,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    generator: Generator | None = None,
) -> T:
    """Uniform on +-gain * sqrt(3 / fan) (He et al. 2015, equation 10).

    Parameters
    ----------
    t : (out, in, ...) weight.
    a : negative slope of the leaky ReLU behind the weight.
    mode : ``"fan_in"`` keeps the variance of the forward pass, ``"fan_out"`` of the backward pass.
    nonlinearity : see :func:`calculate_gain`.
    generator : where to draw; None for the default generator.
    """
    bound = math.sqrt(3.0) * _kaiming_std("kaiming_uniform_", t.shape, a, mode, nonlinearity)
    return uniform_(t, -bound, bound, generator=generator)


def kaiming_normal_(
    t: T,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    generator: Generator | None = None,
) -> T:
    """Normal with standard deviation gain / sqrt(fan); see :func:`kaiming_uniform_`."""
    std = _kaiming_std("kaiming_normal_", t.shape, a, mode, nonlinearity)
    return normal_(t, 0.0, std, generator=generator)


def orthogonal_(t: T, gain: float = 1.0, *, generator: Generator | None = None) -> T:
    """Rows (or columns, where there are fewer) that are orthonormal, times `gain`.

    Notes
    -----
    The Q of a QR decomposition of a normal matrix, with each column's sign that of R's diagonal,
    which makes it uniform over all such matrices (Saxe et al. 2014; Mezzadri 2007). Axes from the
    second on count as one.
    """
    if t.ndim < 2:
        raise ShapeError(f"orthogonal_: needs at least 2 axes, not shape {t.shape}")
    rows, columns = t.shape[0], math.prod(t.shape[1:])
    if not rows * columns:
        return t
    draw = generator or default_generator()
    square = draw.normal((max(rows, columns), min(rows, columns)), dtype=np.float64)
    q, r = np.linalg.qr(square)
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)
    q = q if rows >= columns else q.T
    return _write(t, (gain * q).astype(t.dtype).reshape(t.shape))
