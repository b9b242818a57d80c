"""What is done to inputs and targets before training: scaling and one-hot coding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop import suggest
from gpubackprop.backends import as_dtype
from gpubackprop.errors import ConfigError, DataError

Array = np.ndarray[Any, Any]

SCALES = ("none", "unit", "standard", "standard-global", "standard-channel")
"""The ways to scale inputs; see ``fit_scaling``."""

# Rows in float64 at a time while statistics are taken.
_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Scaling:
    """The map ``(x - offset) / scale`` from raw inputs to the inputs of a network.

    Parameters
    ----------
    offset, scale : numpy.ndarray
        float64, of the shape of one sample, of its last axis (the channels), or of shape ().
        ``scale`` has no zero.
    dtype : numpy.dtype
        Floating dtype of the result.

    Notes
    -----
    Calling it treats each sample alone, so it may be applied to everything at once or batch by
    batch. Keep ``offset`` and ``scale`` with a trained network: new inputs need the same map.
    """

    offset: Array
    scale: Array
    dtype: np.dtype[Any]

    def __call__(self, samples: Array) -> Array:
        """Return the scaled samples, a new array of shape (samples, ...)."""
        # In float64 where the samples need it: a small spread around a large offset must survive.
        dtype = np.result_type(samples.dtype, self.dtype)
        out = samples.astype(dtype)
        if np.any(self.offset):
            out -= self.offset.astype(dtype)
        if np.any(self.scale != 1):
            out /= self.scale.astype(dtype)
        # A value too large for the dtype becomes an infinity, which the caller looks for.
        with np.errstate(over="ignore"):
            return out.astype(self.dtype, copy=False)


def fit_scaling(
    kind: str, samples: Any, *, levels: float | None = None, dtype: Any = np.float32
) -> Scaling:
    """Find the scaling of some training samples.

    Parameters
    ----------
    kind : {"none", "unit", "standard", "standard-global", "standard-channel"}
        ``"none"``: only the dtype changes. ``"unit"``: to the range 0 to 1, by ``levels`` where it
        is given, else by the smallest and largest value of each feature. ``"standard"``: each
        feature to mean 0 and standard deviation 1. ``"standard-global"``: the same with one mean
        and one deviation over all features. ``"standard-channel"``: the same with one for each
        channel, the last axis of a picture. A feature that never varies is only shifted.
    samples : numpy.ndarray or Pictures
        The training samples, shape (samples, ...): nothing of the test part may be among them.
    levels : float, optional
        The largest value that the format allows, 255 for images of bytes.
    dtype : dtype, optional
        Floating dtype of what the scaling returns.

    Returns
    -------
    Scaling
        The map.

    Raises
    ------
    ConfigError
        There is no such kind.
    DataError
        There are no samples to take statistics of.
    """
    if kind not in SCALES:
        raise ConfigError(suggest.unknown("scale", kind, SCALES))
    offset, scale = np.zeros(()), np.ones(())
    if kind == "unit" and levels is not None:
        scale = np.asarray(float(levels))
    elif kind != "none" and not len(samples):
        raise DataError(f"scale={kind!r} needs at least one training sample")
    elif kind == "unit":
        offset = samples.min(axis=0).astype(np.float64)
        scale = samples.max(axis=0).astype(np.float64) - offset
    elif kind != "none":
        axes: dict[str, tuple[int, ...] | None] = {
            "standard": (0,),
            "standard-global": None,
            "standard-channel": tuple(range(len(samples.shape) - 1)),
        }
        offset, scale = _mean_and_deviation(samples, axes[kind])
    scale = np.where((scale > 0) & np.isfinite(scale), scale, 1.0)
    return Scaling(offset, scale, as_dtype(dtype))


def one_hot(labels: Array, classes: int, dtype: Any = np.float32) -> Array:
    """Return rows that are 1 at the class and 0 elsewhere.

    Parameters
    ----------
    labels : numpy.ndarray
        Integers 0 to ``classes - 1``, shape (samples,).
    classes : int
        Number of classes.
    dtype : dtype, optional
        Dtype of the result.

    Returns
    -------
    numpy.ndarray
        Shape (samples, classes).

    Raises
    ------
    DataError
        A label is not in the range.
    """
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"one_hot: labels must be 0 to {classes - 1}, found {labels.min()} to {labels.max()}"
        )
    out = np.zeros((len(labels), classes), dtype=dtype)
    out[np.arange(len(labels)), labels] = 1
    return out


def _mean_and_deviation(samples: Any, axes: tuple[int, ...] | None) -> tuple[Array, Array]:
    """Return mean and population standard deviation in float64, in two passes over blocks."""
    starts = range(0, len(samples), _ROWS)
    whole = range(len(samples.shape)) if axes is None else axes
    count = math.prod(samples.shape[axis] for axis in whole)
    mean = sum(
        np.sum(samples[start : start + _ROWS], axis=axes, dtype=np.float64) for start in starts
    )
    mean = np.asarray(mean) / max(count, 1)
    square = sum(
        np.sum((samples[start : start + _ROWS].astype(np.float64) - mean) ** 2, axis=axes)
        for start in starts
    )
    return mean, np.sqrt(np.asarray(square) / max(count, 1))
