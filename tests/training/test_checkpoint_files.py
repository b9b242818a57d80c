"""Checkpoints on the disk: complete or not there, whatever happens while one is written."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
import struct

import numpy as np
import pytest

from gpubackprop.errors import CheckpointError
from gpubackprop.training import files
from gpubackprop.training.checkpoint import Checkpoint, CheckpointFolder, _checksum, read_manifest


def checkpoint(number: int) -> Checkpoint:
    rng = np.random.default_rng(number)
    return Checkpoint(
        {"progress": {"step": number}, "figures": [0.1, 1e-300, None, number / 3]},
        {
            "model/w": rng.standard_normal((3, 4)),
            "model/b": np.full((), number, np.float32),
            "model/t": np.asfortranarray(rng.standard_normal((5, 2))),
            "model/e": np.zeros((0, 3), np.int64),
        },
    )


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return (
        all(a.meta[key] == b.meta[key] for key in a.meta)
        and a.tensors.keys() == b.tensors.keys()
        and all(np.array_equal(v, b.tensors[k]) for k, v in a.tensors.items())
        and all(v.dtype == b.tensors[k].dtype for k, v in a.tensors.items())
    )


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path / "run")


@pytest.fixture
def written(folder):
    """A folder with two checkpoints, numbers 1 and 2."""
    with folder.lock():
        folder.write(checkpoint(1))
        folder.write(checkpoint(2))
    return folder


def test_what_is_written_is_read(folder):
    with folder.lock():
        for number in range(4):
            folder.write(checkpoint(number))
            assert same(checkpoint(number), folder.read())
            assert same(checkpoint(number), CheckpointFolder(folder.path).read())
    names = sorted(p.name for p in folder.path.iterdir())
    assert names == [
        ".lock",
        "checkpoint.json",
        "checkpoint.previous.json",
        "state-00000002.safetensors",
        "state-00000003.safetensors",
    ]
    assert folder.foreign() == []


def test_a_reader_of_the_folder_goes_on_counting(written):
    again = CheckpointFolder(written.path)
    again.write(checkpoint(3))
    assert same(checkpoint(3), again.read())


class Crash(BaseException):
    """Stands for the end of the process: no handler of an error sees it."""


class Faults:
    """Counts the steps of a writer (open, half a write, fsync, rename, remove); fails at one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
        self.count, self.at, self.error = 0, at, error
        for name in ("fsync", "replace", "unlink"):
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))
        monkeypatch.setattr(files, "open", self.open, raising=False)

    def step(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise self.error

    def wrapped(self, function):
        def call(*args, **kwargs):
            self.step()
            return function(*args, **kwargs)

        return call

    def open(self, path, mode="r", **options):
        self.step()
        return Stream(builtins.open(path, mode, **options), self)


class Stream:
    def __init__(self, stream, faults: Faults) -> None:
        self.stream, self.faults = stream, faults

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stream.close()

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        self.stream.write(data[:half])
        self.faults.step()
        self.stream.write(data[half:])
        return len(data)

    def flush(self) -> None:
        self.stream.flush()

    def fileno(self) -> int:
        return self.stream.fileno()


@pytest.mark.parametrize("at", range(1, 40))
def test_a_crash_leaves_the_old_or_the_new_checkpoint(written, at):
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, at, Crash())
        try:
            CheckpointFolder(written.path).write(checkpoint(3))
            crashed = False
        except Crash:
            crashed = True
    assert crashed is (at <= faults.count)
    after = CheckpointFolder(written.path)
    found = after.read()
    assert same(checkpoint(2), found) or same(checkpoint(3), found)
    assert crashed or same(checkpoint(3), found)
    # What is left behind is no obstacle, and is cleared away.
    after.write(checkpoint(4))
    assert same(checkpoint(4), after.read())
    assert len(list(written.path.glob("state-*"))) == 2


def test_the_crash_test_reaches_every_step(written, monkeypatch):
    faults = Faults(monkeypatch, 0, Crash())
    CheckpointFolder(written.path).write(checkpoint(3))
    assert 15 <= faults.count < 40


@pytest.mark.parametrize("at", range(1, 16))
def test_a_full_disk_is_one_clear_line_and_loses_nothing(written, at):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.MonkeyPatch.context() as patch:
        Faults(patch, at, full)
        with pytest.raises(CheckpointError) as caught:
            CheckpointFolder(written.path).write(checkpoint(3))
    text = str(caught.value)
    assert "no space left on the device" in text
    assert str(written.path) in text
    assert f"{written.manifest}, is intact" in text
    assert "\n" not in text
    found = CheckpointFolder(written.path).read()
    assert same(checkpoint(2), found) or same(checkpoint(3), found)
    assert not list(written.path.glob("*.tmp"))


def test_a_full_disk_at_the_first_checkpoint(folder, monkeypatch):
    with folder.lock():
        Faults(monkeypatch, 2, OSError(errno.ENOSPC, "full"))
        with pytest.raises(
            CheckpointError, match=r"^cannot write .*: no space left on the device$"
        ):
            folder.write(checkpoint(1))
    assert not folder.exists()


def test_append_notices_a_write_that_was_cut_short(tmp_path, monkeypatch):
    class Short:
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def write(self, data):
            return len(data) - 1

    monkeypatch.setattr(files, "open", lambda *args, **options: Short(), raising=False)
    with pytest.raises(CheckpointError, match="no space left"):
        files.append(tmp_path / "metrics.jsonl", b"{}\n")


# Damage.
def damage_tensors(folder, change) -> None:
    path = folder.path / read_manifest(folder.manifest)["tensors"]["file"]
    path.write_bytes(change(path.read_bytes()))


