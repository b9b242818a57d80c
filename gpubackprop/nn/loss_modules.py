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
from gpubackprop.nn.functions.arguments import as_operand
from gpubackprop.nn.module import Module
from gpubackprop.suggest import unknown


class Loss(Module):
    """Base of the costs: ``loss(input, target)``."""

    function: ClassVar[Callable[..., Tensor]]
    defaults: ClassVar[dict[str, Any]]
    reductions: ClassVar[tuple[str, ...]]

    def __init__(self, *args: Any, **options: Any) -> None:
        given = inspect.signature(type(self)).bind(*args, **options).arguments
        for name, value in {**self.defaults, **given}.items():
            if name == "reduction" and value not in self.reductions:
                raise ConfigError(f"{type(self).__name__}: {unknown(name, value, self.reductions)}")
            if isinstance(value, (Tensor, np.ndarray, list, tuple)):
                self.register_buffer(name, value)  # weights move with the module
            else:
                setattr(self, name, value)

    def forward(self, input: Tensor, target: Any) -> Tensor:
        """The cost: a single element, or one per sample with ``reduction="none"``."""
        return type(self).function(input, target, **{n: getattr(self, n) for n in self.defaults})

    def extra_repr(self) -> str:
        shown = ((n, getattr(self, n)) for n in self.defaults)
        return ", ".join(f"{n}={v!r}" for n, v in shown if v is not self.defaults[n])


def _loss(name: str, function: Callable[..., Tensor], *more_reductions: str) -> type[Loss]:
    """A row of the table: the class of a cost function whose first two arguments are tensors."""
    parameters = list(inspect.signature(function).parameters.values())[2:]
    words = inspect.cleandoc(function.__doc__ or "")
    cls = type(
        name,
        (Loss,),
        {
            "__doc__": f"``nn.functional.{function.__name__}`` as a module: the options are given "
            f"to the class, input and target to the call.\n\n{words}",
            "__module__": __name__,
            "function": staticmethod(function),
            "defaults": {p.name: p.default for p in parameters},
            "reductions": ("mean", "sum", "none", *more_reductions),
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
KLDivLoss = _loss("KLDivLoss", F.kl_div, "batchmean")


class QuadraticCost(Module):
    """Half the squared distance between output and target, averaged over the samples.

    C = 1/(2n) * sum over the n samples of |target - output|**2: the cost of the textbook network
    (Nielsen, "Neural Networks and Deep Learning", equation 6). Its derivative by the output is
    (output - target) / n.
    """

    def forward(self, input: Tensor, target: Any) -> Tensor:
        """The cost.

        Parameters
        ----------
        input : (n, ...) output of the network.
        target : of the same shape; or (n,) class indices beside an input (n, classes), which stand
            for rows with a single 1.
        """
        target = as_operand("quadratic_cost", "target", target, input)
        if target.dtype.kind in "iu" and target.ndim == 1 and input.ndim == 2:
            target = F.one_hot(target, input.shape[1])
        return F.quadratic_cost(input, target)
