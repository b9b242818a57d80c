"""Elementwise kernels as expressions of one element.

The definitions of the composite kernels (``gelu``, ``relu_backward``, ...) are run on a tracer in
the place of a backend: each primitive that they call becomes a node, so that the formula that is
compiled is the one that is written in the contract. A few have a form of their own in
``FORMS``, where another one is faster or keeps more digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends.composites import Composites

FLOAT, BOOL, INT = np.dtype(np.float32), np.dtype(bool), np.dtype(np.int64)
COUNTS = (BOOL, INT)

UNARY = {
    "negative": "-{0}",
    "absolute": "abs({0})",
    "sign": "m.sign({0})",
    "square": "{0} * {0}",
    "sqrt": "np.sqrt({0})",
    "reciprocal": "f32(1.0) / {0}",
    "exp": "m.exp({0})",
    "expm1": "m.expm1({0})",
    "log": "m.log({0})",
    "log1p": "m.log1p({0})",
    "sin": "m.sin({0})",
    "cos": "m.cos({0})",
    "tanh": "m.tanh({0})",
    "floor": "np.floor({0})",
    "ceil": "np.ceil({0})",
    "erf": "m.erf({0})",
    "sigmoid": "m.sigmoid({0})",
    "gelu": "m.gelu({0})",
    "gelu_slope": "m.gelu_slope({0})",
}
BINARY = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "maximum": "m.maximum({0}, {1})",
    "minimum": "m.minimum({0}, {1})",
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

COMPOSITES = frozenset(
    {
        "relu", "relu_backward", "sigmoid_backward", "tanh_backward", "leaky_relu",
        "leaky_relu_backward", "elu", "elu_backward", "gelu_tanh", "gelu_tanh_backward", "silu",
        "silu_backward", "softplus", "dropout_backward",
    }
)  # fmt: skip

ELEMENTWISE = (
    frozenset(UNARY) - {"gelu_slope"}
    | frozenset(BINARY)
    | frozenset(COMPARE)
    | frozenset(TESTS)
    | frozenset(LOGIC)
    | COMPOSITES
    | {"where", "clip", "power", "gelu_backward", "astype", "copy", "copyto"}
)
"""Kernels whose element i depends on the elements i of their arguments alone."""


class UnfitError(Exception):
    """An expression that cannot be compiled; the call runs in NumPy."""


@dataclass(frozen=True)
class Node:
    """A value of one element.

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
    constants : receives the numbers of the expression; a node refers to them by place, so that
        one compiled loop serves all values.
    """

    def __init__(self, constants: list[Any]) -> None:
        self.constants = constants

    def node(self, value: Any, like: np.dtype = FLOAT) -> Node:
        """A number as a node; it takes the other operand's dtype, unless it is a float."""
        if isinstance(value, Node):
            return value
        dtype = INT if like in COUNTS and type(value) in (int, bool) else FLOAT
        if hasattr(value, "live"):
            dtype = FLOAT if isinstance(value, float) else INT
        elif not isinstance(value, (int, float)) or isinstance(value, np.generic):
            raise UnfitError(f"a {type(value).__name__} in an expression")
        self.constants.append(value if dtype == INT or hasattr(value, "live") else float(value))
        return Node("constant", (len(self.constants) - 1,), dtype)

    def cast(self, x: Node, dtype: np.dtype) -> Node:
        """A node of another dtype."""
        return x if x.dtype == dtype else Node("cast", (x,), dtype)

    def _pair(self, x1: Any, x2: Any) -> tuple[Node, Node]:
        like = next((x.dtype for x in (x1, x2) if isinstance(x, Node)), FLOAT)
        return self.node(x1, like), self.node(x2, like)

    def __getattribute__(self, name: str) -> Any:
        if name in UNARY or name in TESTS:
            return lambda x, out=None: self._one(name, x)
        if name in BINARY:
            return lambda x1, x2, out=None: self._two(name, x1, x2)
        if name in COMPARE:
            return lambda x1, x2, out=None: self._compared(name, x1, x2)
        if name in LOGIC:
            return lambda *xs: Node(name, tuple(self._truth(x) for x in xs), BOOL)
        return object.__getattribute__(self, name)

    def _one(self, name: str, x: Any) -> Node:
        x = self.node(x)
        if x.dtype != FLOAT:
            raise UnfitError(f"{name} of {x.dtype}")
        return Node(name, (x,), BOOL if name in TESTS else FLOAT)

    def _two(self, name: str, x1: Any, x2: Any) -> Node:
        a, b = self._pair(x1, x2)
        if FLOAT not in (a.dtype, b.dtype) or INT in (a.dtype, b.dtype):
            raise UnfitError(f"{name} of {a.dtype} and {b.dtype}")
        return Node(name, (self.cast(a, FLOAT), self.cast(b, FLOAT)), FLOAT)

    def _compared(self, name: str, x1: Any, x2: Any) -> Node:
        a, b = self._pair(x1, x2)
        if a.dtype != b.dtype:
            kind = FLOAT if FLOAT in (a.dtype, b.dtype) else INT
            if kind == FLOAT and INT in (a.dtype, b.dtype):
                raise UnfitError(f"{name} of {a.dtype} and {b.dtype}")
            a, b = self.cast(a, kind), self.cast(b, kind)
        return Node(name, (a, b), BOOL)

    def _truth(self, x: Any) -> Node:
        x = self.node(x)
        if x.dtype != BOOL:
            raise UnfitError(f"logic on {x.dtype}")
        return x

    def where(self, condition: Any, x1: Any, x2: Any) -> Node:
        a, b = self._pair(x1, x2)
        if a.dtype != b.dtype:
            raise UnfitError("where of two dtypes")
        return Node("where", (self._truth(condition), a, b), a.dtype)

    def clip(self, x: Any, low: Any, high: Any, out: Any = None) -> Node:
        y = self.node(x)
        if low is not None:
            y = self.maximum(y, low)
        return y if high is None else self.minimum(y, high)

    def power(self, x1: Any, x2: Any, out: Any = None) -> Node:
        x = self.node(x1)
        if x.dtype != FLOAT or type(x2) not in (int, float):
            raise UnfitError("a power that is no number")
        n = float(x2)
        if n == 0.5:
            return self.sqrt(x)
        if n not in (1.0, 2.0, 3.0, 4.0, -1.0, -2.0):
            raise UnfitError(f"the power {x2}")
        y = x
        if abs(n) >= 2:
            y = self.square(x)
        if abs(n) == 3:
            y = self.multiply(y, x)
        if abs(n) == 4:
            y = self.square(y)
        return self.reciprocal(y) if n < 0 else y

    def astype(self, x: Any, dtype: Any) -> Node:
        target = np.dtype(dtype)
        if target not in (FLOAT, BOOL, INT) or x.dtype == FLOAT != target:
            raise UnfitError(f"a cast from {x.dtype} to {target}")
        return self.cast(x, target)

    def gelu_backward(self, dy: Any, x: Any) -> Node:
        return self.multiply(dy, Node("gelu_slope", (x,), FLOAT))

    def copy(self, x: Any) -> Node:
        return x

    def copyto(self, target: Any, source: Any) -> Any:
        return self.node(source)


