"""Random changes of training pictures: crops and mirror images.

What happens to a sample is a pure function of the seed, the epoch and the number of the sample in
its dataset, drawn from the counter-based generator. So a sample looks the same whatever the batch
size, the order of the batches or the device, and a run that resumes in the middle of an epoch goes
on with the very same pictures.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from gpubackprop import suggest
from gpubackprop.backends.philox import random_blocks
from gpubackprop.data import streams
from gpubackprop.data.arguments import MAX_SEED, whole
from gpubackprop.errors import ConfigError, DataError

Array = np.ndarray[Any, Any]

PADDINGS = ("zero", "reflect")
"""What lies beyond the edges of a picture that is moved."""

MAX_CROP = 1024
"""The most pixels that a picture may be moved."""


class Change(Protocol):
    """What ``DataLoader`` takes for ``augment``."""

    def __call__(self, inputs: Array, *, seed: int, epoch: int, numbers: Array) -> Array:
        """Return the inputs of a batch, changed; a new array, or ``inputs`` itself."""
        ...


class Augment:
    """Random crops with padding, and random horizontal mirror images.

    The usual change of small pictures: K. He et al., "Deep Residual Learning for Image
    Recognition", 2015, section 4.2, "4 pixels are padded on each side, and a 32x32 crop is
    randomly sampled from the padded image or its horizontal flip".

    Parameters
    ----------
    crop : int, optional
        Pixels of padding on each side; a window of the picture's own size is then cut out at random
        among the (2 crop + 1)**2 places, evenly. 0 for none.
    padding : {"zero", "reflect"}, optional
        What the padding holds: zeros, or the picture reflected about its edge pixels (which are not
        repeated). The zeros are those of the scaled picture: black for ``scale = "unit"``, the mean
        for the standard ones.
    flip : bool, optional
        Whether half of the pictures, at random, are mirrored left to right.

    Raises
    ------
    ConfigError
        An argument has a value that is not allowed.

    Notes
    -----
    Pictures have their channels last: (samples, height, width, channels), or (samples, height,
    width). Normalisation per channel is no change at random but belongs to every picture, training
    or not: it is the scaling ``"standard-channel"`` of ``load`` and ``fit_scaling``.

    Sample k of epoch e uses one Philox block of stream e: its first word, times 2 crop + 1 and
    divided by 2**32, is the row of the window, its second word so the column, and the top bit of
    its third word mirrors.

    Examples
    --------
    >>> import numpy as np
    >>> from gpubackprop.data import ArrayDataset, DataLoader
    >>> pictures = ArrayDataset(np.ones((100, 32, 32, 3), np.float32), np.zeros(100, np.int64))
    >>> loader = DataLoader(pictures, 20, shuffle=True, augment=Augment(crop=4, flip=True))
    >>> next(loader.batches(epoch=0))[0].shape
    (20, 32, 32, 3)
    """

    def __init__(self, *, crop: int = 0, padding: str = "zero", flip: bool = False) -> None:
        self.crop = whole("Augment", "crop", crop, 0, MAX_CROP)
        if padding not in PADDINGS:
            raise ConfigError(suggest.unknown("padding of Augment", padding, PADDINGS))
        if not isinstance(flip, bool):
            raise ConfigError(f"Augment: flip must be True or False, got {flip!r}")
        self.padding = padding
        self.flip = flip

    def __repr__(self) -> str:
        return f"Augment(crop={self.crop}, padding={self.padding!r}, flip={self.flip})"

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ConfigError where pictures of this shape (without batch axis) cannot be changed."""
        if len(shape) not in (2, 3):
            raise ConfigError(
                "augmentation needs pictures of shape (height, width) or (height, width, "
                f"channels), but the samples have shape {list(shape)}"
            )
        if self.padding == "reflect" and self.crop >= min(shape[:2]):
            raise ConfigError(
                f"padding 'reflect' needs crop below the height and width {list(shape[:2])} of the "
                f"pictures, got {self.crop}"
            )

    def __call__(self, inputs: Array, *, seed: int, epoch: int, numbers: Array) -> Array:
        """Return the pictures, each moved and mirrored by what its number says.

        Parameters
        ----------
        inputs : numpy.ndarray
            (n, height, width, channels) or (n, height, width).
        seed, epoch : int
            What the changes depend on beside the numbers.
        numbers : numpy.ndarray
            (n,) integers from 0 on: the samples' numbers in their dataset.

        Returns
        -------
        numpy.ndarray
            A new array of the same shape and dtype; ``inputs`` itself where there is nothing to do.

        Raises
        ------
        ConfigError
            The pictures have another shape, or are smaller than a reflection needs.
        DataError
            There is not one number for each picture.
        """
        self.check(inputs.shape[1:])
        if np.shape(numbers) != inputs.shape[:1]:
            raise DataError(
                f"Augment: {len(inputs)} pictures need as many numbers, got an array of shape "
                f"{np.shape(numbers)}"
            )
        if not inputs.size or not (self.crop or self.flip):
            return inputs
        seed = whole("Augment", "seed", seed, 0, MAX_SEED)
        epoch = whole("Augment", "epoch", epoch, 0, streams.LAST_EPOCH)
        places = np.asarray(numbers).astype(np.uint64) + np.uint64(streams.AUGMENT)
        words = random_blocks(seed, epoch, places).astype(np.int64)
        height, width = inputs.shape[1:3]
        rows = np.broadcast_to(np.arange(height), (len(inputs), height))
        columns = np.broadcast_to(np.arange(width), (len(inputs), width))
        if self.flip:
            mirrored = (words[:, 2] >> 31).astype(bool)
            columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
        if self.crop:
            # Where each pixel of the result comes from, in the coordinates of the picture.
            shifts = (words[:, :2] * (2 * self.crop + 1) >> 32) - self.crop
            rows, columns = rows + shifts[:, :1], columns + shifts[:, 1:]
        return self._gathered(inputs, rows, columns)

    def _gathered(self, inputs: Array, rows: Array, columns: Array) -> Array:
        """Return pixel (rows[n, i], columns[n, j]) of picture n at (i, j)."""
        count, height, width = inputs.shape[:3]
        rows, no_row = self._inside(rows, height)
        columns, no_column = self._inside(columns, width)
        first = np.arange(count)[:, None, None] * (height * width)
        pixels = first + (rows * width)[:, :, None] + columns[:, None, :]
        # One row of channels a pixel: gathered by number, far quicker than by three index arrays.
        flat = np.ascontiguousarray(inputs).reshape(count * height * width, *inputs.shape[3:])
        found = flat.take(pixels, axis=0)
        if no_row is not None and no_column is not None:
            found[no_row[:, :, None] | no_column[:, None, :]] = 0
        return found

    def _inside(self, places: Array, size: int) -> tuple[Array, Array | None]:
        """Return places within the picture, and which of them lie in a padding of zeros."""
        if not self.crop:
            return places, None
        if self.padding == "reflect":
            return size - 1 - np.abs(size - 1 - np.abs(places)), None
        return np.clip(places, 0, size - 1), (places < 0) | (places >= size)
