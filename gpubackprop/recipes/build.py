"""From a recipe to the objects of a run: data, network, cost, optimizer, schedule, loaders."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpubackprop import nn
from gpubackprop.autograd import Tensor
from gpubackprop.backends import get_backend
from gpubackprop.backends.random import Generator, using
from gpubackprop.data import (
    DATASETS,
    Augment,
    DataLoader,
    Dataset,
    DataSplit,
    Subset,
    load,
    one_hot,
    split_indices,
)
from gpubackprop.errors import ConfigError
from gpubackprop.optim import Optimizer
from gpubackprop.optim.schedules import Schedule
from gpubackprop.recipes.costs import CLASS, LOSSES, NUMBERS, ROW
from gpubackprop.recipes.layers import LAYERS, Shape
from gpubackprop.recipes.options import Place
from gpubackprop.recipes.schema import Choice, Recipe
from gpubackprop.recipes.updates import make_optimizer, make_schedule

MAX_PARAMETERS = 1 << 28
"""The most numbers that a network may learn (268 million): 4 GiB with what Adam needs."""

MAX_NUMBERS = 1 << 31
"""The most numbers in one array of a run: 8 GiB in float32."""

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """What a network will be, counted before anything is allocated.

    Attributes
    ----------
    shapes : shape of one input of each layer, and of one result of the last.
    parameters : how many numbers it learns.
    """

    shapes: tuple[Shape, ...]
    parameters: int


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that a run needs.

    Attributes
    ----------
    recipe : what it was made from.
    data : the data, with targets in the form that the cost wants.
    model, loss, optimizer, schedule : the network on its device and what trains it.
    loader : training batches, shuffled by the recipe's seed.
    validation : batches to watch: a share of the training part, or the test part.
    test : batches of the held-out part.
    """

    recipe: Recipe
    data: DataSplit
    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    loader: DataLoader
    validation: DataLoader
    test: DataLoader


def plan_model(recipe: Recipe, input_shape: Shape, classes: int | None = None) -> Plan:
    """Follow the shapes through the layers and count the parameters.

    Parameters
    ----------
    recipe : describes the layers.
    input_shape : shape of one input.
    classes : number of classes, where there are any; the last layer must have as many outputs.

    Raises
    ------
    ConfigError
        A layer does not fit what comes before it, the network is too large, or its outputs are
        not as many as the classes.
    """
    shapes = [tuple(input_shape)]
    total = 0
    for number, layer in enumerate(recipe.layers):
        place = Place(recipe.source, f"[[model.layers]] {number} ({layer.name})")
        row = LAYERS[layer.name]
        try:
            shapes.append(row.shape(shapes[-1], options_of(layer, classes)))
        except ValueError as error:
            raise place.error(str(error)) from None
        total += row.parameters(shapes[-2], options_of(layer, classes))
        if total > MAX_PARAMETERS:
            raise place.error(
                f"up to this layer the network has {total:,} parameters; at most "
                f"{MAX_PARAMETERS:,} are allowed"
            )
    outputs = shapes[-1]
    tokens = DATASETS[recipe.data.name].tokens
    if tokens and outputs != (*shapes[0], classes):
        raise recipe.place("model").error(
            f"the last layer gives {list(outputs)} outputs, but a text needs one for each of "
            f"{classes} characters at each of {shapes[0][0]} places; 'gpt' and 'recurrent-lm' give "
            "that"
        )
    if classes is not None and not tokens and outputs != (classes,):
        raise recipe.place("model").error(
            f"the last layer gives {list(outputs)} outputs, but the data have {classes} classes; "
            "a last layer of kind 'linear' with units = \"classes\" gives one for each"
        )
    return Plan(tuple(shapes), total)


def options_of(layer: Choice, classes: int | None) -> dict[str, Any]:
    """What the functions of a layer's row are given."""
    return {**layer.options, "classes": classes}


