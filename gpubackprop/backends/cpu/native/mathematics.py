"""Functions of one float32 number, without branches: loops around them become vector instructions.

Polynomials are Cephes' single precision ones (S. L. Moshier, netlib.org/cephes: expf, logf, tanhf,
erff) unless said otherwise. Order of operations is kept (``inline``); only a product that is added
may be rounded once.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpubackprop.backends.cpu.native.abi import inline

f32 = np.float32
INFINITY = f32(np.inf)


@intrinsic
def as_float(typingctx, bits):
    """The float32 with the bits of an int32."""

    def build(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), build


@intrinsic
def as_bits(typingctx, x):
    """The bits of a float32 as an int32."""

    def build(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), build


@intrinsic
def to_int(typingctx, x):
    """A float32 of whole value as an int32."""

    def build(context, builder, signature, args):
        return builder.fptosi(args[0], ir.IntType(32))

    return types.int32(types.float32), build


@intrinsic
def from_int(typingctx, n):
    """An int32 as a float32."""

    def build(context, builder, signature, args):
        return builder.sitofp(args[0], ir.FloatType())

    return types.float32(types.int32), build


@inline
def power_of_two(n):
    """2**n for -126 <= n <= 127, n an int32."""
    return as_float((n + np.int32(127)) << np.int32(23))


@inline
def exp(x):
    """e**x; 0 and infinity beyond what float32 holds. The scale is applied in two steps, so that
    results below the smallest normal number come out right."""
    low, high = f32(-104.0), f32(89.0)
    y = low if x < low else x
    y = high if y > high else y
    n = np.floor(y * f32(1.44269504088896341) + f32(0.5))
    r = y - n * f32(0.693359375)
    r = r - n * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * (r * r) + r + f32(1.0)
    whole = n if n == n else f32(0.0)
    k = to_int(whole)
    half = k >> np.int32(1)
    return p * power_of_two(half) * power_of_two(k - half)


@inline
def expm1(x):
    """e**x - 1 = 2**n (e**r - 1) + (2**n - 1), which keeps the digits near 0."""
    low, high = f32(-18.0), f32(89.0)
    y = low if x < low else x
    y = high if y > high else y
    n = np.floor(y * f32(1.44269504088896341) + f32(0.5))
    r = y - n * f32(0.693359375)
    r = r - n * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * (r * r) + r
    whole = n if n == n else f32(0.0)
    half = power_of_two(to_int(whole) - np.int32(1))  # 2**128 itself is no float32
    wide = half * p + (half - f32(0.5))
    return p if n == f32(0.0) else wide + wide


@inline
def log(x):
    """The natural logarithm; minus infinity at 0, NaN below."""
    small = x < f32(1.17549435e-38)
    y = x * f32(8388608.0) if small else x
    bits = as_bits(y)
    e = (bits >> np.int32(23)) - np.int32(126)
    m = as_float((bits & np.int32(0x007FFFFF)) | np.int32(0x3F000000))  # in [0.5, 1)
    low = m < f32(0.707106781186547524)
    k = from_int(e) - (f32(1.0) if low else f32(0.0)) - (f32(23.0) if small else f32(0.0))
    m = (m + m - f32(1.0)) if low else (m - f32(1.0))
    z = m * m
    p = f32(7.0376836292e-2)
    p = p * m + f32(-1.1514610310e-1)
    p = p * m + f32(1.1676998740e-1)
    p = p * m + f32(-1.2420140846e-1)
    p = p * m + f32(1.4249322787e-1)
    p = p * m + f32(-1.6668057665e-1)
    p = p * m + f32(2.0000714765e-1)
    p = p * m + f32(-2.4999993993e-1)
    p = p * m + f32(3.3333331174e-1)
    y = m * z * p
    y = y + k * f32(-2.12194440e-4)
    y = y - f32(0.5) * z
    result = m + y + k * f32(0.693359375)
    result = INFINITY if x == INFINITY else result
    result = -INFINITY if x == f32(0.0) else result
    return result if x >= f32(0.0) else f32(np.nan)


@inline
def log1p(x):
    """log(1 + x): the logarithm of the rounded sum, and what the rounding took away."""
    u = f32(1.0) + x
    lost = x - (u - f32(1.0))
    result = log(u) + lost / u
    result = x if (u == f32(1.0)) | (u == INFINITY) else result
    return -INFINITY if u == f32(0.0) else result


@inline
def tanh(x):
    """The hyperbolic tangent: a polynomial near 0, 1 - 2 / (e**(2|x|) + 1) beyond."""
    a = abs(x)
    z = x * x
    p = f32(-5.70498872745e-3)
    p = p * z + f32(2.06390887954e-2)
    p = p * z + f32(-5.37397155531e-2)
    p = p * z + f32(1.33314422036e-1)
    p = p * z + f32(-3.33332819422e-1)
    near = p * z * x + x
    far = f32(1.0) - f32(2.0) / (exp(a + a) + f32(1.0))
    far = -far if x < f32(0.0) else far
    return near if a < f32(0.625) else far


@inline
def sigmoid(x):
    """1 / (1 + e**-x)."""
    return f32(1.0) / (f32(1.0) + exp(-x))


@inline
def normal_tail(a):
    """R(a) with Phi(-a) = e**(-a**2 / 2) R(a) for a >= 0; the polynomial of ``cpu/gelu.py``."""
    t = f32(1.0) / (f32(1.0) + f32(0.26) * a)
    p = f32(-0.07318541162512127)
    p = p * t + f32(0.2295009252198431)
    p = p * t + f32(-0.10673180152731312)
    p = p * t + f32(0.16622893594882562)
    p = p * t + f32(0.07356927333572759)
    p = p * t + f32(0.10709172924812205)
    p = p * t + f32(0.10352628673468359)
    return p * t


@inline
def erf(x):
    """The error function: a polynomial up to 1, 1 - 2 Phi(-sqrt(2) x) beyond."""
    a = abs(x)
    z = x * x
    p = f32(7.853861353153693e-5)
    p = p * z + f32(-8.010193625184903e-4)
    p = p * z + f32(5.188327685732524e-3)
    p = p * z + f32(-2.685381193529856e-2)
    p = p * z + f32(1.128358514861418e-1)
    p = p * z + f32(-3.761262582423300e-1)
    p = p * z + f32(1.128379165726710)
    near = p * x
    c = f32(5.0) if a > f32(5.0) else a
    far = f32(1.0) - f32(2.0) * exp(-(c * c)) * normal_tail(f32(1.4142135623730951) * c)
    far = -far if x < f32(0.0) else far
    return near if a < f32(1.0) else (far if a == a else x)


@inline
def gelu(x):
    """x Phi(x) = max(x, 0) - |x| Phi(-|x|), which keeps the digits of its tail."""
    a = abs(x)
    c = f32(20.0) if a > f32(20.0) else a
    tail = c * exp(f32(-0.5) * (c * c)) * normal_tail(c)
    positive = x if x > f32(0.0) else f32(0.0)
    return positive - tail if x > -INFINITY else x * f32(0.0)  # NaN, as the definition's


@inline
def gelu_slope(x):
    """Phi(x) + x phi(x); with w = Phi(-|x|) - |x| phi(x) it is 1 - w for x > 0, else w."""
    a = abs(x)
    c = f32(20.0) if a > f32(20.0) else a
    w = exp(f32(-0.5) * (c * c)) * (normal_tail(c) - c * f32(0.3989422804014327))
    slope = f32(1.0) - w if x > f32(0.0) else w
    return slope if a < INFINITY else x * f32(0.0)  # NaN, as the definition's


@inline
def maximum(a, b):
    """The larger one; NaN wins."""
    return a if (a > b) | (a != a) else b


@inline
def minimum(a, b):
    """The smaller one; NaN wins."""
    return a if (a < b) | (a != a) else b


@inline
def sign(x):
    """-1, 0 or 1; NaN stays NaN."""
    return f32(1.0) if x > f32(0.0) else (f32(-1.0) if x < f32(0.0) else x * f32(1.0))


@intrinsic
def added(typingctx, total, x):
    """total + x where the order of the additions of a sum does not count: a loop may keep several
    sums and add them up at its end."""

    def build(context, builder, signature, args):
        return builder.fadd(*args, flags=("reassoc", "nsz", "contract"))

    return total(total, total), build


@intrinsic
def larger(typingctx, most, x):
    """The larger of two float32, NaN if one is: ``maximum`` in a form that LLVM knows how to take
    over a loop."""

    def build(context, builder, signature, args):
        real = ir.FloatType()
        shape = ir.FunctionType(real, [real, real])
        function = builder.module.declare_intrinsic("llvm.maximum", [real], shape)
        return builder.call(function, args)

    return types.float32(types.float32, types.float32), build


# What follows is rare: the C library's, one number at a time.
@inline
def sin(x):
    """The sine."""
    return f32(math.sin(x))


@inline
def cos(x):
    """The cosine."""
    return f32(math.cos(x))


@inline
def tan(x):
    """The tangent."""
    return f32(math.tan(x))


@inline
def arcsin(x):
    """The inverse sine."""
    return f32(math.asin(x))


@inline
def arccos(x):
    """The inverse cosine."""
    return f32(math.acos(x))


@inline
def arctan(x):
    """The inverse tangent."""
    return f32(math.atan(x))


@inline
def arctan2(y, x):
    """The angle of the point (x, y)."""
    return f32(math.atan2(y, x))


@inline
def sinh(x):
    """The hyperbolic sine."""
    return f32(math.sinh(x))


@inline
def cosh(x):
    """The hyperbolic cosine."""
    return f32(math.cosh(x))


@inline
def arcsinh(x):
    """The inverse hyperbolic sine."""
    return f32(math.asinh(x))


@inline
def arccosh(x):
    """The inverse hyperbolic cosine."""
    return f32(math.acosh(x))


@inline
def arctanh(x):
    """The inverse hyperbolic tangent."""
    return f32(math.atanh(x))


@inline
def power(x, y):
    """x**y."""
    return f32(math.pow(x, y))
