"""Compiled steps whose convolutions and attention run by cuDNN, as one launch; on stand-ins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends import detect, get_backend
from gpubackprop.backends.cuda import CUDABackend
from gpubackprop.compile.graph import WARM_UPS
from gpubackprop.nn import functional as F  # noqa: N812
from tests.backends.support import fake_lt, shim
from tests.compile.support import graph_cupy
from tests.compile.support.cudnn_captured import CapturedCudnn
from tests.compile.support.graph_cupy import GraphCuPy

pytest.importorskip("ml_dtypes")
MISSING = shim.missing() or fake_lt.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the compilers are there")


class Machine(NamedTuple):
    """What a test looks at."""

    backend: CUDABackend
    cupy: GraphCuPy
    cudnn: CapturedCudnn


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    cupy = GraphCuPy()
    cudnn = CapturedCudnn(cupy)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cudnn", cudnn)
    monkeypatch.setattr(detect, "cudnn_problem", lambda: None)
    with graph_cupy.products_captured():
        yield Machine(CUDABackend(0, cudnn="always"), cupy, cudnn)


def pictures() -> nn.Module:
    g = gb.Generator(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, generator=g, channels_last=True),
        nn.BatchNorm2d(8, channels_last=True),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False, generator=g, channels_last=True),
        nn.Flatten(),
        nn.Linear(8 * 9, 5, generator=g),
    )


def sentences() -> nn.Module:
    return nn.TransformerLM(11, 16, 1, 2, 6, generator=gb.Generator(3))


class Training:
    """A network on a device, and a step on batches of its own."""

    def __init__(self, make: Any, backend: Any, precision: str, compiled: bool = True) -> None:
        self.backend, self.precision = backend, precision
        self.net = make().to(backend)
        self.words = isinstance(self.net, nn.TransformerLM)
        self.optimizer = optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)
        self.run = gb.compile(self.step) if compiled else self.step
        self.rng = np.random.default_rng(1)

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        with gb.precision(self.precision):
            logits = self.net(x)
            loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def losses(self, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            if self.words:
                x, y = self.rng.integers(0, 11, (3, 6)), self.rng.integers(0, 11, 18)
            else:
                x = self.rng.standard_normal((4, 6, 6, 3)).astype(np.float32)
                y = self.rng.integers(0, 5, 4)
            batch = (gb.tensor(a, device=self.backend) for a in (x, y))
            found.append(self.run(*batch).item())
        return found


@pytest.mark.parametrize(
    ("make", "precision", "kinds"),
    [
        (pictures, "float32", {"fprop", "dgrad", "wgrad"}),
        (pictures, "bf16-mixed", {"fprop", "dgrad", "wgrad"}),
        (sentences, "bf16-mixed", {"sdpa", "sdpa_backward"}),
    ],
)
def test_steps_with_plans_of_cudnn_are_one_launch(
    here: Machine, make: Any, precision: str, kinds: set[str]
) -> None:
    training = Training(make, here.backend, precision)
    losses = training.losses(6 + WARM_UPS)
    assert here.cupy.launches > 0, training.run.explain()
    before = len(here.cudnn.built), len(here.cudnn.ran), here.cupy.launches
    assert {graph.asked[0][0] for graph in here.cudnn.ran} == kinds
    losses += training.losses(5)
    # Launches and nothing else: no plan is built or run from the host.
    after = len(here.cudnn.built), len(here.cudnn.ran), here.cupy.launches
    assert after == (*before[:2], before[2] + 5)
    plain = Training(make, get_backend("cpu"), precision, compiled=False)
    digits = 1e-4 if precision == "float32" else 2e-2
    np.testing.assert_allclose(losses, plain.losses(11 + WARM_UPS), rtol=digits)


def test_the_workspaces_of_a_launch_stay_its_own(here: Machine) -> None:
    """What a capture asked for lies in the pool that the launch keeps; without it, a launch finds
    memory that is nobody's."""
    training = Training(pictures, here.backend, "float32")
    training.losses(6 + WARM_UPS)
    (entry,) = [e for e in training.run.entries if e.replay is not None]
    captured = entry.replay.launch._captured
    assert captured._pool.total_bytes() >= here.cudnn.workspace
    # Other work on the device asks for memory of the same size, and does not get the launch's.
    before = training.losses(1)
    x = here.backend.zeros((captured._pool.total_bytes(),), np.uint8)
    assert np.isfinite(before + training.losses(1)).all()
    del x
    captured._pool = None
    with pytest.raises((AssertionError, RuntimeError), match="no array has|was freed"):
        training.losses(1)
