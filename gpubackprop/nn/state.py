"""State of modules: checked loading, casts and copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.backends import Backend
from gpubackprop.backends.random import Generator
from gpubackprop.errors import CheckpointError
from gpubackprop.nn.parameter import Parameter, host_array
from gpubackprop.suggest import nearest


class Difference(NamedTuple):
    """How the keys of a saved state differ from those of the object that it is loaded into."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def compare_keys(expected: Iterable[str], given: Iterable[Any]) -> Difference:
    """Keys that are missing from `given`, and those that `expected` does not have."""
    wanted, found = list(expected), list(given)
    return Difference([k for k in wanted if k not in found], [k for k in found if k not in wanted])


def describe(difference: Difference) -> list[str]:
    """One sentence a fault, with the nearest name where a key looks misspelt."""
    sentences = []
    if difference.missing_keys:
        sentences.append("missing: " + ", ".join(map(repr, difference.missing_keys)))
    if difference.unexpected_keys:
        words = []
        for key in difference.unexpected_keys:
            guess = nearest(key, difference.missing_keys)
            words.append(f"{key!r} (did you mean {guess!r}?)" if guess else repr(key))
        sentences.append("unexpected: " + ", ".join(words))
    return sentences


def checked_array(value: Any, like: Any) -> tuple[np.ndarray | None, str]:
    """`value` as an array to write over `like` (with shape and dtype), or the reason why not."""
    try:
        array = host_array(value)
    except (TypeError, ValueError, RuntimeError) as error:
        return None, f"is not an array ({error})"
    if array.shape != tuple(like.shape):
        return None, f"has shape {array.shape}, expected {tuple(like.shape)}"
    if not np.can_cast(array.dtype, like.dtype, "same_kind"):
        return None, f"has dtype {array.dtype}, expected {like.dtype}"
    return array, ""


def load(
    owner: str, entries: Mapping[str, Tensor], state: Mapping[str, Any], strict: bool
) -> Difference:
    """Write `state` over `entries` in place, all or nothing.

    Raises
    ------
    CheckpointError
        Naming each fault.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"{owner}: the state is a {type(state).__name__}, not a mapping of paths to arrays"
        )
    difference = compare_keys(entries, state)
    faults = describe(difference) if strict else []
    arrays: dict[str, np.ndarray] = {}
    for path, target in entries.items():
        if path in state:
            array, reason = checked_array(state[path], target)
            if array is None:
                faults.append(f"{path!r} {reason}")
            else:
                arrays[path] = array
    if faults:
        raise CheckpointError(f"{owner}: the saved state does not fit: {'; '.join(faults)}")
    for path, array in arrays.items():
        target = entries[path]
        target.backend.copyto(target.array, target.backend.asarray(array))
        target.mark_changed()
    return difference


def generators(
    owner: str, present: Mapping[str, Generator], state: Mapping[str, Any]
) -> dict[int, Generator]:
    """Generators in the saved state, by the ``id`` of the present one that each replaces."""
    faults = describe(compare_keys(present, state))
    fresh: dict[int, Generator] = {}
    for path, generator in present.items():
        if path not in state:
            continue
        try:
            numbers = [int(n) for n in state[path]]
            fresh[id(generator)] = Generator(*numbers)
        except (TypeError, ValueError) as error:
            faults.append(f"{path!r} is not [seed, stream, offset] ({error})")
    if faults:
        raise CheckpointError(f"{owner}: the random state does not fit: {'; '.join(faults)}")
    return fresh


def moved(buffer: Tensor, target: Backend | None, dtype: np.dtype | None) -> Tensor:
    """A buffer on another device, and with another dtype if it is of floats."""
    result = buffer if target is None else buffer.to(target)
    if dtype is None or buffer.dtype.kind != "f":
        return result
    return Tensor(result.backend.astype(result.array, dtype), result.backend)


def cast(parameter: Parameter, dtype: np.dtype) -> None:
    """Give a parameter another dtype; it leaves its arena."""
    if parameter.dtype == dtype:
        return
    backend = parameter.backend
    parameter.array = backend.astype(parameter.array, dtype)
    parameter.grad_buffer = parameter.home = None
    if parameter.grad is not None:
        parameter.grad = Tensor(backend.astype(parameter.grad.array, dtype), backend)
