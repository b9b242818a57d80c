"""Compute the polynomials of ``gpubackprop/backends/special.py``: run ``python tools/fit_erf.py``
(needs mpmath).

Chebyshev interpolation in 50 digits, converted to powers of a variable in [-1, 1], printed highest
power first.
"""

import mpmath as mp

mp.mp.dps = 50


def chebyshev_powers(f, degree):
    """Coefficients of the interpolant of `f` on [-1, 1], highest power first."""
    n = degree + 1
    nodes = [mp.cos(mp.pi * (k + mp.mpf(1) / 2) / n) for k in range(n)]
    values = [f(x) for x in nodes]
    cheb = [
        2 * sum(values[k] * mp.cos(mp.pi * j * (k + mp.mpf(1) / 2) / n) for k in range(n)) / n
        for j in range(n)
    ]
    cheb[0] /= 2
    previous, current = [mp.mpf(1)], [mp.mpf(0), mp.mpf(1)]
    total = [mp.mpf(0)] * n
    for j in range(n):
        basis = previous
        for i, c in enumerate(basis):
            total[i] += cheb[j] * c
        following = [mp.mpf(0)] + [2 * c for c in current]
        for i, c in enumerate(previous):
            following[i] -= c
        previous, current = current, following
    return total[::-1]


def near(s):
    """erf(x)/x as a function of s = 2 x**2 - 1, x in [0, 1]."""
    x = mp.sqrt((s + 1) / 2)
    return mp.erf(x) / x if x else 2 / mp.sqrt(mp.pi)


def far(s):
    """exp(x**2) erfc(x) / t with t = 2/(2+x) for x in [1, 6]; s maps t from [1/4, 2/3] to [-1,
    1]."""
    t = mp.mpf(1) / 4 + (s + 1) / 2 * (mp.mpf(2) / 3 - mp.mpf(1) / 4)
    x = 2 / t - 2
    return mp.exp(x * x) * mp.erfc(x) / t


if __name__ == "__main__":
    for name, f, degree in (("NEAR", near, 14), ("FAR", far, 20)):
        coefficients = chebyshev_powers(f, degree)
        worst = max(
            abs(mp.polyval(coefficients, s) - f(s)) / abs(f(s)) for s in mp.linspace(-1, 1, 999)
        )
        print(f"# {name}: relative error {mp.nstr(worst, 3)}")
        print(f"_{name} = (")
        for c in coefficients:
            print(f"    {float(c)!r},")
        print(")")
