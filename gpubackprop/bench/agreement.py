"""Whether a contender's network is the recipe's: its gradients beside this project's in float64 on
the CPU, from the same weights on the same batch, before anything is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gpubackprop import recipes
from gpubackprop.autograd import tensor
from gpubackprop.backends import Backend, get_backend
from gpubackprop.bench.measure import AbsentError
from gpubackprop.bench.networks import Made, comparable, first, initial
from gpubackprop.data import one_hot
from gpubackprop.recipes.build import build_loss, target_form
from gpubackprop.recipes.costs import ROW

TOLERANCE = 3e-2
"""Largest length of the difference of a parameter's gradient, as a share of the gradient's length.
Single precision leaves about 1e-6 of a shallow network. In a deep one a relu that rounding switches
takes a whole term with it: 6e-3 of ResNet-20. A layer that is another one leaves far more."""
SAMPLES = 16
"""Samples of the batch that is compared; the whole one would take a deep network seconds on the
CPU."""
SMALL = 1e-3
"""A parameter whose gradient is less than this share of the whole is judged by the whole: what the
next layer takes away again (such as a mean) has a gradient of zero but for rounding."""


@dataclass(frozen=True)
class Reference:
    """What a contender must find.

    Attributes
    ----------
    made : the recipe without dropout.
    weights : initial values of its parameters, in the recipe's precision.
    names, gradients : of the parameters, the gradients in float64.
    """

    made: Made
    weights: list[np.ndarray]
    names: list[str]
    gradients: list[np.ndarray]


def reference(made: Made) -> Reference:
    """A recipe's initial weights, and the gradients of its first batch without dropout."""
    still, exact = (first(comparable(made, dtype), SAMPLES) for dtype in (None, "float64"))
    model = recipes.build_model(made.recipe, made.shape, made.classes)
    return Reference(
        still,
        initial(made),
        [name for name, _ in model.named_parameters()],
        ours(exact, get_backend("cpu")),
    )


def ours(made: Made, backend: Backend) -> list[np.ndarray]:
    """This project's gradients of the first batch, operation by operation, on a device."""
    recipe = made.recipe
    model = recipes.build_model(recipe, made.shape, made.classes, backend.device)
    model.train()
    x, target = made.batches[0]
    if target_form(recipe, made.classes) == ROW:
        target = one_hot(target, made.classes, recipe.train.dtype)
    outputs = model(tensor(x, device=backend.device))
    build_loss(recipe)(outputs, tensor(target, device=backend.device)).backward()
    return [p.grad.numpy() for p in model.parameters() if p.grad is not None]


def check(wanted: Reference, gradients: Callable[[], Sequence[np.ndarray]]) -> float:
    """Compare a contender's gradients.

    Returns
    -------
    float
        The largest distance of a parameter's gradient, as a share of its length.

    Raises
    ------
    AbsentError
        It is beyond ``TOLERANCE``: what would be timed is another network.
    """
    whole = np.sqrt(sum(float((g * g).sum()) for g in wanted.gradients))
    worst, at = 0.0, ""
    for name, g, found in zip(wanted.names, wanted.gradients, gradients(), strict=True):
        if found.shape != g.shape:
            raise AbsentError(f"not timed: its gradient by {name} is {found.shape}, not {g.shape}")
        least = max(float(np.linalg.norm(g)), SMALL * whole)
        apart = float(np.linalg.norm(found.astype(np.float64) - g)) / least
        if not apart <= worst:  # a distance that is no number is the largest
            worst, at = apart, name
    if not worst <= TOLERANCE:
        raise AbsentError(
            f"not timed: its gradient by {at} is {worst:.2g} of its length from this project's in "
            "float64"
        )
    return worst
