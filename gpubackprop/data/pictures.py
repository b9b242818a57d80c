"""Pictures in folders, one folder for each class, decoded by Pillow.

Pillow is an extra (``pip install 'gpubackprop[images]'``) and is imported when the first picture is
read.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.data.arguments import whole
from gpubackprop.data.reading import os_reason
from gpubackprop.errors import ConfigError, DataError

Array = np.ndarray[Any, Any]

INSTALL = "pip install 'gpubackprop[images]'"

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings of files that are taken for pictures, in lower case."""

MAX_PIXELS = 1 << 27
"""The most pixels that a picture may claim (134 million): a small file can claim to be huge."""

CACHE_BYTES = 1 << 30
"""Pictures that take less than this when they are decoded (1 GiB) are decoded once and kept."""

MAX_SIDE = 4096


class Pictures:
    """Picture files that are decoded when they are asked for.

    Parameters
    ----------
    paths : sequence of pathlib.Path
        The files.
    size : int
        Height and width of every picture: it is scaled and its middle cut out so that it fills the
        square.
    grey : bool, optional
        One channel, of brightness, instead of red, green and blue.

    Attributes
    ----------
    shape : (len(paths), size, size, 1 or 3).
    dtype : uint8.
    """

    def __init__(self, paths: Sequence[Path], size: int, grey: bool = False) -> None:
        self.paths = list(paths)
        self.grey = grey
        self.side = whole("pictures", "size", size, 1, MAX_SIDE)
        self.shape: tuple[int, ...] = (len(self.paths), size, size, 1 if grey else 3)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)

    @property
    def size(self) -> int:
        """Number of values in all."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, part: slice) -> Array:
        return self.read(np.arange(len(self))[part])

    def read(self, numbers: Array) -> Array:
        """Decode the pictures of these numbers, uint8, shape (n, size, size, channels).

        Raises
        ------
        DataError
            Pillow is not installed, or a file cannot be decoded; the error names it.
        """
        out = np.empty((len(numbers), *self.shape[1:]), dtype=np.uint8)
        for row, number in enumerate(numbers):
            out[row] = read_picture(self.paths[number], self.side, self.grey)
        return out

    def stored(self) -> Array | Pictures:
        """Return all pictures, decoded, where they fit ``CACHE_BYTES``; else this object."""
        return self[:] if self.size <= CACHE_BYTES else self


def read_picture(path: Path, size: int, grey: bool = False) -> Array:
    """Decode one picture, as a camera's orientation tag turns it, into a square.

    Parameters
    ----------
    path : pathlib.Path
        The file. Of a moving picture the first frame is taken; what is transparent lies on black.
    size : int
        Height and width of the result. The picture is scaled so that its shorter side is ``size``
        (bilinear, with the filter widened where it shrinks) and its middle is cut out.
    grey : bool, optional
        Brightness (0.299 red + 0.587 green + 0.114 blue, ITU-R BT.601) instead of three channels.

    Returns
    -------
    numpy.ndarray
        uint8, shape (size, size, 3), or (size, size, 1) with ``grey``.

    Raises
    ------
    DataError
        Pillow is not installed, or the file is missing, damaged, too large or no picture.
    """
    image_module, operations = _pillow()
    try:
        # A pipe or a device would block or never end, so only regular files are opened.
        if not path.is_file():
            reason = "is not a regular file" if path.exists() else "no such file"
            raise DataError(f"cannot read picture {path}: {reason}")
        with warnings.catch_warnings():
            # What Pillow warns of (its own limit of pixels, odd metadata) is checked here, or
            # harmless.
            warnings.simplefilter("ignore")
            with image_module.open(path) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise DataError(
                        f"cannot read picture {path}: it claims {width:,} x {height:,} pixels; at "
                        f"most {MAX_PIXELS:,} are allowed"
                    )
                turned = operations.exif_transpose(image)
                plain = _plain(turned, "L" if grey else "RGB", image_module)
                square = operations.fit(plain, (size, size), image_module.Resampling.BILINEAR)
                return np.asarray(square, dtype=np.uint8).reshape(size, size, -1)
    except DataError:
        raise
    except OSError as error:
        reason = os_reason(error) if error.errno is not None else _reason(error)
        raise DataError(f"cannot read picture {path}: {reason}") from error
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders of hostile files raise what they like
        raise DataError(f"cannot read picture {path}: {_reason(error)}") from error


def find_pictures(folder: Path) -> tuple[list[str], dict[str, list[Path]]]:
    """Return the classes of a folder and the pictures of each.

    Parameters
    ----------
    folder : pathlib.Path
        It holds a folder for each class, and each of those the pictures. Hidden files and folders
        (whose names begin with a dot) and files of other endings are passed over.

    Returns
    -------
    classes : list of str
        Names of the classes' folders, sorted.
    pictures : dict
        For each class its files, sorted by name.

    Raises
    ------
    DataError
        There is no such folder, no class in it, or no picture in a class.
    """
    try:
        if not folder.is_dir():
            kind = "is a file, not a folder" if folder.exists() else "no such folder"
            raise DataError(f"cannot read pictures from {folder}: {kind}")
        classes = sorted(entry.name for entry in visible(folder) if entry.is_dir())
        if not classes:
            loose = any(_is_picture(entry) for entry in visible(folder))
            words = "the pictures of each class must be in a folder with its name" * loose
            raise DataError(
                f"{folder} holds no folder of a class; "
                + (words or "it must hold a folder for each class, with the pictures in it")
            )
        pictures = {}
        for name in classes:
            if any("\ud800" <= c <= "\udfff" for c in name):
                raise DataError(f"{folder}: the name of the folder {name!r} is not valid UTF-8")
            pictures[name] = pictures_in(folder / name)
            if not pictures[name]:
                inner = any(entry.is_dir() for entry in visible(folder / name))
                mend = (
                    f"where its folders are the classes, the folder to name is {folder / name}"
                    if inner
                    else "each folder beside it is a class"
                )
                raise DataError(
                    f"{folder / name} holds no picture (a file that ends in "
                    f"{', '.join(ENDINGS)}); {mend}"
                )
    except OSError as error:
        raise DataError(
            f"cannot read pictures from {error.filename or folder}: {os_reason(error)}"
        ) from error
    return classes, pictures


def pictures_in(folder: Path) -> list[Path]:
    """Return the picture files of a folder, sorted by name; hidden ones are passed over."""
    return sorted(entry for entry in visible(folder) if _is_picture(entry))


def visible(folder: Path) -> list[Path]:
    """Return what a folder holds but for hidden entries, whose names begin with a dot."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.is_dir()


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(f"reading pictures needs the package Pillow: run {INSTALL}") from error
    return Image, ImageOps


def _plain(image: Any, mode: str, module: Any) -> Any:
    """Return a picture in one of the two modes."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        # Pillow would clip 16 bits instead of dropping the lower ones.
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F":
            raise DataError("its pixels are floating numbers, of no known range")
        image = module.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8))
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = module.new("RGBA", layer.size, (0, 0, 0, 255))
        image = module.alpha_composite(ground, layer)
    return image.convert(mode)


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())
    if "cannot identify image file" in words:
        return "it is no picture that Pillow knows, or is damaged"
    return words[:200] or type(error).__name__


def check_classes(train: Sequence[str], test: Sequence[str], folder: Path) -> None:
    """Raise DataError where the held-out part has a class that the training part has not."""
    strange = [name for name in test if name not in train]
    if strange:
        raise DataError(
            f"{folder} has the class {strange[0]!r}, which the training part has not; it has "
            f"{', '.join(train[:20])}"
        )
    if len(train) < 2:
        raise ConfigError(
            f"there is only one class, {train[0]!r}; a classifier needs two folders at least"
        )
