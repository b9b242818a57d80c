"""Elementwise functions, made from a table: the operation, and what it computes."""

from __future__ import annotations

from typing import Protocol

from gpubackprop.autograd import REGISTRY, Tensor, apply, tensor
from gpubackprop.ops import elementwise as _elementwise  # noqa: F401 - fills the registry
from gpubackprop.ops.functions.operands import Operand, operands


class UnaryFunction(Protocol):
    """An elementwise function of one argument."""

    __name__: str

    def __call__(self, x: Operand, /) -> Tensor: ...


class BinaryFunction(Protocol):
    """An elementwise function of two arguments that broadcast."""

    __name__: str

    def __call__(self, x1: Operand, x2: Operand, /) -> Tensor: ...


def _unary(
    name: str, summary: str, notes: str = "", result: str = "Of the shape of `x`."
) -> UnaryFunction:
    op = REGISTRY[name]

    def function(x: Operand, /) -> Tensor:
        return apply(op, x if isinstance(x, Tensor) else tensor(x))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"{summary}\n\nParameters\n----------\nx : tensor, number or array-like, any shape.\n\n"
        f"Returns\n-------\nTensor\n    {result}\n"
        + (f"\nNotes\n-----\n{notes}\n" if notes else "")
    )
    return function


def _binary(name: str, summary: str, notes: str = "", result: str = "") -> BinaryFunction:
    op = REGISTRY[name]

    def function(x1: Operand, x2: Operand, /) -> Tensor:
        if isinstance(x1, Tensor) and isinstance(x2, Tensor):
            return apply(op, x1, x2)
        return apply(op, *operands(name, x1, x2))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"{summary}\n\nParameters\n----------\n"
        "x1, x2 : tensors, numbers or array-likes whose shapes broadcast.\n\n"
        f"Returns\n-------\nTensor\n    {result}Of the common shape.\n\n"
        "Raises\n------\nShapeError\n    If the shapes do not broadcast.\n"
        + (f"\nNotes\n-----\n{notes}\n" if notes else "")
    )
    return function


_STEP = "Constant between its jumps: the derivative is 0."
_TEST = "Booleans of the shape of `x`; no derivative."
_BOOLEAN = "Booleans, without a derivative. "

negative = _unary("negative", "-x.")
absolute = _unary("absolute", "The absolute value |x|.", "The derivative at 0 is taken as 0.")
abs = absolute
sign = _unary("sign", "-1, 0 or 1 with the sign of x.", _STEP)
square = _unary("square", "x * x.")
sqrt = _unary("sqrt", "The square root; NaN below 0.", "The derivative at 0 is infinite.")
reciprocal = _unary("reciprocal", "1 / x.")
exp = _unary("exp", "e to the power x.")
expm1 = _unary("expm1", "exp(x) - 1, exact near 0.")
log = _unary("log", "The natural logarithm; NaN below 0.")
log1p = _unary("log1p", "log(1 + x), exact near 0.")
sin = _unary("sin", "The sine; x in radians.")
cos = _unary("cos", "The cosine; x in radians.")
tan = _unary("tan", "The tangent; x in radians.")
arcsin = _unary("arcsin", "The angle, in radians, whose sine is x.")
arccos = _unary("arccos", "The angle, in radians, whose cosine is x.")
arctan = _unary("arctan", "The angle, in radians, whose tangent is x.")
sinh = _unary("sinh", "The hyperbolic sine.")
cosh = _unary("cosh", "The hyperbolic cosine.")
tanh = _unary("tanh", "The hyperbolic tangent.")
arcsinh = _unary("arcsinh", "The inverse of the hyperbolic sine.")
arccosh = _unary("arccosh", "The inverse of the hyperbolic cosine; NaN below 1.")
arctanh = _unary("arctanh", "The inverse of the hyperbolic tangent; NaN beyond -1 and 1.")
erf = _unary(
    "erf",
    "The error function.",
    "2/sqrt(pi) times the integral of exp(-t**2) from 0 to x (Abramowitz & Stegun 7.1.1).",
)
floor = _unary("floor", "The largest integer that is not above x.", _STEP)
ceil = _unary("ceil", "The smallest integer that is not below x.", _STEP)
rint = _unary("rint", "The nearest integer; halves go to the even one.", _STEP)
isfinite = _unary("isfinite", "Whether x is neither infinite nor NaN.", result=_TEST)
isnan = _unary("isnan", "Whether x is NaN.", result=_TEST)
logical_not = _unary("logical_not", "Whether x is zero (false).", result=_TEST)

add = _binary("add", "x1 + x2.")
subtract = _binary("subtract", "x1 - x2.")
multiply = _binary("multiply", "x1 * x2.")
divide = _binary("divide", "x1 / x2; integers give floats.")
power = _binary("power", "x1 to the power x2.")
pow = power
maximum = _binary(
    "maximum",
    "The larger of x1 and x2; NaN wins.",
    "Where the two are equal, each gets half of the derivative.",
)
minimum = _binary(
    "minimum",
    "The smaller of x1 and x2; NaN wins.",
    "Where the two are equal, each gets half of the derivative.",
)
arctan2 = _binary(
    "arctan2", "The angle, in radians, of the point with ordinate x1 and abscissa x2."
)
equal = _binary("equal", "x1 == x2.", result=_BOOLEAN)
not_equal = _binary("not_equal", "x1 != x2.", result=_BOOLEAN)
less = _binary("less", "x1 < x2.", result=_BOOLEAN)
less_equal = _binary("less_equal", "x1 <= x2.", result=_BOOLEAN)
greater = _binary("greater", "x1 > x2.", result=_BOOLEAN)
greater_equal = _binary("greater_equal", "x1 >= x2.", result=_BOOLEAN)
logical_and = _binary("logical_and", "Whether x1 and x2 are both true (not zero).", result=_BOOLEAN)
logical_or = _binary("logical_or", "Whether x1 or x2 is true (not zero).", result=_BOOLEAN)

__all__ = [
    "abs",
    "absolute",
    "add",
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctan2",
    "arctanh",
    "ceil",
    "cos",
    "cosh",
    "divide",
    "equal",
    "erf",
    "exp",
    "expm1",
    "floor",
    "greater",
    "greater_equal",
    "isfinite",
    "isnan",
    "less",
    "less_equal",
    "log",
    "log1p",
    "logical_and",
    "logical_not",
    "logical_or",
    "maximum",
    "minimum",
    "multiply",
    "negative",
    "not_equal",
    "pow",
    "power",
    "reciprocal",
    "rint",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "subtract",
    "tan",
    "tanh",
]
