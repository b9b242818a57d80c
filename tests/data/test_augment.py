"""Random crops and mirror images: what they do, and that nothing but seed, epoch and number
decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubackprop.backends.philox import random_bits, random_blocks
from gpubackprop.data import ArrayDataset, Augment, DataLoader, Subset, streams
from gpubackprop.errors import ConfigError, DataError


def pictures(count: int = 12, height: int = 5, width: int = 7, channels: int | None = 3) -> Any:
    shape = (count, height, width) if channels is None else (count, height, width, channels)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def one_by_one(images: Any, change: Augment, seed: int, epoch: int, numbers: Any) -> Any:
    """The definition, written with a loop and a padded picture."""
    out = []
    for image, number in zip(images, numbers, strict=True):
        row, column, mirror, _ = random_bits(seed, epoch, streams.AUGMENT + int(number), 4).tolist()
        if change.crop:
            places = 2 * change.crop + 1
            top, left = row * places >> 32, column * places >> 32
            edges = [(change.crop, change.crop)] * 2 + [(0, 0)] * (image.ndim - 2)
            padded = np.pad(image, edges, "constant" if change.padding == "zero" else "reflect")
            # The window is cut out first and mirrored then.
            image = padded[top : top + image.shape[0], left : left + image.shape[1]]
        if change.flip and mirror >> 31:
            image = image[:, ::-1]
        out.append(image)
    return np.stack(out)


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("crop", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_it_is_what_the_definition_says(channels: Any, padding: str, crop: int, flip: bool) -> None:
    images = pictures(channels=channels)
    change = Augment(crop=crop, padding=padding, flip=flip)
    numbers = np.array([0, 7, 3, 3, 100_000, 2, 1, 9, 8, 11, 10, 5])
    before = images.copy()
    out = change(images, seed=2**63 + 5, epoch=4, numbers=numbers)
    assert out.shape == images.shape and out.dtype == images.dtype
    np.testing.assert_array_equal(out, one_by_one(images, change, 2**63 + 5, 4, numbers))
    np.testing.assert_array_equal(images, before)


def test_a_crop_wider_than_the_picture_may_show_nothing_but_padding() -> None:
    images = np.ones((50, 2, 2, 1), np.float32)
    out = Augment(crop=9)(images, seed=0, epoch=0, numbers=np.arange(50))
    assert (out.reshape(50, -1).sum(axis=1) == 0).any() and set(np.unique(out)) <= {0.0, 1.0}


def test_every_place_and_both_sides_are_as_likely() -> None:
    count, crop = 20_000, 1
    images = np.zeros((count, 3, 3), np.float32)
    images[:, 1, 1] = 1  # the one pixel shows where the window was
    out = Augment(crop=crop)(images, seed=1, epoch=0, numbers=np.arange(count))
    found = out.reshape(count, 9).argmax(axis=1)
    counts = np.bincount(found, minlength=9)
    assert abs(counts - count / 9).max() < 5 * np.sqrt(count / 9)
    images[:] = np.arange(3)
    flipped = Augment(flip=True)(images, seed=1, epoch=0, numbers=np.arange(count))[:, 0, 0] == 2
    assert abs(flipped.mean() - 0.5) < 0.02


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, streams.LAST_EPOCH),
    size=st.integers(1, 13),
    start=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_batch_size_order_and_resumption_change_no_picture(
    seed: int, epoch: int, size: int, start: int, shuffle: bool
) -> None:
    data = ArrayDataset(pictures(), np.arange(12))
    change = Augment(crop=2, flip=True)
    wanted = one_by_one(pictures(), change, seed, epoch, np.arange(12))
    loader = DataLoader(data, size, shuffle=shuffle, seed=seed, augment=change)
    start = min(start, len(loader))
    seen = list(loader.batches(epoch, start))
    for images, numbers in seen:
        np.testing.assert_array_equal(images, wanted[numbers])
    assert sum(len(b[0]) for b in seen) == max(0, 12 - start * size)


def test_epochs_seeds_and_samples_differ() -> None:
    images, numbers = pictures(40), np.arange(40)
    change = Augment(crop=2, flip=True)
    first = change(images, seed=0, epoch=0, numbers=numbers)
    for other in (
        change(images, seed=0, epoch=1, numbers=numbers),
        change(images, seed=1, epoch=0, numbers=numbers),
        change(images, seed=0, epoch=0, numbers=numbers + 1),
    ):
        assert sum(not np.array_equal(a, b) for a, b in zip(first, other, strict=True)) > 30


def test_the_words_of_a_change_are_none_of_the_shuffle() -> None:
    # Both use the stream of the epoch; a shuffle of n samples has the first n / 2 blocks.
    offsets = np.array([streams.AUGMENT, streams.AUGMENT + 5, 0, 2**64 - 1], dtype=np.uint64)
    found = random_blocks(3, 2, offsets)
    for row, offset in zip(found, offsets.tolist(), strict=True):
        np.testing.assert_array_equal(row, random_bits(3, 2, offset, 4))
    assert streams.AUGMENT > 2**40


def test_a_subset_counts_its_own_samples() -> None:
    data = ArrayDataset(pictures(), np.arange(12))
    change = Augment(crop=2)
    part = DataLoader(Subset(data, [5, 6]), 2, augment=change)
    (images, _) = next(part.batches(0))
    np.testing.assert_array_equal(images, one_by_one(pictures()[5:7], change, 0, 0, np.arange(2)))


def test_a_change_of_ones_own() -> None:
    seen: list[Any] = []

    def note(inputs: Any, *, seed: int, epoch: int, numbers: Any) -> Any:
        seen.append((seed, epoch, numbers.tolist()))
        return inputs + 1

    loader = DataLoader(ArrayDataset(np.zeros(4), np.arange(4)), 3, seed=8, augment=note)
    inputs, targets = next(loader.batches(6))
    assert inputs.tolist() == [1, 1, 1] and targets.tolist() == [0, 1, 2]
    assert seen == [(8, 6, [0, 1, 2])]


def test_nothing_to_do_gives_the_pictures_back() -> None:
    images = pictures()
    assert Augment()(images, seed=0, epoch=0, numbers=np.arange(12)) is images
    empty = images[:0]
    assert Augment(crop=4)(empty, seed=0, epoch=0, numbers=np.arange(0)) is empty


def test_errors() -> None:
    with pytest.raises(ConfigError, match="crop must be a whole number from 0"):
        Augment(crop=-1)
    with pytest.raises(ConfigError, match="flip must be True or False, got 1"):
        Augment(flip=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'reflect'"):
        Augment(padding="reflekt")
    with pytest.raises(ConfigError, match=r"pictures of shape \(height, width\).*\[64\]"):
        Augment(crop=1)(np.zeros((2, 64)), seed=0, epoch=0, numbers=np.arange(2))
    with pytest.raises(ConfigError, match="below the height and width"):
        Augment(crop=5, padding="reflect")(pictures(), seed=0, epoch=0, numbers=np.arange(12))
    with pytest.raises(DataError, match="12 pictures need as many numbers"):
        Augment(crop=1)(pictures(), seed=0, epoch=0, numbers=np.arange(3))


def test_an_epoch_of_drawn_samples() -> None:
    data = ArrayDataset(np.arange(1000), np.arange(1000))
    loader = DataLoader(data, 12, shuffle=True, seed=3, steps_per_epoch=25)
    assert len(loader) == 25
    batches = [inputs for inputs, _ in loader.batches(0)]
    assert [len(b) for b in batches] == [12] * 25
    np.testing.assert_array_equal(np.concatenate(batches), loader.order(0))
    np.testing.assert_array_equal(
        np.concatenate([b for b, _ in loader.batches(0, 20)]), loader.order(0)[240:]
    )
    assert (loader.order(0) != loader.order(1)).any()
    # With replacement: 300 of 1,000 samples are hardly ever all different.
    assert len(set(loader.order(0).tolist())) < 300
    assert 0 <= loader.order(0).min() and loader.order(0).max() < 1000


def test_drawn_samples_need_a_shuffle_and_samples() -> None:
    data = ArrayDataset(np.arange(10))
    with pytest.raises(ConfigError, match="needs shuffle=True"):
        DataLoader(data, 2, steps_per_epoch=3)
    with pytest.raises(ConfigError, match="not empty"):
        DataLoader(ArrayDataset(np.arange(0)), 2, shuffle=True, steps_per_epoch=3)
    with pytest.raises(ConfigError, match="steps_per_epoch must be a whole number from 1"):
        DataLoader(data, 2, shuffle=True, steps_per_epoch=0)


def test_overlapping_windows_are_not_copied_whole() -> None:
    # 4 GB if all windows were copied to gather three of them.
    windows = np.lib.stride_tricks.sliding_window_view(np.arange(1_000_000), 500)
    (found,) = ArrayDataset(windows)[np.array([5, 999_500, 0])]
    np.testing.assert_array_equal(found[:, 0], [5, 999_500, 0])
