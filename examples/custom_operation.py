"""An operation of your own: stated once, checked, and trained.

    python examples/custom_operation.py [--device cuda]

The operation is Swish with a slope that the network learns (Ramachandran, Zoph and Le, "Searching
for Activation Functions", 2017): ``y = x sigmoid(beta x)``. Large beta makes it a relu, beta = 0
half the identity. An operation is one record. Its two rules say what it computes and what its
derivative is, in terms of the *kernels* K, which are what a device can do. That is why the same
lines run on a CPU, on a GPU and on the tape itself, for derivatives of derivatives.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.data import two_moons
from gpubackprop.errors import ShapeError
from gpubackprop.nn import functional as F
from gpubackprop.testing import CheckError, check_operation


# 1. What it computes. K stands first, then the inputs. Only kernels of K: no np.exp, no x * y.
def forward(K: Any, x: Any, beta: Any) -> Any:
    return K.multiply(x, K.sigmoid(K.multiply(beta, x)))


# 2. Its derivative. dy says how the cost depends on the result y; the rule answers how it depends
# on each input: dy times the partial derivative of y by that input. With s = sigmoid(beta x), whose
# derivative is s (1 - s):
#     dy/dx    = s + beta x s (1 - s)
#     dy/dbeta = x x s (1 - s)
# The inputs arrive again because `saves` below asks for them; nothing else is kept in memory.
def backward(K: Any, call: Any, dy: Any, x: Any, beta: Any) -> tuple[Any, Any]:
    s = K.sigmoid(K.multiply(beta, x))
    steep = K.multiply(s, K.subtract(1.0, s))
    by_x = K.add(s, K.multiply(K.multiply(beta, x), steep))
    by_beta = K.multiply(K.square(x), steep)
    return K.multiply(dy, by_x), K.multiply(dy, by_beta)


# 3. The shape and dtype of the result, from those of the inputs; it words the error where they do
# not fit together.
def infer(x: gb.Spec, beta: gb.Spec) -> gb.Spec:
    try:
        shape = np.broadcast_shapes(x.shape, beta.shape)
    except ValueError:
        raise ShapeError(f"swish: x {x} and beta {beta} do not broadcast") from None
    return gb.Spec(shape, np.result_type(x.dtype, beta.dtype, np.float16))


# 4. Inputs for its tests: odd sizes, one number, none at all.
def samples(rng: np.random.Generator) -> Iterator[gb.Sample]:
    for x_shape, beta_shape in [((3, 5), (5,)), ((1,), (1,)), ((0, 2), ()), ((2, 3), (2, 1))]:
        yield gb.Sample((rng.standard_normal(x_shape), rng.standard_normal(beta_shape)))


SWISH = gb.Operation(
    "swish",
    forward,
    backward,
    infer,
    samples,
    saves=("x", "beta"),
    broadcasts=True,  # one beta serves many x: its cotangent is the sum over them
)


class Swish(nn.Module):
    """A layer with one learned slope per feature."""

    def __init__(self, features: int) -> None:
        self.beta = nn.Parameter(np.ones(features, np.float32))

    def forward(self, x: gb.Tensor) -> gb.Tensor:
        return gb.apply(SWISH, x, self.beta)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device

    # 5. Check it: against differences of its values, in every precision, on every device there is.
    print(f"swish: {check_operation(SWISH)} samples pass every check")

    # What a mistake looks like: the same operation with a sign wrong.
    def wrong(K: Any, call: Any, dy: Any, x: Any, beta: Any) -> tuple[Any, Any]:
        dx, dbeta = backward(K, call, dy, x, beta)
        return dx, K.negative(dbeta)

    try:
        check_operation(gb.Operation("wrong", forward, wrong, infer, samples, ("x", "beta"),
                                     broadcasts=True))  # fmt: skip
    except CheckError as error:
        print(f"\nwith a wrong sign the report says:\n{error}\n")

    # 6. Train with it.
    gb.manual_seed(0)
    points, labels = two_moons(400, noise=0.1, seed=1)
    x, target = gb.tensor(points, device=device), gb.tensor(labels, device=device)
    swish = Swish(16)
    model = nn.Sequential(nn.Linear(2, 16), swish, nn.Linear(16, 2)).to(device)
    optimizer = gb.optim.Adam(model.parameters(), lr=0.05)
    for step in range(1, 201):
        cost = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        if step in (1, 10, 50, 200):
            print(f"step {step:>3}: cost {cost.item():.4f}")
    with gb.no_grad():
        share = (model(x).argmax(axis=1).numpy() == labels).mean()
    slopes = swish.beta.numpy()
    print(
        f"accuracy {share:.1%}; the slopes went from 1 to {slopes.min():.2f} ... {slopes.max():.2f}"
    )


if __name__ == "__main__":
    main()
