"""Expressions of one element as Python for Numba.

Three functions have a form of their own here, which keeps more digits or takes one exponential
where the definition takes two functions: ``sigmoid``, ``gelu`` and its slope (see
``mathematics.py``).
"""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.chains import expressions
from gpubackprop.backends.chains.expressions import BOOL, DEAR, FLOAT, Node, nodes_of

_WHOLE = {"negative": "-{0}", "absolute": "abs({0})", "square": "{0} * {0}"}
_REAL = {
    "sign": "m.sign({0})",
    "sqrt": "np.sqrt({0})",
    "reciprocal": "f32(1.0) / {0}",
    "floor": "np.floor({0})",
    "ceil": "np.ceil({0})",
    "rint": "np.rint({0})",
}
_DEAR_CODE = {name: f"m.{name}({{0}})" for name in DEAR}
_BINARY = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "maximum": "m.maximum({0}, {1})",
    "minimum": "m.minimum({0}, {1})",
    "arctan2": "m.arctan2({0}, {1})",
    "power": "m.power({0}, {1})",
}
_COMPARE = {
    "equal": "{0} == {1}",
    "not_equal": "{0} != {1}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
}
_TESTS = {"isfinite": "abs({0}) < m.INFINITY", "isnan": "{0} != {0}"}
_LOGIC = {"logical_and": "{0} & {1}", "logical_or": "{0} | {1}", "logical_not": "not {0}"}
CODE = {
    **_WHOLE, **_REAL, **_DEAR_CODE, **_BINARY, **_COMPARE, **_TESTS, **_LOGIC,
    "where": "{1} if {0} else {2}",
}  # fmt: skip
"""What each primitive looks like."""
_DEAR = frozenset(DEAR) | {"arctan2", "power"}


def cost(roots: list[Node]) -> float:
    """Roughly how many nanoseconds a core takes for an element."""
    return 0.05 + sum(0.4 if n.op in _DEAR else 0.015 for n in nodes_of(roots))


class Writer(expressions.Writer):
    """Turns nodes into lines of Python for Numba, each value computed once."""

    def text(self, node: Node, args: list[str]) -> str:
        if node.op == "cast":
            return _cast(args[0], node.args[0].dtype, node.dtype)
        return CODE[node.op].format(*args)

    def line(self, node: Node, name: str, text: str) -> str:
        return f"{name} = {text}"


def _cast(name: str, source: np.dtype, target: np.dtype) -> str:
    if target == BOOL:
        return f"{name} != 0"
    if source == BOOL:
        return f"f32(1.0) if {name} else f32(0.0)" if target == FLOAT else f"1 if {name} else 0"
    return f"f32({name})"
