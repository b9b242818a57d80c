"""A network trained through the CUDA backend agrees with the CPU.

On the fake CuPy everywhere, and on a GPU where there is one.
"""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends import get_backend
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
