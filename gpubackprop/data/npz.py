"""Reader of NumPy's NPZ archives that trusts nothing in them.

``numpy.load`` believes the sizes in an archive and can be made to take any amount of memory; here
the size of every array is checked against the bytes of its member first, the total is limited, and
arrays of Python objects, which NumPy stores as pickle, are refused. The format is that of
NumPy Enhancement Proposal 1 inside a ZIP archive.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from gpubackprop import suggest
from gpubackprop.data.reading import CHUNK, MAX_BYTES, open_file
from gpubackprop.errors import DataError

KINDS = "biufcSU"
"""NumPy's dtype kinds that are read: booleans, numbers and fixed-width strings."""

_READERS = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}

# What zipfile raises over hostile archives, beside its own error.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
)


def read_npz(
    path: str | os.PathLike[str],
    names: Iterable[str] | None = None,
    *,
    max_bytes: int = MAX_BYTES,
) -> dict[str, np.ndarray[Any, Any]]:
    """Read arrays of an NPZ archive, as ``numpy.savez`` and ``numpy.savez_compressed`` write it.

    Parameters
    ----------
    path : str or path-like
        The archive.
    names : iterable of str, optional
        The arrays to read; all by default.
    max_bytes : int, optional
        The most bytes that the arrays read may unpack to, 8 GiB by default.

    Returns
    -------
    dict of str to numpy.ndarray
        The arrays by name, in the order of the archive (or of ``names``).

    Raises
    ------
    DataError
        The file is missing, damaged, truncated or no NPZ archive, lacks a name, holds Python
        objects, or claims another amount of data than there is or than is allowed.
    """
    with open_file(path, "NPZ file") as stream:
        return _read_open(stream, path, names, max_bytes)


def _read_open(
    stream: BinaryIO, path: str | os.PathLike[str], names: Iterable[str] | None, max_bytes: int
) -> dict[str, np.ndarray[Any, Any]]:
    begin = stream.read(6)
    stream.seek(0)
    if begin == b"\x93NUMPY":
        raise _error(path, "it is a single array (.npy); save it with numpy.savez")
    try:
        archive = zipfile.ZipFile(stream)
    except _ZIP_ERRORS as error:
        raise _error(path, "it is not an NPZ archive, or it is truncated or damaged") from error
    with archive:
        members = _members(archive, path)
        wanted = list(members) if names is None else list(names)
        for name in wanted:
            if name not in members:
                raise _error(path, suggest.unknown("array", name, members))
        if not wanted:
            raise _error(path, "it holds no array")
        total = sum(members[name].file_size for name in wanted)
        if total > max_bytes:
            raise _error(
                path,
                f"its arrays unpack to {total:,} bytes, over max_bytes={max_bytes:,}; pass a "
                "larger one if that is meant",
            )
        return {name: _read_member(archive, members[name], path, name) for name in wanted}


def _members(archive: zipfile.ZipFile, path: str | os.PathLike[str]) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            raise _error(path, f"its member {name!r} is not an array (.npy)")
        if name in members:
            raise _error(path, f"it holds two arrays named {name!r}")
        if member.flag_bits & 0x1:
            raise _error(path, f"array {name!r} is encrypted")
        # NumPy writes these two only; the others allow far stronger bombs.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _error(path, f"array {name!r} is compressed in a way that NumPy does not write")
        members[name] = member
    return members


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str | os.PathLike[str], name: str
) -> np.ndarray[Any, Any]:
    try:
        with archive.open(member) as stream:
            shape, fortran, dtype, used = _header(stream, path, name)
            claimed = math.prod(shape) * dtype.itemsize
            if claimed != member.file_size - used:
                raise _error(
                    path,
                    f"array {name!r} claims shape {shape} of {dtype}, {claimed:,} bytes, but its "
                    f"member holds {member.file_size - used:,}",
                )
            data = bytearray()
            # Chunks, not one read: the size in the archive's directory is a claim as well.
            while piece := stream.read(CHUNK):
                data += piece
    except DataError:
        raise
    except _ZIP_ERRORS as error:
        raise _error(path, f"array {name!r} is truncated or damaged") from error
    if len(data) != claimed:
        raise _error(path, f"array {name!r} should hold {claimed:,} bytes, found {len(data):,}")
    values = np.frombuffer(data, dtype=dtype)
    try:
        values = values.reshape(shape, order="F" if fortran else "C")
    except ValueError as error:
        raise _error(path, f"array {name!r} claims the impossible shape {shape}") from error
    values = np.asarray(values.astype(dtype.newbyteorder("="), copy=False), order="C")
    if dtype.kind == "b":
        # Any byte may stand in the file; only 0 and 1 are sound booleans in memory.
        values = values.view(np.uint8) != 0
    if dtype.kind == "U" and values.size and values.reshape(-1).view(np.uint32).max() > 0x10FFFF:
        raise _error(path, f"array {name!r} holds characters that Unicode does not have")
    return values


def _header(
    stream: IO[bytes], path: str | os.PathLike[str], name: str
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, order and dtype of a member, and the number of bytes that they took."""
    counted = _Counted(stream)
    try:
        version = npy_format.read_magic(counted)
        reader = _READERS.get(version)
        if reader is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                shape, fortran, dtype = reader(counted)
    except _ZIP_ERRORS[:4]:
        raise
    except Exception as error:
        # NumPy evaluates the header as a Python literal and promises no kind of error for a
        # hostile one (SyntaxError, TypeError, RecursionError, MemoryError, tokenizer errors...).
        raise _error(path, f"array {name!r} has a damaged header") from error
    if reader is None or dtype.kind not in KINDS or dtype.subdtype is not None:
        if reader is not None and dtype.hasobject:
            raise _error(
                path,
                f"array {name!r} holds Python objects, stored as pickle, which can run code; "
                "save it as numbers or fixed-width strings",
            )
        found = "a record type" if reader is None or dtype.names else f"dtype {dtype}"
        raise _error(path, f"array {name!r} has {found}; numbers and strings are supported")
    if dtype.itemsize == 0 or any(size < 0 for size in shape):
        raise _error(path, f"array {name!r} claims shape {shape} of {dtype}")
    return shape, fortran, dtype, counted.count


class _Counted:
    """A stream that counts what was read, for NumPy's header readers."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        piece = self.stream.read(size)
        self.count += len(piece)
        return piece


def _error(path: str | os.PathLike[str], words: str) -> DataError:
    return DataError(f"cannot read NPZ file {path}: {words}")
