"""What every reader does with things that are not readable files."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop.data import read_csv, read_idx, read_npz

READERS: list[Any] = [read_idx, read_npz, read_csv]


@pytest.fixture(params=READERS, ids=lambda reader: reader.__name__)
def reader(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return request.param


def test_missing_file(reader: Any, tmp_path: Path, data_error: Any) -> None:
    with data_error("cannot read", "nothing.dat", "no such file"):
        reader(tmp_path / "nothing.dat")


def test_folder_instead_of_a_file(reader: Any, tmp_path: Path, data_error: Any) -> None:
    with data_error("is a folder, not a file"):
        reader(tmp_path)


def test_a_file_in_place_of_a_folder_of_the_path(
    reader: Any, tmp_path: Path, data_error: Any
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with data_error("a part of the path is not a folder"):
        reader(tmp_path / "file" / "below")


def test_empty_file(reader: Any, tmp_path: Path, data_error: Any) -> None:
    (tmp_path / "empty").touch()
    with data_error("the file is empty"):
        reader(tmp_path / "empty")


def test_nul_character_in_the_path(reader: Any, data_error: Any) -> None:
    with data_error("NUL character"):
        reader("a\0b")


def test_name_too_long(reader: Any, tmp_path: Path, data_error: Any) -> None:
    with data_error("file name is too long"):
        reader(tmp_path / ("x" * 5000))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the platform has no named pipes")
def test_pipe_is_refused_and_not_waited_for(reader: Any, tmp_path: Path, data_error: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    with data_error("is not a regular file"):
        reader(tmp_path / "pipe")


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX ones")
def test_permission_denied(reader: Any, tmp_path: Path, data_error: Any) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"1,2\n3,4\n")
    path.chmod(0)
    was_root = os.geteuid() == 0
    if was_root:
        # Root may read anything, so the test becomes somebody else for a moment.
        os.seteuid(65534)
    try:
        with data_error("permission denied"):
            reader(path)
    finally:
        if was_root:
            os.seteuid(0)


@pytest.mark.parametrize("reader", [read_idx, read_csv])
def test_gzip_bomb_stops_at_the_limit(reader: Any, tmp_path: Path, data_error: Any) -> None:
    # 16 MiB of zeros take 16 KiB; as IDX they are a true uint8 vector, as CSV one endless line.
    size = 1 << 24
    head = bytes([0, 0, 8, 1]) + size.to_bytes(4, "big") if reader is read_idx else b"1,2\n"
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(head + (b"\0" if reader is read_idx else b"1") * size))
    with data_error("max_bytes"):
        reader(path, max_bytes=1 << 20)


def test_npz_bomb_stops_before_it_is_unpacked(tmp_path: Path, data_error: Any) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(1 << 24, dtype=np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 16
    with data_error("unpack to 16,777,344 bytes", "max_bytes=1,048,576"):
        read_npz(tmp_path / "bomb.npz", max_bytes=1 << 20)
