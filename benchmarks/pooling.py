"""Pooling and its gradients beside PyTorch's, kernel by kernel.

    python -m benchmarks.pooling [--only 26x26x32] [--rounds 7]

A workload is named height x width x channels; windows are 2 x 2 side by side unless the name says
otherwise. A step is one call. PyTorch runs on two threads, channels last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import interleave

CONTENDERS = ("torch-channels-last", "gb-numpy")
DIRECTIONS = ("max", "max-gradient", "avg", "avg-gradient")


class Shape(NamedTuple):
    """Images and the windows on them."""

    images: int
    size: int
    channels: int
    kernel: int = 2
    stride: int = 2
    padding: int = 0


WORKLOADS = {
    "26x26x32": Shape(128, 26, 32),
    "24x24x64": Shape(128, 24, 64),
    "56x56x64-3x3-stride-2": Shape(32, 56, 64, 3, 2, 1),
    "8x8x64-everything": Shape(128, 8, 64, 8, 8),
}


def images(s: Shape) -> np.ndarray:
    """The batch, channels last."""
    shape = (s.images, s.size, s.size, s.channels)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def gb_steps(s: Shape) -> dict[str, Callable[[], Any]]:
    """What to time of this project."""
    from gpubackprop.backends import get_backend

    kernels, x = get_backend("cpu"), images(s)
    where = ((s.kernel,) * 2, (s.stride,) * 2, (s.padding,) * 2)
    dy, winner = kernels.max_pool(x, *where, (1, 1))
    size = (s.size,) * 2
    return {
        "max": lambda: kernels.max_pool(x, *where, (1, 1)),
        "max-gradient": lambda: kernels.max_pool_backward(dy, winner, size, *where, (1, 1)),
        "avg": lambda: kernels.avg_pool(x, *where),
        "avg-gradient": lambda: kernels.avg_pool_backward(dy, size, *where),
    }


def torch_steps(s: Shape) -> dict[str, Callable[[], Any]]:
    """What to time of PyTorch."""
    import torch

    torch.set_num_threads(2)
    aten, x = torch.ops.aten, torch.from_numpy(images(s)).permute(0, 3, 1, 2)
    where = ((s.kernel,) * 2, (s.stride,) * 2, (s.padding,) * 2)
    dy, winner = aten.max_pool2d_with_indices(x, *where, (1, 1), False)
    options = (False, True, None)
    return {
        "max": lambda: aten.max_pool2d_with_indices(x, *where, (1, 1), False),
        "max-gradient": lambda: aten.max_pool2d_with_indices_backward(
            dy, x, *where, (1, 1), False, winner
        ),
        "avg": lambda: aten.avg_pool2d(x, *where, *options),
        "avg-gradient": lambda: aten.avg_pool2d_backward(dy, x, *where, *options),
    }


def step(contender: str, workload: str, direction: str) -> Callable[[], Any]:
    """The call to time."""
    make = gb_steps if contender == "gb-numpy" else torch_steps
    return make(WORKLOADS[workload])[direction]


def main(argv: list[str] | None = None) -> int:
    """Print milliseconds a call and ratios."""
    cases = [
        (key, direction, f"{key}, {shape.images} images, {direction}")
        for key, shape in WORKLOADS.items()
        for direction in DIRECTIONS
    ]
    return interleave.command(argv, __doc__, "benchmarks.pooling", CONTENDERS, cases, step)


if __name__ == "__main__":
    sys.exit(main())
