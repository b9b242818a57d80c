"""Builds ``fake_lt.c`` and makes it the cuBLASLt of the fake CuPy, and of no other."""

from __future__ import annotations

import ctypes
import functools
import getpass
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from gpubackprop.backends.cuda import lt

SOURCE = Path(__file__).with_name("fake_lt.c")
FLAGS = ("-std=gnu11", "-O2", "-ffp-contract=off", "-Wall", "-Werror", "-fPIC", "-shared")


def missing() -> str:
    """Why it cannot be built here, or an empty string."""
    return "" if shutil.which("gcc") else "gcc is not installed"


@functools.cache
def path() -> str:
    """The library, built if this source never was."""
    key = hashlib.sha256("\0".join([SOURCE.read_text(), *FLAGS]).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"gpubackprop-shim-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"lt-{key}.so"
    if not target.exists():
        handle, part = tempfile.mkstemp(dir=folder, suffix=".so")
        os.close(handle)
        command = ["gcc", *FLAGS, str(SOURCE), "-o", part, "-lm"]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            os.unlink(part)
            raise RuntimeError(f"gcc refused {SOURCE.name}:\n{run.stderr[:4000]}")
        os.replace(part, target)  # several workers may build it at once
    return str(target)


def number(name: str) -> ctypes.c_int:
    """A number of the library that tests set (``refuse``) or read (``calls``, ...)."""
    return ctypes.c_int.in_dll(ctypes.CDLL(path()), f"fake_lt_{name}")


def install(kind: type) -> None:
    """Modules of this type find it where CuPy finds cuBLASLt."""
    real = lt.find

    def find(cupy: Any) -> str:
        return path() if isinstance(cupy, kind) and not missing() else real(cupy)

    lt.find = find  # type: ignore[assignment]
