"""Elementwise kernels as expressions of one element.

The definitions of the composite kernels (``relu_backward``, ``silu``, ...) are run on a tracer in
the place of a backend: each primitive that they call becomes a node, so that the formula that is
compiled is the one that is written in the contract. Three have a form of their own here, which
keeps more digits or takes one exponential where the definition takes two functions: ``sigmoid``,
``gelu`` and ``gelu_backward`` (see ``mathematics.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends.composites import Composites

FLOAT, BOOL, INT = np.dtype(np.float32), np.dtype(bool), np.dtype(np.int64)
COUNTS = (BOOL, INT)

WHOLE = {"negative": "-{0}", "absolute": "abs({0})", "square": "{0} * {0}"}
"""Of one float or integer."""
REAL = {
    "sign": "m.sign({0})",
    "sqrt": "np.sqrt({0})",
    "reciprocal": "f32(1.0) / {0}",
    "floor": "np.floor({0})",
    "ceil": "np.ceil({0})",
    "rint": "np.rint({0})",
}
DEAR = {
    name: f"m.{name}({{0}})"
    for name in (
        "exp", "expm1", "log", "log1p", "sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh",
        "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "erf", "sigmoid", "gelu", "gelu_slope",
    )
}  # fmt: skip
"""Of one float, with a polynomial or a call of the C library."""
UNARY = {**WHOLE, **REAL, **DEAR}
BINARY = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "maximum": "m.maximum({0}, {1})",
    "minimum": "m.minimum({0}, {1})",
    "arctan2": "m.arctan2({0}, {1})",
    "power": "m.power({0}, {1})",
}
COMPARE = {
    "equal": "{0} == {1}",
    "not_equal": "{0} != {1}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
}
TESTS = {"isfinite": "abs({0}) < m.INFINITY", "isnan": "{0} != {0}"}
LOGIC = {"logical_and": "{0} & {1}", "logical_or": "{0} | {1}", "logical_not": "not {0}"}
CODE = {**UNARY, **BINARY, **COMPARE, **TESTS, **LOGIC, "where": "{1} if {0} else {2}"}
_DEAR = frozenset(DEAR) | {"arctan2", "power"}

COMPOSITES = frozenset(
    {
        "relu", "relu_backward", "sigmoid_backward", "tanh_backward", "leaky_relu",
        "leaky_relu_backward", "elu", "elu_backward", "gelu_tanh", "gelu_tanh_backward", "silu",
        "silu_backward", "softplus", "dropout_backward", "gelu_backward",
    }
)  # fmt: skip

ELEMENTWISE = (frozenset(CODE) - {"gelu_slope"}) | COMPOSITES | {"clip", "astype", "copy", "copyto"}
"""Kernels whose element i depends on the elements i of their arguments alone."""

MOST_FACTORS = 8
"""A power with a whole exponent up to this one is a product."""


class UnfitError(Exception):
    """An expression that cannot be compiled; the call runs in NumPy."""


@dataclass(frozen=True, eq=False)
class Node:
    """A value of one element. A tracer makes one node for equal values, so nodes are compared by
    identity.

    Attributes
    ----------
    op : an elementwise primitive, ``"input"``, ``"constant"`` or ``"cast"``.
    args : nodes, or the number of an input or constant.
    dtype : float32, bool or int64.
    """

    op: str
    args: tuple[Any, ...]
    dtype: np.dtype
    shape = (1,)  # an element of an array: definitions look at shapes


class Tracer(Composites):
    """Stands where a backend would, and notes the primitives.

    Parameters
    ----------
    constants : receives the numbers of the expression and the dtype that each is read as; a node
        refers to them by place, so that one compiled loop serves all values.
    """

    def __init__(self, constants: list[tuple[Any, np.dtype]]) -> None:
        self.constants = constants
        self._made: dict[Any, Node] = {}

    def make(self, op: str, args: tuple[Any, ...], dtype: np.dtype) -> Node:
        """The node of an operation; the same one for the same operation."""
        key = (op, tuple(id(a) if isinstance(a, Node) else a for a in args), dtype.char)
        return self._made.setdefault(key, Node(op, args, dtype))

    def cast(self, x: Node, dtype: np.dtype) -> Node:
        """A node of another dtype."""
        return x if x.dtype == dtype else self.make("cast", (x,), dtype)

    def operand(self, value: Any, dtype: np.dtype) -> Node:
        """A node or a number as a node of a dtype.

        Raises
        ------
        UnfitError
            Neither, or a number that the dtype does not hold.
        """
        if isinstance(value, Node):
            return self.cast(value, dtype)
        alive = hasattr(value, "live")
        if not alive and type(value) not in (bool, int, float):
            raise UnfitError(f"a {type(value).__name__} in an expression")
        if dtype == INT and not -(2**63) <= value < 2**63:
            raise UnfitError("an integer of more than 64 bits")
        if not alive:
            try:
                value = float(value) if dtype == FLOAT else int(value)
            except OverflowError:
                raise UnfitError("an integer beyond every float") from None
        key = ("number", id(value) if alive else repr(value), dtype.char)
        if key not in self._made:
            self.constants.append((value, dtype))
            self._made[key] = Node("constant", (len(self.constants) - 1,), dtype)
        return self._made[key]

    def common(self, *values: Any) -> np.dtype:
        """The dtype that operands are combined in: NumPy's, Python numbers being weak."""
        if not any(isinstance(v, Node) for v in values):
            raise UnfitError("numbers alone")

        def kind(v: Any) -> Any:
            if isinstance(v, Node):
                return v.dtype
            if isinstance(v, bool) or not isinstance(v, (int, float)) or isinstance(v, np.generic):
                return type(v)
            return 1.0 if isinstance(v, float) else 1

        try:
            dtype = np.result_type(*map(kind, values))
        except TypeError as error:
            raise UnfitError(str(error)) from None
        if dtype not in (FLOAT, BOOL, INT):
            raise UnfitError(f"arithmetic in {dtype}")
        return dtype

    # Primitives.
    def _one(self, name: str, x: Any, out: Any = None) -> Node:
        dtype = self.common(x)
        if dtype != FLOAT and not (dtype == INT and name in WHOLE):
            raise UnfitError(f"{name} of {dtype}")
        return self.make(name, (x,), BOOL if name in TESTS else dtype)

    def _two(self, name: str, x1: Any, x2: Any, out: Any = None) -> Node:
        dtype = self.common(x1, x2)
        if dtype == BOOL or (dtype == INT and name in ("divide", "arctan2", "power")):
            raise UnfitError(f"{name} of {dtype}")
        return self.make(name, (self.operand(x1, dtype), self.operand(x2, dtype)), dtype)

    def _compared(self, name: str, x1: Any, x2: Any, out: Any = None) -> Node:
        dtype = self.common(x1, x2)
        return self.make(name, (self.operand(x1, dtype), self.operand(x2, dtype)), BOOL)

    def _logic(self, name: str, *xs: Any, out: Any = None) -> Node:
        self.common(*xs)
        return self.make(name, tuple(self.operand(x, BOOL) for x in xs), BOOL)

    def where(self, condition: Any, x1: Any, x2: Any) -> Node:
        dtype = self.common(x1, x2)
        args = (self.operand(condition, BOOL), self.operand(x1, dtype), self.operand(x2, dtype))
        return self.make("where", args, dtype)

    def clip(self, x: Any, low: Any, high: Any, out: Any = None) -> Node:
        dtype = self.common(*(v for v in (x, low, high) if v is not None))
        y = self.operand(x, dtype)
        if low is not None:
            y = self.maximum(y, low)
        return y if high is None else self.minimum(y, high)

    def power(self, x1: Any, x2: Any, out: Any = None) -> Node:  # type: ignore[override]
        if type(x2) not in (int, float) or not isinstance(x1, Node) or x1.dtype != FLOAT:
            return self._two("power", x1, x2)
        if x2 == 0.5:
            return self.sqrt(x1)
        n = int(abs(x2)) if abs(x2) <= MOST_FACTORS else 0
        if n == 0 or n != abs(x2):
            return self._two("power", x1, x2)
        y: Any = None
        factor = x1  # by squares
        while n:
            if n & 1:
                y = factor if y is None else self.multiply(y, factor)
            n >>= 1
            factor = self.square(factor) if n else factor
        return self.reciprocal(y) if x2 < 0 else y

    def astype(self, x: Any, dtype: Any) -> Node:
        target = np.dtype(dtype)
        if target not in (FLOAT, BOOL, INT) or (x.dtype == FLOAT and target == INT):
            raise UnfitError(f"a cast from {x.dtype} to {target}")
        return self.cast(x, target)

    # Copies, and kernels with a form of their own.
    def copy(self, x: Any) -> Node:
        return x

    def copyto(self, target: Any, source: Any) -> Any:
        return self.operand(source, FLOAT if target is None else np.dtype(target))

    def gelu_backward(self, dy: Any, x: Any) -> Node:
        return self.multiply(dy, self._one("gelu_slope", x))

    def dropout_backward(self, dy: Any, keep: Any, p: Any) -> Node:
        if hasattr(p, "live"):  # the definition computes with it, which would freeze it
            raise UnfitError("a live probability")
        return super().dropout_backward(dy, keep, p)