DAMAGES = {
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"x",
    "one bit": lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    "something else": lambda data: os.urandom(len(data)),
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_tensors_are_named_with_the_way_back(written, change):
    damage_tensors(written, change)
    with pytest.raises(CheckpointError) as caught:
        written.read()
    text = str(caught.value)
    assert "state-00000001.safetensors" in text
    assert f"mv {written.previous} {written.manifest}" in text
    assert "step 1" in text and "\n" not in text
    # Doing what it says helps.
    written.previous.rename(written.manifest)
    assert same(checkpoint(1), CheckpointFolder(written.path).read())


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_manifest_is_named_with_the_way_back(written, change):
    written.manifest.write_bytes(change(written.manifest.read_bytes()))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json.*mv "):
        written.read()


def test_a_changed_digit_in_the_manifest_does_not_pass(written):
    text = written.manifest.read_text()
    changed = text.replace('"step": 2', '"step": 3')
    assert changed != text
    written.manifest.write_text(changed)
    with pytest.raises(CheckpointError, match="checksum"):
        written.read()


def test_both_damaged_gives_no_false_advice(written):
    for path in written.path.glob("state-*"):
        path.write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        written.read()
    assert "mv" not in str(caught.value)


def test_missing_tensors(written):
    (written.path / "state-00000001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="state-00000001.safetensors: no such file"):
        written.read()


def test_missing_manifest(written):
    written.manifest.unlink()
    assert written.exists()
    with pytest.raises(CheckpointError, match=r"no such file.*mv "):
        written.read()


def signed(manifest: dict) -> bytes:
    """A manifest that somebody wrote on purpose: its checksum is right."""
    manifest.pop("checksum", None)
    return json.dumps(manifest | {"checksum": _checksum(manifest)}).encode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["tensors"].update(file="../../etc/passwd"), "names no file of tensors"),
        (
            lambda m: m["tensors"].update(file="state-1.safetensors/../x"),
            "names no file of tensors",
        ),
        (lambda m: m["tensors"].update(file="/etc/passwd"), "names no file of tensors"),
        (lambda m: m["tensors"].update(file=7), "names no file of tensors"),
        (lambda m: m["tensors"].update(bytes="many"), "names no file of tensors"),
        (lambda m: m.update(tensors=None), "names no file of tensors"),
        (lambda m: m.update(version=2), "version 2; this program reads 1"),
        (lambda m: m.update(version=[[1]]), "version"),
        (lambda m: m.update(format="other"), "is no checkpoint of this program"),
    ],
)
def test_hostile_manifests_with_a_right_checksum(written, change, words):
    manifest = json.loads(written.manifest.read_text())
    change(manifest)
    written.manifest.write_bytes(signed(manifest))
    with pytest.raises(CheckpointError, match=words):
        read_manifest(written.manifest)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000,
        b'{"format": ' * 50_000,
        b"\xff\xfe\x00",
        b"null",
        b"[1, 2]",
        b"NaN",
        b'{"format": "gpubackprop-checkpoint", "version": 1, "x": NaN}',
        b'{"format": "gpubackprop-checkpoint", "version": ' + b"9" * 10_000 + b"}",
        b"\x00" * 100,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_hostile_bytes_in_place_of_a_manifest(written, data):
    written.manifest.write_bytes(data)
    with pytest.raises(CheckpointError, match="checkpoint.json"):
        read_manifest(written.manifest)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        safetensors({}, length=2**63),
        safetensors({}, length=2**40),
        safetensors(b"{" * 1000),
        safetensors({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"1234"),
        safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}, b"1234"),
        safetensors({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        safetensors({"w": {"dtype": "PY", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        safetensors({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
        safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"),
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    ],
    ids=range(12),
)
def test_hostile_tensor_files_with_a_right_checksum(written, data):
    manifest = json.loads(written.manifest.read_text())
    path = written.path / manifest["tensors"]["file"]
    path.write_bytes(data)
    manifest["tensors"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    written.manifest.write_bytes(signed(manifest))
    with pytest.raises(CheckpointError, match=r"state-00000001\.safetensors"):
        written._read(written.manifest)


def test_an_unreadable_manifest_keeps_every_tensor_file(written, monkeypatch):
    # If what a manifest names is not known, nothing may be removed.
    before = set(written.path.glob("state-*"))
    written.previous.write_text("{}")
    written._sweep()
    assert set(written.path.glob("state-*")) == before


def test_a_pipe_or_a_folder_is_no_checkpoint(written):
    written.manifest.unlink()
    os.mkfifo(written.manifest)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_manifest(written.manifest)
    written.manifest.unlink()
    written.manifest.mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        read_manifest(written.manifest)


# One writer at a time.
def test_a_second_writer_is_kept_out(folder):
    with folder.lock():
        with pytest.raises(CheckpointError, match="another run is writing"), folder.lock():
            pass
    with folder.lock():  # and let in when the first has gone
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot make the folder"):
        CheckpointFolder(tmp_path / "file" / "run").lock()


def test_a_reader_survives_a_run_that_goes_on(written, monkeypatch):
    # The run replaces its files after the reader has read the manifest: the reader begins again.
    reader = CheckpointFolder(written.path)
    plain = CheckpointFolder._bytes
    calls = []

    def slow(self, path):
        if not calls and path.suffix == ".safetensors":
            calls.append(path)
            for number in (3, 4):
                written.write(checkpoint(number))
        return plain(self, path)

    monkeypatch.setattr(CheckpointFolder, "_bytes", slow)
    assert same(checkpoint(4), reader.read())
    assert calls
