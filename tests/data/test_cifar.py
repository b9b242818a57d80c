"""CIFAR-10's binary files: small ones of the same form, whole, damaged and of another kind."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop.data import RemoteFile, RemoteSet, cifar, download, load, read_cifar10
from gpubackprop.errors import ConfigError, DataError

RECORDS = 20
FILES = (*cifar.TRAIN_FILES, *cifar.TEST_FILES)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "RECORDS", RECORDS)


def records(number: int) -> Any:
    rng = np.random.default_rng(number)
    found = rng.integers(0, 256, (RECORDS, cifar.RECORD), dtype=np.uint8)
    found[:, 0] = np.arange(RECORDS) % 10
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "cifar-10-batches-bin"
    inner.mkdir()
    for number, name in enumerate(FILES):
        (inner / name).write_bytes(records(number).tobytes())
    return inner


@pytest.mark.parametrize("above", [False, True])
def test_records_become_pictures_with_channels_last(folder: Path, above: bool) -> None:
    (x, y), (x_test, y_test) = read_cifar10(folder.parent if above else folder)
    assert x.shape == (5 * RECORDS, 32, 32, 3) and x_test.shape == (RECORDS, 32, 32, 3)
    assert x.dtype == np.uint8 and x.flags.c_contiguous and y.dtype == np.int64
    first = records(2)[7]  # record 7 of data_batch_3.bin
    place = 2 * RECORDS + 7
    assert y[place] == first[0]
    for channel in range(3):
        for row, column in ((0, 0), (0, 31), (31, 0), (5, 17)):
            byte = first[1 + channel * 1024 + row * 32 + column]
            assert x[place, row, column, channel] == byte
    np.testing.assert_array_equal(y_test, records(5)[:, 0])


def test_it_is_a_dataset_that_a_recipe_can_name(folder: Path) -> None:
    data = load("cifar10", folder, scale="standard-channel", dtype="float64")
    assert data.input_shape == (32, 32, 3) and data.classes == 10
    assert data.class_names is not None and data.class_names[6] == "frog"
    x = data.train.array("input")
    np.testing.assert_allclose(x.mean(axis=(0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(x.std(axis=(0, 1, 2)), 1, atol=1e-12)
    assert data.scaling.offset.shape == (3,)


@pytest.mark.parametrize("length", [0, 1, cifar.RECORD * (RECORDS - 1), cifar.RECORD * RECORDS + 1])
def test_a_file_of_another_length(folder: Path, length: int, data_error: Any) -> None:
    path = folder / "data_batch_4.bin"
    path.write_bytes((path.read_bytes() * 2)[:length])
    with data_error(str(path), f"{length:,} bytes", f"{RECORDS} records of 3,073"):
        read_cifar10(folder)


def test_a_class_that_does_not_exist(folder: Path, data_error: Any) -> None:
    content = records(5)
    content[13, 0] = 10
    (folder / "test_batch.bin").write_bytes(content.tobytes())
    with data_error("test_batch.bin", "record 13", "class 10, over 9"):
        read_cifar10(folder)


def test_a_missing_file_and_a_missing_folder(folder: Path, data_error: Any) -> None:
    (folder / "data_batch_2.bin").unlink()
    with data_error("data_batch_2.bin", "no such file"):
        read_cifar10(folder)
    with data_error("no such folder"):
        read_cifar10(folder / "absent")


@pytest.mark.skipif(os.name != "posix", reason="pipes are of POSIX systems")
def test_a_pipe_is_not_waited_for(folder: Path, data_error: Any) -> None:
    (folder / "data_batch_2.bin").unlink()
    os.mkfifo(folder / "data_batch_2.bin")
    with data_error("data_batch_2.bin", "is not a regular file"):
        read_cifar10(folder)


def test_other_versions_are_named(tmp_path: Path, data_error: Any) -> None:
    with data_error("holds no data_batch_1.bin", "unpack cifar-10-binary.tar.gz"):
        read_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    # A pickle that would run a command when it is read; it must not be.
    evil = b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "ran") + b"'\ntR."
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(evil)
    with data_error("Python version", "pickle"):
        read_cifar10(tmp_path)
    assert not (tmp_path / "ran").exists()
    other = tmp_path / "hundred"
    other.mkdir()
    (other / "fine_label_names.txt").write_text("apple\n")
    with data_error("but CIFAR-100"):
        read_cifar10(other)
    with pytest.raises(ConfigError, match="download=true"):
        load("cifar10", download=False)


def archive(path: Path, members: dict[str, bytes], **extra: Any) -> Path:
    with tarfile.open(path, "w:gz") as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in extra.get(name, {}).items():
                setattr(info, key, value)
            out.addfile(info, io.BytesIO(content))
    return path


def whole() -> dict[str, bytes]:
    return {
        f"cifar-10-batches-bin/{name}": records(k).tobytes() for k, name in enumerate(FILES)
    } | {"cifar-10-batches-bin/readme.html": b"<html>"}


def test_the_archive_gives_the_six_files_and_nothing_else(tmp_path: Path) -> None:
    # Names that lead elsewhere, and a file beside the six, must leave no trace.
    hostile = {
        "../outside.bin": b"x",
        "/tmp/absolute.bin": b"x",
        "cifar-10-batches-bin/x.bin": b"x",
    }
    packed = archive(tmp_path / "packed.tar.gz", hostile | whole())
    target = tmp_path / "deep" / "folder"
    cifar.unpack(packed, target)
    assert sorted(p.name for p in target.iterdir()) == sorted(FILES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "packed.tar.gz"]
    assert cifar.is_whole(target)
    np.testing.assert_array_equal(read_cifar10(target)[1][1], records(5)[:, 0])


def test_a_link_in_the_archive_is_no_file(tmp_path: Path, data_error: Any) -> None:
    name = "cifar-10-batches-bin/data_batch_1.bin"
    link = {name: {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}}
    packed = archive(tmp_path / "packed.tar.gz", whole() | {name: b""}, **link)
    with data_error("does not hold data_batch_1.bin"):
        cifar.unpack(packed, tmp_path / "out")
    assert not (tmp_path / "out" / "data_batch_1.bin").exists()


@pytest.mark.parametrize("cut", [10, 1000, -20_000])
def test_a_damaged_archive(tmp_path: Path, cut: int, data_error: Any) -> None:
    packed = archive(tmp_path / "packed.tar.gz", whole())
    packed.write_bytes(packed.read_bytes()[:cut])
    with data_error(str(packed)):
        cifar.unpack(packed, tmp_path / "out")
    packed.write_bytes(gzip.compress(b"no tar at all" * 100))
    with data_error(str(packed), "damaged"):
        cifar.unpack(packed, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*.part"))


def test_a_member_of_another_size(tmp_path: Path, data_error: Any) -> None:
    packed = archive(tmp_path / "p.tar.gz", whole() | {"a/test_batch.bin": b"short"})
    packed = archive(tmp_path / "p.tar.gz", {"a/test_batch.bin": b"short"})
    with data_error("test_batch.bin has 5 bytes"):
        cifar.unpack(packed, tmp_path / "out")


def test_an_archive_that_was_not_unpacked_is_mentioned(tmp_path: Path, data_error: Any) -> None:
    archive(tmp_path / cifar.ARCHIVE, whole())
    with data_error("tar -xzf"):
        load("cifar10", tmp_path)


def test_without_a_folder_the_archive_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = archive(tmp_path / cifar.ARCHIVE, whole()).read_bytes()
    cache = tmp_path / "cache"
    calls = []

    def fetch(name: str, folder: Path) -> Path:
        calls.append(name)
        (folder / cifar.ARCHIVE).write_bytes(packed)
        return folder

    cache.mkdir()
    monkeypatch.setattr(download, "cache", lambda name: cache)
    monkeypatch.setattr(download, "fetch", fetch)
    for _ in range(2):
        assert len(load("cifar10").train) == 5 * RECORDS
    assert calls == ["cifar10"]


def test_the_published_archive_is_described() -> None:
    published = download.REMOTE_SETS["cifar10"]
    assert isinstance(published, RemoteSet)
    (file,) = published.files
    assert isinstance(file, RemoteFile) and file.name == cifar.ARCHIVE and not file.unpacked
    assert len(file.sha256) == len(hashlib.sha256().hexdigest())
    assert published.mirrors == ("https://www.cs.toronto.edu/~kriz",)


def test_an_unwritable_place(tmp_path: Path) -> None:
    packed = archive(tmp_path / "p.tar.gz", whole())
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot unpack"):
        cifar.unpack(packed, tmp_path / "file" / "below")
