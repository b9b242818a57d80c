"""Costs as modules: each is a function of ``nn.functional`` with its options fixed.

The table at the end is the whole list. A row's class takes the options of its function, in the same
order and with the same defaults, and documents them with the function's own words.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.errors import ConfigError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation
from gpubackprop.nn.module import Module
from gpubackprop.suggest import unknown

REDUCTIONS = ("mean", "sum", "none")


class Loss(Module):
    """Base of the costs: ``loss(input, target)``."""

    function: ClassVar[Callable[..., Tensor]]
    defaults: ClassVar[dict[str, Any]]

    def __init__(self, *args: Any, **options: Any) -> None:
        given = inspect.signature(type(self)).bind(*args, **options).arguments
        self.names = tuple(self.defaults)
        for name, value in {**self.defaults, **given}.items():
            if name == "reduction" and value not in REDUCTIONS:
                raise ConfigError(f"{type(self).__name__}: {unknown(name, value, REDUCTIONS)}")
            if isinstance(value, (Tensor, np.ndarray, list, tuple)):
                self.register_buffer(name, value)  # class weights move with the module
            else:
                setattr(self, name, value)

    def forward(self, input: Tensor, target: Any) -> Tensor:
        """The cost: a single element, or one per sample with ``reduction="none"``."""
        return type(self).function(input, target, **{n: getattr(self, n) for n in self.names})

    def extra_repr(self) -> str:
        shown = ((n, getattr(self, n)) for n in self.names)
        changed = (f"{n}={v!r}" for n, v in shown if v is not self.defaults[n])
        return ", ".join(changed)


def _loss(name: str, function: Callable[..., Tensor]) -> type[Loss]:
    """A row of the table: the class of a cost function whose first two arguments are tensors."""
    parameters = list(inspect.signature(function).parameters.values())[2:]
    doc = inspect.cleandoc(function.__doc__ or "")
    cls = type(
        name,
        (Loss,),
        {
            "function": staticmethod(function),
            "defaults": {p.name: p.default for p in parameters},
            "__module__": __name__,
            "__doc__": f"The cost ``nn.functional.{function.__name__}`` as a module.\n\n"
            f"Takes the options of the function; its ``forward(input, target)`` is\n\n{doc}",
        },
    )
    cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return cls


MSELoss = _loss("MSELoss", F.mse_loss)
L1Loss = _loss("L1Loss", F.l1_loss)
HuberLoss = _loss("HuberLoss", F.huber_loss)
SmoothL1Loss = _loss("SmoothL1Loss", F.smooth_l1_loss)
BCELoss = _loss("BCELoss", F.binary_cross_entropy)
BCEWithLogitsLoss = _loss("BCEWithLogitsLoss", F.binary_cross_entropy_with_logits)
CrossEntropyLoss = _loss("CrossEntropyLoss", F.cross_entropy)
NLLLoss = _loss("NLLLoss", F.nll_loss)
KLDivLoss = _loss("KLDivLoss", F.kl_div)


class QuadraticCost(Module):
    """Half the squared distance between output and target, averaged over the samples.

    C = 1/(2n) * sum over the n samples of |target - output|**2: the cost of the textbook network
    (Nielsen, "Neural Networks and Deep Learning", equation 6). Its derivative by the output is
    (output - target) / n. ``MSELoss`` divides by the number of elements and has no factor 1/2.
    """

    def forward(self, input: Tensor, target: Any) -> Tensor:
        """The cost.

        Parameters
        ----------
        input : (n, ...) output of the network.
        target : of the same shape; or (n,) class indices, which stand for rows with a single 1.
        """
        if isinstance(target, np.ndarray):
            target = Tensor(input.backend.asarray(target), input.backend)
        if target.dtype.kind in "iu" and input.ndim == 2 and target.ndim == 1:
            target = one_hot(target, input.shape[1], input.dtype)
        total = F.mse_loss(input, target, reduction="sum")
        return total * (0.5 / max(1, input.shape[0] if input.shape else 1))


def one_hot(target: Tensor, classes: int, dtype: Any) -> Tensor:
    """(n,) class indices as (n, classes) rows with a single 1, all 0 for an index out of range."""
    kernels = target.backend
    column = kernels.reshape(target.array, (target.size, 1))
    hit = kernels.equal(column, kernels.arange(0, classes, 1, target.dtype))
    return Tensor(kernels.astype(hit, dtype), kernels)
