"""Elementwise operations: the table of their derivatives.

Each row is an operation: the kernel, then for each argument the cotangent ``dy`` times the local
slope. The names of a rule's arguments say which values the forward pass keeps for it.
"""

from __future__ import annotations

import math
from typing import Any

from gpubackprop.ops.define import TIES, elementwise

NUMBERS = (int, float, bool)
TWO_OVER_SQRT_PI = 2.0 / math.sqrt(math.pi)

# Arithmetic.
ADD = elementwise("add", lambda K, dy: dy, lambda K, dy: dy)
SUBTRACT = elementwise("subtract", lambda K, dy: dy, lambda K, dy: K.negative(dy))
MULTIPLY = elementwise(
    "multiply", lambda K, dy, x2: K.multiply(dy, x2), lambda K, dy, x1: K.multiply(dy, x1)
)
DIVIDE = elementwise(
    "divide",
    lambda K, dy, x2: K.divide(dy, x2),
    lambda K, dy, out, x2: K.negative(K.divide(K.multiply(dy, out), x2)),
    ranges=((-2.0, 2.0), (0.5, 2.0)),
)
POWER = elementwise(
    "power",
    lambda K, dy, x1, x2: K.multiply(dy, power_slope(K, x1, x2)),
    lambda K, dy, x1, out: K.multiply(dy, K.multiply(out, log_base(K, x1))),  # a**b log a
    ranges=((0.5, 2.0), (-1.5, 2.5)),
)
MAXIMUM = elementwise(
    "maximum",
    # Where the two are equal the slope is not defined; each side takes half, as PyTorch and JAX do.
    lambda K, dy, x1, x2: K.multiply(dy, share(K, K.greater(x1, x2), x1, x2)),
    lambda K, dy, x1, x2: K.multiply(dy, share(K, K.greater(x2, x1), x1, x2)),
    avoid=TIES,
)
MINIMUM = elementwise(
    "minimum",
    lambda K, dy, x1, x2: K.multiply(dy, share(K, K.less(x1, x2), x1, x2)),
    lambda K, dy, x1, x2: K.multiply(dy, share(K, K.less(x2, x1), x1, x2)),
    avoid=TIES,
)
ARCTAN2 = elementwise(
    "arctan2",
    lambda K, dy, x1, x2: K.multiply(dy, K.divide(x2, radius_squared(K, x1, x2))),
    lambda K, dy, x1, x2: K.negative(K.multiply(dy, K.divide(x1, radius_squared(K, x1, x2)))),
    low=0.5,
)


# A Python number stays one below: as an array of NumPy's default dtype it would widen a float32
# gradient.
def log_base(K: Any, x1: Any) -> Any:  # noqa: N803
    """log(x1); 0 at the base 0, the limit of x1**b log(x1) for a positive exponent."""
    if type(x1) in NUMBERS:
        return math.log(x1 or 1.0) if x1 >= 0 else math.nan
    return K.log(K.where(K.equal(x1, 0), 1.0, x1))


def radius_squared(K: Any, x1: Any, x2: Any) -> Any:  # noqa: N803
    """x1**2 + x2**2."""
    first, second = (x * x if type(x) in NUMBERS else K.square(x) for x in (x1, x2))
    return K.add(first, second)


def power_slope(K: Any, x1: Any, x2: Any) -> Any:  # noqa: N803
    """d/da a**b = b * a**(b-1). The exponent 0 is set apart: its slope is 0 even at the base 0,
    where the formula has 0 * inf."""
    if not hasattr(x2, "dtype"):  # a Python number, which must stay one to leave the dtype alone
        return K.multiply(K.power(x1, x2 - 1 if x2 else 1), x2)
    return K.multiply(x2, K.power(x1, K.where(K.equal(x2, 0), 1.0, K.subtract(x2, 1.0))))


def share(K: Any, wins: Any, x1: Any, x2: Any) -> Any:  # noqa: N803
    """1 where an argument wins, 1/2 where the two are equal, else 0, in the arguments' dtype."""
    dtype = next(x.dtype for x in (x1, x2) if hasattr(x, "dtype") and x.dtype.kind in "fV")
    half = K.multiply(K.astype(K.equal(x1, x2), dtype), 0.5)
    return K.add(K.astype(wins, dtype), half)


