"""Compiled kernels that no longer are what the source says.

Numba keeps a function's machine code beside its file, and looks at that file alone to see whether
it is still true. A kernel takes in helpers from other files of this package, so after a change of
any of them all that was kept is thrown away.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

_MARK = "native-{}.stamp"


def digest(folder: Path) -> str:
    """What tells the source files of a folder from how they were before."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        about = file.stat()
        found.update(f"{file.name} {about.st_size} {about.st_mtime_ns}\n".encode())
    return found.hexdigest()[:16]


def forget_stale(folder: Path) -> bool:
    """Remove the machine code kept beside a folder's files if any of them has changed since.

    Returns
    -------
    bool
        Whether it was removed. Where nothing can be written there, nothing is kept there either.
    """
    kept = folder / "__pycache__"
    mark = kept / _MARK.format(digest(folder))
    if mark.exists():
        return False
    with contextlib.suppress(OSError):
        for pattern in ("*.nbi", "*.nbc", _MARK.format("*")):
            for file in kept.glob(pattern):
                file.unlink(missing_ok=True)
        kept.mkdir(exist_ok=True)
        mark.touch()
        return True
    return False


def keep_where_there_is_room() -> None:
    """Let what this package compiles serve the process alone where it cannot be kept: a full disk
    would end the training otherwise. Numba raises the system's error then, and has no option."""
    from numba.core import caching

    cache: Any = caching.Cache
    keep = cache.save_overload
    if getattr(keep, "where_there_is_room", False):
        return

    def save_overload(self: Any, sig: Any, data: Any) -> None:
        name = getattr(getattr(self, "_py_func", None), "__module__", None) or ""
        try:
            keep(self, sig, data)
        except OSError:
            if not name.startswith("gpubackprop"):
                raise

    save_overload.where_there_is_room = True  # type: ignore[attr-defined]
    cache.save_overload = save_overload
