"""Naming a device and finding its backend.

A device is named by ``"cpu"``, ``"cuda"`` (the first GPU), ``"cuda:N"`` or ``"auto"``. An argument
comes first, then the environment variable ``GPUBACKPROP_DEVICE``, then ``"cpu"`` for arrays and
``"auto"`` for the command.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import NamedTuple

from gpubackprop.backends.base import Backend
from gpubackprop.backends.memory import parse_bytes
from gpubackprop.errors import ConfigError, DeviceError

ENVIRONMENT_VARIABLE = "GPUBACKPROP_DEVICE"


class Choice(NamedTuple):
    """A device that was chosen and why."""

    device: str
    reason: str


def canonical(name: str) -> str:
    """``"cpu"``, ``"cuda:N"`` or ``"auto"`` from any accepted spelling.

    Raises
    ------
    DeviceError
        If the name is none of these.
    """
    text = name.strip().lower() if isinstance(name, str) else ""
    if text in ("cpu", "auto"):
        return text
    match = re.fullmatch(r"cuda(?::(\d+))?", text)
    if match is None:
        raise DeviceError(f"unknown device {name!r}; allowed: 'auto', 'cpu', 'cuda', 'cuda:N'")
    return f"cuda:{int(match.group(1) or 0)}"


def choose(name: str | None = None, default: str = "auto") -> Choice:
    """Settle which device to use.

    Parameters
    ----------
    name : what was asked for; None looks at ``GPUBACKPROP_DEVICE`` and then at `default`.

    Returns
    -------
    Choice
        The device and one sentence of reason. ``auto`` falls back to the CPU and says why; ``cuda``
        never does.

    Raises
    ------
    DeviceError
        If a CUDA device was asked for and cannot be used: the cause and the command that mends it.
    """
    source = "asked for"
    if name is None:
        name = os.environ.get(ENVIRONMENT_VARIABLE)
        source = f"from {ENVIRONMENT_VARIABLE}" if name else "default"
        name = name or default
    origin = f" ({source})" if source.startswith("from") else ""
    try:
        wanted = canonical(name)
    except DeviceError as error:
        raise DeviceError(f"{error}{origin}") from None
    if wanted == "cpu":
        return Choice("cpu", source)
    from gpubackprop.backends import detect

    problem = detect.gpu_problem()
    if wanted == "auto":
        if problem is None:
            return Choice("cuda:0", "auto: a CUDA GPU is usable")
        return Choice("cpu", f"auto: no usable GPU ({problem.cause})")
    if problem is not None:
        raise DeviceError(
            f"device {name!r}{origin} cannot be used: {problem.cause}; {problem.mend}"
        )
    index, found = int(wanted.partition(":")[2]), detect.devices()
    if index >= len(found):
        raise DeviceError(
            f"device {name!r}{origin} does not exist: {len(found)} CUDA device(s) found, numbered "
            "from 0"
        )
    return Choice(wanted, source)


def get_backend(device: str | Backend | None = None) -> Backend:
    """The backend of a device; the same object for every call with the same device.

    Parameters
    ----------
    device : a device name, a backend (returned as it is), or None for ``GPUBACKPROP_DEVICE`` or
        else the CPU.
    """
    if isinstance(device, Backend):
        return device
    if device == "cpu" or (device is None and ENVIRONMENT_VARIABLE not in os.environ):
        return _backend("cpu")
    return _backend(choose(device, default="cpu").device)


def limit_memory(limit: int | str | None, device: str | Backend | None = "cuda") -> None:
    """Let arrays of a GPU take no more memory than this from now on.

    Parameters
    ----------
    limit : bytes, or a size such as ``"8GiB"``; None lifts the limit.
    device : which GPU.

    Raises
    ------
    ConfigError
        The size cannot be read.
    DeviceError
        The device cannot be used, or has no pool that could be limited (the CPU).
    """
    if isinstance(limit, str):
        try:
            limit = parse_bytes(limit)
        except ValueError as error:
            raise ConfigError(f"limit_memory: limit {error}") from None
    whole = isinstance(limit, int) and not isinstance(limit, bool) and limit > 0
    if limit is not None and not whole:
        raise ConfigError(
            f"limit_memory: limit must be a number of bytes from 1 on, a size such as '8GiB', or "
            f"None, not {limit!r}"
        )
    get_backend(device).limit_memory(limit)


@cache
def _backend(device: str) -> Backend:
    if device == "cpu":
        from gpubackprop.backends.cpu.backend import NumPyBackend

        return NumPyBackend()
    from gpubackprop.backends.cuda import CUDABackend

    return CUDABackend(int(device.partition(":")[2]))


def backend_of(array: object) -> Backend:
    """The backend whose array this is (the CPU's for a NumPy array)."""
    import numpy as np

    if isinstance(array, (np.ndarray, np.generic)):
        return _backend("cpu")
    index = getattr(getattr(array, "device", None), "id", None)
    if index is None:
        raise DeviceError(f"{type(array).__name__} is not an array of a known backend")
    return _backend(f"cuda:{index}")
