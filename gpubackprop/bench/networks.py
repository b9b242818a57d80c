"""Training steps of recipes on made-up data: what is timed is the step that ``train`` takes."""

from __future__ import annotations

import gc
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpubackprop import recipes
from gpubackprop.autograd.shortage import holdings
from gpubackprop.backends import Backend
from gpubackprop.bench.measure import AbsentError
from gpubackprop.data import ArrayDataset, DataSplit, Scaling, one_hot
from gpubackprop.recipes import Recipe
from gpubackprop.recipes.build import target_form
from gpubackprop.recipes.costs import ROW
from gpubackprop.recipes.schema import Choice

BATCHES = 4

SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "two-moons": ((2,), 2),
    "digits": ((8, 8), 10),
    "mnist": ((28, 28), 10),
    "fashion-mnist": ((28, 28), 10),
    "cifar10": ((32, 32, 3), 10),
    "image-folder": ((0, 0, 3), 10),
    "tinyshakespeare": ((0,), 65),
}
"""Shape of one input as its file has it, and the number of classes or characters, of the data that
can be made up; a 0 is an option of the recipe."""


@dataclass(frozen=True)
class Made:
    """A recipe with made-up data.

    Attributes
    ----------
    recipe : its recipe.
    shape, classes : of one input, and how many classes or characters.
    batches : inputs and class numbers, channels last.
    """

    recipe: Recipe
    shape: tuple[int, ...]
    classes: int
    batches: list[tuple[np.ndarray, np.ndarray]]

    @property
    def samples(self) -> int:
        """Samples of a batch."""
        return len(self.batches[0][0])


def make(name: str) -> Made:
    """A recipe with batches of random numbers in the shapes of its data.

    Raises
    ------
    AbsentError
        Its data cannot be made up.
    """
    recipe = recipes.load(name)
    options = recipe.data.options
    if recipe.data.name not in SHAPES:
        raise AbsentError(f"no numbers can be made up in place of the data {recipe.data.name!r}")
    shape, classes = SHAPES[recipe.data.name]
    if recipe.data.name == "tinyshakespeare":
        shape = (int(options["context"]),)
    elif recipe.data.name == "image-folder":
        shape = (int(options["size"]),) * 2 + (3,)
    if options.get("channel_axis") and len(shape) == 2:
        shape = (*shape, 1)
    if options.get("flatten"):
        shape = (math.prod(shape),)
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(BATCHES):
        n = recipe.train.batch_size
        if recipe.data.name == "tinyshakespeare":
            text = rng.integers(0, classes, (n, shape[0] + 1))
            batches.append((text[:, :-1].copy(), text[:, 1:].copy()))
        else:
            x = rng.standard_normal((n, *shape)).astype(recipe.train.dtype)
            batches.append((x, rng.integers(0, classes, n)))
    return Made(recipe, shape, classes, batches)


def initial(made: Made) -> list[np.ndarray]:
    """The recipe's initial values of its parameters, in order, in its precision."""
    model = recipes.build_model(made.recipe, made.shape, made.classes)
    return [p.numpy().copy() for p in model.parameters()]


def first(made: Made, samples: int) -> Made:
    """The same with that many samples of each batch."""
    return replace(made, batches=[(x[:samples], t[:samples]) for x, t in made.batches])


def comparable(made: Made, dtype: str | None = None) -> Made:
    """The same without dropout, whose random numbers differ from library to library; `dtype` is the
    precision, where it is to be another."""
    recipe = still(made.recipe, dtype)
    kind = recipe.train.dtype
    batches = [(x.astype(kind) if x.dtype.kind == "f" else x, t) for x, t in made.batches]
    return replace(made, recipe=recipe, batches=batches)


def still(recipe: Recipe, dtype: str | None = None) -> Recipe:
    """A recipe with every probability of dropout at zero, in another precision where one is
    given."""

    def without(layer: Choice) -> Choice:
        zero = {k: 0.0 for k in ("p", "dropout") if k in layer.options}
        return replace(layer, options={**layer.options, **zero})

    train = replace(recipe.train, dtype=dtype or recipe.train.dtype)
    return replace(recipe, layers=tuple(map(without, recipe.layers)), train=train)


def split(made: Made) -> DataSplit:
    """The made-up data in the form that a recipe's data have."""
    inputs, targets = (np.concatenate(parts) for parts in zip(*made.batches, strict=True))
    if target_form(made.recipe, made.classes) == ROW:
        targets = one_hot(targets, made.classes, made.recipe.train.dtype)
    part = ArrayDataset(inputs, targets)
    scaling = Scaling(np.zeros(()), np.ones(()), np.dtype(made.recipe.train.dtype))
    return DataSplit(part, part, made.classes, made.shape, None, "made-up numbers", scaling)


def step(made: Made, backend: Backend, compiled: bool = True) -> Callable[[], Any]:
    """A training step of a recipe, over the batches in turn: copy to the device, forward, backward,
    clipping, update, and the cost read back."""
    # Augmentation and a validation share are the loader's; what is left is what the device does.
    recipe = replace(made.recipe, train=replace(made.recipe.train, validation=0.0), augment=None)
    job = recipes.build(recipe, device=backend, data=split(replace(made, recipe=recipe)))
    trainer = recipes.make_trainer(job, compile=compiled)
    job.model.train()
    batches = list(job.loader.batches(0))
    turns = itertools.cycle(batches)

    def run() -> float:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # a step that cannot be compiled
            return trainer.update(next(turns))

    return run


def memory(made: Made, backend: Backend) -> dict[str, Any]:
    """What a step operation by operation needs, from nothing.

    Returns
    -------
    dict
        ``peak``: the most bytes in use during the second step, above what was in use before the
        network was made; ``held``: what is in use between steps, by what holds it; ``source``.
    """
    gc.collect()
    with backend.memory_meter() as meter:
        start, _ = meter.read()
        before = holdings(backend)
        run = step(made, backend, compiled=False)
        run()
        meter.read()
        run()
        _, most = meter.read()
        held = {k: n - before.get(k, 0) for k, n in holdings(backend).items()}
        source = meter.source
    return {
        "peak": most - start,
        "held": {k: n for k, n in held.items() if n > 0},
        "source": source,
    }
