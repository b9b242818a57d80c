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


def gb_add(workload: str) -> Callable[[], None]:
    """Additions in this project."""
    import gpubackprop as gb

    a, b = (gb.tensor(np.ones(10, np.float32), requires_grad=True) for _ in range(2))
    seed = np.ones(10, np.float32)

    def forward() -> None:
        for _ in range(PER_CALL):
            a + b

    def both() -> None:
        for _ in range(PER_CALL):
            a.grad = b.grad = None
            (a + b).backward(seed)

    def chain() -> None:
        total: Any = a
        for _ in range(PER_CALL):
            total = total + b
        a.grad = b.grad = None
        total.backward(seed)

    return {"forward": forward, "forward+backward": both, "chain": chain}[workload]


def torch_add(workload: str) -> Callable[[], None]:
    """Additions in PyTorch."""
    import torch

    a, b = (torch.ones(10, requires_grad=True) for _ in range(2))
    seed = torch.ones(10)

    def forward() -> None:
        for _ in range(PER_CALL):
            a + b

    def both() -> None:
        for _ in range(PER_CALL):
            a.grad = b.grad = None
            (a + b).backward(seed)

    def chain() -> None:
        total: Any = a
        for _ in range(PER_CALL):
            total = total + b
        a.grad = b.grad = None
        total.backward(seed)

    return {"forward": forward, "forward+backward": both, "chain": chain}[workload]


def main(argv: list[str] | None = None) -> int:
    """Print microseconds per addition and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    if options.worker:
        name, workload = options.worker
        make = gb_add if name == "gb-eager" else torch_add
        interleave.serve(make(workload), {}, steps_per_call=PER_CALL)
        return 0
    for workload in ("forward", "forward+backward", "chain"):
        results, absent = interleave.run(
            "benchmarks.operation_cost", workload, CONTENDERS, options.rounds, 0.3
        )
        print(
            f"\nadd, 10 elements, {workload} (a step is one addition; "
            f"chain: {PER_CALL} additions, then one backward pass)"
        )
        print(interleave.HEADER)
        for result in results:
            print(result.row())
        for name, reason in absent.items():
            print(f"{name:<26}absent: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