def build_model(
    recipe: Recipe, input_shape: Shape, classes: int | None = None, device: Any = "cpu"
) -> nn.Sequential:
    """The network of a recipe with its initial values, which are a function of the recipe's seed.

    Parameters
    ----------
    recipe, input_shape, classes : see :func:`plan_model`.
    device : where its parameters go. They are drawn on the CPU: the same on every device.
    """
    plan = plan_model(recipe, input_shape, classes)
    # A child of the seed's generator, since the order of epoch 0 uses the first words of the seed.
    with using(Generator(recipe.train.seed).split()):
        layers = [
            LAYERS[layer.name].build(shape, options_of(layer, classes))
            for layer, shape in zip(recipe.layers, plan.shapes, strict=False)
        ]
    return nn.Sequential(*layers).to(device, dtype=recipe.train.dtype)


def load_data(recipe: Recipe, data_dir: str | os.PathLike[str] | None = None) -> DataSplit:
    """Read the data of a recipe, with targets in the form that its cost wants.

    Raises
    ------
    ConfigError
        An option of the data has a wrong value, or the cost does not go with the data.
    DataError
        The files are missing or damaged.
    """
    place = recipe.place("data")
    try:
        data = load(recipe.data.name, data_dir, dtype=recipe.train.dtype, **recipe.data.options)
    except ConfigError as error:
        raise place.error(str(error)) from None
    form = target_form(recipe, data.classes)
    if form != CLASS and DATASETS[recipe.data.name].tokens:
        raise recipe.place("loss").error(
            f"{recipe.loss.name} cannot compare sequences of characters; take cross-entropy"
        )
    if form == CLASS:
        return data
    if form == ROW:
        assert data.classes is not None
        if (len(data.train) + len(data.test)) * data.classes > MAX_NUMBERS:
            raise recipe.place("loss").error(
                f"{recipe.loss.name} needs a row of {data.classes:,} numbers for each sample, "
                "which is too much to hold; cross-entropy does not"
            )
        coded: Callable[[Any], Any] = functools.partial(
            one_hot, classes=data.classes, dtype=recipe.train.dtype
        )
    else:
        coded = _rows
    return replace(data, train=data.train.map(coded, "target"), test=data.test.map(coded, "target"))


def target_form(recipe: Recipe, classes: int | None) -> str:
    """What the cost compares with: ``"class"``, ``"one-hot"`` or ``"numbers"``.

    Raises
    ------
    ConfigError
        The cost does not go with the data.
    """
    cost = LOSSES[recipe.loss.name]
    for form in cost.targets:
        if (form == NUMBERS) is (classes is None):
            return form
    wants = "numbers to predict" if classes is not None else "classes"
    others = [c.name for c in LOSSES.values() if (NUMBERS in c.targets) or classes is not None]
    raise recipe.place("loss").error(
        f"{cost.name} needs {wants}, which the data {recipe.data.name!r} do not have; "
        f"allowed with them: {', '.join(others)}"
    )


def build(
    recipe: Recipe,
    *,
    device: Any = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    data: DataSplit | None = None,
) -> Job:
    """Make everything that a run of the recipe needs.

    Parameters
    ----------
    recipe : the description.
    device : a device name or a backend.
    data_dir : the folder of the data's files.
    data : what :func:`load_data` gave for this recipe, to use it again.

    Raises
    ------
    ConfigError, DataError, DeviceError
        See :func:`load_data`, :func:`plan_model` and ``get_backend``.
    """
    backend = get_backend(device)
    data = load_data(recipe, data_dir) if data is None else data
    train = recipe.train
    _check_numbers(recipe, data)
    _check_batch(recipe, data)
    model = build_model(recipe, data.input_shape, data.classes, backend)
    if not any(True for _ in model.parameters()):
        raise recipe.place("model").error("no layer has parameters to train; add a linear layer")
    training, watched = _watch(recipe, data)
    augment = None if recipe.augment is None else Augment(**recipe.augment)
    if augment is not None:
        try:
            augment.check(data.input_shape)
        except ConfigError as error:
            raise recipe.place("augment").error(str(error)) from None
    loader = DataLoader(
        training,
        train.batch_size,
        shuffle=True,
        seed=train.seed,
        drop_last=train.drop_last,
        device=backend.device,
        augment=augment,
        steps_per_epoch=train.steps_per_epoch,
    )

    def in_order(part: Dataset) -> DataLoader:
        return DataLoader(part, train.eval_batch_size, device=backend.device)

    try:
        optimizer = make_optimizer(
            recipe.optimizer.name, recipe.optimizer.options, model.named_parameters()
        )
    except ConfigError as error:
        raise recipe.place("optimizer").error(str(error)) from None
    return Job(
        recipe=recipe,
        data=data,
        model=model,
        loss=build_loss(recipe),
        optimizer=optimizer,
        schedule=build_schedule(recipe, len(loader)),
        loader=loader,
        validation=in_order(watched),
        test=in_order(data.test),
    )


