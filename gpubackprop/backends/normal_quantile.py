"""Quantiles of the normal distribution: what a normal variable stays below with probability p.

Rational approximations PPND16 of Wichura, "Algorithm AS 241: The percentage points of the normal
distribution", Applied Statistics 37 (1988); relative error about 1e-16. Coefficients have the
highest power first.
"""

from __future__ import annotations

import math

import numpy as np

from gpubackprop.errors import ConfigError

_CENTRE = (
    (
        2509.0809287301226727,
        33430.575583588128105,
        67265.770927008700853,
        45921.953931549871457,
        13731.693765509461125,
        1971.5909503065514427,
        133.14166789178437745,
        3.3871328727963666080,
    ),
    (
        5226.4952788528545610,
        28729.085735721942674,
        39307.895800092710610,
        21213.794301586595867,
        5394.1960214247511077,
        687.18700749205790830,
        42.313330701600911252,
        1.0,
    ),
)
_MIDDLE = (
    (
        7.7454501427834140764e-4,
        2.27238449892691845833e-2,
        2.41780725177450611770e-1,
        1.27045825245236838258,
        3.64784832476320460504,
        5.76949722146069140550,
        4.63033784615654529590,
        1.42343711074968357734,
    ),
    (
        1.05075007164441684324e-9,
        5.475938084995344946e-4,
        1.51986665636164571966e-2,
        1.48103976427480074590e-1,
        6.89767334985100004550e-1,
        1.67638483018380384940,
        2.05319162663775882187,
        1.0,
    ),
)
_TAIL = (
    (
        2.01033439929228813265e-7,
        2.71155556874348757815e-5,
        1.24266094738807843860e-3,
        2.65321895265761230930e-2,
        2.96560571828504891230e-1,
        1.78482653991729133580,
        5.46378491116411436990,
        6.65790464350110377720,
    ),
    (
        2.04426310338993978564e-15,
        1.42151175831644588870e-7,
        1.84631831751005468180e-5,
        7.86869131145613259100e-4,
        1.48753612908506148525e-2,
        1.36929880922735805310e-1,
        5.99832206555887937690e-1,
        1.0,
    ),
)


def quantile(p: np.ndarray) -> np.ndarray:
    """Quantile of each probability, 0 < p < 1, as float64."""
    p = np.asarray(p, dtype=np.float64)
    q = p - 0.5
    result = q * _ratio(_CENTRE, 0.180625 - q * q)
    outside = np.absolute(q) > 0.425
    if outside.any():
        side = p[outside]
        r = np.sqrt(-np.log(np.minimum(side, 1.0 - side)))
        far = np.where(r > 5.0, _ratio(_TAIL, r - 5.0), _ratio(_MIDDLE, r - 1.6))
        result[outside] = np.copysign(far, side - 0.5)
    return result


def between(unit: np.ndarray, low: float, high: float) -> np.ndarray:
    """The part ``unit`` of the probability that lies between two bounds, as quantiles.

    Parameters
    ----------
    unit : numbers in (0, 1).
    low, high : bounds of a standard normal variable, low < high.

    Returns
    -------
    numpy.ndarray
        float64, within the bounds.

    Raises
    ------
    ConfigError
        If double precision sees no probability between the bounds.
    """
    # The lower tail's probabilities keep all their digits, the upper tail's are 1 minus those: an
    # interval on the right is mirrored.
    mirrored = low > 0
    left, right = (-high, -low) if mirrored else (low, high)
    start, stop = cumulative(left), cumulative(right)
    if not stop > start:
        raise ConfigError(f"a normal variable is never between {low:g} and {high:g} deviations")
    result = np.clip(quantile(start + unit * (stop - start)), left, right)
    return -result if mirrored else result


def cumulative(x: float) -> float:
    """Probability that a standard normal variable stays below `x`."""
    return 0.5 * math.erfc(-x * math.sqrt(0.5))


def _ratio(polynomials: tuple[tuple[float, ...], tuple[float, ...]], x: np.ndarray) -> np.ndarray:
    above, below = (np.polyval(np.array(c), x) for c in polynomials)
    return above / below
