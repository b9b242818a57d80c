"""Batches of a dataset in an order that any run can reproduce."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpubackprop.backends.random import integers, permutation
from gpubackprop.data import streams
from gpubackprop.data.arguments import MAX_SEED, whole
from gpubackprop.data.augment import Change
from gpubackprop.data.dataset import Array, Dataset
from gpubackprop.errors import ConfigError

Batch = tuple[Array, ...]


class DataLoader:
    """Batches of a dataset, shuffled anew in each epoch if asked for.

    Parameters
    ----------
    dataset : Dataset
        Where the samples come from.
    batch_size : int, optional
        Samples in a batch, at least 1.
    shuffle : bool, optional
        Whether each epoch has a random order. The order is a pure function of ``seed`` and the
        number of the epoch: not of earlier epochs, the device, or any state.
    seed : int, optional
        Seed of the shuffle.
    drop_last : bool, optional
        Whether a last batch with fewer than ``batch_size`` samples is left out.
    device : str, optional
        Device of the tensors that iterating gives: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"auto"``.
    transform : callable, optional
        Takes the tuple of arrays of a batch and returns the tuple to use instead. It must depend on
        nothing but its argument, or a resumed run will not see the same batches.
    augment : Augment or callable, optional
        ``augment(inputs, seed=..., epoch=..., numbers=...)`` changes the first array of each batch
        at random; see ``Augment``. ``numbers`` are the samples' numbers in ``dataset``. What it
        does to a sample must depend on ``seed``, ``epoch`` and the number alone: then neither the
        batch size nor the order, the device or a resumption changes what a sample looks like. For
        training batches: a loader of samples to evaluate has none.
    steps_per_epoch : int, optional
        An epoch is this many batches of samples that are drawn at random with replacement, instead
        of every sample once. For data of which an epoch would be too long to wait for, such as
        every window of a text. Needs ``shuffle``.

    Raises
    ------
    ConfigError
        No dataset, a wrong ``batch_size`` or ``seed``, ``drop_last`` leaves no batch at all, or
        ``steps_per_epoch`` without ``shuffle`` or samples.

    Notes
    -----
    Two ways to use it. ``for inputs, targets in loader`` gives tensors on ``device`` and goes one
    epoch further each time it is begun: the first loop is epoch 0 (or the one that ``set_epoch``
    named), the next is epoch 1, also where a loop was left early. ``loader.batches(epoch, start)``
    gives NumPy arrays of a named epoch from a named batch on and changes nothing; a run that
    resumes in the middle of an epoch sees the very same batches.

    Batches that are not shuffled may be read-only views of the data.

    Examples
    --------
    >>> import numpy as np
    >>> from gpubackprop.data import ArrayDataset
    >>> loader = DataLoader(ArrayDataset(np.arange(5)), batch_size=2)
    >>> [inputs.tolist() for (inputs,) in loader.batches(epoch=0, start=1)]
    [[2, 3], [4]]
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 32,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        device: str = "cpu",
        transform: Callable[[Batch], Batch] | None = None,
        augment: Change | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise ConfigError(
                f"DataLoader: dataset is a {type(dataset).__name__}, not a Dataset; wrap arrays in "
                "ArrayDataset(inputs, targets)"
            )
        self.dataset = dataset
        self.batch_size = whole("DataLoader", "batch_size", batch_size, 1)
        self.shuffle = bool(shuffle)
        self.seed = whole("DataLoader", "seed", seed, 0, MAX_SEED)
        self.drop_last = bool(drop_last)
        self.device = device
        self.transform = transform
        self.augment = augment
        self.steps_per_epoch = steps_per_epoch
        if steps_per_epoch is not None:
            self.steps_per_epoch = whole("DataLoader", "steps_per_epoch", steps_per_epoch, 1)
            if not self.shuffle or not len(dataset):
                raise ConfigError(
                    "DataLoader: steps_per_epoch draws samples at random, so it needs shuffle=True "
                    f"and a dataset that is not empty (shuffle={self.shuffle}, {len(dataset)} "
                    "samples)"
                )
        self.epoch = 0
        """The epoch that the next loop over the loader will show."""
        if self.drop_last and 0 < len(dataset) < self.batch_size:
            raise ConfigError(
                f"DataLoader: drop_last with batch_size={self.batch_size} leaves no batch of a "
                f"dataset of {len(dataset)} samples"
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def order(self, epoch: int) -> Array:
        """Return the numbers of the samples in the order of an epoch, int64, shape (samples,)."""
        epoch = _epoch(epoch)
        if not self.shuffle:
            return np.arange(len(self.dataset), dtype=np.int64)
        if self.steps_per_epoch is not None:
            drawn = self.steps_per_epoch * self.batch_size
            return integers(0, len(self.dataset), drawn, seed=self.seed, stream=epoch)
        return permutation(len(self.dataset), seed=self.seed, stream=epoch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch as NumPy arrays.

        Parameters
        ----------
        epoch : int
            The epoch, from 0.
        start : int, optional
            The number of the first batch to yield. ``batches(e, k)`` is what is left of
            ``batches(e)`` after ``k`` batches; the ones before are not fetched.

        Yields
        ------
        tuple of numpy.ndarray
            The arrays of the dataset, batch axis first.

        Raises
        ------
        ConfigError
            ``epoch`` is negative, or ``start`` is not within 0 and ``len(self)``.
        """
        start = whole("DataLoader", "start", start, 0, len(self))
        return self._batches(_epoch(epoch), start)

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the one that the next loop over the loader shows."""
        self.epoch = _epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Begin an epoch: yield tuples of ``Tensor`` on ``device`` and count the epoch.

        The count goes up here, not at the end of the loop, so that a loop that is left early is
        not seen again.
        """
        epoch = self.epoch
        self.epoch += 1
        return self._tensors(epoch)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self.order(epoch) if self.shuffle else None
        count, size = len(self.dataset) if order is None else len(order), self.batch_size
        for number in range(start, len(self)):
            low, high = number * size, min((number + 1) * size, count)
            batch = self.dataset[slice(low, high) if order is None else order[low:high]]
            if self.augment is not None:
                numbers = np.arange(low, high) if order is None else order[low:high]
                first = self.augment(batch[0], seed=self.seed, epoch=epoch, numbers=numbers)
                batch = (first, *batch[1:])
            yield batch if self.transform is None else self.transform(batch)

    def _tensors(self, epoch: int) -> Iterator[tuple[Any, ...]]:
        from gpubackprop.autograd import tensor

        for batch in self._batches(epoch, 0):
            yield tuple(tensor(array, device=self.device) for array in batch)


def _epoch(epoch: int) -> int:
    return whole("DataLoader", "epoch", epoch, 0, streams.LAST_EPOCH)