def build_loss(recipe: Recipe) -> Loss:
    """The cost of a recipe as a function of outputs and targets."""
    function = LOSSES[recipe.loss.name].function
    return functools.partial(function, **recipe.loss.options) if recipe.loss.options else function


def build_schedule(recipe: Recipe, per_epoch: int) -> Schedule:
    """The schedule of a recipe whose epochs have `per_epoch` steps."""
    return make_schedule(
        recipe.schedule.name, recipe.schedule.options, recipe.train.epochs, per_epoch
    )


def _watch(recipe: Recipe, data: DataSplit) -> tuple[Dataset, Dataset]:
    """The samples to train on and those to watch."""
    share = recipe.train.validation
    if not share:
        return data.train, data.test
    if DATASETS[recipe.data.name].tokens:
        return _watch_the_end(recipe, data.train, share, data.input_shape[0])
    labels = data.train.array("target") if data.classes is not None else None
    if labels is not None and labels.ndim > 1:
        labels = labels.argmax(axis=1)
    kept, watched = split_indices(
        len(data.train), (1.0 - share, share), seed=recipe.train.seed, stratify=labels
    )
    if not len(kept) or not len(watched):
        raise recipe.place("train").error(
            f"validation = {share:g} of {len(data.train)} samples leaves a part empty"
        )
    return Subset(data.train, kept), Subset(data.train, watched)


def _watch_the_end(
    recipe: Recipe, windows: Dataset, share: float, context: int
) -> tuple[Dataset, Dataset]:
    """The windows of a text to train on, and those of its end, which share no character with them
    and follow each other."""
    cut = round(len(windows) * (1.0 - share))
    if cut <= context or cut >= len(windows):
        raise recipe.place("train").error(
            f"validation = {share:g} of {len(windows):,} windows leaves a part empty"
        )
    kept, watched = np.arange(cut - context), np.arange(cut, len(windows), context)
    return Subset(windows, kept), Subset(windows, watched)


def _check_numbers(recipe: Recipe, data: DataSplit) -> None:
    """Numbers to predict must be as many as the outputs: they would be broadcast otherwise."""
    if data.classes is not None:
        return
    outputs = plan_model(recipe, data.input_shape).shapes[-1]
    wanted = data.train.array("target").shape[1]
    if outputs != (wanted,):
        raise recipe.place("model").error(
            f"the last layer gives {list(outputs)} outputs, but the data have {wanted} numbers to "
            "predict"
        )


def _check_batch(recipe: Recipe, data: DataSplit) -> None:
    """The results of a layer for one batch must not be more than a machine can hold."""
    widest = max(map(math.prod, plan_model(recipe, data.input_shape, data.classes).shapes))
    for key in ("batch_size", "eval_batch_size"):
        rows = min(getattr(recipe.train, key), max(len(data.train), len(data.test)))
        if rows * widest > MAX_NUMBERS:
            raise recipe.place("train").error(
                f"{key} = {rows:,} makes {rows * widest:,} numbers of the widest layer; at most "
                f"{MAX_NUMBERS:,} are allowed"
            )


def _rows(targets: Any) -> Any:
    """Numbers to predict with an axis of their own, as the network gives them."""
    return targets.reshape(len(targets), -1)
