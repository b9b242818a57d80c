"""Small networks to train in a fraction of a second, with everything in them that has state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpubackprop import nn, optim
from gpubackprop.backends.random import Generator, using
from gpubackprop.data import ArrayDataset, DataLoader, two_moons
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.optim.schedules import Cosine
from gpubackprop.training import Trainer


def small_trainer(**options: Any) -> Trainer:
    """Dropout, two buffers per parameter, a schedule, clipping, a last batch that is short."""
    points, labels = two_moons(150, noise=0.1, seed=3)
    held_points, held_labels = two_moons(60, noise=0.1, seed=4)
    with using(Generator(11)):
        model = nn.Sequential(
            nn.Linear(2, 16),
            nn.Tanh(),
            nn.Dropout(0.2),
            nn.Linear(16, 8),
            nn.ReLU(),
            nn.Linear(8, 2),
        )
    optimizer = options.pop("optimizer", optim.Adam)(model.parameters(), lr=0.05)
    settings: dict[str, Any] = {
        "loader": DataLoader(ArrayDataset(points, labels), 20, shuffle=True, seed=5),
        "validation": DataLoader(ArrayDataset(held_points, held_labels), 50),
        "accuracy": True,
        "schedule": Cosine(48),
        "clip_norm": 2.0,
    }
    return Trainer(model, options.pop("loss", F.cross_entropy), optimizer, **(settings | options))


@pytest.fixture
def make() -> Callable[..., Trainer]:
    """Makes trainers that are equal to each other."""
    return small_trainer


def everything(trainer: Trainer) -> dict[str, Any]:
    """All that a run ended with: arrays as bytes, figures without their times."""
    state = trainer.optimizer.state_dict()
    history = [{k: v for k, v in line.items() if k != "seconds"} for line in trainer.run.history]
    return {
        "weights": {k: v.tobytes() for k, v in trainer.model.state_dict().items()},
        "slots": {
            (number, name): value.tobytes() if isinstance(value, np.ndarray) else value
            for number, entry in state["state"].items()
            for name, value in entry.items()
        },
        "groups": state["param_groups"],
        "random": trainer.model.random_state(),
        "history": history,
        "step": trainer.run.step,
        "samples": trainer.run.samples,
        "stopping": None if trainer.stopping is None else trainer.stopping.state(),
    }


@pytest.fixture
def outcome() -> Callable[[Trainer], dict[str, Any]]:
    """Reads a trainer's whole state, for comparison bit by bit."""
    return everything
