"""Random numbers as pure functions of (seed, stream, offset), on the host.

Everything here is built on :func:`gpubackprop.backends.philox.random_bits`; `offset` counts blocks
of four 32-bit words. A draw uses the words in order: one word an element, or two where 53 random
bits are wanted. :class:`gpubackprop.backends.random.Generator` does that sum for the caller.

The results are NumPy arrays: initial weights and shuffles are made on the host and copied, so that
every device starts from the same numbers. A kernel that draws on its own device (dropout) is given
(seed, stream, offset) instead.
"""

from __future__ import annotations

import math

import numpy as np

from gpubackprop.backends import normal_quantile
from gpubackprop.backends.dtypes import as_dtype
from gpubackprop.backends.philox import random_bits
from gpubackprop.backends.primitives import DType, Shape
from gpubackprop.errors import ConfigError, DTypeError

_WORD = 0xFFFFFFFF
_TWO_PI = 2.0 * math.pi


def as_shape(shape: int | Shape) -> Shape:
    return (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)


def as_float_dtype(dtype: DType) -> np.dtype:
    dtype = as_dtype(dtype)
    if dtype.kind not in "fV":  # extension types such as bfloat16 report kind "V"
        raise DTypeError(f"random numbers of dtype {dtype} are not real numbers; use a float dtype")
    return dtype


def is_wide(dtype: np.dtype) -> bool:
    """Whether a result of this dtype is worth 53 random bits."""
    return dtype.itemsize > 4


def _keys(n: int, seed: int, stream: int, offset: int) -> np.ndarray:
    """`n` 64-bit words, each from two 32-bit words, the first one low."""
    words = random_bits(seed, stream, offset, 2 * n).astype(np.uint64)
    return words[0::2] | (words[1::2] << np.uint64(32))


def _open_unit(n: int, seed: int, stream: int, offset: int, wide: bool) -> np.ndarray:
    """float64 in (0, 1): the middle of one of 2**32 (2**52 when `wide`) equal steps."""
    if wide:
        steps = (_keys(n, seed, stream, offset) >> np.uint64(12)).astype(np.float64)
        return (steps + 0.5) * 2.0**-52
    return (random_bits(seed, stream, offset, n).astype(np.float64) + 0.5) * 2.0**-32


