"""Checkpointing, accumulation, weights from files and the memory report on the CUDA backend.

On the fake CuPy everywhere, and on a GPU where there is one.
"""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import interop, nn, optim
from gpubackprop.backends.launching import Here
from gpubackprop.data import ArrayDataset, DataLoader
from gpubackprop.inspect import memory
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.training import Trainer
from tests.backends import test_cuda_backend as fakes
from tests.backends.test_cuda_training import PLACES

pytestmark = pytest.mark.parametrize("place", PLACES)


@pytest.fixture(autouse=True)
def no_streams(monkeypatch):
    """This fake of CuPy has none, so nothing is copied beside the work
    (``tests/training/test_feeding.py`` has them)."""
    monkeypatch.setattr(fakes.BACKEND, "staging", lambda: None)
    monkeypatch.setattr(fakes.BACKEND, "fetch", lambda x: Here(fakes.BACKEND.to_numpy(x)))


class Network(nn.Module):
    """A checkpointed part with batch statistics and dropout, and a head."""

    def __init__(self, checkpointing: bool) -> None:
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 3)
        self.checkpointing = checkpointing

    def forward(self, x):
        return self.head(gb.checkpoint(self.body, x) if self.checkpointing else self.body(x))


def trainer(device, checkpointing: bool = True) -> Trainer:
    gb.manual_seed(0)
    model = Network(checkpointing).to(device)
    rng = np.random.default_rng(0)
    data = ArrayDataset(rng.standard_normal((50, 4)).astype(np.float32), rng.integers(0, 3, 50))
    return Trainer(
        model,
        F.cross_entropy,
        optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        loader=DataLoader(data, 16),
        accumulate=3,
        clip_norm=1.0,
        compile=False,  # the fake of CuPy has no addresses; tests/compile/test_devices.py has them
    )


def test_a_checkpointed_run_in_pieces_agrees_with_the_cpu(place):
    here, there = trainer("cpu"), trainer(place())
    assert np.isclose(here.fit(2).train_loss, there.fit(2).train_loss, rtol=1e-5)
    for name, value in here.model.state_dict().items():
        found = there.model.state_dict()[name]
        np.testing.assert_allclose(found, value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_checkpoint_changes_no_bit(place):
    plain, kept = trainer(place(), False), trainer(place(), True)
    plain.fit(2), kept.fit(2)
    for name, value in plain.model.state_dict().items():
        assert np.array_equal(kept.model.state_dict()[name], value), name


def test_second_derivatives_through_a_checkpoint(place):
    found = []
    for device in ("cpu", place()):
        x = gb.tensor(np.linspace(-1.0, 1.0, 5), device=device, requires_grad=True)
        (slope,) = gb.grad(gb.checkpoint(lambda t: gb.tanh(t) * t, x).sum(), x, create_graph=True)
        (slope * slope).sum().backward()
        found.append(x.grad.numpy())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)


def test_weights_from_a_file(place, tmp_path):
    model = Network(False).to(place())
    interop.save_safetensors(model, tmp_path / "m.safetensors")
    other = Network(False).to(place())
    interop.load_safetensors(other, tmp_path / "m.safetensors")
    assert next(other.parameters()).backend is place()
    for name, value in model.state_dict().items():
        assert np.array_equal(other.state_dict()[name], value)


def test_the_memory_of_a_step(place):
    made = trainer(place())
    batch = next(made.loader.batches(0))
    made.update(batch)
    report = memory(made.update, batch, device=place())
    found = {(row.op, row.direction): row for row in report.rows}
    assert report.source == "CuPy's memory pool"
    assert found["linear", "again"].count == 3 and found["linear", "forward"].count == 6
    assert report.peak > 0 and report.peak % 512 == 0
    assert abs(report.kept) < report.peak
