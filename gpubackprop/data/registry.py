"""The datasets that a recipe can name, and ``load``, which reads and prepares one."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop import suggest
from gpubackprop.data import kinds
from gpubackprop.data.dataset import ArrayDataset
from gpubackprop.data.kinds import Folder, Raw
from gpubackprop.data.prepare import SCALES, Scaling, fit_scaling, one_hot
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
        Parts ``"input"`` (floating, scaled) and ``"target"`` (int64 class numbers, one-hot rows or
        floating numbers).
    classes : int or None
        Number of classes; None for a regression.
    input_shape : tuple of int
        Shape of one input.
    class_names : tuple of str or None
        ``class_names[k]`` names class ``k``.
    source : str
        Where the data came from, in words.
    scaling : Scaling
        The map from raw inputs to the inputs here, found from the training part only. New inputs
        must go through it before the trained network sees them.
    """

    train: ArrayDataset
    test: ArrayDataset
    classes: int | None
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...] | None
    source: str
    scaling: Scaling


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
    """

    name: str
    summary: str
    loader: Callable[..., Raw]
    input_shape: tuple[int, ...] | None
    classes: int | None
    scale: str

    @property
    def options(self) -> dict[str, Any]:
        """Every option with its default: those of this kind, then those that all kinds share."""
        own = {
            name: parameter.default
            for name, parameter in inspect.signature(self.loader).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        shared = {"flatten": False, "scale": self.scale, "one_hot": False, "dtype": "float32"}
        return own | shared


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
        DatasetKind("npz", "arrays of an NPZ file", kinds.npz, None, None, "none"),
        DatasetKind("csv", "a table of a CSV file", kinds.csv, None, None, "none"),
        DatasetKind("two-moons", "two half circles", kinds.moons, (2,), 2, "none"),
        DatasetKind("spirals", "spiral arms", kinds.spiral_arms, (2,), None, "none"),
        DatasetKind("blobs", "round clouds of points", kinds.clouds, (2,), None, "none"),
    )
}
"""Every dataset by name."""

_SHARED_TYPES = {"flatten": bool, "scale": str, "one_hot": bool, "dtype": str}

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
        A key of ``DATASETS``: ``"digits"``, ``"mnist"``, ``"fashion-mnist"``, ``"npz"``, ``"csv"``,
        ``"two-moons"``, ``"spirals"``, ``"blobs"``.
    data_dir : str or path-like, optional
        The folder of the files. For MNIST and Fashion-MNIST without it, the files are downloaded
        into the user's cache, once. A relative ``path`` of ``npz`` and ``csv`` is looked up in it.
    **options
        ``flatten``: whether each input becomes one row of numbers (default False).
        ``scale``: ``"none"``, ``"unit"``, ``"standard"`` or ``"standard-global"``; see
        ``fit_scaling`` (default ``"unit"`` for images, ``"none"`` otherwise). Statistics come from
        the training part only.
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
    shared = {key: values.pop(key) for key in _SHARED_TYPES}
    return _prepared(kind.loader(data_dir, **values), **shared)


def _prepared(raw: Raw, flatten: bool, scale: str, one_hot: bool, dtype: str) -> DataSplit:
    (x_train, y_train), (x_test, y_test) = raw.train, raw.test
    if flatten:
        x_train, x_test = (x.reshape(len(x), -1) for x in (x_train, x_test))
    scaling = fit_scaling(scale, x_train, levels=raw.levels, dtype=dtype)
    parts = []
    for inputs, targets in ((x_train, y_train), (x_test, y_test)):
        lazy = inputs.size * scaling.dtype.itemsize > LAZY_BYTES
        part = ArrayDataset(inputs, _coded(targets, raw.classes, one_hot, dtype))
        parts.append(part.map(scaling, lazy=lazy))
        if not lazy and inputs.dtype.kind == "f":
            _check_finite(f"inputs of {raw.source}", parts[-1].array("input"), dtype)
    return DataSplit(
        train=parts[0],
        test=parts[1],
        classes=raw.classes,
        input_shape=tuple(x_train.shape[1:]),
        class_names=raw.class_names,
        source=raw.source,
        scaling=scaling,
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
