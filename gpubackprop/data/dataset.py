"""Datasets: samples that are fetched a whole batch at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import numpy as np

from gpubackprop import suggest
from gpubackprop.backends.random import permutation
from gpubackprop.data import streams
from gpubackprop.data.arguments import MAX_SEED, whole
from gpubackprop.errors import ConfigError, DataError, ShapeError

Array = np.ndarray[Any, Any]
Index = SupportsIndex | slice | Sequence[int] | Array


class Dataset(ABC):
    """Samples with a known count, fetched by number.

    A subclass writes ``__len__`` and ``__getitem__``. What a sample consists of is the subclass's
    choice; most have an input and a target, so that indexing gives a pair of arrays.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def __getitem__(self, indices: Index) -> tuple[Array, ...]:
        """Fetch samples.

        Parameters
        ----------
        indices : numpy.ndarray of int, slice or int
            A 1-D integer array, or a list of integers: the batch of those samples, gathered in
            that order. A slice: the batch of those samples. One integer: that sample alone, with
            no batch axis. Negative numbers count from the end.

        Returns
        -------
        tuple of numpy.ndarray
            One array for each part of a sample; for a batch the first axis counts the samples.

        Raises
        ------
        IndexError
            A number is out of range.
        """


class ArrayDataset(Dataset):
    """A dataset of arrays in memory whose first axes count the samples.

    Parameters
    ----------
    *arrays : array_like
        The parts of a sample, for example images of shape (n, 28, 28) and labels of shape (n,).
        They are not copied, so a change of the caller's array is seen here.
    names : sequence of str, optional
        A name for each array; ``("input", "target")`` for two arrays, ``("input",)`` for one,
        ``("array 0", ...)`` otherwise.

    Raises
    ------
    DataError
        There is no array, or an array has no axis to count samples along.
    ShapeError
        The arrays hold different numbers of samples.

    Notes
    -----
    A batch of a slice is a view of the data, not a copy. Views are read-only, so that a change of a
    batch in place cannot reach the data unseen.

    Examples
    --------
    >>> import numpy as np
    >>> data = ArrayDataset(np.arange(6.0).reshape(3, 2), np.array([0, 1, 0]))
    >>> inputs, targets = data[np.array([2, 0])]
    >>> inputs
    array([[4., 5.],
           [0., 1.]])
    """

    def __init__(self, *arrays: Any, names: Sequence[str] | None = None) -> None:
        if not arrays:
            raise DataError("ArrayDataset needs at least one array")
        if names is None:
            usual = {1: ("input",), 2: ("input", "target")}
            names = usual.get(len(arrays), tuple(f"array {k}" for k in range(len(arrays))))
        self.names = tuple(names)
        if len(self.names) != len(arrays) or len(set(self.names)) != len(arrays):
            raise ConfigError(
                f"ArrayDataset needs {len(arrays)} distinct names, got {list(self.names)}"
            )
        views = [np.asarray(array).view() for array in arrays]
        for name, view in zip(self.names, views, strict=True):
            if view.ndim == 0:
                raise DataError(f"ArrayDataset: {name!r} has no axis that counts samples")
            view.flags.writeable = False
        counts = {name: len(view) for name, view in zip(self.names, views, strict=True)}
        if len(set(counts.values())) != 1:
            held = ", ".join(f"{name!r} {count:,}" for name, count in counts.items())
            raise ShapeError(f"ArrayDataset: arrays differ in the number of samples: {held}")
        self._arrays = tuple(views)
        self._after: tuple[Callable[[Array], Array] | None, ...] = (None,) * len(views)

    def __len__(self) -> int:
        return len(self._arrays[0])

    def __getitem__(self, indices: Index) -> tuple[Array, ...]:
        if isinstance(indices, slice):
            return self._finished(tuple(array[indices] for array in self._arrays))
        which = np.asarray(indices)
        if which.ndim > 1 or (which.dtype.kind not in "iu" and which.size):
            raise IndexError(
                "a dataset is indexed by an integer, a slice or a 1-D array of integers, got "
                f"{which.dtype} of shape {which.shape}"
            )
        which = which.astype(np.int64, copy=False)
        try:
            if which.ndim == 0:
                batch = self[np.array([int(which)])]
                return tuple(array[0] for array in batch)
            return self._finished(tuple(_gathered(array, which) for array in self._arrays))
        except IndexError:
            raise IndexError(
                f"index out of range: {which.min()} to {which.max()} was asked of a dataset of "
                f"{len(self):,} samples"
            ) from None

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Every sample: one read-only array for each part (a copy where a lazy map applies)."""
        return self[:]

    def array(self, name: str) -> Array:
        """Return all of one part by its name, read-only."""
        position = self._position(name)
        array, after = self._arrays[position], self._after[position]
        return array if after is None else after(array)

    def map(
        self, function: Callable[[Array], Array], name: str = "input", *, lazy: bool = False
    ) -> ArrayDataset:
        """Return a dataset with one part transformed by a vectorised function.

        Parameters
        ----------
        function : callable
            Takes a batch of that part, samples along the first axis, and returns as many. It must
            treat each sample alone, so that the result does not depend on the batch.
        name : str, optional
            The part.
        lazy : bool, optional
            False: apply it now, once, to everything. True: apply it to each batch when it is
            fetched, for data that would not fit memory transformed.

        Returns
        -------
        ArrayDataset
            The other parts are shared with this one.
        """
        position = self._position(name)
        if not lazy and self._after[position] is None:
            parts = list(self._arrays)
            parts[position] = function(parts[position])
            result = ArrayDataset(*parts, names=self.names)
            result._after = self._after
            return result
        result = ArrayDataset(*self._arrays, names=self.names)
        after = list(self._after)
        before = after[position]
        after[position] = function if before is None else lambda batch: function(before(batch))
        result._after = tuple(after)
        return result if lazy else ArrayDataset(*result.arrays, names=self.names)

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{name}: {array.dtype}{list(array.shape[1:])}"
            for name, array in zip(self.names, self[:0], strict=True)
        )
        return f"ArrayDataset({len(self):,} samples; {parts})"

    def _position(self, name: str) -> int:
        if name not in self.names:
            raise ConfigError(suggest.unknown("part of the dataset", name, self.names))
        return self.names.index(name)

    def _finished(self, batch: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(
            array if after is None else after(array)
            for array, after in zip(batch, self._after, strict=True)
        )


class Subset(Dataset):
    """Some samples of another dataset, in an order of their own.

    Parameters
    ----------
    dataset : Dataset
        The other dataset.
    indices : array_like of int
        Shape (n,): sample ``k`` of the subset is sample ``indices[k]`` of ``dataset``.

    Raises
    ------
    IndexError
        An index is out of range of the dataset.
    """

    def __init__(self, dataset: Dataset, indices: Any) -> None:
        which = np.array(indices)
        if which.ndim != 1 or (which.size and which.dtype.kind not in "iu"):
            raise IndexError(
                f"Subset needs a 1-D array of integers, got {which.dtype} of shape {which.shape}"
            )
        which = which.astype(np.int64)
        count = len(dataset)
        if which.size and not (-count <= which.min() and which.max() < count):
            raise IndexError(
                f"Subset: indices {which.min()} to {which.max()} of a dataset of {count:,} samples"
            )
        which[which < 0] += count
        which.flags.writeable = False
        self.dataset = dataset
        self.indices = which
        # A run of neighbours, as a split without shuffling gives it, can be sliced without a copy.
        self._run = bool(which.size and np.all(np.diff(which) == 1))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Index) -> tuple[Array, ...]:
        if isinstance(indices, slice):
            if self._run and (indices.step is None or indices.step > 0):
                start, stop, step = indices.indices(len(self))
                first = int(self.indices[0])
                return self.dataset[first + start : first + max(start, stop) : step]
            return self.dataset[self.indices[indices]]
        which = np.asarray(indices)
        if which.dtype.kind not in "iu" and which.size:
            raise IndexError(f"a dataset is indexed by integers, got {which.dtype}")
        chosen = self.indices[which.astype(np.int64, copy=False)]
        return self.dataset[chosen if chosen.ndim else int(chosen)]

    def __repr__(self) -> str:
        return f"Subset({len(self):,} of {len(self.dataset):,} samples)"


def split(
    dataset: Dataset,
    parts: Sequence[float] | Sequence[int],
    *,
    seed: int = 0,
    stratify: Any = None,
) -> list[Subset]:
    """Split a dataset at random into parts that share no sample.

    Parameters
    ----------
    dataset : Dataset
        The dataset.
    parts : sequence of float or of int
        Fractions that add up to 1, or sizes that add up to ``len(dataset)``.
    seed : int, optional
        The split is a pure function of the length, ``parts``, ``seed`` and ``stratify``.
    stratify : array_like of int, optional
        A class for each sample, shape (n,). Each part then has nearly the same share of each class.

    Returns
    -------
    list of Subset
        One subset for each part; within a part the samples keep the order of the dataset.

    Raises
    ------
    ConfigError
        The parts do not add up, or a part is negative.
    ShapeError
        ``stratify`` is not one value for each sample.

    See Also
    --------
    split_indices : The same, as arrays of sample numbers.
    """
    pieces = split_indices(len(dataset), parts, seed=seed, stratify=stratify)
    return [Subset(dataset, piece) for piece in pieces]


def split_indices(
    count: int,
    parts: Sequence[float] | Sequence[int],
    *,
    seed: int = 0,
    stratify: Any = None,
) -> list[Array]:
    """Split the numbers 0 to ``count - 1`` at random; see ``split``.

    Returns
    -------
    list of numpy.ndarray
        int64, ascending, one for each part.

    Notes
    -----
    Samples are put in a random order, then stably sorted by class, so that each class is one run
    in random order. Part ``j`` of size ``s_j`` asks for the positions ``(t + 1/2) count / s_j``,
    ``t = 0 .. s_j - 1``, and all requests are served in order. Sizes are met exactly, and the count
    of a class in a part differs from its exact share by less than the number of parts.
    """
    count = whole("split", "count", count, 0)
    seed = whole("split", "seed", seed, 0, MAX_SEED)
    sizes = _sizes(count, parts)
    order = permutation(count, seed=seed, stream=streams.SPLIT)
    if stratify is None:
        bounds = np.cumsum(sizes)[:-1]
        return [np.sort(piece) for piece in np.split(order, bounds)]
    classes = np.asarray(stratify)
    if classes.shape != (count,):
        raise ShapeError(
            f"split: stratify must have shape ({count},), one class for each sample, got "
            f"{classes.shape}"
        )
    order = order[np.argsort(classes[order], kind="stable")]
    wishes = np.concatenate([(np.arange(size) + 0.5) * (count / max(size, 1)) for size in sizes])
    owners = np.repeat(np.arange(len(sizes)), sizes)[np.argsort(wishes, kind="stable")]
    return [np.sort(order[owners == part]) for part in range(len(sizes))]


def _gathered(array: Array, which: Array) -> Array:
    """Return rows of an array: ``take`` is about twice as fast as indexing, but it would copy the
    whole of an array that is not contiguous, such as the overlapping windows of a text."""
    return array.take(which, axis=0) if array.flags.c_contiguous else array[which]


def _sizes(count: int, parts: Sequence[float] | Sequence[int]) -> list[int]:
    given = list(parts)
    if not given:
        raise ConfigError("split needs at least one part")
    if all(isinstance(part, (int, np.integer)) and not isinstance(part, bool) for part in given):
        sizes = [int(part) for part in given]
        if min(sizes) < 0 or sum(sizes) != count:
            raise ConfigError(
                f"split: sizes {sizes} add up to {sum(sizes)}, but the dataset has {count} samples"
            )
        return sizes
    shares = np.array(given, dtype=np.float64)
    if not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-9:
        raise ConfigError(f"split: fractions must add up to 1 and not be negative, got {given}")
    # Largest remainders: round down, then give what is left to those that lost most.
    exact = shares * count
    rounded = np.floor(exact + 1e-9).astype(np.int64)
    left = count - int(rounded.sum())
    rounded[np.argsort(rounded - exact, kind="stable")[:left]] += 1
    return [int(size) for size in rounded]
