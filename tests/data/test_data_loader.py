"""The loader: its order is a pure function, and a resumed run sees the same batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubackprop.autograd import Tensor
from gpubackprop.data import ArrayDataset, DataLoader, Dataset, Subset, two_moons
from gpubackprop.errors import ConfigError


def numbers(count: int) -> ArrayDataset:
    """A dataset whose samples are their own numbers."""
    return ArrayDataset(np.arange(count, dtype=np.float32), np.arange(count))


loaders = {
    "count": st.integers(0, 130),
    "batch_size": st.integers(1, 40),
    "seed": st.integers(0, 2**64 - 1),
    "epoch": st.integers(0, 2**31),
    "shuffle": st.booleans(),
}


@settings(max_examples=100, deadline=None)
@given(**loaders)
def test_each_epoch_visits_every_sample_once(
    count: int, batch_size: int, seed: int, epoch: int, shuffle: bool
) -> None:
    loader = DataLoader(numbers(count), batch_size, shuffle=shuffle, seed=seed)
    batches = list(loader.batches(epoch))
    assert len(batches) == len(loader) == -(-count // batch_size)
    assert all(len(inputs) == batch_size for inputs, _ in batches[:-1])
    seen = np.concatenate([targets for _, targets in batches]) if batches else np.zeros(0)
    np.testing.assert_array_equal(np.sort(seen), np.arange(count))
    np.testing.assert_array_equal(seen, loader.order(epoch))
    for inputs, targets in batches:
        # The parts of a sample stay together.
        np.testing.assert_array_equal(inputs, targets.astype(np.float32))


@settings(max_examples=100, deadline=None)
@given(**loaders)
def test_drop_last_leaves_out_the_short_batch_only(
    count: int, batch_size: int, seed: int, epoch: int, shuffle: bool
) -> None:
    if 0 < count < batch_size:
        with pytest.raises(ConfigError, match="leaves no batch"):
            DataLoader(numbers(count), batch_size, drop_last=True)
        return
    whole = DataLoader(numbers(count), batch_size, shuffle=shuffle, seed=seed)
    loader = DataLoader(numbers(count), batch_size, shuffle=shuffle, seed=seed, drop_last=True)
    batches = list(loader.batches(epoch))
    assert len(batches) == len(loader) == count // batch_size
    for mine, other in zip(batches, whole.batches(epoch), strict=False):
        np.testing.assert_array_equal(mine[1], other[1])
        assert len(mine[1]) == batch_size


@settings(max_examples=100, deadline=None)
@given(**loaders, history=st.lists(st.integers(0, 9), max_size=4), data=st.data())
def test_order_depends_on_seed_and_epoch_alone_and_start_gives_the_tail(
    count: int,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    history: list[int],
    data: Any,
) -> None:
    fresh = DataLoader(numbers(count), batch_size, shuffle=shuffle, seed=seed)
    used = DataLoader(numbers(count), batch_size, shuffle=shuffle, seed=seed)
    for past in history:
        used.set_epoch(past)
        next(used.batches(past), None)
    whole = list(fresh.batches(epoch))
    start = data.draw(st.integers(0, len(whole)))
    tail = list(used.batches(epoch, start))
    assert len(tail) == len(whole) - start
    for mine, other in zip(tail, whole[start:], strict=True):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_order_is_pinned() -> None:
    # The batches of a run must stay the same from version to version, or old runs cannot resume.
    loader = DataLoader(numbers(12), 5, shuffle=True, seed=7)
    assert [b[1].tolist() for b in loader.batches(3)] == [
        [7, 0, 5, 10, 11],
        [2, 3, 8, 6, 1],
        [9, 4],
    ]


def test_epochs_and_seeds_differ() -> None:
    loader = DataLoader(numbers(1000), shuffle=True, seed=0)
    orders = [loader.order(epoch) for epoch in range(4)]
    orders += [DataLoader(numbers(1000), shuffle=True, seed=seed).order(0) for seed in (1, 2)]
    for k, mine in enumerate(orders):
        for other in orders[:k]:
            # Two random orders of 1,000 agree in one place on average.
            assert (mine == other).sum() < 10


def test_starting_late_fetches_nothing_before() -> None:
    fetched: list[int] = []
    asked: list[slice] = []

    class Watched(Dataset):
        def __len__(self) -> int:
            return 100

        def __getitem__(self, indices: Any) -> tuple[np.ndarray[Any, Any], ...]:
            asked.append(indices)
            fetched.extend(np.arange(100)[indices].tolist())
            return (np.arange(100)[indices],)

    list(DataLoader(Watched(), 15).batches(0, start=6))
    assert fetched == list(range(90, 100))
    # A dataset of one's own need not cope with a slice past the end.
    assert asked == [slice(90, 100)]


def test_unshuffled_batches_are_views() -> None:
    data = numbers(10)
    inputs, _ = next(DataLoader(data, 4).batches(0))
    assert np.shares_memory(inputs, data.arrays[0])
    part = Subset(data, np.arange(3, 9))
    inputs, _ = list(DataLoader(part, 4).batches(0))[1]
    assert np.shares_memory(inputs, data.arrays[0]) and inputs.tolist() == [7, 8]


def test_dtypes_pass_through() -> None:
    data = ArrayDataset(np.zeros((4, 2), np.float32), np.zeros(4, np.int64))
    for shuffle in (False, True):
        inputs, targets = next(DataLoader(data, 2, shuffle=shuffle).batches(0))
        assert inputs.dtype == np.float32 and targets.dtype == np.int64


def test_transform_is_applied_to_each_batch() -> None:
    loader = DataLoader(numbers(5), 2, transform=lambda batch: (batch[0] + 1, *batch[1:]))
    assert [b[0].tolist() for b in loader.batches(0)] == [[1, 2], [3, 4], [5]]


def test_iterating_gives_tensors_and_counts_epochs() -> None:
    loader = DataLoader(numbers(10), 4, shuffle=True, seed=5)
    first = list(loader)
    assert all(isinstance(part, Tensor) for batch in first for part in batch)
    assert loader.epoch == 1
    for found, expected in zip(first, loader.batches(0), strict=True):
        for tensor, array in zip(found, expected, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), array)
            assert tensor.dtype == array.dtype
    for inputs, _ in loader:
        np.testing.assert_array_equal(inputs.numpy(), next(loader.batches(1))[0])
        break
    # The loop was left early, and still the epoch is behind us.
    assert loader.epoch == 2
    loader.set_epoch(0)
    np.testing.assert_array_equal(next(iter(loader))[0].numpy(), first[0][0].numpy())
    assert loader.epoch == 1


def test_points_and_shuffle_of_one_seed_have_nothing_in_common() -> None:
    # Both come from the same seed; were they from the same words, the shuffle of epoch 0 would
    # sort the points by their place on the curve.
    points, labels = two_moons(2000, noise=0.0, seed=0)
    order = DataLoader(ArrayDataset(points), shuffle=True, seed=0).order(0)
    angle = np.arctan2(points[:, 1], points[:, 0])[labels == 0]
    rank = np.argsort(order)[labels == 0]
    assert abs(np.corrcoef(angle, rank)[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number from 1 on, got 0"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"seed": -1}, "seed must be a whole number from 0 to"),
        ({"seed": 2**64}, "seed"),
        ({"batch_size": 11, "drop_last": True}, "leaves no batch of a dataset of 10 samples"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DataLoader(numbers(10), **options)


def test_wrong_epoch_and_start_are_told_at_once() -> None:
    loader = DataLoader(numbers(10), 4)
    with pytest.raises(ConfigError, match="start must be a whole number from 0 to 3, got 4"):
        loader.batches(0, start=4)
    assert list(loader.batches(0, start=3)) == []
    for wrong in (-1, 2**32, 0.5):
        with pytest.raises(ConfigError, match="epoch must be a whole number"):
            loader.batches(wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="epoch must be a whole number"):
            loader.set_epoch(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [[(np.zeros(2), 1)] * 3, np.zeros((4, 2))])
def test_what_is_not_a_dataset_is_refused_at_once(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"not a Dataset; wrap arrays in ArrayDataset"):
        DataLoader(data, batch_size=2)
