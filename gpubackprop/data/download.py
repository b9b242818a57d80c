"""Fetch published data sets over HTTP into a folder, checked by SHA-256.

A file appears under its name only when it is whole and its checksum matches: it is written under
another name in the same folder, flushed to the disk and then renamed, which is atomic. A process
that is killed on the way leaves at most such a partial file, which no reader looks at and a later
call removes.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from gpubackprop import suggest
from gpubackprop.data.reading import CHUNK, GZIP_MAGIC, os_reason
from gpubackprop.data.remote import REMOTE_SETS, RemoteFile, RemoteSet
from gpubackprop.errors import ConfigError, DataError

INSTALL = "pip install 'gpubackprop[download]'"

__all__ = ["REMOTE_SETS", "RemoteFile", "RemoteSet", "checksum", "fetch", "same_as"]

# A partial file of another process may be in use; after this time its process is surely gone.
_STALE_SECONDS = 24 * 3600
_TIMEOUT_SECONDS = 30


def fetch(
    which: str | RemoteSet,
    folder: str | os.PathLike[str] | None = None,
    *,
    progress: bool = False,
) -> Path:
    """Make sure that a published set is in a folder, downloading what is missing or damaged.

    Parameters
    ----------
    which : str or RemoteSet
        A key of ``REMOTE_SETS``, such as ``"mnist"``, or the description of another set.
    folder : str or path-like, optional
        The folder of the files; made if need be. By default a folder with the set's name in the
        user's cache (on Linux ``~/.cache/gpubackprop``).
    progress : bool, optional
        Whether to show a progress bar on standard error.

    Returns
    -------
    pathlib.Path
        The folder, with every file of the set in it, whole.

    Raises
    ------
    ConfigError
        There is no set of that name.
    DataError
        ``pooch`` is not installed, no mirror gave a file with the right checksum, or the folder
        cannot be written.
    """
    if isinstance(which, str):
        if which not in REMOTE_SETS:
            raise ConfigError(suggest.unknown("set to download", which, REMOTE_SETS))
        which = REMOTE_SETS[which]
    pooch = _pooch(which.name)
    target = cache(which.name) if folder is None else Path(folder)
    # The server's own compression would be undone on the way, and the checksum would not match.
    download = pooch.HTTPDownloader(
        progressbar=progress,
        chunk_size=1 << 16,
        timeout=_TIMEOUT_SECONDS,
        headers={"Accept-Encoding": "identity"},
    )
    try:
        target.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        for file in which.files:
            if not _is_whole(target / file.name, file):
                _download(which, file, target, download)
    except OSError as error:
        raise DataError(
            f"cannot keep {which.name} in {error.filename or target}: {os_reason(error)}"
        ) from error
    return target


def cache(name: str) -> Path:
    """Return the folder in the user's cache where ``fetch`` keeps the set of that name.

    Raises
    ------
    DataError
        ``pooch`` is not installed.
    """
    return Path(_pooch(name).os_cache("gpubackprop")) / name


def same_as(path: Path | None, name: str) -> str:
    """Return the name of the set whose published file ``name`` has the checksum of ``path``.

    Parameters
    ----------
    path : pathlib.Path or None
        A file at hand.
    name : str
        Name of the published file to compare with.

    Returns
    -------
    str
        A key of ``REMOTE_SETS``, or an empty string where no set has that file.
    """
    for remote in REMOTE_SETS.values():
        for file in remote.files:
            if path is not None and file.name == name and _is_whole(path, file):
                return remote.name
    return ""


def checksum(path: str | os.PathLike[str], *, unpacked: bool, max_bytes: int) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Parameters
    ----------
    path : str or path-like
        The file.
    unpacked : bool
        Whether to undo gzip compression first, where there is any.
    max_bytes : int
        Where more than that comes out, an empty string is returned, as for damaged gzip data.
    """
    digest, count = hashlib.sha256(), 0
    with open(path, "rb") as raw:
        packed = unpacked and raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
        try:
            while piece := stream.read(CHUNK):
                count += len(piece)
                if count > max_bytes:
                    return ""
                digest.update(piece)
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return ""
    return digest.hexdigest()


def _pooch(name: str) -> Any:
    try:
        import pooch
    except ImportError as error:
        raise DataError(
            f"downloading {name} needs the package pooch: run {INSTALL}, or give the folder "
            "of the files with --data-dir"
        ) from error
    return pooch


class _TooLargeError(Exception):
    """A server sends more than the file can have."""


class _Sink:
    """The partial file, which takes bytes until the limit."""

    def __init__(self, stream: IO[bytes], max_bytes: int) -> None:
        self.stream = stream
        self.max_bytes = max_bytes
        self.count = 0

    def write(self, data: bytes) -> int:
        self.count += len(data)
        if self.count > self.max_bytes:
            raise _TooLargeError
        return self.stream.write(data)

    def flush(self) -> None:
        """Do nothing: one flush at the end does."""


def _download(
    remote: RemoteSet, file: RemoteFile, folder: Path, download: Callable[..., Any]
) -> None:
    reasons = []
    for mirror in remote.mirrors:
        url = f"{mirror.rstrip('/')}/{file.name}"
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=folder)
        partial = Path(name)
        try:
            with open(handle, "wb") as stream:
                reason = _receive(url, _Sink(stream, file.max_bytes), download)
                stream.flush()
                os.fsync(stream.fileno())
            if not reason and not _is_whole(partial, file):
                reason = f"its SHA-256 is not {file.sha256}"
            if not reason:
                # mkstemp makes files for the owner alone; a cache may be shared.
                partial.chmod(0o644)
                os.replace(partial, folder / file.name)
                _sync_folder(folder)
                return
            reasons.append(f"{url}: {reason}")
        finally:
            partial.unlink(missing_ok=True)
    raise DataError(
        f"cannot download {file.name} of {remote.name}: {'; '.join(reasons)}. Download it by hand "
        "and give its folder with --data-dir"
    )


def _receive(url: str, sink: _Sink, download: Callable[..., Any]) -> str:
    """Download into ``sink`` and return an empty string, or why it failed."""
    import requests

    try:
        download(url, sink, None)
    except _TooLargeError:
        return "the server sends more data than the file has"
    except requests.exceptions.RequestException as error:
        if sink.count:
            return f"the connection broke off after {sink.count:,} bytes"
        return _network_reason(error)
    return ""


def _network_reason(error: Any) -> str:
    from requests import exceptions

    response = getattr(error, "response", None)
    if isinstance(error, exceptions.HTTPError) and response is not None:
        return f"the server answered {response.status_code} {response.reason}".rstrip()
    if isinstance(error, exceptions.Timeout):
        return "the server did not answer in time"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return "the connection broke off before any data came"
    if isinstance(error, exceptions.ConnectionError):
        return "no connection to the server (is there a network?)"
    return f"the request failed ({type(error).__name__})"


def _is_whole(path: Path, file: RemoteFile) -> bool:
    if not path.is_file():
        return False
    found = checksum(path, unpacked=file.unpacked, max_bytes=file.max_bytes)
    return found == file.sha256


def _remove_stale(folder: Path) -> None:
    oldest = time.time() - _STALE_SECONDS
    for partial in folder.glob(".*.part"):
        try:
            if partial.stat().st_mtime < oldest:
                partial.unlink()
        except FileNotFoundError:
            # Another process removed it first.
            continue


def _sync_folder(folder: Path) -> None:
    """Make the rename last through a power cut, where the platform can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
