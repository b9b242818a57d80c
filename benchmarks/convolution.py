"""A convolution and its two gradients beside PyTorch's, kernel by kernel.

    python -m benchmarks.convolution [--only 13x13x32-64] [--direction forward] [--rounds 7]

A workload is named height x width x channels-outputs; kernels are 3 x 3 unless the name says
otherwise, batches of 128. A step is one call. PyTorch runs in both of its layouts, on as many
threads as this project: all cores, or what OMP_NUM_THREADS says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import interleave
from gpubackprop.backends.cpu.threads import threads

IMAGES = 128
CONTENDERS = ("torch-channels-last", "torch", "gb-numpy")
DIRECTIONS = ("forward", "data-gradient", "weight-gradient")


class Shape(NamedTuple):
    """One convolution."""

    size: int
    channels: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def out(self) -> int:
        """Windows along an axis."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1


WORKLOADS = {
    "28x28x1-32": Shape(28, 1, 32),
    "26x26x32-64": Shape(26, 32, 64),
    "13x13x32-64": Shape(13, 32, 64),
    "32x32x3-16": Shape(32, 3, 16, padding=1),
    "32x32x16-16": Shape(32, 16, 16, padding=1),
    "32x32x16-32-stride-2": Shape(32, 16, 32, stride=2, padding=1),
    "16x16x32-32": Shape(16, 32, 32, padding=1),
    "8x8x64-64": Shape(8, 64, 64, padding=1),
    "16x16x32-32-1x1": Shape(16, 32, 32, kernel=1),
    "16x16x32-depthwise": Shape(16, 32, 32, padding=1, groups=32),
}


def arrays(s: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, weight and the result's cotangent, channels last."""
    rng = np.random.default_rng(0)
    shapes = (
        (IMAGES, s.size, s.size, s.channels),
        (s.outputs, s.channels // s.groups, s.kernel, s.kernel),
        (IMAGES, s.out, s.out, s.outputs),
    )
    x, weight, dy = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return x, weight, dy


def gb_steps(s: Shape) -> dict[str, Callable[[], Any]]:
    """What to time of this project."""
    from gpubackprop.backends import get_backend

    kernels, (x, weight, dy) = get_backend("cpu"), arrays(s)
    one = (1, 1)
    geometry = ((s.stride,) * 2, ((s.padding,) * 2,) * 2, one, s.groups)
    return {
        "forward": lambda: kernels.conv(x, weight, None, *geometry),
        "data-gradient": lambda: kernels.conv_transpose(dy, weight, (s.size,) * 2, *geometry),
        "weight-gradient": lambda: kernels.conv_weight(x, dy, (s.kernel,) * 2, *geometry),
    }


def torch_steps(s: Shape, channels_last: bool) -> dict[str, Callable[[], Any]]:
    """What to time of PyTorch."""
    import torch

    torch.set_num_threads(threads())
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, weight, dy = map(torch.tensor, arrays(s))
    x, dy = (a.permute(0, 3, 1, 2).contiguous(memory_format=layout) for a in (x, dy))
    weight = weight.contiguous(memory_format=layout)
    pair = (1, 1)
    geometry = ((s.stride,) * 2, (s.padding,) * 2, pair, False, (0, 0), s.groups)

    def gradient(which: list[bool]) -> Callable[[], Any]:
        return lambda: torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, which)

    return {
        "forward": lambda: torch.ops.aten.convolution(x, weight, None, *geometry),
        "data-gradient": gradient([True, False, False]),
        "weight-gradient": gradient([False, True, False]),
    }


def step(contender: str, workload: str, direction: str) -> Callable[[], Any]:
    """The call to time."""
    s = WORKLOADS[workload]
    steps = gb_steps(s) if contender == "gb-numpy" else torch_steps(s, contender != "torch")
    return steps[direction]


def main(argv: list[str] | None = None) -> int:
    """Print milliseconds a call and ratios."""
    cases = [
        (key, direction, f"{key}, {IMAGES} images, {direction}")
        for key in WORKLOADS
        for direction in DIRECTIONS
    ]
    return interleave.command(argv, __doc__, "benchmarks.convolution", CONTENDERS, cases, step)


if __name__ == "__main__":
    sys.exit(main())
