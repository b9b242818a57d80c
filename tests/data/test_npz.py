"""NPZ archives: what NumPy writes reads back, and nothing in a hostile archive is believed."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubackprop.data import read_npz
from gpubackprop.errors import DataError

SMALL = {
    "x": np.arange(12, dtype=np.float32).reshape(3, 4),
    "y": np.array([0, 1, 2]),
}


def npy(values: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def header(shape: str, descr: str = "'<f8'", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text


def archive(
    path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for name, data in members:
            out.writestr(name, data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(save: Any, path: Path) -> None:
    arrays = {
        "f4": np.linspace(0, 1, 7, dtype=np.float32),
        "big": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "bool": np.array([True, False]),
        "complex": np.array([1 + 2j]),
        "text": np.array(["cat", "dog"]),
        "bytes": np.array([b"a", b"bc"]),
        "scalar": np.array(3.5),
        "empty": np.zeros((0, 4)),
        "half": np.array([1.5], dtype=np.float16),
    }
    save(path, **arrays)
    found = read_npz(path)
    assert list(found) == list(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].shape == values.shape
        assert found[name].dtype == values.dtype.newbyteorder("=")
        assert found[name].flags.c_contiguous


def test_reads_the_names_asked_for(path: Path, data_error: Any) -> None:
    np.savez(path, **SMALL)
    assert list(read_npz(path, ["y"])) == ["y"]
    with data_error("unknown array 'yy'", "did you mean 'y'", "allowed: x, y"):
        read_npz(path, ["yy"])


class Boom:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (self.target,)


def test_pickle_is_refused_and_never_run(path: Path, tmp_path: Path, data_error: Any) -> None:
    target = tmp_path / "boom"
    np.savez(path, x=np.array([Boom(str(target))], dtype=object))
    with data_error("array 'x' holds Python objects, stored as pickle"):
        read_npz(path)
    assert not target.exists()
    path.write_bytes(pickle.dumps(Boom(str(target))))
    with data_error("not an NPZ archive"):
        read_npz(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (header("(10,)") + bytes(8), "claims shape (10,) of float64, 80 bytes"),
        (header("(1,)") + bytes(80), "its member holds 80"),
        (header("(1000000000000000,)"), "claims shape (1000000000000000,)"),
        (header("(4294967296, 4294967296, 4294967296)"), "claims shape"),
        (header("(0, 4611686018427387904, 4611686018427387904)"), "impossible shape"),
        (header("(-1,)"), "claims shape (-1,)"),
        (header("(-1, -1)") + bytes(8), "claims shape (-1, -1)"),
        (header("5"), "damaged header"),
        (header("__import__('os').getcwd()"), "damaged header"),
        (header("(" * 4000), "damaged header"),
        (header("(1,)", "'nonsense'"), "damaged header"),
        (header("(1,)", "[('a', '<f8')]") + bytes(8), "record type"),
        (header("(1,)", "'<M8[s]'") + bytes(8), "datetime64"),
        (header("(1000000000000,)", "'<U0'"), "claims shape"),
        (header("(1,)", "'<U1'") + b"\xff" * 4, "characters that Unicode does not have"),
        (header("(1,)", "'<f8'", b"\x03\x00") + bytes(8), "record type"),
        (b"\x93NUMPY\x09\x00" + bytes(80), "record type"),
        (b"\x93NUMPY\x01\x00\xff\xff" + bytes(80), "damaged header"),
        (b"no array at all", "damaged header"),
        (b"", "damaged header"),
    ],
)
def test_hostile_members(member: bytes, words: str, path: Path, data_error: Any) -> None:
    archive(path, [("x.npy", member)])
    tracemalloc.start()
    with data_error("cannot read NPZ file", "array 'x'", words):
        read_npz(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_booleans_are_zero_or_one(path: Path) -> None:
    archive(path, [("x.npy", header("(3,)", "'|b1'") + b"\x00\x02\xff")])
    assert read_npz(path)["x"].view(np.uint8).tolist() == [0, 1, 1]


def test_hostile_archives(path: Path, data_error: Any) -> None:
    archive(path, [("readme.txt", b"hello")])
    with data_error("its member 'readme.txt' is not an array"):
        read_npz(path)
    archive(path, [])
    with data_error("holds no array"):
        read_npz(path)
    archive(path, [("x.npy", npy(np.zeros(3)))], zipfile.ZIP_BZIP2)
    with data_error("compressed in a way that NumPy does not write"):
        read_npz(path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(path, [("x.npy", npy(np.zeros(3))), ("x.npy", npy(np.ones(3)))])
    with data_error("two arrays named 'x'"):
        read_npz(path)
    path.write_bytes(npy(np.zeros(3)))
    with data_error("single array (.npy)", "numpy.savez"):
        read_npz(path)
    path.write_bytes(b"PK\x03\x04 and no more")
    with data_error("not an NPZ archive, or it is truncated"):
        read_npz(path)


def test_encrypted_member(path: Path, data_error: Any) -> None:
    archive(path, [("x.npy", npy(np.zeros(3)))])
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    path.write_bytes(bytes(data))
    with data_error("array 'x' is encrypted"):
        read_npz(path)


def test_damaged_data_fails_its_checksum(path: Path, data_error: Any) -> None:
    np.savez(path, x=np.arange(1000.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with data_error("array 'x' is truncated or damaged"):
        read_npz(path)


def test_truncated_anywhere(path: Path) -> None:
    np.savez_compressed(path, **SMALL)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_npz(path)


edits = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=400, deadline=None)
@given(packed=st.booleans(), edits=edits, cut=st.integers(0, 3))
def test_random_damage_reads_or_is_a_data_error(
    packed: bool, edits: list[tuple[int, int]], cut: int, scratch: Path
) -> None:
    path = scratch / "fuzz.npz"
    (np.savez_compressed if packed else np.savez)(path, **SMALL)
    data = bytearray(path.read_bytes())
    for place, value in edits:
        data[place % len(data)] = value
    path.write_bytes(bytes(data[: len(data) - cut]))
    try:
        found = read_npz(path)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        # Each member has a checksum, so what was read is what was written.
        for name in found.keys() & SMALL.keys():
            np.testing.assert_array_equal(found[name], SMALL[name])
