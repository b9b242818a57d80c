"""When to stop, and which weights were the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gpubackprop import suggest
from gpubackprop.errors import CheckpointError, ConfigError

MONITORS = ("loss", "accuracy")


@dataclass
class EarlyStopping:
    """Watches the validation figures of each epoch.

    Parameters
    ----------
    patience : stop after so many epochs in a row without a better figure; None never stops and only
        keeps the best weights.
    min_delta : a figure must be better by more than this to count.
    monitor : ``"loss"`` (smaller is better) or ``"accuracy"`` (larger is better).

    Attributes
    ----------
    best : the best figure so far; None before the first.
    best_epoch : the epoch that gave it, counted from 1.
    waited : epochs since then.

    Raises
    ------
    ConfigError
        An argument is out of range.
    """

    patience: int | None = None
    min_delta: float = 0.0
    monitor: str = "loss"
    best: float | None = None
    best_epoch: int = 0
    waited: int = 0

    def __post_init__(self) -> None:
        if self.monitor not in MONITORS:
            raise ConfigError(
                f"EarlyStopping: {suggest.unknown('monitor', self.monitor, MONITORS)}"
            )
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"EarlyStopping: patience must be at least 1, not {self.patience}")
        if not 0 <= self.min_delta < math.inf:
            raise ConfigError(
                f"EarlyStopping: min_delta must not be negative, not {self.min_delta}"
            )

    def update(self, epoch: int, figures: Mapping[str, Any]) -> bool:
        """Take in the figures of an epoch.

        Parameters
        ----------
        epoch : its number, from 1.
        figures : ``"val_loss"`` and ``"val_accuracy"``, None where there is none.

        Returns
        -------
        bool
            Whether they are the best so far.
        """
        value = figures[f"val_{self.monitor}"]
        sign = -1.0 if self.monitor == "loss" else 1.0
        better = value is not None and (
            self.best is None or sign * (value - self.best) > self.min_delta
        )
        if better:
            self.best, self.best_epoch, self.waited = float(value), epoch, 0
        else:
            self.waited += 1
        return better

    @property
    def exhausted(self) -> bool:
        """Whether it is time to stop."""
        return self.patience is not None and self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    def load(self, state: Any) -> None:
        """Continue from :meth:`state`; the settings stay those of this object.

        Raises
        ------
        CheckpointError
            It is no such state.
        """
        try:
            best = None if state["best"] is None else float(state["best"])
            best_epoch, waited = int(state["best_epoch"]), int(state["waited"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise CheckpointError(
                "the state of early stopping in the checkpoint is damaged"
            ) from None
        self.best, self.best_epoch, self.waited = best, best_epoch, waited
