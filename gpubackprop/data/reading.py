"""What every reader of files shares: opening, limits, and operating-system errors in one line.

The readers treat a file as hostile until it has been read. Nothing is allocated for a size that a
file merely claims: data arrives in chunks, so memory grows with what is really there.
"""

from __future__ import annotations

import errno
import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gpubackprop.errors import DataError

CHUNK = 1 << 20
"""Bytes taken from a stream at a time."""

MAX_BYTES = 1 << 33
"""Default limit (8 GiB) on what one file may unpack to; every reader takes another one."""

MAX_LINE = 1 << 24
"""Bytes in a line of text; without a limit a file of one line would be copied again and again."""

GZIP_MAGIC = b"\x1f\x8b"

# Deflate codes at most 258 bytes in 2 bits, so no stream grows more than 1032-fold (zlib's
# technical notes); the constant covers the header of a tiny stream.
_DEFLATE_RATIO = 1032
_DEFLATE_SLACK = 1 << 10

_REASONS = {
    errno.ENOENT: "no such file",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EISDIR: "is a folder, not a file",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.ENAMETOOLONG: "the file name is too long",
    errno.ELOOP: "the path has a loop of links",
}


def os_reason(error: OSError) -> str:
    """Return in plain words why the operating system refused."""
    if error.errno in _REASONS:
        return _REASONS[error.errno]
    return error.strerror or str(error) or type(error).__name__


@contextmanager
def open_file(path: str | os.PathLike[str], what: str) -> Iterator[BinaryIO]:
    """Open a regular file that is not empty for reading.

    Parameters
    ----------
    path : str or path-like
        The file.
    what : str
        The kind of file in words, for the error: ``"IDX file"``.

    Yields
    ------
    BinaryIO
        The open file, at its beginning.

    Raises
    ------
    DataError
        The file is missing, is not a regular file, is empty, may not be read, or an
        operating-system error came while it was read.
    """
    if "\0" in os.fspath(path):
        raise DataError(f"cannot read {what}: the path {os.fspath(path)!r} has a NUL character")
    try:
        path = Path(path)
        # A pipe or a device would block or never end, so only regular files are opened.
        if path.exists() and not path.is_file():
            kind = "is a folder, not a file" if path.is_dir() else "is not a regular file"
            raise DataError(f"cannot read {what} {path}: {kind}")
        with open(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise DataError(f"cannot read {what} {path}: the file is empty")
            yield stream
    except OSError as error:
        raise DataError(f"cannot read {what} {path}: {os_reason(error)}") from error


class Unpacked:
    """A stream of a plain or gzip-compressed file, read in chunks and never past a limit.

    Parameters
    ----------
    stream : BinaryIO
        An open, seekable file; whether it is compressed is told by its first bytes, not its name.
    path : str or path-like
        Its name, for errors.
    what : str
        The kind of file, for errors.
    max_bytes : int
        The most bytes that may come out.
    """

    def __init__(
        self,
        stream: BinaryIO,
        path: str | os.PathLike[str],
        what: str,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.path = path
        self.what = what
        self.max_bytes = max_bytes
        self.taken = 0
        size = os.fstat(stream.fileno()).st_size
        self.compressed = stream.read(2) == GZIP_MAGIC
        stream.seek(0)
        self.stream: BinaryIO = stream
        self.most = size
        """The most bytes that a file of this size can hold, unpacked."""
        if self.compressed:
            self.stream = gzip.GzipFile(fileobj=stream, mode="rb")  # type: ignore[assignment]
            self.most = size * _DEFLATE_RATIO + _DEFLATE_SLACK

    def error(self, words: str) -> DataError:
        """Return the error of this file with ``words`` as the reason."""
        return DataError(f"cannot read {self.what} {self.path}: {words}")

    def read(self, count: int) -> bytearray:
        """Return the next ``count`` bytes, or fewer where the data ends."""
        out = bytearray()
        while len(out) < count:
            piece = self._piece(min(CHUNK, count - len(out)))
            if not piece:
                break
            out += piece
        return out

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, each with its line feed (the last may have none)."""
        rest = b""
        while piece := self._piece(CHUNK):
            pieces = (rest + piece).split(b"\n")
            rest = pieces.pop()
            if len(rest) > MAX_LINE:
                raise self.error(f"it has a line of more than {MAX_LINE:,} bytes")
            for line in pieces:
                yield line + b"\n"
        if rest:
            yield rest

    def _piece(self, count: int) -> bytes:
        try:
            piece = self.stream.read(count)
        except EOFError as error:
            raise self.error("the gzip data is truncated") from error
        except gzip.BadGzipFile as error:
            words = str(error)
            if "CRC" in words or "length" in words:
                raise self.error("the gzip checksum does not match; it is damaged") from error
            raise self.error("the gzip data is damaged or followed by garbage") from error
        except zlib.error as error:
            raise self.error("the gzip data is damaged") from error
        self.taken += len(piece)
        if self.taken > self.max_bytes:
            raise self.error(
                f"it unpacks to more than {self.max_bytes:,} bytes; pass a larger max_bytes if "
                "that is meant"
            )
        return piece
