"""Reader of CIFAR-10 in its binary version, and of the archive that it is published in.

A file is a sequence of records of 3,073 bytes: the class, then 1,024 bytes each of red, green and
blue, row by row (A. Krizhevsky, "The CIFAR-10 dataset", https://www.cs.toronto.edu/~kriz/cifar.html,
"Binary version"). The Python version of the set is a pickle, which can run code when it is read; it
is not read here.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from gpubackprop.data.reading import os_reason
from gpubackprop.errors import DataError

Array = np.ndarray[Any, Any]
Part = tuple[Array, Array]

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)

ARCHIVE = "cifar-10-binary.tar.gz"
FOLDERS = ("", "cifar-10-batches-bin", "cifar10", "cifar10/cifar-10-batches-bin")
"""Where below the folder that is given the files may lie; the archive's own folder among them."""

SIDE, CHANNELS = 32, 3
RECORD = 1 + CHANNELS * SIDE * SIDE
RECORDS = 10_000
"""Records in each file."""

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""Names of the classes as ``batches.meta.txt`` of the archive lists them."""


def read_cifar10(folder: str | os.PathLike[str]) -> tuple[Part, Part]:
    """Read CIFAR-10 from a folder of its binary files.

    Parameters
    ----------
    folder : str or path-like
        The folder of ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, or the
        one above, which has them in ``cifar-10-batches-bin``.

    Returns
    -------
    train, test : pair of numpy.ndarray
        Pictures, uint8 of shape (50000, 32, 32, 3) and (10000, 32, 32, 3): row, column, then red,
        green, blue; and classes, int64 of shape (50000,) and (10000,).

    Raises
    ------
    DataError
        A file is missing, too short or too long, or holds what is no class.
    """
    found = find_cifar10(folder)
    if found is None:
        raise DataError(_missing(Path(folder)))
    return _read(found, TRAIN_FILES), _read(found, TEST_FILES)


def find_cifar10(folder: str | os.PathLike[str]) -> Path | None:
    """Return the folder at or below ``folder`` that holds a file of the set, or None."""
    for below in FOLDERS:
        candidate = Path(folder) / below
        if any((candidate / name).is_file() for name in (*TRAIN_FILES, *TEST_FILES)):
            return candidate
    return None


def is_whole(folder: Path) -> bool:
    """Return whether a folder holds every file of the set, at its full length."""
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == RECORD * RECORDS
        for name in (*TRAIN_FILES, *TEST_FILES)
    )


def unpack(archive: Path, folder: Path) -> None:
    """Take the six files out of the published archive, and nothing else.

    Parameters
    ----------
    archive : pathlib.Path
        ``cifar-10-binary.tar.gz``.
    folder : pathlib.Path
        Where the files go. No name of the archive is used as a path; a file appears under its name
        only when it is whole.

    Raises
    ------
    DataError
        The archive is damaged or does not hold the files, or the folder cannot be written.
    """
    missing = {*TRAIN_FILES, *TEST_FILES}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _archive_errors(archive), tarfile.open(archive, "r:gz") as members:
            for member in members:
                name = member.name.rpartition("/")[2]
                if name not in missing or not member.isfile():
                    continue
                if member.size != RECORD * RECORDS:
                    raise DataError(
                        f"{archive}: {name} has {member.size:,} bytes in it, not "
                        f"{RECORD * RECORDS:,}; the archive is not CIFAR-10's"
                    )
                stream = members.extractfile(member)
                assert stream is not None  # a regular file has content
                _write_whole(stream, folder / name)
                missing.discard(name)
    except OSError as error:
        raise DataError(f"cannot unpack {archive} into {folder}: {os_reason(error)}") from error
    if missing:
        raise DataError(f"{archive} does not hold {', '.join(sorted(missing))}")


@contextlib.contextmanager
def _archive_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is damaged: {error}") from error
    except OSError as error:
        # gzip's own errors have no number; the system's have.
        if error.errno is None:
            raise DataError(f"{archive} is damaged: {error}") from error
        raise


def _write_whole(stream: IO[bytes], path: Path) -> None:
    """Write a stream of a known size to a file that appears when it is complete."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    partial = Path(name)
    try:
        with open(handle, "wb") as out:
            while piece := stream.read(1 << 20):
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
        # mkstemp makes files for the owner alone; a cache may be shared.
        partial.chmod(0o644)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read(folder: Path, names: tuple[str, ...]) -> Part:
    records = np.empty((len(names) * RECORDS, RECORD), dtype=np.uint8)
    for number, name in enumerate(names):
        _fill(folder / name, records[number * RECORDS : (number + 1) * RECORDS])
    planes = records[:, 1:].reshape(-1, CHANNELS, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].astype(np.int64)


def _fill(path: Path, records: Array) -> None:
    """Read one file into its share of the records."""
    wanted = records.nbytes
    try:
        # A pipe or a device would block or never end, so only regular files are opened.
        if not path.is_file():
            reason = "is not a regular file" if path.exists() else "no such file"
            raise DataError(f"cannot read CIFAR-10 file {path}: {reason}")
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != wanted:
                raise DataError(
                    f"{path} has {size:,} bytes, but a file of CIFAR-10's binary version has "
                    f"{wanted:,} ({RECORDS:,} records of {RECORD:,}); it is damaged or another file"
                )
            read = stream.readinto(records.data.cast("B"))
    except OSError as error:
        raise DataError(f"cannot read CIFAR-10 file {path}: {os_reason(error)}") from error
    if read != wanted:
        raise DataError(f"{path} ended after {read:,} of {wanted:,} bytes")
    if records[:, 0].max() >= len(CLASS_NAMES):
        record = int(np.argmax(records[:, 0] >= len(CLASS_NAMES)))
        raise DataError(
            f"{path}: record {record} has the class {records[record, 0]}, over 9; it is damaged or "
            "no file of CIFAR-10's binary version"
        )


def _missing(folder: Path) -> str:
    """Say that there is no file of the set, and what is there in its stead."""
    wanted = f"{folder} holds no {TRAIN_FILES[0]} of CIFAR-10's binary version"
    if not folder.is_dir():
        return f"{folder}: no such folder"
    for below in (folder, folder / "cifar-10-batches-py"):
        if (below / "data_batch_1").is_file():
            return (
                f"{wanted}, but its Python version, which is not read because a pickle can run "
                f"code; unpack {ARCHIVE} there instead"
            )
    for below in (folder, folder / "cifar-100-binary"):
        if (below / "fine_label_names.txt").is_file():
            return f"{wanted}, but CIFAR-100"
    return f"{wanted}; unpack {ARCHIVE} there"
