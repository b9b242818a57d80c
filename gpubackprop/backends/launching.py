"""What a device may offer to a step that is repeated: one launch in the place of many, numbers in
its own memory, and copies beside the work.

A backend without any of these answers as :class:`~gpubackprop.backends.base.Backend` does, and the
layers above go on without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from gpubackprop.backends.primitives import Array

Calls = Sequence[tuple[str, Callable[[], Any]]]
"""Kernel calls in order: the kernel's name, and what makes the call."""

# Arguments that a kernel reads from the device when it runs, where it is given a 0-d array of this
# dtype in the place of a Python number.
_DRAWS = {"offset": "uint64"}
_UPDATE = {"lr": "float64", "step": "float64", "scale": "float64"}
_CHAIN = {"real": "float64", "whole": "int64"}  # see ``chains.chain.live_numbers``
_READ_LATE: dict[str, dict[str, str]] = {
    "random_bits": _DRAWS,
    "bernoulli": _DRAWS,
    "uniform": _DRAWS,
    "dropout": _DRAWS,
    "attention": _DRAWS,
    "attention_backward": _DRAWS,
    "chain": {f"{kind}{k}": dtype for kind, dtype in _CHAIN.items() for k in range(64)},
}


def read_late(kernel: str) -> dict[str, str]:
    """Names and dtypes of the arguments of a kernel that may be 0-d arrays of the device."""
    return _UPDATE if kernel.endswith("_update") else _READ_LATE.get(kernel, {})


class Launchable(Protocol):
    """Calls that a device repeats at one word of the host.

    Attributes
    ----------
    calls : how many they are.
    nbytes : memory that it holds for what its calls make on their way.
    """

    calls: int
    nbytes: int

    def launch(self) -> None:
        """Make all calls again, in order, on the contents that their arrays have by then. Does not
        wait for the device."""


class Numbers(Protocol):
    """Numbers in the memory of a device.

    Attributes
    ----------
    views : a 0-d array for each.
    """

    views: list[Array]

    def fill(self, values: Sequence[float | int]) -> None:
        """Give all of them new values, by one copy that the host does not wait for."""


class Arriving(Protocol):
    """An array on its way to the host: call it for the numbers, which it waits for.

    Attributes
    ----------
    done : whether they are there. Asking does not wait.
    """

    @property
    def done(self) -> bool: ...

    def __call__(self) -> np.ndarray: ...


class Here:
    """Numbers that are on the host already.

    Parameters
    ----------
    values : the numbers.
    """

    done = True

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __call__(self) -> np.ndarray:
        return self._values


class Staging(Protocol):
    """Arrays on their way from the host to the device, beside its work.

    Each :meth:`put` is followed by its :meth:`take`; one more may be under way by then.
    """

    def put(self, arrays: Sequence[np.ndarray]) -> None:
        """Begin to copy arrays to the device. They may be changed at once."""

    def take(self) -> list[Array]:
        """The arrays that were put first, for work that is asked for from now on. They hold until
        the next ``take``."""
        ...

    def clear(self) -> None:
        """Forget what was put and not taken."""
