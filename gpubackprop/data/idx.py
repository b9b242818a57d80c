"""Reader of IDX files, the format of MNIST and Fashion-MNIST.

An IDX file is, in big-endian order: two zero bytes, a type code, the number of dimensions, each
dimension as a 32-bit unsigned integer, then the values in C order (Y. LeCun, C. Cortes, C. Burges,
*The MNIST database of handwritten digits*, "The IDX file format").
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import suggest
from gpubackprop.data.reading import MAX_BYTES, Unpacked, open_file
from gpubackprop.errors import ConfigError, DataError

IDX_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
"""Type code of the header to the dtype of the values as stored."""

MAX_DIMENSIONS = 8
"""More dimensions than any IDX file in use has; a damaged header is found sooner with a limit."""

PARTS = {"train": "train", "test": "t10k"}
"""Part of MNIST to the first word of its files' names."""


def read_idx(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> np.ndarray[Any, Any]:
    """Read one IDX file, plain or gzip-compressed.

    Whether the file is compressed is told by its first bytes, not its name. The header is checked
    against what a file of that size can hold before any memory is taken for the values.

    Parameters
    ----------
    path : str or path-like
        The file.
    max_bytes : int, optional
        The most bytes that the file may unpack to, 8 GiB by default.

    Returns
    -------
    numpy.ndarray
        The values with the shape of the header, in native byte order, writable.

    Raises
    ------
    DataError
        The file is missing, is no IDX file, is truncated or damaged, its header claims another
        amount of data than there is, or something follows the data.
    """
    what = "IDX file"
    with open_file(path, what) as stream:
        source = Unpacked(stream, path, what, max_bytes)
        magic = source.read(4)
        if len(magic) < 4:
            raise source.error(f"only {len(magic)} bytes, too short for an IDX header")
        if magic[0] or magic[1] or magic[2] not in IDX_TYPES:
            raise source.error(
                f"it does not begin as an IDX file does (first bytes {bytes(magic).hex(' ')}; "
                "expected 00 00, a type code of 08, 09, 0b, 0c, 0d or 0e, the dimensions)"
            )
        dtype, dimensions = IDX_TYPES[magic[2]], magic[3]
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise source.error(
                f"the header claims {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed"
            )
        head = source.read(4 * dimensions)
        if len(head) < 4 * dimensions:
            raise source.error(f"it ends within the sizes of its {dimensions} dimensions")
        shape = tuple(int(size) for size in np.frombuffer(head, dtype=">u4"))
        if 0 in shape:
            raise source.error(f"the header claims the empty shape {shape}")
        claimed = math.prod(shape) * dtype.itemsize
        if claimed > source.most - source.taken:
            raise source.error(
                f"the header claims {claimed:,} bytes of shape {shape}, more than a file of this "
                "size can hold; it is truncated or damaged"
            )
        if claimed > max_bytes:
            raise source.error(
                f"the header claims {claimed:,} bytes, over max_bytes={max_bytes:,}; pass a "
                "larger one if that is meant"
            )
        data = source.read(claimed)
        if len(data) < claimed:
            raise source.error(
                f"the header claims {claimed:,} bytes of shape {shape}, only {len(data):,} are "
                "there; it is truncated"
            )
        # This read also reaches the end of a gzip stream, where its checksum is compared.
        if source.read(1):
            raise source.error(f"more data follows the {claimed:,} bytes of shape {shape}")
    values = np.frombuffer(data, dtype=dtype).reshape(shape)
    return values.astype(dtype.newbyteorder("="), copy=False)


def find_idx(folder: str | os.PathLike[str], stem: str, dimensions: int) -> Path | None:
    """Return the file of one MNIST part in ``folder``, or None.

    ``train-images-idx3-ubyte``, ``train-images.idx3-ubyte`` and both with ``.gz`` are accepted;
    a plain file goes before a compressed one, because it is faster to read.

    Parameters
    ----------
    folder : str or path-like
        Where to look.
    stem : str
        Beginning of the name, for example ``"train-images"``.
    dimensions : int
        The number in ``idx3``.
    """
    for ending in ("", ".gz"):
        for separator in ("-", "."):
            path = Path(folder) / f"{stem}{separator}idx{dimensions}-ubyte{ending}"
            if path.exists():
                return path
    return None


def read_mnist(
    folder: str | os.PathLike[str], part: str = "train"
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read one part of MNIST, or of a set published in its form such as Fashion-MNIST.

    Parameters
    ----------
    folder : str or path-like
        The folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the two
        ``t10k`` files, each plain or ``.gz``, with ``-`` or ``.`` before ``idx``.
    part : {"train", "test"}, optional
        The part; ``"test"`` is the ``t10k`` pair.

    Returns
    -------
    images : numpy.ndarray
        uint8, shape (samples, rows, columns), 0 (background) to 255.
    labels : numpy.ndarray
        int64, shape (samples,).

    Raises
    ------
    ConfigError
        ``part`` is neither of the two.
    DataError
        A file is missing or damaged, or images and labels do not belong together.
    """
    if part not in PARTS:
        raise ConfigError(suggest.unknown("part of MNIST", part, PARTS))
    images_path = _part_file(folder, f"{PARTS[part]}-images", 3)
    labels_path = _part_file(folder, f"{PARTS[part]}-labels", 1)
    images, labels = read_idx(images_path), read_idx(labels_path)
    for path, values, dimensions in ((images_path, images, 3), (labels_path, labels, 1)):
        if values.ndim != dimensions or values.dtype != np.uint8:
            raise DataError(
                f"cannot use {path}: expected uint8 values of {dimensions} dimension(s), found "
                f"{values.dtype} of shape {values.shape}"
            )
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images):,} images, but {labels_path} {len(labels):,} labels"
        )
    return images, labels.astype(np.int64)


def _part_file(folder: str | os.PathLike[str], stem: str, dimensions: int) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "there is no such folder"
        raise DataError(f"cannot read MNIST files from {folder}: {reason}")
    path = find_idx(folder, stem, dimensions)
    if path is None:
        raise DataError(
            f"cannot read MNIST files from {folder}: {stem}-idx{dimensions}-ubyte is not there, "
            "with or without .gz"
        )
    return path