def _primitive(rule: Callable[..., Node], name: str) -> Any:
    return functools.partialmethod(rule, name)


for _rule, _names in (
    (Tracer._one, (*UNARY, *TESTS)),
    (Tracer._two, (n for n in BINARY if n != "power")),
    (Tracer._compared, COMPARE),
    (Tracer._logic, LOGIC),
):
    for _name in _names:
        setattr(Tracer, _name, _primitive(_rule, _name))


def expression(kernel: str, args: tuple[Any, ...], kwargs: dict[str, Any], tracer: Tracer) -> Node:
    """What a kernel gives for one element of each argument.

    Raises
    ------
    UnfitError
        It cannot be said for these dtypes.
    """
    if kernel not in ELEMENTWISE:
        raise UnfitError(f"{kernel} is not elementwise")
    try:
        found = getattr(tracer, kernel)(*args, **kwargs)
    except (NotImplementedError, AttributeError, TypeError) as error:
        raise UnfitError(f"{kernel}: {error}") from None
    if not isinstance(found, Node):
        raise UnfitError(f"{kernel} of nothing")
    return found


def nodes_of(roots: list[Node]) -> list[Node]:
    """Every node that some of the given ones need, each once, in the order of computation."""
    found: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node not in found:
            for a in node.args:
                if isinstance(a, Node):
                    visit(a)
            found[node] = None

    for root in roots:
        visit(root)
    return list(found)


