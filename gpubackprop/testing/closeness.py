"""How near two results must be: tolerances that follow from the arithmetic, and the failure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpubackprop.errors import GpubackpropError

ROUNDINGS = 16
"""How many roundings a result may be away, beside those that its summation brings."""


class CheckError(GpubackpropError, AssertionError):
    """An operation does not do what its record promises."""


def tolerance(dtype: Any, length: int = 1) -> float:
    """Relative error to expect of sums of `length` terms in `dtype`.

    Parameters
    ----------
    dtype : a float dtype.
    length : number of terms that are summed, at most.

    Notes
    -----
    Errors of n roundings with random signs grow as sqrt(n): Higham, Accuracy and Stability of
    Numerical Algorithms, section 2.8.
    """
    return float(np.finfo(dtype).eps) * ROUNDINGS * math.sqrt(max(length, 1))


def longest(arrays: Iterable[Any]) -> int:
    """The largest number of elements among `arrays`: no sum over them has more terms."""
    return max((x.size for x in arrays if hasattr(x, "size")), default=1)


def magnitude(arrays: Iterable[Any]) -> float:
    """The largest finite magnitude in `arrays`, at least 1."""
    largest = 1.0
    for x in arrays:
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or not x.size:
            continue
        finite = np.abs(x[np.isfinite(x)])
        largest = max(largest, float(finite.max(initial=0.0)))
    return largest


def require_close(
    what: str, found: np.ndarray, expected: np.ndarray, relative: float, scale: float = 1.0
) -> None:
    """Raise unless the values agree: floats nearly, anything else exactly.

    Parameters
    ----------
    what : the beginning of the message.
    found, expected : arrays of one shape; NaN and infinities must be in the same places.
    relative : allowed difference, relative to ``abs(expected) + scale``.
    scale : size of the numbers that took part, which is what cancellation leaves errors of.

    Raises
    ------
    CheckError
        Naming the worst element.
    """
    if found.shape != expected.shape:
        raise CheckError(f"{what}: shape {found.shape} instead of {expected.shape}")
    if found.dtype.kind != "f":
        bad = np.asarray(found != expected)
        allowed = np.zeros(found.shape)
    else:
        with np.errstate(all="ignore"):
            found, expected = found.astype(np.float64), expected.astype(np.float64)
            same = (found == expected) | (np.isnan(found) & np.isnan(expected))
            allowed = relative * (np.abs(expected) + scale)
            bad = ~same & ~(np.isfinite(expected) & (np.abs(found - expected) <= allowed))
    if not bad.any():
        return
    with np.errstate(all="ignore"):
        gap = np.abs(np.subtract(found, expected, dtype=np.float64)) / (allowed + 1e-300)
    at = np.unravel_index(
        int(np.argmax(np.where(bad, np.nan_to_num(gap, nan=np.inf), -1))), bad.shape
    )
    where = [int(i) for i in at]
    raise CheckError(
        f"{what}: {int(bad.sum())} of {bad.size} elements differ; element {where} is {found[at]!r} "
        f"instead of {expected[at]!r} (allowed difference {float(allowed[at]):.3g})"
    )


def require_same_bits(what: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Raise unless dtype, shape and every bit agree."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        raise CheckError(
            f"{what}: {found.dtype}{list(found.shape)} instead of "
            f"{expected.dtype}{list(expected.shape)}"
        )
    if found.tobytes() != expected.tobytes():
        raise CheckError(f"{what}: the bits differ")
