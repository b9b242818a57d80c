"""A step in mixed precision as one launch, on a stand-in for CuPy that captures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends.cuda import CUDABackend
from gpubackprop.nn import functional as F  # noqa: N812
from tests.backends.support import fake_lt, shim
from tests.compile.support import graph_cupy
from tests.compile.support.graph_cupy import GraphCuPy

pytest.importorskip("ml_dtypes")
MISSING = shim.missing() or fake_lt.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the compilers are there")


@pytest.fixture(autouse=True)
def _products() -> Iterator[None]:
    with graph_cupy.products_captured():
        yield


def train(precision: str, compiled: bool, steps: int = 16) -> tuple[Any, ...]:
    cupy = GraphCuPy(1)
    with mock.patch.dict(sys.modules, {"cupy": cupy}):
        backend = CUDABackend(0)
    generator, rng = gb.Generator(4), np.random.default_rng(1)
    net = nn.Sequential(
        nn.Linear(6, 8, generator=generator),
        nn.GELU(),
        nn.LayerNorm(8),
        nn.Linear(8, 3, generator=generator),
    ).to(backend)
    optimizer = optim.Adam(net.parameters(), lr=0.01)
    scaler = optim.GradScaler(backend, init_scale=2.0**24, growth_interval=4)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        with gb.precision(precision):
            loss = F.cross_entropy(net(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer, max_norm=0.5)
        scaler.update()
        return loss

    run = gb.compile(step) if compiled else step
    found = []
    for _ in range(steps):
        x = rng.standard_normal((8, 6)).astype(np.float32)
        y = rng.integers(0, 3, 8)
        loss = run(gb.tensor(x, device=backend), gb.tensor(y, device=backend)).item()
        found.append((loss, scaler.get_scale(), scaler.skipped))
    if compiled:
        assert cupy.launches > 4, run.explain()
    count = optimizer.state_dict()["state"][0]["step"]
    return found, [p.numpy() for p in net.parameters()], count


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp16-mixed"])
def test_launches_are_the_steps_of_the_function(precision: str) -> None:
    """Steps that are skipped and others are the same launch, and Adam's count is on the device."""
    expected, weights, steps = train(precision, False)
    found, others, count = train(precision, True)
    assert [f[1:] for f in found] == [e[1:] for e in expected]
    # Chains of a compiled step round less often than its operations one by one.
    digits = {"bf16-mixed": 1e-2, "fp16-mixed": 1e-3}[precision]
    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], rtol=digits)
    assert count == steps == len(found) - found[-1][2]
    assert (0 < found[-1][2] < len(found)) == (precision == "fp16-mixed")
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_allclose(b, a, rtol=digits, atol=digits)
