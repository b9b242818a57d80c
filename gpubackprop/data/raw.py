"""A dataset as a reader gives it, before it is prepared, and what several kinds share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gpubackprop.data.dataset import split_indices
from gpubackprop.errors import ConfigError, DataError

Array = np.ndarray[Any, Any]
Folder = str | os.PathLike[str] | None


@runtime_checkable
class Stored(Protocol):
    """Samples that are not in memory: they are read when they are asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of values in all."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> Array:
        """Read neighbours."""
        ...

    def read(self, numbers: Array) -> Array:
        """Read the samples of these numbers, (n, ...)."""
        ...


@dataclass(frozen=True, eq=False)
class Raw:
    """A dataset as it was read, before scaling.

    Parameters
    ----------
    train, test : pair of numpy.ndarray
        Inputs, shape (samples, ...), and targets: int64 class numbers or floating numbers.
    classes : int or None
        Number of classes; None for a regression.
    class_names : tuple of str or None
        A name for each class.
    levels : float or None
        The largest value that the format of the inputs allows.
    source : str
        Where it came from, in words.
    columns : tuple of str or None
        Names of the numbers of an input, where a table has a header.

    Notes
    -----
    Inputs need not be arrays: something with ``shape``, ``dtype``, ``size``, ``len`` and a
    ``read(numbers)`` that gives those samples, such as pictures that are decoded when they are
    needed, will do (``Stored``).
    """

    train: tuple[Any, Array]
    test: tuple[Any, Array]
    classes: int | None
    class_names: tuple[str, ...] | None
    levels: float | None
    source: str
    columns: tuple[str, ...] | None = None


def divided(
    inputs: Array,
    targets: Array,
    test_fraction: float,
    seed: int,
    names: tuple[str, ...] | None,
    levels: float | None,
    source: str,
) -> Raw:
    """Hold out a part of some samples; by class where there are classes."""
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction must be between 0 and 1, got {test_fraction!r}")
    parts = (1 - test_fraction, test_fraction)
    by_class = targets if names is not None else None
    train, test = split_indices(len(inputs), parts, seed=seed, stratify=by_class)
    if not len(train) or not len(test):
        raise DataError(
            f"{len(inputs)} sample(s) of {source} are too few to hold out a test part of "
            f"{test_fraction:g}"
        )
    return Raw(
        (inputs[train], targets[train]),
        (inputs[test], targets[test]),
        None if names is None else len(names),
        names,
        levels,
        source,
    )


def located(kind: str, data_dir: Folder, path: str) -> Path:
    """Return the file that the option ``path`` names."""
    if not path:
        raise ConfigError(f"dataset {kind!r} needs the option path, the file to read")
    # An absolute path stays as it is.
    return Path(path) if data_dir is None else Path(data_dir) / path
