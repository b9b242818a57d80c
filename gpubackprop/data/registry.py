"""The datasets that a recipe can name, and ``load``, which reads and prepares one."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop import suggest
from gpubackprop.data import image_kinds, kinds, text_kinds
from gpubackprop.data.dataset import ArrayDataset
from gpubackprop.data.prepare import SCALES, Scaling, fit_scaling, one_hot
from gpubackprop.data.raw import Folder, Raw, Stored
from gpubackprop.errors import ConfigError, DataError

DTYPES = ("float32", "float64")
"""What ``load`` can make of inputs."""

LAZY_BYTES = 1 << 31
"""Inputs that take more bytes than this when scaled (2 GiB) are scaled batch by batch instead."""


@dataclass(frozen=True, eq=False)
class DataSplit:
    """A dataset that is ready for training.

    Parameters
    ----------
    train, test : ArrayDataset
        Parts ``"input"`` (floating, scaled; for texts int64 numbers of characters) and ``"target"``
        (int64 class numbers, one-hot rows or floating numbers).
    classes : int or None
        Number of classes; None for a regression. For texts, of characters.
    input_shape : tuple of int
        Shape of one input.
    class_names : tuple of str or None
        ``class_names[k]`` names class ``k``. For texts, the vocabulary.
    source : str
        Where the data came from, in words.
    scaling : Scaling
        The map from raw inputs to the inputs here, found from the training part only. New inputs
        must go through it before the trained network sees them.
    columns : tuple of str or None
        Names of the numbers of an input, where a table has a header.
    """

    train: ArrayDataset
    test: ArrayDataset
    classes: int | None
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...] | None
    source: str
    scaling: Scaling
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DatasetKind:
    """A row of ``DATASETS``.

    Parameters
    ----------
    name : str
        What a recipe calls it.
    summary : str
        What it is, in one line.
    loader : callable
        Reads it; its keyword arguments are the options of this kind.
    input_shape : tuple of int or None
        Shape of one raw input, or None where the file decides.
    classes : int or None
        Number of classes, or None where the file or an option decides.
    scale : str
        The scaling that is used unless the option says otherwise.
    tokens : bool
        Whether an input is a sequence of class numbers, and a target the class at each place.
    """

    name: str
    summary: str
    loader: Callable[..., Raw]
    input_shape: tuple[int, ...] | None
    classes: int | None
    scale: str
    tokens: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Every option with its default: those of this kind, then those that all kinds share."""
        own = {
            name: parameter.default
            for name, parameter in inspect.signature(self.loader).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        if self.tokens:
            return own | {"dtype": "float32"}
        return own | {
            "flatten": False,
            "channel_axis": False,
            "scale": self.scale,
            "one_hot": False,
            "dtype": "float32",
        }


DATASETS: dict[str, DatasetKind] = {
    row.name: row
    for row in (
        DatasetKind(
            "digits", "1,797 digits of 8x8 pixels, in the package", kinds.digits, (8, 8), 10, "unit"
        ),
        DatasetKind("mnist", "70,000 digits of 28x28 pixels", kinds.mnist, (28, 28), 10, "unit"),
        DatasetKind(
            "fashion-mnist",
            "70,000 pieces of clothing of 28x28 pixels",
            kinds.fashion_mnist,
            (28, 28),
            10,
            "unit",
        ),
        DatasetKind(
            "cifar10",
            "60,000 photographs of 32x32 pixels, ten classes",
            image_kinds.cifar10,
            (32, 32, 3),
            10,
            "unit",
        ),
        DatasetKind(
            "image-folder",
            "pictures, in one folder for each class",
            image_kinds.image_folder,
            None,
            None,
            "unit",
        ),
        DatasetKind(
            "text", "the characters of a text", text_kinds.text, None, None, "none", tokens=True
        ),
        DatasetKind(
            "tinyshakespeare",
            "1,115,394 characters of Shakespeare's plays",
            text_kinds.tinyshakespeare,
            None,
            None,
            "none",
            tokens=True,
        ),
        DatasetKind("npz", "arrays of an NPZ file", kinds.npz, None, None, "none"),
        DatasetKind("csv", "a table of a CSV file", kinds.csv, None, None, "none"),
        DatasetKind("two-moons", "two half circles", kinds.moons, (2,), 2, "none"),
        DatasetKind("spirals", "spiral arms", kinds.spiral_arms, (2,), None, "none"),
        DatasetKind("blobs", "round clouds of points", kinds.clouds, (2,), None, "none"),
    )
}
"""Every dataset by name."""

_SHARED_TYPES = {
    "flatten": bool,
    "channel_axis": bool,
    "scale": str,
    "one_hot": bool,
    "dtype": str,
}

_TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "left out",
}