def cost(roots: list[Node]) -> float:
    """Roughly how many nanoseconds a core takes for an element."""
    return 0.05 + sum(0.4 if n.op in _DEAR else 0.015 for n in nodes_of(roots))


class Writer:
    """Turns nodes into lines of Python for Numba, each value computed once.

    Parameters
    ----------
    roots : what is wanted.
    """

    def __init__(self, roots: list[Node]) -> None:
        self.lines: list[str] = []
        self._names: dict[Node, str] = {}
        for node in nodes_of(roots):
            self._names[node] = self._written(node)

    def name(self, node: Node) -> str:
        """The variable that holds a node's value."""
        return self._names[node]

    def _written(self, node: Node) -> str:
        if node.op in ("input", "constant"):
            return f"{'v' if node.op == 'input' else 'k'}{node.args[0]}"
        args = [self._names[a] for a in node.args]
        if node.op == "cast":
            text = _cast(args[0], node.args[0].dtype, node.dtype)
        else:
            text = CODE[node.op].format(*args)
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name


def _cast(name: str, source: np.dtype, target: np.dtype) -> str:
    if target == BOOL:
        return f"{name} != 0"
    if source == BOOL:
        return f"f32(1.0) if {name} else f32(0.0)" if target == FLOAT else f"1 if {name} else 0"
    return f"f32({name})"
