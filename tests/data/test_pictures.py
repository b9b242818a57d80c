"""Folders of pictures: made here, in several formats, whole and hostile."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop.data import ArrayDataset, Pictures, load, pictures, read_picture
from gpubackprop.errors import ConfigError, DataError

Image = pytest.importorskip("PIL.Image", reason="the extra 'images' (Pillow) is not installed")


def save(path: Path, array: Any, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path, **how)
    return path


def plain(value: int, height: int = 6, width: int = 6) -> Any:
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes: dark and light, and things that are no pictures."""
    for number in range(10):
        save(tmp_path / "dark" / f"{number}.png", plain(10 + number))
        save(tmp_path / "light" / f"{number}.bmp", plain(200 + number))
    (tmp_path / "dark" / ".hidden.png").write_bytes(b"no picture")
    (tmp_path / "dark" / "notes.txt").write_text("no picture either")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "readme.md").write_text("")
    return tmp_path


def test_classes_are_the_folders_in_order(folder: Path) -> None:
    data = load("image-folder", folder, size=4, scale="none")
    assert data.class_names == ("dark", "light") and data.classes == 2
    assert data.input_shape == (4, 4, 3)
    assert (len(data.train), len(data.test)) == (16, 4)
    assert np.bincount(data.test.array("target")).tolist() == [2, 2]
    inputs, targets = data.train.arrays
    assert ((inputs > 100).all(axis=(1, 2, 3)) == (targets == 1)).all()
    again = load("image-folder", folder, size=4, scale="none")
    np.testing.assert_array_equal(inputs, again.train.array("input"))
    other = load("image-folder", folder, size=4, scale="none", split_seed=1)
    assert not np.array_equal(inputs, other.train.array("input"))


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_parts_in_folders_of_their_own(tmp_path: Path, held_out: str) -> None:
    for part, names in (("train", "cab"), (held_out, "ca")):
        for number, name in enumerate(names):
            save(tmp_path / part / name / "1.png", plain(50 * number))
    data = load("image-folder", tmp_path, size=3, scale="none")
    assert data.class_names == ("a", "b", "c")
    assert data.train.array("target").tolist() == [0, 1, 2]
    assert data.test.array("target").tolist() == [0, 2]
    assert data.test.array("input")[:, 0, 0, 0].tolist() == [50, 0]
    save(tmp_path / held_out / "stranger" / "1.png", plain(0))
    with pytest.raises(DataError, match="has the class 'stranger', which the training part has"):
        load("image-folder", tmp_path)


def test_a_training_part_alone_is_split(tmp_path: Path) -> None:
    for name in "ab":
        for number in range(5):
            save(tmp_path / "train" / name / f"{number}.png", plain(number))
    data = load("image-folder", tmp_path, size=3)
    assert (len(data.train), len(data.test)) == (8, 2)


def test_the_path_is_below_the_data_folder(folder: Path) -> None:
    assert load("image-folder", folder.parent, path=folder.name, size=2).classes == 2
    assert load("image-folder", path=str(folder), size=2).classes == 2


def test_a_picture_fills_the_square_and_its_middle_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = (255, 0, 100)
    path = save(tmp_path / "wide.png", wide)
    square = read_picture(path, 8)
    assert square.shape == (8, 8, 3) and square.dtype == np.uint8
    assert (square == (255, 0, 100)).all()
    smaller = read_picture(path, 4)
    # The filter is widened where it shrinks, so the outer columns see a little beyond the middle.
    assert (smaller[:, 1:3] == (255, 0, 100)).all()
    grey = read_picture(path, 8, grey=True)
    assert grey.shape == (8, 8, 1)
    assert abs(int(grey[0, 0, 0]) - round(0.299 * 255 + 0.114 * 100)) <= 1


def test_the_orientation_of_a_camera_is_followed(tmp_path: Path) -> None:
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 255  # light above
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by half
    path = tmp_path / "turned.jpg"
    Image.fromarray(np.rot90(upright, 2)).save(path, exif=exif, quality=95)
    found = read_picture(path, 8)
    assert found[:3].min() > 200 and found[5:].max() < 50


