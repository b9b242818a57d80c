"""How each kind of dataset is found and read; ``registry`` lists them and prepares what they give.

A loader takes the data folder (or None) and keyword options. Their names, types and defaults in its
signature are what a recipe may set, so a new option is one new argument.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import suggest
from gpubackprop.data.csv import TASKS, Table, read_csv
from gpubackprop.data.digits import DIGITS_LEVELS, load_digits
from gpubackprop.data.idx import find_idx, read_mnist
from gpubackprop.data.npz import read_npz
from gpubackprop.data.raw import Array, Folder, Raw, divided, located
from gpubackprop.data.toy import blobs, spirals, two_moons
from gpubackprop.errors import ConfigError, DataError

DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Names of the classes as the README of zalandoresearch/fashion-mnist lists them."""

# Where torchvision keeps its copy below the folder that it is given.
_NESTED = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}
_TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}

# Names that NPZ files in use have for inputs and targets.
_NPZ_NAMES = (
    ("x_train", "y_train"),
    ("x", "y"),
    ("X", "y"),
    ("images", "labels"),
    ("inputs", "targets"),
    ("features", "target"),
)


def digits(data_dir: Folder, *, test_fraction: float = 0.2, split_seed: int = 0) -> Raw:
    """Return the 8x8 digits that ship with the package, split by class at random."""
    images, labels = load_digits()
    source = "digits of the package (UCI, E. Alpaydin and C. Kaynak 1998, CC BY 4.0)"
    return divided(images, labels, test_fraction, split_seed, DIGIT_NAMES, DIGITS_LEVELS, source)


def mnist(data_dir: Folder, *, download: bool = True) -> Raw:
    """Return MNIST from a folder, or from the cache, downloaded if need be."""
    return _published("mnist", data_dir, download, DIGIT_NAMES)


def fashion_mnist(data_dir: Folder, *, download: bool = True) -> Raw:
    """Return Fashion-MNIST from a folder, or from the cache, downloaded if need be."""
    return _published("fashion-mnist", data_dir, download, FASHION_NAMES)


