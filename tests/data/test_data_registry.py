"""Datasets by name, with their options, as a recipe loads them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop.data import DATASETS, DataSplit, load, registry
from gpubackprop.errors import ConfigError, DataError

IN_MEMORY = ["digits", "two-moons", "spirals", "blobs"]


@pytest.mark.parametrize("name", IN_MEMORY)
def test_every_set_without_files_loads(name: str) -> None:
    data = load(name)
    kind = DATASETS[name]
    assert data.input_shape == kind.input_shape
    assert kind.classes in (None, data.classes)
    assert data.class_names is not None and len(data.class_names) == data.classes
    for part in (data.train, data.test):
        inputs, targets = part.arrays
        assert inputs.dtype == np.float32 and targets.dtype == np.int64
        assert inputs.shape == (len(part), *data.input_shape)
        assert set(np.unique(targets)) == set(range(data.classes or 0))
    assert data.source


def test_the_split_is_the_same_every_time_and_shares_nothing() -> None:
    first, again = load("digits"), load("digits")
    np.testing.assert_array_equal(first.test.array("input"), again.test.array("input"))
    other = load("digits", split_seed=1)
    assert not np.array_equal(first.test.array("target"), other.test.array("target"))
    rows = [part.array("input").reshape(len(part), -1) for part in (first.train, first.test)]
    assert len(rows[0]) + len(rows[1]) == 1797
    total = np.concatenate(rows)
    assert len(np.unique(total, axis=0)) == len(total)


def test_flatten_one_hot_and_dtype() -> None:
    plain = load("digits")
    data = load("digits", flatten=True, one_hot=True, dtype="float64")
    inputs, targets = data.test.arrays
    assert inputs.dtype == np.float64 and targets.dtype == np.float64
    assert data.input_shape == (64,) and targets.shape == (len(data.test), 10)
    np.testing.assert_array_equal(targets.argmax(axis=1), plain.test.array("target"))
    np.testing.assert_array_equal(
        inputs.reshape(-1, 8, 8).astype(np.float32), plain.test.array("input")
    )


@pytest.mark.parametrize("scale", ["unit", "standard", "standard-global"])
def test_scaling_comes_from_the_training_part_only(scale: str, tmp_path: Path) -> None:
    # A test part that is far off must not change what the training part becomes.
    x = np.random.default_rng(0).normal(size=(50, 3))
    y = np.arange(50) % 2
    seen = []
    for shift in (0, 100):
        path = tmp_path / "set.npz"
        np.savez(path, x_train=x, y_train=y, x_test=x + shift, y_test=y)
        data = load("npz", path=str(path), scale=scale)
        seen.append(data)
        np.testing.assert_array_equal(data.scaling(x + shift), data.test.array("input"))
    np.testing.assert_array_equal(seen[0].train.array("input"), seen[1].train.array("input"))
    assert seen[1].test.array("input").min() > seen[1].train.array("input").max()


def test_large_inputs_are_scaled_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = load("digits", scale="standard")
    monkeypatch.setattr(registry, "LAZY_BYTES", 1000)
    lazy = load("digits", scale="standard")
    which = np.array([5, 3, 1000])
    for a, b in zip(now.train[which], lazy.train[which], strict=True):
        np.testing.assert_array_equal(a, b)
    # What is kept is the bytes of the file, not their scaled copy.
    assert lazy.train._arrays[0].dtype == np.uint8 and now.train._arrays[0].dtype == np.float32


@pytest.mark.data
def test_real_mnist(mnist_folder: Path) -> None:
    data = load("mnist", mnist_folder, flatten=True)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.input_shape == (784,) and data.classes == 10
    inputs, targets = data.test[np.array([0, 9_999])]
    assert inputs.max() == 1.0 and inputs.min() == 0.0
    assert targets.tolist() == [7, 6]
    assert str(mnist_folder) in data.source
    # The folder above works as well, and so does torchvision's layout.
    assert load("mnist", mnist_folder.parent).test.array("target")[0] == 7


@pytest.mark.data
def test_mnist_is_not_taken_for_fashion_mnist(mnist_folder: Path) -> None:
    with pytest.raises(DataError, match="holds MNIST, not Fashion-MNIST"):
        load("fashion-mnist", mnist_folder)


@pytest.mark.data
def test_layout_of_torchvision(mnist_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for path in mnist_folder.glob("*.gz"):
        shutil.copy(path, folder)
    assert load("mnist", tmp_path).source == f"MNIST from {folder}"


def test_mnist_without_folder_and_download() -> None:
    with pytest.raises(ConfigError, match="needs a folder .* or download=true"):
        load("mnist", download=False)


def test_mnist_with_a_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train-images-idx3-ubyte is not there"):
        load("mnist", tmp_path)


def test_npz(tmp_path: Path) -> None:
    x = np.arange(200, dtype=np.uint8).reshape(50, 2, 2)
    y = np.array(["cat", "dog"])[np.arange(50) % 2]
    np.savez(tmp_path / "set.npz", images=x, labels=y)
    data = load("npz", tmp_path, path="set.npz", scale="unit", test_fraction=0.1)
    assert data.class_names == ("cat", "dog") and data.input_shape == (2, 2)
    assert (len(data.train), len(data.test)) == (45, 5)
    assert data.scaling.scale == 255
    np.savez(tmp_path / "other.npz", a=np.arange(50.0), b=np.arange(50.0) / 3, c=np.ones(50))
    data = load("npz", tmp_path, path="other.npz", x="a", y="b")
    assert data.classes is None and data.input_shape == (1,)
    assert data.train.array("target").dtype == np.float32
    with pytest.raises(ConfigError, match="one_hot needs classes"):
        load("npz", tmp_path, path="other.npz", x="a", y="b", one_hot=True)


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"p": np.zeros(3)}, {}, "give both x and y, .* it holds p"),
        ({"x": np.zeros(3), "y": np.zeros(3, int)}, {"x": "x"}, "give both x and y"),
        ({"x": np.zeros(3), "y": np.zeros(3, int)}, {"x": "xx", "y": "y"}, "did you mean 'x'"),
        ({"x": np.zeros(3), "y": np.zeros(4, int)}, {}, "same number of samples"),
        ({"x": np.array(["a"]), "y": np.zeros(1, int)}, {}, "must be real numbers"),
        ({"x": np.array([np.nan]), "y": np.zeros(1, int)}, {}, "a NaN or an infinity"),
        ({"x": np.zeros(9), "y": np.arange(9) - 1}, {}, "must count from 0, found -1 to 7"),
        ({"x": np.zeros(9), "y": np.full(9, 10**9)}, {}, "must count from 0"),
        ({"x": np.zeros(9), "y": np.zeros((9, 2), int)}, {}, "one integer or text"),
        ({"x": np.zeros(9), "y": np.full(9, np.inf)}, {}, "finite numbers for a regression"),
        ({"x": np.zeros(9), "y": np.zeros(9)}, {"task": "classification"}, "one integer or text"),
        ({"x": np.zeros(9), "y": np.zeros(9, int)}, {"task": "classify"}, "unknown task"),
        ({"x": np.zeros(1), "y": np.zeros(1, int)}, {}, "too few to hold out"),
        ({"x": np.zeros(9), "y": np.zeros(9, int)}, {"test_fraction": 1.0}, "between 0 and 1"),
        ({"x": np.zeros(9), "y": np.zeros(9, int)}, {"x_test": "x"}, "both x_test and y_test"),
        (
            {"x": np.zeros((9, 2)), "y": np.zeros(9, int), "z": np.zeros(9)},
            {"x": "x", "y": "y", "x_test": "z", "y_test": "y"},
            r"samples of 'x' have shape \(2,\), of 'z' \(1,\)",
        ),
    ],
)
def test_wrong_npz(
    arrays: dict[str, Any], options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises((ConfigError, DataError), match=words) as caught:
        load("npz", tmp_path, path="set.npz", **options)
    assert "\n" not in str(caught.value)


def test_csv_with_a_test_file(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b,kind\n1,2,x\n3,4,y\n5,6,z\n")
    (tmp_path / "test.csv").write_text("a,b,kind\n7,8,z\n9,0,y\n")
    data = load("csv", tmp_path, path="train.csv", test_path="test.csv", scale="unit")
    assert data.class_names == ("x", "y", "z")
    # Numbers of classes are those of the training file.
    assert data.test.array("target").tolist() == [2, 1]
    assert data.test.array("input").tolist() == [[1.5, 1.5], [2.0, -0.5]]
    (tmp_path / "test.csv").write_text("a,b,kind\n7,8,w\n")
    with pytest.raises(DataError, match="has the class 'w'"):
        load("csv", tmp_path, path="train.csv", test_path="test.csv")
    (tmp_path / "test.csv").write_text("b,a,kind\n7,8,x\n")
    with pytest.raises(DataError, match="has the feature columns b, a, but"):
        load("csv", tmp_path, path="train.csv", test_path="test.csv")


def test_csv_split_and_regression(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text("".join(f"{k},{2 * k},{k / 7}\n" for k in range(40)))
    data = load("csv", path=str(path), task="regression", test_fraction=0.25)
    assert data.classes is None and data.class_names is None
    assert (len(data.train), len(data.test)) == (30, 10)
    inputs, targets = data.test.arrays
    np.testing.assert_allclose(inputs[:, 0] / 7, targets, rtol=1e-6)
    with pytest.raises(DataError, match="no such file"):
        load("csv", tmp_path, path="absent.csv")


def test_values_too_large_for_the_dtype(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("1e39,1\n2,2\n3,3\n4,4\n")
    with pytest.raises(DataError, match="inputs of .*set.csv hold a value that is too large for"):
        load("csv", tmp_path, path="set.csv", task="regression")
    with pytest.raises(DataError, match="targets hold a value that is too large for float32"):
        load("csv", tmp_path, path="set.csv", task="regression", target=0)
    data = load("csv", tmp_path, path="set.csv", task="regression", dtype="float64")
    values = np.concatenate([data.train.array("input"), data.test.array("input")])
    assert values.max() == 1e39


def test_wrong_names_and_options() -> None:
    with pytest.raises(ConfigError) as caught:
        load("minst")
    assert str(caught.value) == (
        "unknown dataset 'minst'; did you mean 'mnist'? allowed: " + ", ".join(DATASETS)
    )
    with pytest.raises(ConfigError, match="unknown dataset 5"):
        load(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="option of dataset 'digits' 'flaten'; did you mean 'fl"):
        load("digits", flaten=True)
    with pytest.raises(ConfigError, match="value of option 'scale' 'units'; did you mean 'unit'"):
        load("digits", scale="units")
    with pytest.raises(ConfigError, match="value of option 'dtype' 'float16'"):
        load("digits", dtype="float16")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("digits", {"flatten": "yes"}, "'flatten' of dataset 'digits' must be true or false, got"),
        ("digits", {"flatten": 1}, "must be true or false"),
        ("digits", {"split_seed": 1.0}, "must be a whole number"),
        ("digits", {"split_seed": True}, "must be a whole number"),
        ("digits", {"test_fraction": "half"}, "must be a number"),
        ("csv", {"target": 1.5}, "must be a text or a whole number"),
        ("csv", {"header": "no"}, "must be true or false or left out"),
        ("csv", {}, "needs the option path"),
        ("digits", {"split_seed": -1}, "seed must be a whole number from 0"),
    ],
)
def test_wrong_values(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(name, **options)


def test_every_row_lists_its_options() -> None:
    for name, kind in DATASETS.items():
        assert kind.name == name and kind.summary
        prepared = {"flatten", "channel_axis", "scale", "one_hot"}
        assert "dtype" in kind.options
        assert prepared & kind.options.keys() == (set() if kind.tokens else prepared)
    assert DATASETS["digits"].options["scale"] == "unit"
    assert DATASETS["csv"].options["target"] == -1


def test_a_split_is_a_record() -> None:
    data = load("two-moons", n=40, noise=0.0, seed=3)
    assert isinstance(data, DataSplit)
    assert (len(data.train), len(data.test)) == (30, 10)
    assert data.source == "two moons (n=40, noise=0.0, seed=3)"


def test_grey_pictures_get_an_axis_of_channels() -> None:
    plain, data = load("digits"), load("digits", channel_axis=True)
    assert data.input_shape == (8, 8, 1)
    np.testing.assert_array_equal(data.test.array("input")[..., 0], plain.test.array("input"))
    assert load("digits", channel_axis=True, scale="standard-channel").scaling.offset.shape == (1,)
    with pytest.raises(ConfigError, match="do not go together"):
        load("digits", channel_axis=True, flatten=True)
    with pytest.raises(ConfigError, match=r"channel_axis needs grey pictures.*\(2,\)"):
        load("two-moons", channel_axis=True)
    with pytest.raises(ConfigError, match="set channel_axis = true"):
        load("digits", scale="standard-channel")
