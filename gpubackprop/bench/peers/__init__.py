"""Other libraries at the same kernels and recipes. Each module gives one, made for a device."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from gpubackprop.backends.timing import Clock
from gpubackprop.bench.kernels import Sizes
from gpubackprop.bench.measure import AbsentError
from gpubackprop.bench.networks import Made

MODULES = {"torch": "gpubackprop.bench.peers.with_torch", "jax": "gpubackprop.bench.peers.with_jax"}
"""Where each library's part is, by the name that ``--vs`` takes."""


class Peer(Protocol):
    """A library on one device.

    Attributes
    ----------
    version : the library's.
    clock : measures its work there.
    """

    version: str
    clock: Clock

    def work(self, case: str, sizes: Sizes) -> Callable[[], Any]:
        """The call that does what a kernel of the table does."""
        ...

    def step(self, made: Made) -> Callable[[], Any]:
        """A training step of a recipe, over its batches in turn."""
        ...

    def peak(self, run: Callable[[], Any]) -> int | None:
        """The most bytes in use while `run` runs; None where the library does not tell."""
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
