"""Other libraries at the same kernels and recipes. Each module gives one, made for a device."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gpubackprop.backends.timing import Clock
from gpubackprop.bench.kernels import Sizes
from gpubackprop.bench.measure import AbsentError
from gpubackprop.bench.networks import Made

MODULES = {"torch": "gpubackprop.bench.peers.with_torch", "jax": "gpubackprop.bench.peers.with_jax"}
"""Where each library's part is, by the name that ``--vs`` takes."""


@dataclass(frozen=True)
class Twin:
    """A recipe's network in another library, with weights that it was given.

    Attributes
    ----------
    step : a training step over the batches in turn, from the copy to the device to the cost read
        back; gives the cost.
    gradients : of the first batch's cost by each parameter, not clipped, as NumPy arrays.
    """

    step: Callable[[], float]
    gradients: Callable[[], list[np.ndarray]]


class Peer(Protocol):
    """A library on one device.

    Attributes
    ----------
    title, version : what the library is, and which one.
    clock : measures its work there.
    """

    title: str
    version: str
    clock: Clock

    def work(self, case: str, sizes: Sizes) -> Callable[[], Any]:
        """The call that does what a kernel of the table does."""
        ...

    def twin(self, made: Made, weights: Sequence[np.ndarray]) -> Twin:
        """A recipe's network with these values of its parameters, in this project's order and
        shapes; AbsentError where the library has none."""
        ...

    def peak(self, run: Callable[[], Any]) -> int | None:
        """The most bytes in use while `run` runs; None where the library does not tell."""
        ...

    def most(self) -> tuple[int | None, int | None]:
        """The most bytes in use, and taken from the device, since the process began; None where
        the library does not tell."""
        ...

    def release(self) -> None:
        """Give memory that is kept for later back to the device."""
        ...


def load(name: str, device: str) -> Peer:
    """A library on a device.

    Parameters
    ----------
    name : a key of ``MODULES``.
    device : ``"cpu"`` or ``"cuda:N"``.

    Raises
    ------
    AbsentError
        It is not installed, or cannot use the device.
    """
    try:
        peer: Peer = importlib.import_module(MODULES[name]).make(device)
    except ImportError as error:
        raise AbsentError(f"not installed ({error})") from None
    return peer


def require_shapes(
    library: str, shapes: Sequence[tuple[int, ...]], weights: Sequence[np.ndarray]
) -> None:
    """Refuse weights that are not the twin's own, before they are copied into it."""
    wanted = [w.shape for w in weights]
    if list(shapes) != wanted:
        raise AbsentError(f"{library}'s twin has parameters of shapes {shapes}, not {wanted}")
