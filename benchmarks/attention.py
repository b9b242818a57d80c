"""Attention, forward and with its gradients, beside PyTorch's.

    python -m benchmarks.attention [--only gpt] [--rounds 7]

A step is one call; with gradients, the call and its backward pass. Both run on two threads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import interleave

CONTENDERS = ("torch", "gb-numpy")
DIRECTIONS = ("forward", "training")


class Case(NamedTuple):
    """One shape: batches, heads of queries and of keys, length, features; causal or not."""

    batches: int
    heads: int
    shared: int
    length: int
    features: int
    causal: bool = True


WORKLOADS = {
    "gpt": Case(12, 4, 4, 64, 32),
    "gpt-whole": Case(12, 4, 4, 64, 32, causal=False),
    "512": Case(4, 8, 8, 512, 64),
    "512-shared": Case(4, 8, 2, 512, 64),
    "4096": Case(1, 1, 1, 4096, 64),
}


def arrays(case: Case) -> list[np.ndarray]:
    """Queries, keys, values and the result's cotangent, heads between the features."""
    rng = np.random.default_rng(0)
    heads = (case.heads, case.shared, case.shared, case.heads)
    return [
        rng.standard_normal((case.batches, case.length, h, case.features)).astype(np.float32)
        for h in heads
    ]


def gb_step(case: Case, direction: str) -> Callable[[], Any]:
    """What to time of this project."""
    import gpubackprop as gb
    from gpubackprop.nn import functional

    given = [np.swapaxes(x, 1, 2) for x in arrays(case)]
    q, k, v = (gb.tensor(x, requires_grad=direction == "training") for x in given[:3])
    dy = gb.tensor(given[3])

    def step() -> None:
        y = functional.scaled_dot_product_attention(
            q, k, v, is_causal=case.causal, enable_gqa=case.heads != case.shared
        )
        if direction == "training":
            q.grad = k.grad = v.grad = None
            y.backward(dy)

    return step


def torch_step(case: Case, direction: str) -> Callable[[], Any]:
    """What to time of PyTorch."""
    import torch

    torch.set_num_threads(2)
    q, k, v, dy = (torch.from_numpy(x).transpose(1, 2) for x in arrays(case))
    for x in (q, k, v):
        x.requires_grad_(direction == "training")

    def step() -> None:
        y = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=case.causal, enable_gqa=case.heads != case.shared
        )
        if direction == "training":
            q.grad = k.grad = v.grad = None
            y.backward(dy)

    return step


def step(contender: str, workload: str, direction: str) -> Callable[[], Any]:
    """The call to time."""
    make = gb_step if contender == "gb-numpy" else torch_step
    return make(WORKLOADS[workload], direction)


def main(argv: list[str] | None = None) -> int:
    """Print microseconds a call and ratios."""
    cases = [(key, what, f"{key}, {what}") for key in WORKLOADS for what in DIRECTIONS]
    return interleave.command(argv, __doc__, "benchmarks.attention", CONTENDERS, cases, step, 0.3)


if __name__ == "__main__":
    sys.exit(main())
