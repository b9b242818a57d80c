"""What the tests of compiled steps share: a small network, its training, and comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.compile.api import compile
from gpubackprop.compile.compiled import Compiled
from gpubackprop.nn import functional as F

RNG = np.random.default_rng(5)


def x_of(n: int = 6, width: int = 4) -> gb.Tensor:
    """A batch of random rows."""
    return gb.tensor(RNG.standard_normal((n, width)).astype(np.float32))


def replayed(c: Compiled) -> int:
    """How many calls were replays."""
    return sum(e.calls for e in c.entries)


class Net(nn.Module):
    """Two layers with dropout between them."""

    def __init__(self, dropout: float = 0.0, seed: int = 1) -> None:
        generator = gb.Generator(seed)
        self.first = nn.Linear(4, 8, generator=generator)
        self.drop = nn.Dropout(dropout, generator=generator.split())
        self.second = nn.Linear(8, 3, generator=generator)

    def forward(self, x: gb.Tensor) -> gb.Tensor:
        return self.second(self.drop(gb.tanh(self.first(x))))


def small_network(kind: str) -> tuple[nn.Module, Any, Any]:
    """A network for pictures or for text, and a batch for it."""
    generator, rng = gb.Generator(4), np.random.default_rng(2)
    if kind == "pictures":
        net: nn.Module = nn.Sequential(
            nn.Conv2d(1, 4, 3, generator=generator),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3, generator=generator.split()),
            nn.Linear(36, 5, generator=generator),
        )
        return net, rng.standard_normal((6, 1, 8, 8)).astype(np.float32), rng.integers(0, 5, 6)
    net = nn.TransformerLM(11, 16, 1, 2, 8, generator=generator)
    return net, rng.integers(0, 11, (3, 8)), rng.integers(0, 11, (3, 8))


def pair(fast, make_step, **options):
    """The same training step twice: as it is, and compiled; each with its own network."""
    plain_net, fast_net = Net(**options), Net(**options)
    return (plain_net, make_step(plain_net)), (
        fast_net,
        compile(make_step(fast_net), fast=fast),
    )


def adam_step(net: nn.Module):
    """A step of training, with its optimizer as an attribute."""
    optimizer = optim.Adam(net.parameters(), lr=0.01)

    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    step.optimizer = optimizer
    return step


def agree(a, b, tolerance: float = 2e-5) -> None:
    """Whether two tensors hold the same numbers."""
    np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=tolerance, atol=tolerance)


def same_networks(a: nn.Module, b: nn.Module) -> None:
    """Whether two networks have the same parameters."""
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        agree(p.detach(), q.detach())