def npz(
    data_dir: Folder,
    *,
    path: str = "",
    x: str | None = None,
    y: str | None = None,
    x_test: str | None = None,
    y_test: str | None = None,
    task: str | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Raw:
    """Return arrays of an NPZ archive; what is no test part in it is split at random."""
    file = located("npz", data_dir, path)
    arrays = read_npz(file)
    if x is None and y is None:
        x, y = next((pair for pair in _NPZ_NAMES if set(pair) <= arrays.keys()), (None, None))
        if x == "x_train" and x_test is None and y_test is None and "x_test" in arrays:
            x_test, y_test = "x_test", "y_test"
    if x is None or y is None:
        raise ConfigError(
            f"dataset 'npz': give both x and y, the names of inputs and targets in {file}; it "
            f"holds {', '.join(arrays)}"
        )
    if (x_test is None) != (y_test is None):
        raise ConfigError("dataset 'npz': give both x_test and y_test, or neither")
    inputs, targets = _pair(file, arrays, x, y)
    test = None
    if x_test is not None and y_test is not None:
        test = _pair(file, arrays, x_test, y_test)
        if test[0].shape[1:] != inputs.shape[1:]:
            raise DataError(
                f"{file}: samples of {x!r} have shape {inputs.shape[1:]}, of {x_test!r} "
                f"{test[0].shape[1:]}"
            )
    both = targets if test is None else np.concatenate([targets, test[1]])
    both, names = _targets(file, y, both, task)
    levels = 255.0 if inputs.dtype == np.uint8 else None
    if test is None:
        return divided(inputs, both, test_fraction, split_seed, names, levels, str(file))
    return Raw(
        (inputs, both[: len(inputs)]),
        (test[0], both[len(inputs) :]),
        None if names is None else len(names),
        names,
        levels,
        str(file),
    )


def csv(
    data_dir: Folder,
    *,
    path: str = "",
    test_path: str | None = None,
    target: str | int = -1,
    task: str = "classification",
    delimiter: str = ",",
    header: bool | None = None,
    encoding: str = "utf-8",
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Raw:
    """Return the table of a CSV file; without ``test_path`` it is split at random."""
    file = located("csv", data_dir, path)
    how: dict[str, Any] = {
        "target": target,
        "task": task,
        "delimiter": delimiter,
        "header": header,
        "encoding": encoding,
        "dtype": np.float64,
    }
    table = read_csv(file, **how)
    names, source = table.class_names, str(file)
    targets = _present(table)
    columns = table.feature_names if table.header else None
    if test_path is None:
        raw = divided(table.features, targets, test_fraction, split_seed, names, None, source)
        return replace(raw, columns=columns)
    test_file = located("csv", data_dir, test_path)
    test = read_csv(test_file, **how)
    if test.feature_names != table.feature_names:
        raise DataError(
            f"{test_file} has the feature columns {', '.join(test.feature_names)}, but {file} has "
            f"{', '.join(table.feature_names)}"
        )
    test_targets = _present(test)
    if names is not None and test.class_names is not None:
        strange = [name for name in test.class_names if name not in names]
        if strange:
            raise DataError(f"{test_file} has the class {strange[0]!r}, which {file} has not")
        number = np.array([names.index(name) for name in test.class_names], dtype=np.int64)
        test_targets = number[test_targets]
    return Raw(
        (table.features, targets),
        (test.features, test_targets),
        None if names is None else len(names),
        names,
        None,
        source,
        columns,
    )


def moons(
    data_dir: Folder,
    *,
    n: int = 2000,
    noise: float = 0.1,
    seed: int = 0,
    test_fraction: float = 0.25,
) -> Raw:
    """Return two interleaved half circles."""
    points, labels = two_moons(n, noise, seed)
    source = f"two moons (n={n}, noise={noise}, seed={seed})"
    return divided(points, labels, test_fraction, seed, DIGIT_NAMES[:2], None, source)


def spiral_arms(
    data_dir: Folder,
    *,
    n: int = 2000,
    classes: int = 2,
    turns: float = 1.0,
    noise: float = 0.02,
    seed: int = 0,
    test_fraction: float = 0.25,
) -> Raw:
    """Return spiral arms, one for each class."""
    points, labels = spirals(n, classes, turns, noise, seed)
    source = f"spirals (n={n}, classes={classes}, turns={turns}, noise={noise}, seed={seed})"
    names = tuple(str(k) for k in range(classes))
    return divided(points, labels, test_fraction, seed, names, None, source)


def clouds(
    data_dir: Folder,
    *,
    n: int = 2000,
    classes: int = 3,
    noise: float = 0.25,
    seed: int = 0,
    test_fraction: float = 0.25,
) -> Raw:
    """Return round clouds of points, one for each class."""
    points, labels = blobs(n, classes, noise, seed)
    source = f"blobs (n={n}, classes={classes}, noise={noise}, seed={seed})"
    names = tuple(str(k) for k in range(classes))
    return divided(points, labels, test_fraction, seed, names, None, source)


def _published(name: str, data_dir: Folder, download: bool, names: tuple[str, ...]) -> Raw:
    from gpubackprop.data.download import fetch, same_as

    title = _TITLES[name]
    if data_dir is not None:
        folder = _with_files(name, Path(data_dir))
    elif download:
        folder = fetch(name)
    else:
        raise ConfigError(
            f"dataset {name!r} needs a folder (--data-dir) with the four {title} files, or "
            "download=true"
        )
    # The two sets have the same file names, so a wrong folder would train without a word.
    other = same_as(find_idx(folder, "t10k-labels", 1), "t10k-labels-idx1-ubyte.gz")
    if other not in ("", name):
        raise DataError(f"{folder} holds {_TITLES[other]}, not {title}")
    train, test = read_mnist(folder, "train"), read_mnist(folder, "test")
    for part, (images, labels) in (("training", train), ("test", test)):
        if images.shape[1:] != train[0].shape[1:]:
            raise DataError(f"{folder}: training and test images differ in size")
        if labels.max() >= len(names):
            raise DataError(f"{folder}: the {part} labels reach {labels.max()}, over 9")
    return Raw(train, test, len(names), names, 255.0, f"{title} from {folder}")


def _with_files(name: str, folder: Path) -> Path:
    for candidate in (folder, folder / name, folder / _NESTED[name]):
        if find_idx(candidate, "train-images", 3) is not None:
            return candidate
    return folder


def _pair(file: Path, arrays: dict[str, Array], x: str, y: str) -> tuple[Array, Array]:
    for name in (x, y):
        if name not in arrays:
            raise ConfigError(f"{file}: " + suggest.unknown("array", name, arrays))
    inputs, targets = arrays[x], arrays[y]
    if inputs.dtype.kind not in "biuf" or inputs.ndim == 0 or inputs.size == 0:
        raise DataError(
            f"{file}: inputs {x!r} must be real numbers with samples along the first axis, found "
            f"{inputs.dtype} of shape {inputs.shape}"
        )
    if targets.ndim == 0 or len(targets) != len(inputs):
        raise DataError(
            f"{file}: {x!r} has shape {inputs.shape}, but {y!r} {targets.shape}; both need the "
            "same number of samples"
        )
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        raise DataError(f"{file}: inputs {x!r} hold a NaN or an infinity")
    return (inputs[:, None] if inputs.ndim == 1 else inputs), targets


def _targets(
    file: Path, name: str, targets: Array, task: str | None
) -> tuple[Array, tuple[str, ...] | None]:
    """Return class numbers and names, or numbers and None."""
    if task is not None and task not in TASKS:
        raise ConfigError(suggest.unknown("task of an NPZ file", task, TASKS))
    if task is None:
        task = "regression" if targets.dtype.kind == "f" else "classification"
    if task == "regression":
        if targets.dtype.kind not in "iuf" or not np.isfinite(targets).all():
            raise DataError(f"{file}: targets {name!r} must be finite numbers for a regression")
        return targets.astype(np.float64), None
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.ndim != 1 or targets.dtype.kind not in "biuSU":
        raise DataError(
            f"{file}: targets {name!r} must be one integer or text for each sample, found "
            f"{targets.dtype} of shape {targets.shape}"
        )
    if targets.dtype.kind in "SU":
        found, numbers = np.unique(targets, return_inverse=True)
        texts = [v.decode("latin-1") if isinstance(v, bytes) else str(v) for v in found]
        return numbers.astype(np.int64), tuple(texts)
    if targets.min() < 0 or targets.max() >= max(len(targets), 2):
        raise DataError(
            f"{file}: class numbers {name!r} must count from 0, found {targets.min()} to "
            f"{targets.max()}; for numbers to predict set task = 'regression'"
        )
    return targets.astype(np.int64), tuple(str(k) for k in range(int(targets.max()) + 1))


def _present(table: Table) -> Array:
    # target=None is no option of a dataset, so the column is always there.
    assert table.target is not None
    return table.target
