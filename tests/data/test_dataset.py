"""Datasets, subsets and splits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubackprop.data import ArrayDataset, Dataset, Subset, split, split_indices
from gpubackprop.errors import ConfigError, DataError, ShapeError


@pytest.fixture
def data() -> ArrayDataset:
    return ArrayDataset(np.arange(20.0).reshape(10, 2), np.arange(10) % 3)


def test_a_batch_is_gathered_in_the_order_asked_for(data: ArrayDataset) -> None:
    inputs, targets = data[np.array([7, 0, 7, -1])]
    assert inputs.tolist() == [[14, 15], [0, 1], [14, 15], [18, 19]]
    assert targets.tolist() == [1, 0, 1, 0]
    inputs, _ = data[[2, 1]]
    assert inputs.tolist() == [[4, 5], [2, 3]]
    assert data[np.array([], dtype=np.int64)][0].shape == (0, 2)
    assert data[[]][1].shape == (0,)


def test_one_integer_is_one_sample(data: ArrayDataset) -> None:
    inputs, target = data[3]
    assert inputs.tolist() == [6, 7] and target == 0
    assert data[np.int64(-1)][0].tolist() == [18, 19]
    # So the samples can be looped over, as Python's sequence protocol has it.
    assert [int(target) for _, target in data] == [k % 3 for k in range(10)]


def test_a_slice_is_a_view_that_cannot_be_written(data: ArrayDataset) -> None:
    inputs, _ = data[2:5]
    assert np.shares_memory(inputs, data.arrays[0])
    with pytest.raises(ValueError, match="read-only"):
        inputs[0] = 1
    gathered, _ = data[np.array([2])]
    gathered[0] = 1
    assert data[2][0].tolist() == [4, 5]


def test_the_callers_array_stays_writable() -> None:
    array = np.zeros(3)
    ArrayDataset(array)
    array[0] = 1


@pytest.mark.parametrize("wrong", [10, -11, [0, 10], np.array([-11])])
def test_out_of_range(wrong: Any, data: ArrayDataset) -> None:
    with pytest.raises(IndexError, match="a dataset of 10 samples"):
        data[wrong]


@pytest.mark.parametrize("wrong", [1.5, np.array([0.5]), np.zeros((2, 2), int), [True, False]])
def test_wrong_index(wrong: Any, data: ArrayDataset) -> None:
    with pytest.raises(IndexError, match="an integer, a slice or a 1-D array"):
        data[wrong]


def test_wrong_arrays() -> None:
    with pytest.raises(ShapeError, match="'input' 3, 'target' 4"):
        ArrayDataset(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(DataError, match="at least one array"):
        ArrayDataset()
    with pytest.raises(DataError, match="'input' has no axis"):
        ArrayDataset(np.array(1.0))
    with pytest.raises(ConfigError, match="2 distinct names"):
        ArrayDataset(np.zeros(2), np.zeros(2), names=["x", "x"])


def test_names(data: ArrayDataset) -> None:
    assert data.names == ("input", "target")
    assert ArrayDataset(np.zeros(2), np.ones(2), np.ones(2)).names == (
        "array 0",
        "array 1",
        "array 2",
    )
    assert data.array("target").tolist() == [k % 3 for k in range(10)]
    with pytest.raises(ConfigError, match="did you mean 'target'"):
        data.array("targets")
    assert repr(data) == "ArrayDataset(10 samples; input: float64[2], target: int64[])"


def test_map_now_and_per_batch_agree(data: ArrayDataset) -> None:
    calls = []

    def double(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        calls.append(len(batch))
        return batch.astype(np.float32) * 2

    now = data.map(double)
    assert calls == [10]
    lazy = data.map(double, lazy=True)
    assert calls == [10]
    for index in (np.array([4, 1]), slice(2, 4), 3):
        for a, b in zip(now[index], lazy[index], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
    assert calls == [10, 2, 2, 1]
    twice = lazy.map(double, lazy=True).map(lambda batch: batch + 1)
    np.testing.assert_array_equal(twice.array("input"), data.array("input") * 4 + 1)
    other = data.map(lambda batch: -batch, "target")
    assert other[1][1] == -1 and other[1][0].tolist() == [2, 3]


def test_subset(data: ArrayDataset) -> None:
    subset = Subset(data, [5, 2, -1])
    assert len(subset) == 3
    assert subset[np.array([1, 0])][0].tolist() == [[4, 5], [10, 11]]
    assert subset[-1][0].tolist() == [18, 19]
    assert subset[1:][0].tolist() == [[4, 5], [18, 19]]
    assert subset[::-1][0].tolist() == [[18, 19], [4, 5], [10, 11]]
    assert len(list(subset)) == 3
    nested = Subset(subset, [2, 2])
    assert nested[:][0].tolist() == [[18, 19], [18, 19]]
    for wrong in ([10], [-11], [0.5], [[0]]):
        with pytest.raises(IndexError):
            Subset(data, wrong)
    with pytest.raises(IndexError):
        subset[3]


@settings(max_examples=100, deadline=None)
@given(
    first=st.integers(0, 9),
    count=st.integers(1, 10),
    bounds=st.tuples(*[st.one_of(st.none(), st.integers(-12, 12))] * 2),
    step=st.sampled_from([None, 1, 2, 3, -1, -2]),
)
def test_subset_of_neighbours_slices_as_an_array_does(
    first: int, count: int, bounds: tuple[Any, Any], step: Any
) -> None:
    values = np.arange(20)
    subset = Subset(ArrayDataset(values), np.arange(first, first + count))
    window = slice(bounds[0], bounds[1], step)
    np.testing.assert_array_equal(subset[window][0], values[first : first + count][window])


sizes = st.integers(0, 300)


@settings(max_examples=60, deadline=None)
@given(
    count=sizes,
    cuts=st.lists(st.floats(0, 1), max_size=3),
    seed=st.integers(0, 2**64 - 1),
    classes=st.one_of(st.none(), st.integers(1, 7)),
)
def test_split_shares_every_sample_out_once(
    count: int, cuts: list[float], seed: int, classes: int | None
) -> None:
    edges = [0.0, *sorted(cuts), 1.0]
    fractions = [b - a for a, b in zip(edges, edges[1:], strict=False)]
    labels = None if classes is None else (np.arange(count) ** 2) % classes
    parts = split_indices(count, fractions, seed=seed, stratify=labels)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * count) < 1
        assert (np.diff(part) > 0).all()
        for label in range(classes or 0):
            share = (labels == label).sum() * len(part) / max(count, 1)
            assert abs((labels[part] == label).sum() - share) < max(len(parts), 2)
    again = split_indices(count, fractions, seed=seed, stratify=labels)
    for a, b in zip(parts, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_split_is_random_and_depends_on_the_seed() -> None:
    first, _ = split_indices(1000, [500, 500], seed=0)
    other, _ = split_indices(1000, [500, 500], seed=1)
    # Two independent halves share 250 numbers, give or take 8 a standard deviation.
    assert 200 < len(np.intersect1d(first, other)) < 300
    assert 200 < len(np.intersect1d(first, np.arange(500))) < 300
    labels = np.repeat([0, 1], 500)
    chosen, _ = split_indices(1000, [500, 500], seed=0, stratify=labels)
    assert 90 < len(np.intersect1d(chosen, np.arange(250))) < 160


def test_stratified_split_of_two_parts_is_within_one_sample(data: ArrayDataset) -> None:
    labels = np.repeat(np.arange(10), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    _, test = split_indices(len(labels), [0.8, 0.2], stratify=labels)
    shares = np.bincount(labels[test]) - 0.2 * np.bincount(labels)
    assert np.abs(shares).max() <= 1
    train, held = split(data, [8, 2], seed=3, stratify=data.array("target"))
    assert len(train) == 8 and len(held) == 2 and isinstance(train, Dataset)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "at least one part"),
        ([5, 4], "add up to 9, but the dataset has 10"),
        ([11, -1], "sizes"),
        ([0.5, 0.4], "must add up to 1"),
        ([1.5, -0.5], "must add up to 1"),
        ([float("nan"), 1.0], "must add up to 1"),
    ],
)
def test_wrong_parts(parts: Any, words: str, data: ArrayDataset) -> None:
    with pytest.raises(ConfigError, match=words):
        split(data, parts)


def test_wrong_stratify_and_seed(data: ArrayDataset) -> None:
    with pytest.raises(ShapeError, match=r"stratify must have shape \(10,\)"):
        split(data, [5, 5], stratify=np.zeros(9))
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        split(data, [5, 5], seed=-1)
