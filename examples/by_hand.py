"""A network without the network library: two matrices, two biases, gradient descent on digits.

    python examples/by_hand.py [--device cuda]

Everything that ``nn`` and ``optim`` do for you is spelled out here in ten lines.
"""

from __future__ import annotations

import argparse

import numpy as np

import gpubackprop as gb
from gpubackprop.data import load_digits

HIDDEN, RATE, STEPS = 32, 2.0, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device

    images, labels = load_digits()
    pixels = images.reshape(len(images), -1).astype(np.float32) / 16
    wanted = np.eye(10, dtype=np.float32)[labels]
    x, target = (gb.tensor(a[:1500], device=device) for a in (pixels, wanted))

    # The weights start random.
    draw = gb.Generator(seed=0)
    w1 = gb.tensor(draw.normal((64, HIDDEN), std=0.1), device=device, requires_grad=True)
    w2 = gb.tensor(draw.normal((HIDDEN, 10), std=0.1), device=device, requires_grad=True)
    b1, b2 = (gb.zeros((n,), device=device, requires_grad=True) for n in (HIDDEN, 10))
    weights = [w1, b1, w2, b2]

    def network(inputs: gb.Tensor) -> gb.Tensor:
        hidden = gb.tanh(inputs @ weights[0] + weights[1])
        return (hidden @ weights[2] + weights[3]).sigmoid()

    for step in range(1, STEPS + 1):
        # The model computes an error ...
        cost = ((network(x) - target) ** 2).sum() / (2 * len(x))
        # ... the chain rule gives each weight's share in it ...
        slopes = gb.grad(cost, weights)
        # ... and gradient descent moves each weight a little against its slope.
        for i, (weight, slope) in enumerate(zip(weights, slopes, strict=True)):
            weights[i] = (weight - RATE * slope).detach().requires_grad_()
        if step in (1, 10, 50, 100, 200, STEPS):
            print(f"step {step:>3}: cost {cost.item():.4f}")

    with gb.no_grad():
        guesses = network(gb.tensor(pixels[1500:], device=device)).argmax(axis=1).numpy()
    print(f"held-out accuracy {(guesses == labels[1500:]).mean():.1%}")


if __name__ == "__main__":
    main()
