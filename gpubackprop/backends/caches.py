"""Where the library keeps what it can make again."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

VARIABLE = "GPUBACKPROP_CACHE"


def cache_folder() -> Path:
    """``GPUBACKPROP_CACHE``, or ``gpubackprop`` in the user's cache folder; it may not exist."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", tempfile.gettempdir())) / "gpubackprop"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gpubackprop"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpubackprop"
