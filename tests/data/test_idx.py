"""IDX files: every type, MNIST as published, and files that are damaged or hostile."""

from __future__ import annotations

import gzip
import hashlib
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubackprop.data import read_idx, read_mnist
from gpubackprop.data.download import REMOTE_SETS
from gpubackprop.data.idx import IDX_TYPES
from gpubackprop.errors import ConfigError, DataError

SMALL = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def idx_bytes(values: np.ndarray[Any, Any]) -> bytes:
    """Write an array as an IDX file, from the format's description and not with the reader."""
    code = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[values.dtype.str[1:]]
    head = struct.pack(">BBBB", 0, 0, code, values.ndim)
    sizes = b"".join(struct.pack(">I", size) for size in values.shape)
    return head + sizes + values.astype(values.dtype.newbyteorder(">")).tobytes()


def write_mnist(
    folder: Path, *, separator: str = "-", packed: bool = False, images: int = 3, labels: int = 3
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in ("train", "t10k"):
        pixels = np.full((images, 28, 28), 7, dtype=np.uint8)
        digits = (np.arange(labels) % 10).astype(np.uint8)
        for kind, values in (("images", pixels), ("labels", digits)):
            data = idx_bytes(values)
            name = f"{stem}-{kind}{separator}idx{values.ndim}-ubyte"
            path = folder / (name + ".gz" if packed else name)
            path.write_bytes(gzip.compress(data) if packed else data)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [t.newbyteorder("=") for t in IDX_TYPES.values()], ids=str)
def test_every_type_reads_back(dtype: np.dtype[Any], packed: bool, tmp_path: Path) -> None:
    values = (np.arange(30).reshape(5, 3, 2) - 9).astype(dtype)
    data = idx_bytes(values)
    # The name says nothing about the compression: the first bytes do.
    (tmp_path / "file").write_bytes(gzip.compress(data) if packed else data)
    found = read_idx(tmp_path / "file")
    assert found.dtype == dtype and found.dtype.isnative
    np.testing.assert_array_equal(found, values)
    assert found.flags.writeable


@pytest.mark.data
def test_published_mnist(mnist_folder: Path) -> None:
    for part, count in (("train", 60_000), ("test", 10_000)):
        images, labels = read_mnist(mnist_folder, part)
        assert images.shape == (count, 28, 28) and images.dtype == np.uint8
        assert labels.shape == (count,) and labels.dtype == np.int64
        # Written again, the labels are the published file, bit for bit.
        name = f"{'train' if part == 'train' else 't10k'}-labels-idx1-ubyte.gz"
        known = {file.name: file.sha256 for file in REMOTE_SETS["mnist"].files}[name]
        assert hashlib.sha256(idx_bytes(labels.astype(np.uint8))).hexdigest() == known
    # The first test image is a seven; the set's mean is known from many papers: 0.1307.
    assert labels[0] == 7
    train, _ = read_mnist(mnist_folder, "train")
    assert abs(train.mean() / 255 - 0.1307) < 5e-5


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_file_names(separator: str, packed: bool, tmp_path: Path) -> None:
    write_mnist(tmp_path, separator=separator, packed=packed)
    images, labels = read_mnist(tmp_path, "test")
    assert images.shape == (3, 28, 28) and labels.tolist() == [0, 1, 2]


def test_mnist_counts_must_agree(tmp_path: Path, data_error: Any) -> None:
    write_mnist(tmp_path, images=4, labels=3)
    with data_error("holds 4 images", "3 labels"):
        read_mnist(tmp_path)


def test_mnist_wrong_content(tmp_path: Path, data_error: Any) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((3, 28), np.float32)))
    with data_error("expected uint8 values of 3 dimension(s)", "float32 of shape (3, 28)"):
        read_mnist(tmp_path)


