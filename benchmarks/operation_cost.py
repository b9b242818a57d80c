"""What one recorded operation costs: adding two tensors of 10 elements, forward and backward,
beside PyTorch.

    python -m benchmarks.operation_cost [--rounds 7]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import interleave

PER_CALL = 1000
CONTENDERS = ("torch", "gb-eager")


def gb_tensors() -> tuple[Any, Any, Any]:
    """Two leaves and a cotangent in this project."""
    import gpubackprop as gb

    a, b = (gb.tensor(np.ones(10, np.float32), requires_grad=True) for _ in range(2))
    return a, b, np.ones(10, np.float32)


def torch_tensors() -> tuple[Any, Any, Any]:
    """The same in PyTorch."""
    import torch

    a, b = (torch.ones(10, requires_grad=True) for _ in range(2))
    return a, b, torch.ones(10)


def additions(a: Any, b: Any, cotangent: Any) -> dict[str, Callable[[], None]]:
    """What to time, by workload; the libraries spell it alike."""

    def forward() -> None:
        for _ in range(PER_CALL):
            a + b

    def both() -> None:
        for _ in range(PER_CALL):
            a.grad = b.grad = None
            (a + b).backward(cotangent)

    def chain() -> None:
        total: Any = a
        for _ in range(PER_CALL):
            total = total + b
        a.grad = b.grad = None
        total.backward(cotangent)

    return {"forward": forward, "forward+backward": both, "chain": chain}


def main(argv: list[str] | None = None) -> int:
    """Print microseconds per addition and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    if options.worker:
        name, workload = options.worker
        tensors = gb_tensors() if name == "gb-eager" else torch_tensors()
        interleave.serve(additions(*tensors)[workload], {}, steps_per_call=PER_CALL)
        return 0
    for workload in ("forward", "forward+backward", "chain"):
        results, absent = interleave.run(
            "benchmarks.operation_cost", workload, CONTENDERS, options.rounds, 0.3
        )
        interleave.show(
            f"add, 10 elements, {workload} (a step is one addition; "
            f"chain: {PER_CALL} additions, then one backward pass)",
            results,
            absent,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
