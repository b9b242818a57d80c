"""Scheduler: applies a schedule to the learning rates of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpubackprop.backends import live
from gpubackprop.errors import CheckpointError, ConfigError
from gpubackprop.optim.optimizer import Optimizer
from gpubackprop.optim.schedules import Schedule


class Scheduler:
    """Sets each group's ``lr`` to its first value times the schedule's factor.

    Parameters
    ----------
    optimizer : whose groups to set. Each group's learning rate at this moment is kept in the group
        as ``"initial_lr"`` (if it has none yet) and multiplied by the factors.
    schedule : a function of the step; see :mod:`gpubackprop.optim.schedules`. If it has a method
        ``momentum(step)``, the momentum (or the first of ``betas``) is set too.
    step : where to begin.

    Attributes
    ----------
    last_step : the step that the current rates are for; the whole state.

    Examples
    --------
    >>> scheduler = Scheduler(optimizer, Cosine(steps=1000))  # doctest: +SKIP
    >>> optimizer.step(); scheduler.step()  # doctest: +SKIP
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, step: int = 0) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"Scheduler: optimizer must be an Optimizer, not {type(optimizer).__name__}"
            )
        if not callable(schedule):
            raise ConfigError(f"Scheduler: {schedule!r} is not a schedule (a function of the step)")
        self.optimizer = optimizer
        self.schedule = schedule
        self.set_step(step)

    def set_step(self, step: int) -> None:
        """Set the rates to those of `step`."""
        self.last_step = int(step)
        factor = float(self.schedule(self.last_step))
        momentum_of = getattr(self.schedule, "momentum", None)
        momentum = None if momentum_of is None else momentum_of(self.last_step)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * factor
            if momentum is None:
                continue
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = momentum
            else:
                raise ConfigError(
                    f"Scheduler: {type(self.optimizer).__name__} has no momentum to set; leave out "
                    "base_momentum and max_momentum"
                )

    def step(self) -> None:
        """Go to the next step; call it after ``optimizer.step()``."""
        live.call(self._advance, lambda: self.set_step(self.last_step - 1))

    def _advance(self) -> live.Numbers:
        self.set_step(self.last_step + 1)
        return ()

    def get_last_lr(self) -> list[float]:
        """The current learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        """``{"step": n}``. The groups' first rates are in the optimizer's state."""
        return {"step": self.last_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved step; load the optimizer's state before this.

        Raises
        ------
        CheckpointError
            If the state is not ``{"step": n}``.
        """
        step = state.get("step") if isinstance(state, Mapping) and len(state) == 1 else None
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise CheckpointError(f"Scheduler: the saved state {state!r} is not {{'step': n}}")
        self.set_step(step)
