"""The residual network for small pictures in three libraries, with batch normalisation and 1 x 1
convolutions as shortcuts (He et al. 2015, "Deep residual learning", option B).

Parameters come in one order in all of them: convolution, scale and shift, along the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.cpu.workloads import Workload

EPS = 1e-5


def plan(w: Workload) -> list[tuple[int, int, int]]:
    """(channels, filters, stride) of each block."""
    blocks, channels = [], 64
    for stage, count in enumerate(w.options.values()):
        for k in range(count):
            filters = 64 << stage
            blocks.append((channels, filters, 2 if stage and not k else 1))
            channels = filters
    return blocks


def ours(w: Workload, dtype: Any) -> Any:
    """The network in this project."""
    from gpubackprop import nn
    from gpubackprop.recipes.residual import ResidualBlock

    class Mean(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.mean(axis=(1, 2))

    blocks = plan(w)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1, bias=False, channels_last=True),
        nn.BatchNorm2d(64, channels_last=True),
        nn.ReLU(),
        *(ResidualBlock(a, b, stride, "B") for a, b, stride in blocks),
        Mean(),
        nn.Linear(blocks[-1][1], w.classes),
    ).to("cpu", dtype=dtype)


def in_torch(w: Workload, last: bool) -> Any:
    """The network in PyTorch; `last` keeps the channels last in memory."""
    import torch
    from torch import nn

    def conv(n_in: int, n_out: int, kernel: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(n_out, EPS),
        )

    class Block(nn.Module):
        def __init__(self, n_in: int, n_out: int, stride: int) -> None:
            super().__init__()
            self.first = conv(n_in, n_out, 3, stride)
            self.second = conv(n_out, n_out, 3, 1)
            same = stride == 1 and n_in == n_out
            self.shortcut = None if same else conv(n_in, n_out, 1, stride)

        def forward(self, x: Any) -> Any:
            y = self.second(torch.relu(self.first(x)))
            return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    blocks = plan(w)
    model = nn.Sequential(
        conv(3, 64, 3, 1),
        nn.ReLU(),
        *(Block(*block) for block in blocks),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(blocks[-1][1], w.classes),
    )
    return model.to(memory_format=torch.channels_last) if last else model


def in_jax(name: str, p: list[Any], x: Any, key: Any, dropout: float) -> Any:
    """The network in JAX, channels last; statistics in float32."""
    import jax.numpy as jnp
    from jax import lax, nn

    from benchmarks.cpu.workloads import ALL

    taken = iter(p)

    def conv(x: Any, stride: int) -> Any:
        weight, scale, shift = (next(taken) for _ in range(3))
        kernel = weight.transpose(2, 3, 1, 0)
        edge = kernel.shape[0] // 2
        layout = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x, kernel, (stride, stride), [(edge, edge)] * 2, dimension_numbers=layout
        )
        wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        mean = wide.mean((0, 1, 2))
        wide = wide - mean
        variance = (wide * wide).mean((0, 1, 2))
        return (wide * lax.rsqrt(variance + EPS) * scale + shift).astype(y.dtype)

    x = nn.relu(conv(x, 1))
    for n_in, n_out, stride in plan(ALL[name]):
        y = conv(nn.relu(conv(x, stride)), 1)
        x = nn.relu(y + (conv(x, stride) if stride != 1 or n_in != n_out else x))
    return x.mean((1, 2)) @ next(taken).T + next(taken)