def test_other_modes_become_red_green_blue(tmp_path: Path) -> None:
    wanted = np.zeros((4, 4, 3), np.uint8)
    wanted[..., 0] = 200
    image = Image.fromarray(wanted)
    for name in ("a.gif", "b.png", "c.webp"):
        image.convert("P").save(tmp_path / name)
        assert abs(read_picture(tmp_path / name, 4).astype(int) - wanted).max() <= 8, name
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[..., 0] = 255  # red, but transparent
    clear[0, ..., 3] = 255
    path = save(tmp_path / "clear.png", clear)
    found = read_picture(path, 4)
    assert (found[0] == (255, 0, 0)).all() and (found[1:] == 0).all()
    deep = save(tmp_path / "deep.png", np.full((4, 4), 65535 // 2, np.uint16))
    assert abs(int(read_picture(deep, 4)[0, 0, 0]) - 127) <= 1
    two = save(tmp_path / "bits.png", np.eye(4, dtype=bool))
    assert read_picture(two, 4, grey=True)[..., 0].tolist() == (np.eye(4) * 255).tolist()
    image.convert("CMYK").save(tmp_path / "print.jpg")
    assert read_picture(tmp_path / "print.jpg", 4).shape == (4, 4, 3)


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        code = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", code)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is no picture"),
        (b"not a picture at all", "it is no picture"),
        (png(12_000, 12_000), "claims 12,000 x 12,000 pixels"),
        (png(10, 10), "bad.png"),
        (png(2**31 - 1, 2**31 - 1), "bad.png"),
    ],
)
def test_damaged_pictures_are_named(
    folder: Path, content: bytes, words: str, data_error: Any
) -> None:
    (folder / "dark" / "bad.png").write_bytes(content)
    with data_error("cannot read picture", "bad.png", words):
        load("image-folder", folder, size=4)


def test_a_cut_picture_is_named(folder: Path, data_error: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    path = save(folder / "dark" / "cut.png", noise)
    path.write_bytes(path.read_bytes()[:2000])
    with data_error("cannot read picture", "cut.png"):
        load("image-folder", folder, size=4)


@pytest.mark.skipif(os.name != "posix", reason="pipes are of POSIX systems")
def test_a_pipe_is_not_waited_for(folder: Path, data_error: Any) -> None:
    os.mkfifo(folder / "dark" / "pipe.png")
    with data_error("pipe.png", "is not a regular file"):
        load("image-folder", folder, size=4)


def test_folders_that_are_none(tmp_path: Path, data_error: Any) -> None:
    with data_error("no such folder"):
        load("image-folder", tmp_path / "absent")
    with data_error("holds no folder of a class", "a folder for each class"):
        load("image-folder", tmp_path)
    save(tmp_path / "loose.png", plain(1))
    with data_error("the pictures of each class must be in a folder with its name"):
        load("image-folder", tmp_path)
    save(tmp_path / "only" / "1.png", plain(1))
    with pytest.raises(ConfigError, match="only one class, 'only'"):
        load("image-folder", tmp_path)
    (tmp_path / "empty").mkdir()
    with data_error(str(tmp_path / "empty"), "holds no picture", "beside it is a class"):
        load("image-folder", tmp_path)
    save(tmp_path / "empty" / "cats" / "1.png", plain(1))
    with data_error("the folder to name is", str(tmp_path / "empty")):
        load("image-folder", tmp_path)
    with data_error("is a file, not a folder"):
        load("image-folder", tmp_path / "loose.png")
    with pytest.raises(ConfigError, match="--data-dir, or the option path"):
        load("image-folder")


def test_too_few_to_split(tmp_path: Path, data_error: Any) -> None:
    for name in "ab":
        save(tmp_path / name / "1.png", plain(1))
    with data_error("2 pictures", "too few to hold out"):
        load("image-folder", tmp_path, test_fraction=0.01)
    with pytest.raises(ConfigError, match="test_fraction must be between"):
        load("image-folder", tmp_path, test_fraction=2.0)
    with pytest.raises(ConfigError, match="size must be a whole number from 1 to 4096"):
        load("image-folder", tmp_path, size=0, test_fraction=0.5)


@pytest.mark.parametrize("scale", ["unit", "standard-channel"])
def test_many_pictures_are_decoded_batch_by_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, scale: str
) -> None:
    now = load("image-folder", folder, size=5, scale=scale)
    monkeypatch.setattr(pictures, "CACHE_BYTES", 100)
    lazy = load("image-folder", folder, size=5, scale=scale)
    assert isinstance(lazy.train, ArrayDataset) and lazy.train._arrays[0].shape == (16,)
    assert lazy.input_shape == now.input_shape
    for part in ("train", "test"):
        which = np.array([3, 0, 1])
        for a, b in zip(getattr(now, part)[which], getattr(lazy, part)[which], strict=True):
            np.testing.assert_array_equal(a, b)
    decoded = []
    read = Pictures.read
    monkeypatch.setattr(Pictures, "read", lambda self, n: decoded.append(n) or read(self, n))
    lazy.train.array("target")
    assert not decoded  # classes alone need no picture
    with pytest.raises(ConfigError, match="kind 'flatten'"):
        load("image-folder", folder, size=5, flatten=True)


def test_without_pillow_the_error_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, data_error: Any
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with data_error("needs the package Pillow", "gpubackprop[images]"):
        load("image-folder", folder)


@pytest.mark.skipif(os.name != "posix", reason="names of bytes are of POSIX systems")
def test_a_name_that_is_no_text(folder: Path, data_error: Any) -> None:
    try:
        os.mkdir(os.fsencode(folder) + b"/\xff")
    except OSError:
        pytest.skip("the file system takes no such name")
    with data_error("is not valid UTF-8"):
        load("image-folder", folder)
