"""Normalisation and its gradients beside PyTorch's, kernel by kernel.

    python -m benchmarks.normalization [--only 32x32x16] [--rounds 7]

A workload is named height x width x channels, or rows x features. A step is one call. PyTorch runs
on two threads, channels last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import interleave

CONTENDERS = ("torch-channels-last", "gb-numpy")
GROUPS = 4
EPS = 1e-5
IMAGES = ("batch", "batch-gradient", "batch-fixed", "group", "group-gradient")
ROWS = ("rms", "rms-gradient")
WORKLOADS: dict[str, tuple[int, ...]] = {
    "32x32x16": (128, 32, 32, 16),
    "8x8x64": (128, 8, 8, 64),
    "768x128": (768, 128),
}

Steps = dict[str, Callable[[], Any]]


def directions(shape: tuple[int, ...]) -> tuple[str, ...]:
    """What there is to time of a workload."""
    return IMAGES if len(shape) == 4 else ROWS


def arrays(shape: tuple[int, ...]) -> list[np.ndarray]:
    """Input, cotangent, weight and bias; the channels or features last."""
    rng = np.random.default_rng(0)
    shapes = (shape, shape, shape[-1:], shape[-1:])
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def gb_steps(shape: tuple[int, ...]) -> Steps:
    """What to time of this project."""
    from gpubackprop.backends import get_backend

    kernels = get_backend("cpu")
    x, dy, w, b = arrays(shape)
    if len(shape) == 2:
        _, rstd = kernels.rms_norm(x, w, 1, EPS)
        return {
            "rms": lambda: kernels.rms_norm(x, w, 1, EPS),
            "rms-gradient": lambda: kernels.rms_norm_backward(dy, x, w, rstd, 1),
        }
    _, mean, _, rstd = kernels.batch_norm(x, w, b, EPS)
    _, means, rstds = kernels.group_norm(x, w, b, GROUPS, EPS)
    return {
        "batch": lambda: kernels.batch_norm(x, w, b, EPS),
        "batch-gradient": lambda: kernels.batch_norm_backward(dy, x, w, mean, rstd),
        "batch-fixed": lambda: kernels.scale_shift(x, w, b),
        "group": lambda: kernels.group_norm(x, w, b, GROUPS, EPS),
        "group-gradient": lambda: kernels.group_norm_backward(dy, x, w, means, rstds, GROUPS),
    }


def torch_steps(shape: tuple[int, ...]) -> Steps:
    """What to time of PyTorch."""
    import torch

    torch.set_num_threads(2)
    aten = torch.ops.aten
    x, dy, w, b = map(torch.from_numpy, arrays(shape))
    if len(shape) == 2:
        leaf, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = torch.nn.functional.rms_norm(leaf, shape[1:], weight, EPS)
        return {
            "rms": lambda: torch.nn.functional.rms_norm(x, shape[1:], w, EPS),
            "rms-gradient": lambda: torch.autograd.grad(y, (leaf, weight), dy, retain_graph=True),
        }
    x, dy = (a.permute(0, 3, 1, 2) for a in (x, dy))
    n, c, h, width = x.shape
    zeros, ones = torch.zeros(c), torch.ones(c) - EPS
    _, mean, rstd = aten.native_batch_norm(x, w, b, None, None, True, 0.1, EPS)
    sizes = (n, c, h * width, GROUPS)
    _, means, rstds = aten.native_group_norm(x, w, b, *sizes, EPS)
    every = [True] * 3
    return {
        "batch": lambda: aten.native_batch_norm(x, w, b, None, None, True, 0.1, EPS),
        "batch-gradient": lambda: aten.native_batch_norm_backward(
            dy, x, w, None, None, mean, rstd, True, EPS, every
        ),
        "batch-fixed": lambda: aten.native_batch_norm(x, w, b, zeros, ones, False, 0.1, EPS)[0],
        "group": lambda: aten.native_group_norm(x, w, b, *sizes, EPS),
        "group-gradient": lambda: aten.native_group_norm_backward(
            dy, x, means, rstds, w, *sizes, every
        ),
    }


def step(contender: str, workload: str, direction: str) -> Callable[[], Any]:
    """The call to time."""
    make = gb_steps if contender == "gb-numpy" else torch_steps
    return make(WORKLOADS[workload])[direction]


def main(argv: list[str] | None = None) -> int:
    """Print milliseconds a call and ratios."""
    cases = [
        (key, direction, f"{key}, {shape[0]} samples, {direction}")
        for key, shape in WORKLOADS.items()
        for direction in directions(shape)
    ]
    return interleave.command(argv, __doc__, "benchmarks.normalization", CONTENDERS, cases, step)


if __name__ == "__main__":
    sys.exit(main())
