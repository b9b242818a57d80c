"""The table of costs that a recipe can name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpubackprop.autograd import Tensor
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation
from gpubackprop.recipes.options import Option

CLASS, ROW, NUMBERS = "class", "one-hot", "numbers"


def at_each_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A cost of rows of classes as one of sequences of them, (N, T, classes) with targets (N, T):
    the mean over all places, but for those that the target says to ignore."""

    @functools.wraps(function)
    def cost(output: Tensor, target: Tensor, **options: Any) -> Tensor:
        if output.ndim > 2 and target.ndim == output.ndim - 1:
            output = output.reshape(-1, output.shape[-1])
            target = target.reshape(-1)
        return function(output, target, **options)

    return cost


@dataclass(frozen=True)
class Cost:
    """A row of the table.

    Attributes
    ----------
    name : what a recipe calls it.
    summary : one line.
    function : ``function(output, target, **options)``, a single element averaged over the batch;
        for class numbers also over the places of a sequence.
    targets : what it compares with: ``"class"`` (class numbers), ``"one-hot"`` (rows, where the
        data has classes) or ``"numbers"``; several where it takes more than one.
    scores : what turns outputs into what ``predict`` writes: ``"softmax"``, ``"sigmoid"``,
        ``"exp"``, or ``"outputs"`` for the outputs as they are.
    options : what may be set.
    """

    name: str
    summary: str
    function: Callable[..., Tensor]
    targets: tuple[str, ...]
    scores: str
    options: Mapping[str, Option] = field(default_factory=dict)


LOSSES: dict[str, Cost] = {
    row.name: row
    for row in (
        Cost(
            "cross-entropy",
            "of the softmax of the outputs with the class",
            at_each_place(F.cross_entropy),
            (CLASS,),
            "softmax",
            {"label_smoothing": Option(float, 0.0, least=0.0, most=1.0)},
        ),
        Cost(
            "quadratic",
            "half the squared distance to the one-hot row, averaged over the batch",
            F.quadratic_cost,
            (ROW, NUMBERS),
            "outputs",
        ),
        Cost("mse", "mean squared error", F.mse_loss, (NUMBERS, ROW), "outputs"),
        Cost("l1", "mean absolute error", F.l1_loss, (NUMBERS, ROW), "outputs"),
        Cost(
            "huber",
            "squared error, linear beyond delta",
            F.huber_loss,
            (NUMBERS, ROW),
            "outputs",
            {"delta": Option(float, 1.0, above=0.0, most=1e6)},
        ),
        Cost(
            "binary-cross-entropy",
            "of the sigmoid of each output with the one-hot row",
            F.binary_cross_entropy_with_logits,
            (ROW, NUMBERS),
            "sigmoid",
        ),
        Cost(
            "nll",
            "negative log-likelihood of the class, for a network that ends in log-softmax",
            at_each_place(F.nll_loss),
            (CLASS,),
            "exp",
        ),
    )
}
"""Every cost by name."""