def expression(kernel: str, args: tuple[Any, ...], kwargs: dict[str, Any], tracer: Tracer) -> Node:
    """What a kernel gives for one element of each argument.

    Raises
    ------
    UnfitError
        It cannot be said for these dtypes.
    """
    try:
        return getattr(tracer, kernel)(*args, **kwargs)
    except (NotImplementedError, AttributeError, TypeError) as error:
        raise UnfitError(f"{kernel}: {error}") from None


class Writer:
    """Turns nodes into lines of Python for Numba, each value computed once.

    Parameters
    ----------
    inputs : what to write for each input.
    """

    def __init__(self, inputs: list[str]) -> None:
        self.inputs = inputs
        self.lines: list[str] = []
        self._names: dict[Node, str] = {}

    def name(self, node: Node) -> str:
        """The variable that holds a node's value."""
        found = self._names.get(node)
        if found is None:
            found = self._names[node] = self._written(node)
        return found

    def _written(self, node: Node) -> str:
        if node.op == "input":
            return self.inputs[node.args[0]]
        if node.op == "constant":
            return f"k{node.args[0]}"
        args = [self.name(a) for a in node.args]
        if node.op == "cast":
            source = node.args[0].dtype
            text = _cast(args[0], source, node.dtype)
        elif node.op == "where":
            text = f"{args[1]} if {args[0]} else {args[2]}"
        else:
            for table in (UNARY, BINARY, COMPARE, TESTS, LOGIC):
                if node.op in table:
                    text = table[node.op].format(*args)
                    break
            else:
                raise UnfitError(f"no code for {node.op}")
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name


def _cast(name: str, source: np.dtype, target: np.dtype) -> str:
    if source == BOOL:
        one = "f32(1.0) if {0} else f32(0.0)" if target == FLOAT else "1 if {0} else 0"
        return one.format(name)
    return f"f32({name})" if target == FLOAT else f"{name} != 0"
