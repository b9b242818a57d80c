"""Runs in folders: what must stay the same when one goes on, and reading one back."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import nn, recipes
from gpubackprop.data import DATASETS, ArrayDataset, DataSplit, Scaling
from gpubackprop.errors import CheckpointError, ConfigError, DataError
from gpubackprop.recipes import Recipe
from gpubackprop.training.checkpoint import MANIFEST, Checkpoint, CheckpointFolder
from gpubackprop.training.state import ATTACHED, BEST, MODEL, group_tensors

SAMPLED = 512
"""Samples of each part of the data that the fingerprint looks at."""


@dataclass(frozen=True, eq=False)
class Run:
    """A trained network, read back from a folder.

    Attributes
    ----------
    path : the folder.
    recipe : what it was trained by.
    model : the network with its best weights where the run kept them, else the last.
    scaling : from raw inputs to those of the network.
    input_shape : of one input.
    classes, class_names : None for a regression.
    data_dir : the folder of the data that the run was given.
    step : updates done.
    columns : names of the numbers of an input, where it was trained on a table with a header.
    """

    path: Path
    recipe: Recipe
    model: nn.Sequential
    scaling: Scaling
    input_shape: tuple[int, ...]
    classes: int | None
    class_names: tuple[str, ...] | None
    data_dir: str | None
    step: int
    columns: tuple[str, ...] | None = None


def settings(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe must be the same when its run is resumed."""
    tables = recipe.as_dict()
    del tables["summary"]
    for key in ("epochs", "checkpoint_steps"):
        tables["train"].pop(key, None)
    return tables


def fingerprint(data: DataSplit) -> dict[str, Any]:
    """Sizes and a checksum of evenly spaced samples, to tell whether two data sets are the same."""
    return {
        "train": _checksum(data.train),
        "test": _checksum(data.test),
        "input_shape": list(data.input_shape),
        "classes": data.classes,
    }


def _checksum(part: ArrayDataset) -> str:
    count = len(part)
    chosen = np.unique(np.linspace(0, max(count - 1, 0), min(SAMPLED, count)).astype(np.int64))
    code = 0
    for array in part[chosen]:
        code = zlib.crc32(np.ascontiguousarray(array).tobytes(), code)
    return f"{count} samples, {code:08x}"


def load_run(given: str, device: Any) -> Run:
    """Read a run.

    Parameters
    ----------
    given : its folder, or the checkpoint file in it.
    device : where the network goes.

    Raises
    ------
    CheckpointError
        There is no run, or it is damaged.
    """
    path = Path(given)
    if path.name == MANIFEST and not path.is_dir():
        path = path.parent
    folder = CheckpointFolder(path)
    if not folder.exists():
        raise CheckpointError(f"{given}: there is no run in this folder (no {MANIFEST})")
    checkpoint = folder.read()
    try:
        return _rebuild(path, checkpoint, device)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{folder.manifest}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise CheckpointError(f"{folder.manifest}: it does not describe a network") from None


def _rebuild(path: Path, checkpoint: Checkpoint, device: Any) -> Run:
    info: Mapping[str, Any] = checkpoint.meta["info"]
    recipe = recipes.parse(info["recipe"], str(info["name"]), MANIFEST)
    shape = tuple(int(n) for n in info["input_shape"])
    # The product bounds what the first layer may allocate for.
    if any(n < 1 for n in shape) or math.prod(shape) > 1 << 28:
        raise CheckpointError(f"it names an impossible input shape {list(shape)}")
    classes = None if info["classes"] is None else int(info["classes"])
    names = None if info["class_names"] is None else tuple(str(n) for n in info["class_names"])
    if names is not None and len(names) != classes:
        raise CheckpointError(f"it has {len(names)} names for {classes} classes")
    groups = group_tensors(checkpoint)
    model = recipes.build_model(recipe, shape, classes, device)
    model.load_state_dict(groups[BEST] or groups[MODEL])
    attached = groups[ATTACHED]
    scaling = Scaling(attached["offset"], attached["scale"], np.dtype(recipe.train.dtype))
    for array in (scaling.offset, scaling.scale):
        if array.shape not in ((), shape, shape[-1:]) or array.dtype != np.float64:
            raise CheckpointError("the scaling of the inputs does not fit their shape")
    data_dir = info.get("data_dir")
    columns = info.get("columns")  # runs of before had none
    return Run(
        path=path,
        recipe=recipe,
        model=model.eval(),
        scaling=scaling,
        input_shape=shape,
        classes=classes,
        class_names=names,
        data_dir=data_dir if isinstance(data_dir, str) else None,
        step=int(checkpoint.meta["progress"]["step"]),
        columns=None if columns is None else tuple(str(name) for name in columns),
    )


def load_its_data(run: Run, data_dir: str | None) -> DataSplit:
    """The data of a run's recipe.

    Parameters
    ----------
    run : the run.
    data_dir : their folder; None for the one that the run was given.

    Raises
    ------
    ConfigError
        They are not of the kind that the network was trained on.
    DataError
        They cannot be read.
    """
    try:
        data = recipes.load_data(run.recipe, data_dir or run.data_dir)
    except DataError as error:
        if data_dir:
            raise
        # The run may have been started in another folder, from where its paths led elsewhere.
        raise DataError(f"{error}; --data-dir names the folder of the data of {run.path}") from None
    check_data(run, data)
    return data


def check_data(run: Run, data: DataSplit) -> None:
    """Raise ConfigError where data are not of the kind that a run's network was trained on."""
    name = run.recipe.data.name
    if data.input_shape != run.input_shape:
        raise ConfigError(
            f"the data {name!r} have inputs of shape {list(data.input_shape)}, the network takes "
            f"{list(run.input_shape)}"
        )
    if data.classes != run.classes or data.class_names != run.class_names:
        what = "characters" if DATASETS[name].tokens else "classes"
        raise ConfigError(
            f"the data {name!r} from {data.source} have other {what} than those that the network "
            f"in {run.path} was trained on; give the folder of those with --data-dir"
        )


def fit_inputs(run: Run, inputs: np.ndarray[Any, Any], source: str) -> np.ndarray[Any, Any]:
    """Raw inputs in the shape and scale of the network.

    Raises
    ------
    DataError
        They do not fit the network.
    """
    if inputs.ndim == 1 and run.input_shape == (1,):
        inputs = inputs[:, None]
    shape = inputs.shape[1:]
    flat = len(run.input_shape) == 1 and inputs.ndim > 1
    if flat and math.prod(shape) == run.input_shape[0]:
        inputs = inputs.reshape(len(inputs), math.prod(shape))
    elif (*shape, 1) == run.input_shape:  # grey pictures, where the network takes channels
        inputs = inputs[..., None]
    if inputs.dtype.kind not in "biuf" or inputs.shape[1:] != run.input_shape:
        raise DataError(
            f"{source} holds samples of shape {list(shape)} ({inputs.dtype}), but the network in "
            f"{run.path} takes numbers of shape {list(run.input_shape)}"
        )
    scaled = run.scaling(inputs)
    if not np.isfinite(scaled).all():
        raise DataError(f"{source} holds a value that is not a finite number")
    return scaled
