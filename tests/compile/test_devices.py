"""A compiled step on other devices than the CPU: the same recording, replayed by their kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim, testing
from gpubackprop.nn import functional as F

PLACES = [
    pytest.param(place, id=place.name, marks=[pytest.mark.gpu] if place.name == "cuda" else [])
    for place in testing.backends()
]


def network(kind: str) -> tuple[nn.Module, Any, Any]:
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


@pytest.mark.parametrize("kind", ["pictures", "text"])
@pytest.mark.parametrize("place", PLACES)
def test_a_compiled_step_is_that_of_the_function(place: Any, kind: str) -> None:
    if place.backend is None:
        pytest.skip(place.reason)
    backend = place.backend
    found = []
    for compiled in (False, True):
        net, x, y = network(kind)
        net.to(backend)
        optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        scheduler = optim.Scheduler(optimizer, optim.schedules.Cosine(steps=20))

        def step(x, y, net=net, optimizer=optimizer, scheduler=scheduler):
            optimizer.zero_grad()
            output = net(x)
            loss = F.cross_entropy(output.reshape((-1, output.shape[-1])), y.reshape((-1,)))
            loss.backward()
            optim.clip_grad_norm_(optimizer, 1.0)
            optimizer.step()
            scheduler.step()
            return loss

        run = gb.compile(step) if compiled else step
        inputs = gb.tensor(x, device=backend), gb.tensor(y, device=backend)
        costs = [run(*inputs).item() for _ in range(12)]
        if compiled:
            assert sum(e.calls for e in run.entries) >= 7, run.explain()
        found.append((costs, [p.numpy() for p in net.parameters()]))
    (expected, weights), (costs, others) = found
    np.testing.assert_allclose(costs, expected, rtol=1e-4)
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4)
