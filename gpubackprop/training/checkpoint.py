"""Checkpoints: a file of tensors and a manifest, replaced together or not at all.

A folder holds ``checkpoint.json`` (the manifest: everything that is no array, and the name, length
and SHA-256 of the tensor file) and ``state-N.safetensors``. Writing makes a new tensor file, then
renames a new manifest into place; the one before stays as ``checkpoint.previous.json`` with its
tensors. At every moment, also if the process is killed there, ``checkpoint.json`` names a complete
file. Nothing that is read is ever executed: JSON and safetensors carry data only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.data.reading import open_file, os_reason
from gpubackprop.errors import CheckpointError, DataError
from gpubackprop.training.files import TEMPORARY, FolderLock, write_atomic

MANIFEST = "checkpoint.json"
PREVIOUS = "checkpoint.previous.json"
LOCK = ".lock"
FORMAT = "gpubackprop-checkpoint"
VERSION = 1

MAX_MANIFEST = 1 << 26
"""The most bytes of a manifest that are read (64 MiB: the history of 300,000 epochs)."""

_TENSORS = re.compile(r"state-(\d{1,12})\.safetensors")
_OWN = re.compile(
    rf"({re.escape(MANIFEST)}|{re.escape(PREVIOUS)}|{_TENSORS.pattern})({re.escape(TEMPORARY)})?"
    r"|\.lock"
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint holds.

    Attributes
    ----------
    meta : everything that is no array; JSON's types.
    tensors : arrays by name.
    """

    meta: dict[str, Any]
    tensors: dict[str, np.ndarray[Any, Any]]


