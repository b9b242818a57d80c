"""A compiled step on other devices than the CPU: the same recording, replayed by their kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import optim
from gpubackprop.nn import functional as F
from tests.compile.support.steps import small_network
from tests.places import PLACES


@pytest.mark.parametrize("kind", ["pictures", "text"])
@pytest.mark.parametrize("place", PLACES)
def test_a_compiled_step_is_that_of_the_function(place: Any, kind: str) -> None:
    if place.backend is None:
        pytest.skip(place.reason)
    backend = place.backend
    found = []
    for compiled in (False, True):
        net, x, y = small_network(kind)
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