def uniform(
    shape: int | Shape,
    *,
    seed: int,
    stream: int = 0,
    offset: int = 0,
    low: float = 0.0,
    high: float = 1.0,
    dtype: DType = np.float32,
) -> np.ndarray:
    """Numbers spread evenly over [low, high).

    Parameters
    ----------
    shape : shape of the result.
    seed, stream, offset : where in the sequence to begin (see
        :func:`~gpubackprop.backends.philox.random_bits`).
    low, high : bounds. With bounds other than 0 and 1 rounding may give `high` itself.
    dtype : float32 (24 random bits from one word) or float64 (53 bits from two); narrower types are
        rounded from float32.

    Returns
    -------
    numpy.ndarray
        Exact multiples of 2**-24 (2**-53) for the standard bounds: the same on every device.
    """
    shape, dtype = as_shape(shape), as_float_dtype(dtype)
    n = math.prod(shape)
    unit: np.ndarray
    if is_wide(dtype):
        unit = (_keys(n, seed, stream, offset) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    else:
        words = random_bits(seed, stream, offset, n)
        unit = (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    if (low, high) != (0.0, 1.0):
        unit *= high - low
        unit += low
    return unit.reshape(shape).astype(dtype, copy=False)


def normal(
    shape: int | Shape,
    *,
    seed: int,
    stream: int = 0,
    offset: int = 0,
    mean: float = 0.0,
    std: float = 1.0,
    dtype: DType = np.float32,
) -> np.ndarray:
    """Normally distributed numbers.

    Parameters
    ----------
    shape : shape of the result.
    seed, stream, offset : where in the sequence to begin.
    mean, std : of the distribution.
    dtype : float32 or narrower (one word an element) or float64 (two words).

    Notes
    -----
    Box & Muller, "A note on the generation of random normal deviates" (1958): elements 2i and 2i +
    1 are the cosine and the sine of one angle times one radius. The arithmetic is float64 and is
    rounded once at the end. It runs on the CPU only: logarithm and cosine of two devices may differ
    in the last bit, and weights that differ from the start would hide real differences.
    """
    shape, dtype = as_shape(shape), as_float_dtype(dtype)
    n = math.prod(shape)
    pairs = -(-n // 2)
    unit = _open_unit(2 * pairs, seed, stream, offset, is_wide(dtype)).reshape(pairs, 2)
    radius = np.sqrt(-2.0 * np.log(unit[:, 0]))
    angle = _TWO_PI * unit[:, 1]
    result = np.empty((pairs, 2))
    np.multiply(radius, np.cos(angle), out=result[:, 0])
    np.multiply(radius, np.sin(angle), out=result[:, 1])
    result *= std
    result += mean
    return result.reshape(-1)[:n].reshape(shape).astype(dtype, copy=False)


def truncated_normal(
    shape: int | Shape,
    *,
    seed: int,
    stream: int = 0,
    offset: int = 0,
    mean: float = 0.0,
    std: float = 1.0,
    low: float = -2.0,
    high: float = 2.0,
    dtype: DType = np.float32,
) -> np.ndarray:
    """Normally distributed numbers, given that they lie in [low, high].

    Parameters
    ----------
    shape : shape of the result.
    seed, stream, offset : where in the sequence to begin.
    mean, std : of the distribution before it is cut; std > 0.
    low, high : bounds of the result itself (not in units of `std`), low < high.
    dtype : a float dtype. Every element uses two words.

    Raises
    ------
    ConfigError
        If the bounds are not in order or `std` is not positive.

    Notes
    -----
    Inversion: the quantile of a number spread evenly over the probabilities of the two bounds.
    Unlike rejection it uses a number of random words that is known beforehand.
    """
    if not low < high:
        raise ConfigError(f"truncated_normal needs low < high, not low={low}, high={high}")
    if not std > 0:
        raise ConfigError(f"truncated_normal needs std > 0, not {std}")
    shape, dtype = as_shape(shape), as_float_dtype(dtype)
    unit = _open_unit(math.prod(shape), seed, stream, offset, wide=True)
    result = normal_quantile.between(unit, (low - mean) / std, (high - mean) / std)
    result *= std
    result += mean
    # Rounding to a narrower dtype may step over a bound; a bound is itself an allowed value.
    np.clip(result, low, high, out=result)
    return result.reshape(shape).astype(dtype, copy=False)


def bernoulli(
    shape: int | Shape, p: float, *, seed: int, stream: int = 0, offset: int = 0
) -> np.ndarray:
    """Booleans that are true with probability `p`, one word an element.

    Parameters
    ----------
    shape : shape of the result.
    p : probability in [0, 1].
    seed, stream, offset : where in the sequence to begin.

    Notes
    -----
    True where the word is below ``round(p * 2**32)``: a comparison of integers, so the same on
    every device. 1 gives true and 0 gives false always.
    """
    if not 0.0 <= p <= 1.0:
        raise ConfigError(f"bernoulli needs a probability in [0, 1], not {p}")
    shape = as_shape(shape)
    if p == 1.0:
        return np.ones(shape, dtype=bool)
    threshold = np.uint32(min(round(p * 2**32), _WORD))
    return (random_bits(seed, stream, offset, math.prod(shape)) < threshold).reshape(shape)


def integers(
    low: int,
    high: int,
    shape: int | Shape,
    *,
    seed: int,
    stream: int = 0,
    offset: int = 0,
    dtype: DType = np.int64,
) -> np.ndarray:
    """Integers spread evenly over low <= i < high.

    Parameters
    ----------
    low, high : bounds, at most 2**32 apart.
    shape : shape of the result.
    seed, stream, offset : where in the sequence to begin. Every element uses two words.
    dtype : integer dtype of the result; it must hold both ``low`` and ``high - 1``.

    Raises
    ------
    ConfigError
        If the range is empty, wider than 2**32, or does not fit the dtype.

    Notes
    -----
    The upper part of a 64-bit word times the width (Lemire, "Fast random integer generation in an
    interval", 2019, without the rejection step). The probability of an integer is off by less than
    2**-64, one part in 2**32 at the widest range.
    """
    low, high = int(low), int(high)
    width = high - low
    if not 0 < width <= 1 << 32:
        raise ConfigError(f"integers needs 0 < high - low <= 2**32, not low={low}, high={high}")
    dtype = np.dtype(dtype)
    info = np.iinfo(dtype)
    if low < info.min or high - 1 > info.max:
        raise ConfigError(f"integers from {low} to {high - 1} do not fit dtype {dtype}")
    shape = as_shape(shape)
    words = random_bits(seed, stream, offset, 2 * math.prod(shape)).astype(np.uint64)
    factor = np.uint64(width)
    # (upper * 2**32 + lower) * width >> 64, in two steps that each fit 64 bits.
    carry = (words[0::2] * factor) >> np.uint64(32)
    steps = (words[1::2] * factor + carry) >> np.uint64(32)
    if info.min < 0:
        return (steps.astype(np.int64) + low).astype(dtype).reshape(shape)
    return (steps + np.uint64(low)).astype(dtype).reshape(shape)


def permutation(n: int, *, seed: int, stream: int = 0, offset: int = 0) -> np.ndarray:
    """The numbers 0 to n - 1 in random order, (n,) int64.

    Parameters
    ----------
    n : how many.
    seed, stream, offset : where in the sequence to begin. Every element uses two words.

    Notes
    -----
    The order that sorts n random 64-bit keys, stably. Two equal keys (probability below n**2 /
    2**65) keep their order.
    """
    if n < 0:
        raise ConfigError(f"permutation needs n >= 0, not {n}")
    return np.argsort(_keys(int(n), seed, stream, offset), kind="stable").astype(
        np.int64, copy=False
    )
