"""What a run ended with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpubackprop.training.state import RunState


@dataclass(frozen=True)
class FitResult:
    """The outcome of :meth:`Trainer.fit`. Times and counts are of the whole run, resumed or not.

    Attributes
    ----------
    epochs, steps, samples : complete epochs, updates, training samples seen.
    seconds : time in all, validation and checkpoints included.
    train_seconds : time of the updates alone.
    train_loss : mean cost over the last epoch, while the weights changed; None before the first.
    stopped_early : whether early stopping ended the run.
    history : the figures of each epoch.
    """

    epochs: int
    steps: int
    samples: int
    seconds: float
    train_seconds: float
    train_loss: float | None
    stopped_early: bool
    history: list[dict[str, Any]]

    @classmethod
    def of(cls, run: RunState) -> FitResult:
        """The outcome of a run that stands at `run`."""
        return cls(
            epochs=run.epoch,
            steps=run.step,
            samples=run.samples,
            seconds=run.seconds,
            train_seconds=run.train_seconds,
            train_loss=run.history[-1]["train_loss"] if run.history else None,
            stopped_early=run.stopped,
            history=list(run.history),
        )

    @property
    def samples_per_second(self) -> float | None:
        """Training samples per second of updates."""
        return self.samples / self.train_seconds if self.train_seconds else None
