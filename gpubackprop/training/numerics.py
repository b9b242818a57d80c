"""The precision of a run: how its products are computed, the scale of its loss, and what becomes of
a step that is not finite.

Only float16 needs a scale: bfloat16 has the range of float32.

Where the device does its work while the host goes on (``Backend.run_ahead``), the host hears too
late of a step that is not finite to keep its update back. There the device decides: it looks at the
cost and the gradients itself, and from the first such step on a flag holds back every update until
the host has heard of it. Parameters, state, counts of steps and the scale are then those of before
that step, however many steps were asked for after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.autograd.precision import precision
from gpubackprop.backends import Array
from gpubackprop.backends.precision import check, half_dtype
from gpubackprop.errors import CheckpointError, ConfigError
from gpubackprop.optim import GradScaler, Optimizer, clip_grad_norm_, clip_grad_value_
from gpubackprop.training import nonfinite

SCALED = "fp16-mixed"
"""The precision whose loss is scaled."""

LEAST = 2.0**-14
"""A step whose gradients are not finite at this scale of the loss, or a smaller one, ends the run:
no scale helps. It takes 30 such steps in a row to come here from the first scale."""


class Numerics:
    """What a trainer's step does in its precision.

    Parameters
    ----------
    name : see :func:`gpubackprop.precision`.
    optimizer : holds the parameters and their gradients.
    scaler : the scale of the loss under ``"fp16-mixed"``; a new one by default.

    Attributes
    ----------
    ahead : how many steps may be asked for before the first of them is heard of.
    held : whether updates are held back: 0-d bool, of the device. None where `ahead` is 0.

    Raises
    ------
    ConfigError
        The precision is unknown or needs what is not installed, the parameters are not float32, or
        a scaler was given to a precision that has none.
    """

    def __init__(self, name: str, optimizer: Optimizer, scaler: GradScaler | None = None) -> None:
        self.name = check(name, "Trainer")
        self.within = precision(name)
        self.optimizer = optimizer
        parameters = optimizer.arena.parameters
        self.backend = parameters[0].backend
        if half_dtype(name) is not None:
            for p in parameters:
                if p.dtype != np.float32:
                    raise ConfigError(
                        f"Trainer: precision {name!r} keeps its parameters in float32, but one of "
                        f"shape {p.shape} is {p.dtype}; leave the network in float32"
                    )
        if scaler is not None and name != SCALED:
            raise ConfigError(f"Trainer: a scaler goes with precision {SCALED!r}, not {name!r}")
        self.scaler = scaler
        if name == SCALED:
            self.scaler = scaler or GradScaler(self.backend)
        sections = optimizer.arena.sections
        self.ahead = self.backend.run_ahead * all(s.backend is self.backend for s in sections)
        self.held: Array | None = None
        if self.ahead:
            self.held = self.backend.zeros((), np.dtype(bool))
        if self.ahead or self.scaler is not None:
            optimizer.count_on_device()  # before anything is recorded

    # Of a step.
    def backward(self, loss: Tensor, share: float) -> Array:
        """The chain rule from a loss, times its share of the batch's cost (and the scale); the cost
        without either."""
        if loss.dtype.itemsize < 4 and self.name.endswith("-mixed"):
            loss = loss.astype(np.float32)
        if self.scaler is not None:
            loss.backward(self.scaler.cotangent(loss, share))
        elif share == 1.0:
            loss.backward()
        else:
            loss.backward(np.full(loss.shape, share))
        return loss.array if share == 1.0 else self.backend.multiply(loss.array, share)

    def look(self, cost: Array) -> list[Array]:
        """What tells whether the cost and the gradients are finite, on the device: arrays of one
        element."""
        kernels = self.backend
        if self.held is not None:
            wrong = kernels.logical_or(self.held, self._wrong(cost))
            kernels.copyto(self.held, wrong)
            found = [kernels.astype(wrong, cost.dtype)]
        elif self.scaler is None:
            found = [kernels.matmul(g, g) for g in self.optimizer.arena.grads]
        else:
            wrong, _ = self.scaler.look(self.optimizer)
            found = [kernels.astype(wrong, np.dtype(np.float32)), self.scaler.scale_array]
        return [kernels.reshape(x, (1,)) for x in found]

    def _wrong(self, cost: Array) -> Array:
        """Whether a step ends the run, as :meth:`finite` decides: 0-d bool, of the device."""
        kernels = self.backend
        if self.scaler is not None:
            wrong, _ = self.scaler.look(self.optimizer)
            return kernels.logical_and(wrong, kernels.less_equal(self.scaler.scale_array, LEAST))
        wrong = kernels.logical_not(kernels.all(kernels.isfinite(cost)))
        for grads in self.optimizer.arena.grads:
            wrong = kernels.logical_or(wrong, kernels.square_norm(grads)[1])
        return wrong

    def finite(self, cost: float, seen: Sequence[float]) -> bool:
        """Whether the run can go on, by the cost and the numbers of :meth:`look`."""
        if self.held is not None:
            return not seen[0]
        if self.scaler is not None:  # a step that is not finite is skipped, and the scale halved
            wrong, scale = seen
            return not wrong or scale > LEAST
        # A sum of squares overflows long before the gradients do.
        return math.isfinite(cost + sum(seen)) or (
            math.isfinite(cost) and nonfinite.gradients_finite(self.optimizer)
        )

    def update(self, clip_value: float | None, clip_norm: float | None) -> None:
        """Clip the gradients, without their scale, and update the parameters."""
        if self.scaler is None:
            if clip_value is not None:
                clip_grad_value_(self.optimizer, clip_value)
            if clip_norm is not None:
                clip_grad_norm_(self.optimizer, clip_norm)
            self.optimizer.step(skip=self.held)
            return
        if clip_value is not None:  # the norm is that of what is left
            self.scaler.unscale_(self.optimizer)
            clip_grad_value_(self.optimizer, clip_value)
            if clip_norm is not None:
                clip_grad_norm_(self.optimizer, clip_norm)
            clip_norm = None
        self.scaler.take_step(self.optimizer, clip_norm, self.held)
        self.scaler.update(self.held)

    def go_on(self) -> None:
        """Hold no update back any more."""
        if self.held is not None:
            self.backend.copyto(self.held, self.backend.zeros((), np.dtype(bool)))

    def snapshot(self) -> Callable[[], None]:
        """Keep in memory what :meth:`update` changes; the result puts it back."""
        kept = [self.optimizer.snapshot()]
        if self.scaler is not None:
            kept.append(self.scaler.snapshot())

        def restore() -> None:
            for put_back in kept:
                put_back()

        return restore

    # Of a run.
    @property
    def hint(self) -> str:
        """What may help where values are not finite, in words."""
        further = "" if self.scaler is None else ", or precision 'bf16-mixed', which ends later,"
        return f"a smaller learning rate or clip_norm{further}"

    def figures(self) -> dict[str, Any]:
        """What an epoch's figures say of the scale; nothing where there is none."""
        if self.scaler is None:
            return {}
        return {"loss_scale": self.scaler.get_scale(), "skipped_steps": self.scaler.skipped}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain JSON."""
        scaler = None if self.scaler is None else self.scaler.state_dict()
        return {"name": self.name, "scaler": scaler}

    def load(self, saved: Any) -> None:
        """Continue with a checkpoint's :meth:`state`; None is that of one from before there was a
        choice.

        Raises
        ------
        CheckpointError
            It is of another precision, or damaged.
        """
        saved = {"name": "float32", "scaler": None} if saved is None else saved
        if not isinstance(saved, Mapping) or set(saved) != {"name", "scaler"}:
            raise CheckpointError("the checkpoint's precision is damaged")
        if saved["name"] != self.name:
            raise CheckpointError(
                f"the run was trained with precision {saved['name']!r} and cannot be resumed with "
                f"{self.name!r}"
            )
        if (self.scaler is None) != (saved["scaler"] is None):
            raise CheckpointError("the checkpoint's loss scale is missing, or has no use")
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["scaler"])