def load(name: str, data_dir: Folder = None, **options: Any) -> DataSplit:
    """Read a dataset and prepare it for training.

    Parameters
    ----------
    name : str
        A key of ``DATASETS``: ``"digits"``, ``"mnist"``, ``"fashion-mnist"``, ``"cifar10"``,
        ``"image-folder"``, ``"text"``, ``"tinyshakespeare"``, ``"npz"``, ``"csv"``,
        ``"two-moons"``, ``"spirals"``, ``"blobs"``.
    data_dir : str or path-like, optional
        The folder of the files. For published sets without it, the files are downloaded into the
        user's cache, once. A relative ``path`` (of ``npz``, ``csv``, ``text`` and
        ``image-folder``) is looked up in it.
    **options
        ``flatten``: whether each input becomes one row of numbers (default False).
        ``channel_axis``: whether grey pictures of shape (height, width) become (height, width, 1),
        as convolutions need them (default False).
        ``scale``: ``"none"``, ``"unit"``, ``"standard"``, ``"standard-global"`` or
        ``"standard-channel"``; see ``fit_scaling`` (default ``"unit"`` for images, ``"none"``
        otherwise). Statistics come from the training part only.
        ``one_hot``: whether class numbers become rows of 0 and 1 (default False).
        ``dtype``: ``"float32"`` (default) or ``"float64"``.
        Further options depend on the kind: ``DATASETS[name].options`` lists them with defaults.

    Returns
    -------
    DataSplit
        Training and test part.

    Raises
    ------
    ConfigError
        No such dataset or option, or a wrong value of one.
    DataError
        The files are missing, damaged or do not hold what they should.

    Examples
    --------
    >>> data = load("digits", flatten=True)
    >>> data.input_shape, data.classes, len(data.train), len(data.test)
    ((64,), 10, 1438, 359)
    """
    kind = DATASETS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigError(suggest.unknown("dataset", name, DATASETS))
    _check(kind, options)
    values = kind.options | options
    shared = {key: values.pop(key) for key in _SHARED_TYPES if key in values}
    raw = kind.loader(data_dir, **values)
    return _windows(raw) if kind.tokens else _prepared(raw, **shared)


def _windows(raw: Raw) -> DataSplit:
    """Return sequences of class numbers as they are: there is nothing to scale."""
    return DataSplit(
        train=ArrayDataset(*raw.train),
        test=ArrayDataset(*raw.test),
        classes=raw.classes,
        input_shape=tuple(raw.train[0].shape[1:]),
        class_names=raw.class_names,
        source=raw.source,
        scaling=Scaling(np.zeros(()), np.ones(()), np.dtype(np.int64)),
    )


def _prepared(
    raw: Raw, flatten: bool, channel_axis: bool, scale: str, one_hot: bool, dtype: str
) -> DataSplit:
    (x_train, y_train), (x_test, y_test) = raw.train, raw.test
    if flatten and channel_axis:
        raise ConfigError("flatten and channel_axis do not go together: a row has no channels")
    if channel_axis and len(x_train.shape) != 3:
        raise ConfigError(
            "channel_axis needs grey pictures of shape (height, width), but the samples have shape "
            f"{tuple(x_train.shape[1:])}"
        )
    shape = tuple(x_train.shape[1:])
    if flatten:
        shape = (math.prod(shape),)
    elif channel_axis:
        shape = (*shape, 1)
    x_train, x_test = (
        x if isinstance(x, Stored) else x.reshape(-1, *shape) for x in (x_train, x_test)
    )
    if flatten and isinstance(x_train, Stored):
        raise ConfigError(
            "flatten needs inputs that fit in memory; put a layer of kind 'flatten' before the "
            "others instead"
        )
    if scale == "standard-channel" and len(shape) == 2:
        raise ConfigError(
            "scale 'standard-channel' needs pictures with an axis of channels, but the samples "
            f"have shape {shape}; set channel_axis = true, or take 'standard-global'"
        )
    scaling = fit_scaling(scale, x_train, levels=raw.levels, dtype=dtype)
    parts = []
    for inputs, targets in ((x_train, y_train), (x_test, y_test)):
        coded = _coded(targets, raw.classes, one_hot, dtype)
        if isinstance(inputs, Stored):
            # What is kept is the number of each sample.
            part = ArrayDataset(np.arange(len(inputs)), coded).map(inputs.read, lazy=True)
            parts.append(part.map(scaling, lazy=True))
            continue
        lazy = inputs.size * scaling.dtype.itemsize > LAZY_BYTES
        parts.append(ArrayDataset(inputs, coded).map(scaling, lazy=lazy))
        if not lazy and inputs.dtype.kind == "f":
            _check_finite(f"inputs of {raw.source}", parts[-1].array("input"), dtype)
    return DataSplit(
        train=parts[0],
        test=parts[1],
        classes=raw.classes,
        input_shape=shape,
        class_names=raw.class_names,
        source=raw.source,
        scaling=scaling,
        columns=raw.columns,
    )


def _coded(targets: Any, classes: int | None, as_one_hot: bool, dtype: str) -> Any:
    if classes is None:
        if as_one_hot:
            raise ConfigError("one_hot needs classes, but the targets are numbers to predict")
        with np.errstate(over="ignore"):
            numbers = targets.astype(dtype)
        _check_finite("targets", numbers, dtype)
        return numbers
    return one_hot(targets, classes, dtype) if as_one_hot else targets.astype(np.int64)


def _check_finite(what: str, values: Any, dtype: str) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{what} hold a value that is too large for {dtype}; scale or drop it")


def _check(kind: DatasetKind, options: dict[str, Any]) -> None:
    allowed = kind.options
    hints = typing.get_type_hints(kind.loader) | _SHARED_TYPES
    for key, value in options.items():
        if key not in allowed:
            raise ConfigError(suggest.unknown(f"option of dataset {kind.name!r}", key, allowed))
        hint = hints[key]
        accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if not any(_fits(value, one) for one in accepted):
            words = " or ".join(_TYPE_WORDS[one] for one in accepted)
            raise ConfigError(
                f"option {key!r} of dataset {kind.name!r} must be {words}, got {value!r}"
            )
    for key, values in (("scale", SCALES), ("dtype", DTYPES)):
        if key in options and options[key] not in values:
            raise ConfigError(suggest.unknown(f"value of option {key!r}", options[key], values))


def _fits(value: Any, accepted: type) -> bool:
    if isinstance(value, bool) or accepted is bool:
        return isinstance(value, bool) and accepted is bool
    if accepted is float:
        return isinstance(value, (int, float))
    return isinstance(value, accepted)
