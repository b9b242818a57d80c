"""A run whose network ties weights goes on from a checkpoint with the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpubackprop import nn, optim
from gpubackprop.backends.random import Generator
from gpubackprop.data import ArrayDataset, DataLoader
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.training import Interrupted, Progress, Trainer

VOCABULARY = 7
MODELS = {
    "transformer": lambda: nn.TransformerLM(
        VOCABULARY, 8, 2, 2, 5, dropout=0.2, generator=Generator(1)
    ),
    "rotary": lambda: nn.TransformerLM(
        VOCABULARY, 8, 1, 2, 5, positions="rotary", kv_heads=1, generator=Generator(1)
    ),
    "lstm": lambda: nn.RecurrentLM(
        VOCABULARY, 8, 8, dropout=0.2, tie_weights=True, generator=Generator(1)
    ),
}


class Stop(Progress):
    """Ends the process's run, without warning, after so many batches."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def batch(self, loss: float) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def cost(logits: Any, target: Any) -> Any:
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), target.reshape(-1))


def make(name: str, **options: Any) -> Trainer:
    text = np.random.default_rng(0).integers(0, VOCABULARY, (20, 6))
    model = MODELS[name]()
    loader = DataLoader(ArrayDataset(text[:, :-1], text[:, 1:]), 6, shuffle=True, seed=5)
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    return Trainer(model, cost, optimizer, loader=loader, clip_norm=1.0, **options)


@pytest.mark.parametrize("name", MODELS)
def test_resumed_from_a_checkpoint(name, tmp_path):
    whole = make(name)
    whole.fit(4)
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        make(name, out=tmp_path, progress=Stop(6)).fit(4)
    again = make(name, out=tmp_path)
    assert again.resume()
    again.fit(4)
    for trainer in (whole, again):
        assert trainer.model.head.weight is trainer.model.embedding.weight
    expected = whole.model.state_dict()
    for path, values in again.model.state_dict().items():
        assert values.tobytes() == expected[path].tobytes(), path
    states = [t.optimizer.state_dict()["state"] for t in (whole, again)]
    for number, entry in states[0].items():
        for slot, value in entry.items():
            np.testing.assert_array_equal(states[1][number][slot], value)