NEGATIVE = elementwise("negative", lambda K, dy: K.negative(dy))
ABSOLUTE = elementwise("absolute", lambda K, dy, x: K.multiply(dy, K.sign(x)), avoid=(0.0,))
SIGN = elementwise("sign", lambda K, dy, out: K.multiply(out, 0.0), avoid=(0.0,))
SQUARE = elementwise("square", lambda K, dy, x: K.multiply(dy, K.multiply(x, 2.0)))
SQRT = elementwise("sqrt", lambda K, dy, out: K.divide(K.multiply(dy, 0.5), out), low=0.3)
RECIPROCAL = elementwise(
    "reciprocal", lambda K, dy, out: K.negative(K.multiply(dy, K.square(out))), low=0.5
)

# Exponential and logarithm.
EXP = elementwise("exp", lambda K, dy, out: K.multiply(dy, out))
EXPM1 = elementwise("expm1", lambda K, dy, out: K.multiply(dy, K.add(out, 1.0)))
LOG = elementwise("log", lambda K, dy, x: K.divide(dy, x), low=0.3)
LOG1P = elementwise("log1p", lambda K, dy, x: K.divide(dy, K.add(x, 1.0)), low=-0.5)
ERF = elementwise(
    "erf",
    lambda K, dy, x: K.multiply(dy, K.multiply(K.exp(K.negative(K.square(x))), TWO_OVER_SQRT_PI)),
)

# Circular and hyperbolic functions.
SIN = elementwise("sin", lambda K, dy, x: K.multiply(dy, K.cos(x)))
COS = elementwise("cos", lambda K, dy, x: K.negative(K.multiply(dy, K.sin(x))))
TAN = elementwise(
    "tan", lambda K, dy, out: K.multiply(dy, K.add(K.square(out), 1.0)), low=-1.2, high=1.2
)
ARCSIN = elementwise(
    "arcsin",
    lambda K, dy, x: K.divide(dy, K.sqrt(K.subtract(1.0, K.square(x)))),
    low=-0.9,
    high=0.9,
)
ARCCOS = elementwise(
    "arccos",
    lambda K, dy, x: K.negative(K.divide(dy, K.sqrt(K.subtract(1.0, K.square(x))))),
    low=-0.9,
    high=0.9,
)
ARCTAN = elementwise("arctan", lambda K, dy, x: K.divide(dy, K.add(K.square(x), 1.0)))
SINH = elementwise("sinh", lambda K, dy, x: K.multiply(dy, K.cosh(x)))
COSH = elementwise("cosh", lambda K, dy, x: K.multiply(dy, K.sinh(x)))
TANH = elementwise("tanh", lambda K, dy, out: K.tanh_backward(dy, out))
ARCSINH = elementwise("arcsinh", lambda K, dy, x: K.divide(dy, K.sqrt(K.add(K.square(x), 1.0))))
ARCCOSH = elementwise(
    "arccosh",
    lambda K, dy, x: K.divide(dy, K.sqrt(K.subtract(K.square(x), 1.0))),
    low=1.2,
    high=3.0,
)
ARCTANH = elementwise(
    "arctanh", lambda K, dy, x: K.divide(dy, K.subtract(1.0, K.square(x))), low=-0.9, high=0.9
)

# Activations.
SIGMOID = elementwise("sigmoid", lambda K, dy, out: K.sigmoid_backward(dy, out))
RELU = elementwise("relu", lambda K, dy, out: K.relu_backward(dy, out), avoid=(0.0,))
GELU = elementwise("gelu", lambda K, dy, x: K.gelu_backward(dy, x))
GELU_TANH = elementwise("gelu_tanh", lambda K, dy, x: K.gelu_tanh_backward(dy, x))
SILU = elementwise("silu", lambda K, dy, x: K.silu_backward(dy, x))
SOFTPLUS = elementwise("softplus", lambda K, dy, x: K.multiply(dy, K.sigmoid(x)))

# No derivative, or none but 0: steps, tests and comparisons.
FLOOR = elementwise(
    "floor", lambda K, dy, out: K.multiply(out, 0.0), avoid=(-2.0, -1.0, 0.0, 1.0, 2.0)
)
CEIL = elementwise(
    "ceil", lambda K, dy, out: K.multiply(out, 0.0), avoid=(-2.0, -1.0, 0.0, 1.0, 2.0)
)
RINT = elementwise("rint", lambda K, dy, out: K.multiply(out, 0.0), avoid=(-1.5, -0.5, 0.5, 1.5))
for _name in ("isfinite", "isnan", "logical_not"):
    elementwise(_name, None)
for _name in "equal not_equal less less_equal greater greater_equal logical_and logical_or".split():
    elementwise(_name, None, None)
