"""The functions of one number against float64, in units in the last place of float32."""

import math

import numpy as np
import pytest

pytest.importorskip("numba")

from tests.backends.support.native import executed

RNG = np.random.default_rng(5)
ERF = np.vectorize(math.erf, otypes=[float])
TINY = 1.1754944e-38


def computed(kernel, *args):
    out = np.empty(args[0].shape, np.float32)
    executed(kernel, (out,), 1, *args)
    return out


def off(found, exact):
    """The largest distance from the exact value, in units of its last place (of the smallest normal
    number's below that)."""
    rounded = exact.astype(np.float32)
    plain = np.isfinite(rounded)
    np.testing.assert_array_equal(found[~plain], rounded[~plain])
    unit = np.spacing(np.maximum(np.abs(rounded[plain]), np.float32(TINY))).astype(float)
    return float(np.max(np.abs(found[plain].astype(float) - exact[plain]) / unit))


def spread(low, high, n=60001):
    """Evenly between, and evenly by exponent down to tiny numbers of both signs that lie there."""
    even = np.linspace(low, high, n)
    small = np.exp(RNG.uniform(np.log(1e-42), np.log(max(abs(low), abs(high))), n))
    both = np.concatenate([even, small, -small])
    return both[(both >= low) & (both <= high)].astype(np.float32)


CASES = {
    "exp": (np.exp, -110.0, 95.0, 1.5),
    "expm1": (np.expm1, -110.0, 95.0, 2.0),
    "log": (np.log, 0.0, 3.4e38, 1.5),
    "log1p": (np.log1p, -1.0, 3.4e38, 2.5),
    "tanh": (np.tanh, -20.0, 20.0, 2.0),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -87.0, 110.0, 3.0),
    "erf": (ERF, -6.0, 6.0, 3.0),
    "sin": (np.sin, -1e4, 1e4, 1.0),
    "cos": (np.cos, -1e4, 1e4, 1.0),
    "tan": (np.tan, -1e4, 1e4, 1.5),
    "arcsin": (np.arcsin, -1.0, 1.0, 1.5),
    "arccos": (np.arccos, -1.0, 1.0, 1.5),
    "arctan": (np.arctan, -1e4, 1e4, 1.5),
    "sinh": (np.sinh, -95.0, 95.0, 2.0),
    "cosh": (np.cosh, -95.0, 95.0, 2.0),
    "arcsinh": (np.arcsinh, -1e4, 1e4, 1.5),
    "arccosh": (np.arccosh, 1.0, 1e4, 2.0),
    "arctanh": (np.arctanh, -1.0, 1.0, 2.0),
    "sqrt": (np.sqrt, 0.0, 3e38, 0.51),
    "reciprocal": (lambda x: 1 / x, 1e-37, 3e37, 0.51),
}


@pytest.mark.parametrize("kernel", CASES)
def test_within_a_few_units_of_the_last_place_over_the_whole_range(kernel):
    exact, low, high, most = CASES[kernel]
    x = spread(low, high)
    with np.errstate(all="ignore"):
        assert off(computed(kernel, x), exact(x.astype(np.float64))) <= most


@pytest.mark.parametrize("kernel", sorted(set(CASES) - {"sigmoid", "erf"}))
def test_special_numbers_as_numpy_has_them(kernel):
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, -2.5, 1e30, -1e30, 1.0, -1.0], np.float32)
    if kernel in ("sin", "cos", "tan"):
        x[6:8] = 0.5
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(computed(kernel, x), getattr(np, kernel)(x), rtol=1e-6)


def test_limits_of_erf_and_sigmoid():
    x = np.array([np.inf, -np.inf, np.nan, 0.0, 200.0, -200.0], np.float32)
    np.testing.assert_array_equal(computed("erf", x), np.array([1, -1, np.nan, 0, 1, -1], "f"))
    np.testing.assert_array_equal(computed("sigmoid", x), np.array([1, 0, np.nan, 0.5, 1, 0], "f"))


def test_results_below_the_smallest_normal_number():
    x = np.linspace(-103.5, -87.5, 1001).astype(np.float32)
    found = computed("exp", x)
    assert 0 < found[1] < TINY
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=0, atol=1.5e-45)


def test_the_normal_distribution_of_gelu():
    x = spread(-9.0, 9.0)
    z = x.astype(np.float64)
    cdf = np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)), otypes=[float])(z)
    y = computed("gelu", x)
    assert np.abs(y - z * cdf).max() <= 3e-7
    far = np.abs(z) > 1e-30
    assert np.abs(y[far] / z[far] - cdf[far]).max() <= 2.5e-7
    dy = RNG.standard_normal(x.size).astype(np.float32)
    slope = cdf + z * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    assert np.abs(computed("gelu_backward", dy, x) - dy * slope).max() <= 1e-6


def test_erf_near_zero_keeps_its_digits():
    x = np.float32([1e-40, 1e-20, 1e-6, -1e-3])
    exact = ERF(x.astype(np.float64))
    np.testing.assert_allclose(computed("erf", x), exact, rtol=2e-7, atol=2e-45)


def test_powers():
    x = np.concatenate([RNG.standard_normal(1000), [0.0, -0.0, np.inf, -np.inf, np.nan]])
    x = x.astype(np.float32)
    for n in (0, 1, 2, 3, 4, 5, 7, 8, 9, -1, -2, -3, 0.5, 1.5, 2.0):
        with np.errstate(all="ignore"):
            exact = x.astype(np.float64) ** n
        np.testing.assert_allclose(computed("power", x, n), exact, rtol=1e-6, err_msg=str(n))