def test_mnist_missing_part(tmp_path: Path, data_error: Any) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with data_error("t10k-labels-idx1-ubyte is not there"):
        read_mnist(tmp_path, "test")
    with data_error("there is no such folder"):
        read_mnist(tmp_path / "absent")
    with data_error("is not a folder"):
        read_mnist(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        read_mnist(tmp_path, "tset")


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "hostile"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0", "only 1 bytes"),
        (b"\x01\0\x08\x01" + bytes(8), "first bytes 01 00 08 01"),
        (b"\0\0\x07\x01" + bytes(8), "first bytes 00 00 07 01"),
        (b"\0\0\x08\0", "claims 0 dimensions"),
        (b"\0\0\x08\xff" + bytes(2000), "claims 255 dimensions"),
        (b"\0\0\x08\x03\0\0\0\x02\0", "ends within the sizes"),
        (b"\0\0\x08\x02\0\0\0\0\0\0\0\x05", "empty shape (0, 5)"),
        (b"\0\0\x08\x01\0\0\0\x05abcd", "more than a file of this size can hold"),
        (b"\0\0\x08\x01\0\0\0\x03abcd", "more data follows"),
        (b"PK\x03\x04" + bytes(20), "first bytes 50 4b 03 04"),
    ],
)
def test_wrong_plain_files(data: bytes, words: str, tmp_path: Path, data_error: Any) -> None:
    with data_error("cannot read IDX file", words):
        read_idx(write(tmp_path, data))


def test_gzip_that_ends_too_soon_for_its_header(tmp_path: Path, data_error: Any) -> None:
    whole = idx_bytes(SMALL)
    with data_error("claims 24 bytes of shape (2, 3, 4), only 23 are there"):
        read_idx(write(tmp_path, gzip.compress(whole[:-1])))
    with data_error("more data follows the 24 bytes"):
        read_idx(write(tmp_path, gzip.compress(whole + b"x")))


def test_gzip_checksum_and_garbage(tmp_path: Path, data_error: Any) -> None:
    packed = gzip.compress(idx_bytes(SMALL))
    with data_error("checksum does not match"):
        read_idx(write(tmp_path, packed[:-8] + b"\0\0\0\0" + packed[-4:]))
    with data_error("followed by garbage"):
        read_idx(write(tmp_path, packed + b"garbage"))


@pytest.mark.parametrize("packed", [False, True])
def test_claimed_sizes_take_no_memory(packed: bool, tmp_path: Path, data_error: Any) -> None:
    # 2**32 - 1 to the eighth power: it overflows any machine integer and any memory.
    head = b"\0\0\x0e\x08" + b"\xff" * 32
    path = write(tmp_path, gzip.compress(head) if packed else head)
    tracemalloc.start()
    with data_error("more than a file of this size can hold"):
        read_idx(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_gzip_claim_within_its_ratio_takes_no_memory_ahead(tmp_path: Path, data_error: Any) -> None:
    # The claim is possible for a gzip file of that size, so only reading it can tell.
    noise = np.random.default_rng(1).bytes(100_000)
    size = 100_000_000
    data = gzip.compress(b"\0\0\x08\x01" + size.to_bytes(4, "big") + noise)
    path = write(tmp_path, data)
    tracemalloc.start()
    with data_error("only 100,000 are there"):
        read_idx(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("packed", [False, True])
def test_truncated_anywhere(packed: bool, tmp_path: Path) -> None:
    whole = idx_bytes(SMALL)
    whole = gzip.compress(whole, mtime=0) if packed else whole
    for length in range(len(whole)):
        with pytest.raises(DataError):
            read_idx(write(tmp_path, whole[:length]))
    np.testing.assert_array_equal(read_idx(write(tmp_path, whole)), SMALL)


def test_any_flipped_bit_of_gzip_is_found_or_harmless(tmp_path: Path) -> None:
    whole = gzip.compress(idx_bytes(SMALL), mtime=0)
    harmless = 0
    for place in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            try:
                found = read_idx(write(tmp_path, bytes(data)))
            except DataError:
                continue
            # Time, system and compression level of the gzip header say nothing about the data.
            np.testing.assert_array_equal(found, SMALL)
            harmless += 1
    assert 0 < harmless < 8 * 10


edits = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6)


@settings(max_examples=300, deadline=None)
@given(packed=st.booleans(), edits=edits, cut=st.integers(0, 200), tail=st.binary(max_size=20))
def test_random_damage_reads_or_is_a_data_error(
    packed: bool, edits: list[tuple[int, int]], cut: int, tail: bytes, scratch: Path
) -> None:
    whole = idx_bytes(SMALL.astype(">f4"))
    data = bytearray(gzip.compress(whole, mtime=0) if packed else whole)
    for place, value in edits:
        data[place % len(data)] = value
    path = scratch / "fuzz"
    path.write_bytes(bytes(data[: len(data) - cut % len(data)]) + tail)
    try:
        found = read_idx(path)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(found, np.ndarray)
