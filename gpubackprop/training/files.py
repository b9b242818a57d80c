"""Writing files so that a reader sees the old or the new content, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import TracebackType

from gpubackprop.data.reading import os_reason
from gpubackprop.errors import CheckpointError

TEMPORARY = ".tmp"
"""Ending of a file that is being written. What a killed run leaves behind is overwritten later."""


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the content of a file in one step that survives a crash of the machine.

    Parameters
    ----------
    path : the file; its folder must exist.
    data : the new content.

    Raises
    ------
    CheckpointError
        The system refused (a full disk, no permission). The old content is intact.

    Notes
    -----
    Written to a file beside it and to the disk (fsync) before it is renamed: a rename inside one
    folder is atomic, and what it points to is complete by then. The folder is synced last, since
    the rename itself is an entry in it.
    """
    part = path.with_name(path.name + TEMPORARY)
    try:
        with open(part, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)  # a full disk has room again
        raise CheckpointError(f"cannot write {path}: {os_reason(error)}") from error


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file in one write.

    Raises
    ------
    CheckpointError
        The system refused.
    """
    try:
        with open(path, "ab", buffering=0) as stream:
            if stream.write(data) != len(data):  # the disk was full in the middle of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {os_reason(error)}") from error


def sync_folder(folder: Path) -> None:
    """Write the entries of a folder to the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows cannot open folders; its renames are journalled
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FolderLock:
    """Keeps a second process out of a folder; the system lifts it when the process ends, however.

    Parameters
    ----------
    path : the lock's file; it stays behind, empty.

    Raises
    ------
    CheckpointError
        On entering: another process holds the lock, or the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle: int | None = None

    def __enter__(self) -> FolderLock:
        try:
            import fcntl
        except ImportError:  # Windows
            return self
        try:
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise CheckpointError(
                f"another run is writing to {self.path.parent}; wait for it, or choose another "
                "folder"
            ) from None
        except OSError as error:
            self._close()
            raise CheckpointError(f"cannot lock {self.path}: {os_reason(error)}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None
