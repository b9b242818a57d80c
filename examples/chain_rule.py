"""The lesson in one page: how a network of two weights learns, with every derivative printed.

A neuron computes ``a = sigmoid(w x + b)`` and the cost is ``C = (a - target)**2 / 2``. The weights
start random, the error comes out, the chain rule gives each weight's partial derivative (how
sensitive the cost is to it), gradient descent moves the weight a little against it, and the error
falls.

    python examples/chain_rule.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gpubackprop as gb
from gpubackprop.autograd import STATE, Node, Operation


class Narrator:
    """An observer of the tape that says what it sees."""

    scope = None

    def forward(
        self, op: Operation, inputs: Sequence[Any], outputs: Sequence[Any], params: dict[str, Any]
    ) -> None:
        values = ", ".join(f"{float(x):+.4f}" for x in inputs)
        print(f"  {op.name:<9}({values}) = {float(outputs[0]):+.4f}")

    def backward(self, node: Node, dy: Any, cotangents: Sequence[Any]) -> None:
        parts = ", ".join(
            f"dC/d{name} = {float(g):+.4f}"
            for name, g in zip(node.op.inputs, cotangents, strict=True)
            if g is not None
        )
        print(f"  {node.op.name:<9} dC/dout = {float(dy):+.4f}  ->  {parts}")

    def enter(self, module: Any) -> None:
        """No modules here."""

    def leave(self, module: Any) -> None:
        """No modules here."""


def cost(w: gb.Tensor, b: gb.Tensor, x: gb.Tensor, target: float) -> gb.Tensor:
    """Half the squared error of one neuron."""
    activation = (w * x + b).sigmoid()
    return (activation - target) ** 2 / 2


def main() -> None:
    start = gb.Generator(seed=1).normal((2,))
    w, b = (gb.tensor(value, requires_grad=True) for value in start)
    x, target, rate = gb.tensor(1.5), 0.0, 2.0

    STATE.observer = Narrator()
    print("forwards, each operation with the values it was given:")
    error = cost(w, b, x, target)
    print("backwards, sensitivity to each result becomes sensitivity to what it was made from:")
    error.backward()
    STATE.observer = None
    print(f"so dC/dw = {float(w.grad):+.4f} and dC/db = {float(b.grad):+.4f}")

    print("gradient descent:")
    for step in range(1, 101):
        w.zero_grad()
        b.zero_grad()
        error = cost(w, b, x, target)
        error.backward()
        with gb.no_grad():
            w = (w - rate * w.grad).requires_grad_()
            b = (b - rate * b.grad).requires_grad_()
        if step in (1, 2, 5, 10, 20, 50, 100):
            moved = f"w = {float(w):+.4f}, b = {float(b):+.4f}"
            print(f"  step {step:>3}: cost was {float(error):.6f}, now {moved}")


if __name__ == "__main__":
    main()
