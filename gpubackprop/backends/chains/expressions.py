"""Elementwise kernels as expressions of one element.

The definitions of the composite kernels (``relu_backward``, ``silu``, ...) are run on a tracer in
the place of a backend: each primitive that they call becomes a node, so that the formula that is
compiled is the one that is written in the contract. Three become primitives of their own, which a
device may compute in its own way (more digits, one exponential for two functions): ``sigmoid``,
``gelu`` and the slope of ``gelu``.

What writes the nodes down is a device's: ``cpu/native/expressions.py`` as Python for Numba,
``cuda/chain_source.py`` as CUDA C++.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends.composites import Composites

FLOAT, BOOL, INT = np.dtype(np.float32), np.dtype(bool), np.dtype(np.int64)
COUNTS = (BOOL, INT)
BFLOAT16 = "bfloat16"

WHOLE = ("negative", "absolute", "square")
"""Of one float or integer."""
REAL = ("sign", "sqrt", "reciprocal", "floor", "ceil", "rint")
"""Of one float."""
DEAR = (
    "exp", "expm1", "log", "log1p", "sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh",
    "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "erf", "sigmoid", "gelu", "gelu_slope",
)  # fmt: skip
"""Of one float, with a polynomial or a call of a library."""
UNARY = (*WHOLE, *REAL, *DEAR)
BINARY = (
    "add", "subtract", "multiply", "divide", "maximum", "minimum", "arctan2", "power",
)  # fmt: skip
COMPARE = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
TESTS = ("isfinite", "isnan")
LOGIC = ("logical_and", "logical_or", "logical_not")
PRIMITIVES = (*UNARY, *BINARY, *COMPARE, *TESTS, *LOGIC, "where")

COMPOSITES = frozenset(
    {
        "relu", "relu_backward", "sigmoid_backward", "tanh_backward", "leaky_relu",
        "leaky_relu_backward", "elu", "elu_backward", "gelu_tanh", "gelu_tanh_backward", "silu",
        "silu_backward", "softplus", "dropout_backward", "gelu_backward",
    }
)  # fmt: skip

ELEMENTWISE = (
    (frozenset(PRIMITIVES) - {"gelu_slope"}) | COMPOSITES | {"clip", "astype", "copy", "copyto"}
)
"""Kernels whose element i depends on the elements i of their arguments alone."""

MOST_FACTORS = 8
"""A power with a whole exponent up to this one is a product."""


class UnfitError(Exception):
    """An expression that cannot be compiled; the call runs as the backend defines it."""


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype is one of floats; bfloat16 is none of NumPy's own."""
    return dtype.kind == "f" or dtype.name == BFLOAT16


@dataclass(frozen=True, eq=False)
class Node:
    """A value of one element. A tracer makes one node for equal values, so nodes are compared by
    identity.

    Attributes
    ----------
    op : an elementwise primitive, ``"input"``, ``"constant"`` or ``"cast"``.
    args : nodes, or the number of an input or constant.
    dtype : a float, bool or int64.
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
    floats : dtypes that are compiled, beside bool and int64.
    """

    def __init__(
        self, constants: list[tuple[Any, np.dtype]], floats: Collection[np.dtype] = (FLOAT,)
    ) -> None:
        self.constants = constants
        self.dtypes = frozenset((*floats, *COUNTS))
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
                value = float(value) if is_float(dtype) else int(value)
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

        kinds = [kind(v) for v in values]
        brief = [k for k in kinds if isinstance(k, np.dtype) and k.name == BFLOAT16]
        if brief:  # NumPy would make float64 of it and a Python number
            if any(isinstance(k, np.dtype) and (k.char == "e" or k == INT) for k in kinds):
                raise UnfitError("bfloat16 and a dtype that it has no common one with")
            half = np.dtype(np.float16)
            kinds = [half if isinstance(k, np.dtype) and k.name == BFLOAT16 else k for k in kinds]
        try:
            dtype = np.result_type(*kinds)
        except TypeError as error:
            raise UnfitError(str(error)) from None
        if brief and dtype.char == "e":
            dtype = brief[0]
        if dtype not in self.dtypes:
            raise UnfitError(f"arithmetic in {dtype}")
        return dtype

    # Primitives.
    def _one(self, name: str, x: Any, out: Any = None) -> Node:
        dtype = self.common(x)
        if not is_float(dtype) and not (dtype == INT and name in WHOLE):
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
        if type(x2) not in (int, float) or not isinstance(x1, Node) or not is_float(x1.dtype):
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
        if target not in self.dtypes or (is_float(x.dtype) and target == INT):
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


class Writer:
    """Turns nodes into lines of a language, each value computed once.

    A subclass says what an operation looks like (:meth:`text`) and how a value gets a name
    (:meth:`line`).

    Parameters
    ----------
    roots : what is wanted.

    Attributes
    ----------
    lines : what computes it.
    """

    def __init__(self, roots: list[Node]) -> None:
        self.lines: list[str] = []
        self._names: dict[Node, str] = {}
        for node in nodes_of(roots):
            self._names[node] = self._written(node)

    def name(self, node: Node) -> str:
        """The variable that holds a node's value."""
        return self._names[node]

    def text(self, node: Node, args: list[str]) -> str:
        """A node's value by the names of its arguments."""
        raise NotImplementedError

    def line(self, node: Node, name: str, text: str) -> str:
        """What gives a node's value a name."""
        raise NotImplementedError

    def _written(self, node: Node) -> str:
        if node.op in ("input", "constant"):
            return f"{'v' if node.op == 'input' else 'k'}{node.args[0]}"
        name = f"t{len(self.lines)}"
        text = self.text(node, [self._names[a] for a in node.args])
        self.lines.append(self.line(node, name, text))
        return name
