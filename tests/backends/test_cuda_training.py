"""A network trained through the CUDA backend agrees with the CPU.

On the fake CuPy everywhere, and on a GPU where there is one.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends import get_backend
from gpubackprop.data import ArrayDataset, DataLoader
from gpubackprop.errors import NonFiniteError
from gpubackprop.training import Trainer
from gpubackprop.training.progress import Progress
from tests.backends import test_cuda_backend as fakes
from tests.backends.support import shim

PLACES = [
    pytest.param(
        lambda: fakes.BACKEND,
        id="fake",
        marks=pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there"),
    ),
    pytest.param(lambda: get_backend("cuda"), id="cuda", marks=pytest.mark.gpu),
]


class Words(nn.Module):
    """Guess a class from three words: every coarse kernel has a part in it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(24, 16), nn.GELU(), nn.LayerNorm(16), nn.Dropout(0.25)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, words):
        return self.head(self.body(self.embed(words)))


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, centered=True),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
}


def train(device, optimizer):
    gb.manual_seed(3)
    model = Words().to(device)
    rule = OPTIMIZERS[optimizer](model.parameters())
    rng = np.random.default_rng(0)
    words, target = rng.integers(0, 30, (32, 3)), rng.integers(0, 10, 32)
    losses = []
    for _ in range(4):
        rule.zero_grad()
        scores = model(gb.tensor(words, device=device))
        loss = nn.functional.cross_entropy(scores, gb.tensor(target, device=device))
        loss.backward()
        rule.step()
        losses.append(float(loss.numpy()))
    return losses, [p.numpy() for p in model.parameters()]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_four_steps_agree_with_the_cpu(place, optimizer):
    losses, weights = train(get_backend("cpu"), optimizer)
    found_losses, found_weights = train(place(), optimizer)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
    for found, want in zip(found_weights, weights, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("place", PLACES)
def test_a_run_repeats_bit_for_bit(place):
    first, again = train(place(), "adam"), train(place(), "adam")
    assert first[0] == again[0]
    assert all(np.array_equal(a, b) for a, b in zip(first[1], again[1], strict=True))


# Steps that are asked for before the ones before them were heard of, on a real device; on the
# stand-in for CuPy: ``tests/training/test_ahead.py``.


class Watching(Progress):
    """Notes how many steps are under way whenever one is heard of."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def batch(self, loss):
        self.most = max(self.most, len(self.trainer._updates))


def run_of(ahead, precision, bad=None):
    cuda = get_backend("cuda")
    gb.manual_seed(3)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2000, 64)).astype(np.float32), rng.integers(0, 10, 2000)
    if bad is not None:
        x[100 * bad + 7] = np.nan
    model = nn.Sequential(
        nn.Linear(64, 2048), nn.BatchNorm1d(2048), nn.GELU(), nn.Dropout(0.2), nn.Linear(2048, 10)
    ).to(cuda)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "run_ahead", ahead)
        made = Trainer(
            model,
            nn.functional.cross_entropy,
            optim.AdamW(model.parameters(), lr=1e-3),
            loader=DataLoader(ArrayDataset(x, y), 100),
            clip_norm=1.0,
            precision=precision,
            scaler=optim.GradScaler(cuda, 2.0**-14) if precision == "fp16-mixed" else None,
            progress=Watching(),
        )
    made.progress.trainer = made
    return made


def bits(run):
    state = run.optimizer.state_dict()["state"]
    return SimpleNamespace(
        weights={k: v.tobytes() for k, v in run.model.state_dict().items()},
        slots={
            (i, k): v.tobytes() if isinstance(v, np.ndarray) else v
            for i, entry in state.items()
            for k, v in entry.items()
        },
        losses=[line["train_loss"] for line in run.run.history],
        random=run.model.random_state(),
        precision=run.numerics.state(),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16-mixed", "fp16-mixed"])
def test_a_run_ahead_is_the_run_that_waits_bit_for_bit(precision):
    waiting, ahead = run_of(0, precision), run_of(4, precision)
    for run in (waiting, ahead):
        run.fit(3)
    assert bits(ahead) == bits(waiting)
    assert waiting.progress.most == 0 and ahead.progress.most <= 4


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "fp16-mixed"])
def test_a_step_that_is_not_finite_changes_nothing(precision):
    good, bad = run_of(4, precision), run_of(4, precision, bad=9)
    for batch in list(good.loader.batches(0))[:9]:
        good.model.train()
        good.update(batch)
    with pytest.raises(
        NonFiniteError, match=r"step 10 \(epoch 1, batch 10\): input 0 of the batch"
    ):
        bad.fit(1)
    assert bits(bad) == bits(good)
