"""What a trainer was given: mistakes are said when it is made, or at its first batch, in words."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.data import DataLoader
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn import Module, Parameter
from gpubackprop.optim import Optimizer
from gpubackprop.training.evaluation import Batch


def check(
    model: Any, loss: Any, optimizer: Any, loaders: dict[str, Any], bounds: dict[str, Any]
) -> None:
    """Refuse what cannot train.

    Parameters
    ----------
    model, loss, optimizer : of the trainer.
    loaders, bounds : its batches and its bounds of gradients, by the names of the arguments; None
        where there is none.

    Raises
    ------
    ConfigError
        An argument is of another type, the optimizer is that of another network, or a bound is no
        number from 0 on.
    """
    for name, given, wanted in (("model", model, Module), ("optimizer", optimizer, Optimizer)):
        if not isinstance(given, wanted):
            raise ConfigError(
                f"Trainer: {name} must be of the class {wanted.__name__}, not {_kind(given)}"
            )
    if isinstance(loss, type) or not callable(loss):
        found = f"the class {loss.__name__}" if isinstance(loss, type) else _kind(loss)
        raise ConfigError(
            f"Trainer: loss must be a function of outputs and target, or a module such as "
            f"nn.MSELoss(), not {found}"
        )
    for name, given in loaders.items():
        if given is not None and not isinstance(given, DataLoader):
            raise ConfigError(
                f"Trainer: {name} must be a DataLoader, not {_kind(given)}; wrap what you have: "
                "DataLoader(ArrayDataset(inputs, targets), batch_size=32)"
            )
    for name, given in bounds.items():
        number = isinstance(given, (int, float)) and not isinstance(given, bool)
        if given is not None and not (number and 0.0 <= given < math.inf):
            raise ConfigError(f"Trainer: {name} must be a number from 0 on, not {given!r}")
    learned = {id(p) for p in model.parameters()}
    # Tensors that are no Parameters of a network may be learned too.
    updated = [p for p in optimizer.arena.parameters if isinstance(p, Parameter)]
    if updated and learned and not any(id(p) in learned for p in updated):
        raise ConfigError(
            f"Trainer: none of the {len(updated)} parameters of the optimizer "
            f"belongs to the model ({type(model).__name__}, {len(learned)} parameters); make the "
            "optimizer with model.parameters() of the same model"
        )


def look_at(batch: Batch, optimizer: Optimizer) -> None:
    """Say so where the data's dtype makes the whole network compute in a wider one: that of the
    inputs from the first layer on, that of the target in the backward pass.

    Raises
    ------
    ConfigError
        The batch has no inputs, or no target.
    """
    if len(batch) < 2:
        raise ConfigError(
            f"Trainer: the batches hold {len(batch)} array(s); they need the inputs and, last, the "
            "target: ArrayDataset(inputs, targets)"
        )
    widest = max((p.dtype for p in optimizer.arena.parameters), key=lambda d: d.itemsize)
    for number, x in enumerate(batch):
        what = f"input {number}" if number < len(batch) - 1 else "the target"
        if x.dtype == np.float64 and widest.itemsize < 8:
            warnings.warn(
                f"Trainer: {what} of the batches is float64 and the parameters are {widest}, so "
                "what is computed with it is float64 too, which takes several times as long; "
                f"convert the data: x.astype(np.{widest})",
                RuntimeWarning,
                stacklevel=4,
            )


def cost_of(found: Any) -> Tensor:
    """What a loss returned, if the chain rule can begin there.

    Raises
    ------
    DTypeError, ShapeError
        It is no tensor, or one of several elements.
    """
    if not isinstance(found, Tensor):
        raise DTypeError(
            f"Trainer: loss(outputs, target) gave {_kind(found)}, not a Tensor of one element; "
            "return the tensor itself, without .item() or float()"
        )
    if found.size != 1:
        raise ShapeError(
            f"Trainer: loss(outputs, target) gave a tensor of shape {found.shape}; it must be a "
            "single element, the mean over the batch (reduction='mean')"
        )
    return found


def _kind(value: Any) -> str:
    return type(value).__name__
