"""Texts: vocabulary, windows, and files that are no text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubackprop.data import DATASETS, Vocabulary, load, read_text, text
from gpubackprop.errors import ConfigError, DataError


@given(st.text(min_size=1, max_size=60))
def test_encoding_and_decoding_are_inverse(given_text: str) -> None:
    vocabulary = Vocabulary.of(given_text)
    assert list(vocabulary.characters) == sorted(set(given_text))
    numbers = vocabulary.encode(given_text)
    assert numbers.dtype == np.int64 and numbers.shape == (len(given_text),)
    assert vocabulary.decode(numbers) == given_text
    # The order of a vocabulary that was stored need not be that of the code points.
    turned = Vocabulary(vocabulary.characters[::-1])
    assert turned.decode(turned.encode(given_text)) == given_text


def test_unknown_characters_are_named() -> None:
    vocabulary = Vocabulary.of("abc")
    with pytest.raises(DataError, match=r"does not know: 'x', '\\n'; it knows 'abc'"):
        vocabulary.encode("axb\nx")
    with pytest.raises(DataError, match="and 21 more"):
        vocabulary.encode("".join(map(chr, range(100, 126))))
    with pytest.raises(DataError, match="does not know"):
        vocabulary.encode("\ud800")
    with pytest.raises(DataError, match="empty"):
        Vocabulary("").encode("a")
    for wrong in (["ab"], ["a", "a"], [""]):
        with pytest.raises(ConfigError):
            Vocabulary(wrong)


@pytest.mark.parametrize(("count", "context"), [(2, 1), (9, 4), (10, 4), (11, 4), (40, 39), (7, 2)])
def test_consecutive_windows_guess_each_character_once(count: int, context: int) -> None:
    numbers = np.arange(count) * 10
    inputs, targets = text.consecutive_windows(numbers, context)
    assert inputs.shape == targets.shape == (-(-(count - 1) // context), context)
    counted = targets != text.IGNORED
    np.testing.assert_array_equal(targets[counted], numbers[1:])
    np.testing.assert_array_equal(inputs[counted], numbers[:-1])
    # Also where a target is not counted its input is the text's.
    assert (np.diff(inputs, axis=1) == 10).all()


def test_every_window_is_a_view() -> None:
    numbers = np.arange(10)
    inputs, targets = text.every_window(numbers, 4)
    assert inputs.shape == targets.shape == (6, 4)
    assert np.shares_memory(inputs, numbers)
    np.testing.assert_array_equal(inputs[5], [5, 6, 7, 8])
    np.testing.assert_array_equal(targets[5], [6, 7, 8, 9])


def write(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "book.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_a_text_as_a_dataset(tmp_path: Path) -> None:
    whole = "Über den Fluß, und in die Wälder.\r\n" * 10 + "z"
    data = load("text", path=write(tmp_path, "\ufeff" + whole), context=8, test_fraction=0.2)
    assert data.input_shape == (8,) and data.classes == len(set(whole))
    # The z is in the held-out part alone, and has a number all the same.
    assert data.class_names == tuple(sorted(set(whole)))
    cut = int(len(whole) * 0.8)
    assert len(data.train) == cut - 8
    inputs, targets = data.train[np.array([3])]
    assert inputs.dtype == targets.dtype == np.int64
    vocabulary = Vocabulary(data.class_names)
    assert vocabulary.decode(inputs[0]) == whole[3:11]
    assert vocabulary.decode(targets[0]) == whole[4:12]
    held = data.test.array("target")
    assert vocabulary.decode(held[held != text.IGNORED]) == whole[cut + 1 :]
    assert data.scaling(inputs).tolist() == inputs.tolist()


def test_a_relative_path_is_below_the_data_folder(tmp_path: Path) -> None:
    write(tmp_path, "ab" * 500)
    assert load("text", tmp_path, path="book.txt").classes == 2


def test_options_of_pictures_are_none_of_a_text(tmp_path: Path) -> None:
    assert set(DATASETS["text"].options) == {"path", "context", "test_fraction", "dtype"}
    with pytest.raises(ConfigError, match="unknown option of dataset 'text' 'scale'"):
        load("text", path="x", scale="unit")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"one\ntwo \xff three", ["line 2", "not valid UTF-8"]),
        (b"", ["the file is empty"]),
        (b"short", ["5 characters", "too few for a window of 64", "a smaller context"]),
        (b"x" * 300, ["for the held-out part"]),
    ],
)
def test_files_that_are_no_text(
    tmp_path: Path, content: bytes, words: list[str], data_error: Any
) -> None:
    with data_error(*words):
        load("text", path=write(tmp_path, content))


def test_missing_files_and_wrong_options(tmp_path: Path, data_error: Any) -> None:
    with data_error("no such file"):
        load("text", path=str(tmp_path / "absent.txt"))
    with pytest.raises(ConfigError, match="needs the option path"):
        load("text")
    path = write(tmp_path, "ab" * 500)
    with pytest.raises(ConfigError, match="test_fraction must be between 0 and 1"):
        load("text", path=path, test_fraction=1.5)
    with pytest.raises(ConfigError, match="context must be at least 1"):
        load("text", path=path, context=0)
    with data_error("more than 10 bytes"):
        read_text(path, max_bytes=10)


def test_shakespeare_is_found_in_its_folder_or_the_one_above(tmp_path: Path) -> None:
    inner = tmp_path / "tinyshakespeare"
    inner.mkdir()
    (inner / "input.txt").write_text("To be, or not to be. " * 100)
    for folder in (inner, tmp_path):
        assert load("tinyshakespeare", folder, context=16).input_shape == (16,)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no input.txt.*data.name = 'text'"):
        load("tinyshakespeare", tmp_path / "empty")
    with pytest.raises(DataError, match="absent: there is no such folder"):
        load("tinyshakespeare", inner / "absent")
    with pytest.raises(ConfigError, match="download=true"):
        load("tinyshakespeare", download=False)


@pytest.mark.data
def test_the_real_text(data_root: Path) -> None:
    data = load("tinyshakespeare", data_root)
    # The counts that nanoGPT's data/shakespeare_char/prepare.py prints.
    assert data.classes == 65
    assert len(data.train) + 64 == 1_003_854
    assert (data.test.array("target") != text.IGNORED).sum() + 1 == 111_540
