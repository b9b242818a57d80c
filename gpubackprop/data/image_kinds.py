"""How a recipe finds pictures; see ``kinds`` for what a loader is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.data import cifar
from gpubackprop.data.dataset import split_indices
from gpubackprop.data.pictures import Pictures, check_classes, find_pictures, visible
from gpubackprop.data.raw import Array, Folder, Raw
from gpubackprop.errors import ConfigError, DataError

LEVELS = 255.0
HELD_OUT = ("test", "val")
"""Folders beside ``train`` that hold the held-out part, the first that is there."""


def cifar10(data_dir: Folder, *, download: bool = True) -> Raw:
    """Return CIFAR-10 from a folder, or from the cache, downloaded if need be."""
    if data_dir is not None:
        folder = Path(data_dir)
        archive = folder / cifar.ARCHIVE
        if cifar.find_cifar10(folder) is None and archive.is_file():
            raise DataError(
                f"{folder} holds {cifar.ARCHIVE}, but not the files in it; run tar -xzf {archive} "
                f"-C {folder}"
            )
    elif download:
        folder = _cached()
    else:
        raise ConfigError(
            "dataset 'cifar10' needs the folder (--data-dir) of CIFAR-10's binary version, or "
            "download=true"
        )
    train, test = cifar.read_cifar10(folder)
    return Raw(
        train, test, len(cifar.CLASS_NAMES), cifar.CLASS_NAMES, LEVELS, f"CIFAR-10 from {folder}"
    )


def image_folder(
    data_dir: Folder,
    *,
    path: str = "",
    size: int = 64,
    grey: bool = False,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Raw:
    """Return the pictures of a folder that has one folder for each class.

    Where it has a folder ``train``, the classes are below that, and a folder ``test`` or ``val``
    beside it is the held-out part.
    """
    if data_dir is None and not path:
        raise ConfigError(
            "dataset 'image-folder' needs the folder of the pictures: --data-dir, or the option "
            "path"
        )
    folder = Path(path) if data_dir is None else Path(data_dir) / path
    inner = _part(folder, "train")
    held_out = next((part for name in HELD_OUT if (part := _part(folder, name))), None)
    classes, found = find_pictures(folder if inner is None else inner)
    paths, labels = _listed(classes, found)
    if inner is not None and held_out is not None:
        test_classes, test_found = find_pictures(held_out)
        check_classes(classes, test_classes, held_out)
        test_paths, test_labels = _listed(classes, test_found)
    else:
        check_classes(classes, (), folder)
        if not 0 < test_fraction < 1:
            raise ConfigError(f"test_fraction must be between 0 and 1, got {test_fraction!r}")
        kept, out = split_indices(
            len(paths), (1 - test_fraction, test_fraction), seed=split_seed, stratify=labels
        )
        if not len(kept) or not len(out):
            raise DataError(
                f"{len(paths)} pictures of {folder} are too few to hold out a test part of "
                f"{test_fraction:g}"
            )
        test_paths, test_labels = [paths[i] for i in out], labels[out]
        paths, labels = [paths[i] for i in kept], labels[kept]
    train = Pictures(paths, size, grey).stored()
    test = Pictures(test_paths, size, grey).stored()
    return Raw(
        (train, labels),
        (test, test_labels),
        len(classes),
        tuple(classes),
        LEVELS,
        f"{len(paths) + len(test_paths):,} pictures of {folder}",
    )


def _part(folder: Path, name: str) -> Path | None:
    """Return the folder of a part, which holds folders, or None."""
    inner = folder / name
    if not inner.is_dir() or not any(entry.is_dir() for entry in visible(inner)):
        return None
    return inner


def _listed(classes: list[str], found: dict[str, list[Path]]) -> tuple[list[Path], Array]:
    paths: list[Path] = []
    labels: list[Any] = []
    for number, name in enumerate(classes):
        files = found.get(name, [])
        paths += files
        labels += [number] * len(files)
    return paths, np.array(labels, dtype=np.int64)


def _cached() -> Path:
    """Return the folder in the user's cache with the files, downloaded and unpacked if need be."""
    from gpubackprop.data.download import cache, fetch

    folder = cache("cifar10")
    if not cifar.is_whole(folder):
        cifar.unpack(fetch("cifar10", folder) / cifar.ARCHIVE, folder)
    return folder