class CheckpointFolder:
    """The checkpoints of one run.

    Parameters
    ----------
    path : the folder; made when the first checkpoint is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.manifest = self.path / MANIFEST
        self.previous = self.path / PREVIOUS
        self._serial: int | None = None

    def lock(self) -> FolderLock:
        """A lock on the folder, which is made if need be; enter it before writing."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot make the folder {self.path}: {os_reason(error)}"
            ) from error
        return FolderLock(self.path / LOCK)

    def exists(self) -> bool:
        """Whether there is a checkpoint, sound or not."""
        return self.manifest.exists() or self.previous.exists()

    def foreign(self) -> list[str]:
        """Names in the folder that no checkpoint writer put there."""
        try:
            return sorted(p.name for p in self.path.iterdir() if not _OWN.fullmatch(p.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"cannot read the folder {self.path}: {os_reason(error)}"
            ) from error

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint, keeping the one before.

        Raises
        ------
        CheckpointError
            The system refused. What was there is intact.
        """
        from safetensors.numpy import save

        serial = self._next_serial()
        name = f"state-{serial:08d}.safetensors"
        # save takes the memory as it lies: an array in another order would be scrambled.
        tensors = {k: np.asarray(v, order="C") for k, v in checkpoint.tensors.items()}
        data = save(tensors, metadata={"format": FORMAT})
        manifest = dict(checkpoint.meta)
        manifest |= {
            "format": FORMAT,
            "version": VERSION,
            "serial": serial,
            "tensors": {
                "file": name,
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            },
        }
        manifest["checksum"] = _checksum(manifest)
        text = json.dumps(manifest, allow_nan=False, indent=1).encode()
        try:
            write_atomic(self.path / name, data)
            if self.manifest.exists():
                write_atomic(self.previous, self._bytes(self.manifest))
            write_atomic(self.manifest, text)
        except CheckpointError as error:
            self._sweep()
            if self.manifest.exists():
                raise CheckpointError(
                    f"{error}; the checkpoint before it, {self.manifest}, is intact"
                ) from error
            raise
        except MemoryError:
            self._sweep()
            raise
        self._serial = serial
        self._sweep()

    def read(self) -> Checkpoint:
        """Read the checkpoint and check it against its checksums.

        Raises
        ------
        CheckpointError
            There is none, or it is damaged: the error names the file that is damaged and, where the
            one before is sound, says how to go back to it.
        """
        while True:
            before = self._mark()
            try:
                return self._read(self.manifest)
            except CheckpointError as error:
                # A run that goes on may have replaced both between the two reads.
                if self._mark() == before:
                    raise self._advised(error) from None

    def _mark(self) -> tuple[int, int] | None:
        """Changes whenever the manifest is replaced."""
        try:
            found = self.manifest.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _advised(self, error: CheckpointError) -> CheckpointError:
        """The error with what can be done about it."""
        try:
            earlier = self._read(self.previous)
        except CheckpointError:
            return error
        progress = earlier.meta.get("progress")
        step = progress.get("step", "?") if isinstance(progress, dict) else "?"
        return CheckpointError(
            f"{error}; the checkpoint before it (step {step}) is sound, and to go on from "
            f"there: {shlex.join(['mv', str(self.previous), str(self.manifest)])}"
        )

    def _read(self, path: Path) -> Checkpoint:
        manifest = read_manifest(path)
        entry = manifest.pop("tensors")
        file = self.path / entry["file"]
        data = self._bytes(file)
        if len(data) != entry["bytes"]:
            raise CheckpointError(
                f"{file} is damaged: it has {len(data):,} bytes, {path.name} says "
                f"{entry['bytes']:,}"
            )
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one in {path.name}")
        return Checkpoint(manifest, _tensors(file, data))

    def _bytes(self, path: Path) -> bytes:
        try:
            with open_file(path, "checkpoint") as stream:
                return stream.read()
        except DataError as error:
            raise CheckpointError(str(error)) from None

    def _next_serial(self) -> int:
        if self._serial is None:
            found = [_TENSORS.match(p.name) for p in self.path.glob("state-*")]
            self._serial = max((int(m.group(1)) for m in found if m), default=-1)
        return self._serial + 1

    def _sweep(self) -> None:
        """Remove tensor files that neither manifest names, and what a killed writer left."""
        # Where a manifest cannot be read, what it names is not known, and nothing is removed.
        with contextlib.suppress(OSError, CheckpointError):
            present = [path for path in (self.manifest, self.previous) if path.exists()]
            keep = {read_manifest(path)["tensors"]["file"] for path in present}
            for path in self.path.glob(f"state-*.safetensors{TEMPORARY}"):
                path.unlink(missing_ok=True)
            for path in self.path.glob("state-*.safetensors"):
                if _TENSORS.fullmatch(path.name) and path.name not in keep:
                    path.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and check its form and its checksum.

    Raises
    ------
    CheckpointError
        It is missing, is no manifest, is damaged, or was written by a newer version.
    """
    try:
        with open_file(path, "checkpoint") as stream:
            data = stream.read(MAX_MANIFEST + 1)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if len(data) > MAX_MANIFEST:
        raise CheckpointError(f"{path} is no checkpoint: it has more than {MAX_MANIFEST:,} bytes")
    try:
        manifest = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is damaged or no checkpoint: it is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this program")
    version = manifest.get("version")
    if version != VERSION:
        raise CheckpointError(
            f"{path} is of checkpoint version {str(version)[:20]}; this program reads {VERSION}"
        )
    checksum = manifest.pop("checksum", None)
    if checksum != _checksum(manifest):
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    entry = manifest.get("tensors")
    sound = (
        isinstance(entry, dict)
        and isinstance(entry.get("file"), str)
        and _TENSORS.fullmatch(entry["file"])  # a plain name: nothing outside the folder is read
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("sha256"), str)
    )
    if not sound:
        raise CheckpointError(f"{path} names no file of tensors")
    return manifest


def _checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest in one form, so that a flipped digit does not pass."""
    try:
        text = json.dumps(manifest, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


def _tensors(path: Path, data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is damaged or no safetensors file: {reason}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
