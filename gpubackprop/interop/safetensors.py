"""Weights in safetensors files, under PyTorch's names and in its layouts.

A module's state here has the names, shapes and layouts of the same module in PyTorch, so a file
that ``safetensors.torch`` wrote loads as it is, and the other way round.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.errors import CheckpointError, ConfigError
from gpubackprop.interop.tensor_file import BFLOAT16, Entry, entries, read, short
from gpubackprop.nn import Module
from gpubackprop.nn.state import Difference, describe
from gpubackprop.training.files import write_atomic

MOST_FAULTS = 20
"""Faults that one error lists."""


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as NumPy arrays, by name.

    Parameters
    ----------
    path : a file, an index (``model.safetensors.index.json``) of several, or a folder with either.

    Returns
    -------
    dict of str to numpy.ndarray
        bfloat16 as float32, which holds each of its values.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, truncated or of another format.
    """
    return {name: read(entry) for name, entry in entries(path).items()}


def load_safetensors(
    model: Module,
    path: str | os.PathLike[str],
    strict: bool = True,
    *,
    prefix: str = "",
    cast: bool = False,
) -> Difference:
    """Write the weights of a safetensors file over those of a model, in place, all or nothing.

    Parameters
    ----------
    model : the network, on any device.
    path : a file, an index (``model.safetensors.index.json``) of several, or a folder with either.
    strict : whether missing and unexpected names are errors. Wrong shapes always are.
    prefix : take only the names that begin with this, without it (``"encoder."`` for a part of a
        larger network).
    cast : also allow casts that lose digits, such as float64 to float32. Casts that lose none
        (float16 and bfloat16 to float32) always happen.

    Returns
    -------
    Difference
        ``missing_keys`` and ``unexpected_keys``; both empty when `strict`.

    Raises
    ------
    CheckpointError
        The file cannot be read, or does not fit: lists every name, shape and dtype that is wrong,
        with the nearest name. The model is as it was.

    Notes
    -----
    A tied parameter needs to be there under one of its names only.
    """
    if not isinstance(model, Module):
        raise ConfigError(f"load_safetensors: model is a {type(model).__name__}, not a Module")
    found = {
        name.removeprefix(prefix): entry
        for name, entry in entries(path).items()
        if name.startswith(prefix)
    }
    if prefix and not found:
        raise CheckpointError(f"{path}: no name begins with the prefix {prefix!r}")
    targets = model._state_entries()
    names = _names_by_target(targets, found)
    difference = Difference(
        [name for name in targets if names[name] is None],
        [name for name in found if name not in targets],
    )
    faults = describe(difference) if strict else []
    for name, target in targets.items():
        source = names[name]
        if source == name and (fault := _fault(found[name], target, cast)):
            faults.append(f"{name!r} {fault}")
    if faults:
        listed = "; ".join(f[:1500] for f in faults[:MOST_FAULTS])
        more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        raise CheckpointError(
            f"{path} does not fit the {type(model).__name__}"
            f"{f' under the prefix {prefix!r}' if prefix else ''}: {listed}{more}"
        )
    state = {name: _values(name, found[name], targets[name]) for name in targets if name in found}
    model.load_state_dict(state, strict=False)
    return difference


def save_safetensors(
    model: Module | Mapping[str, Any],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the weights of a model to a safetensors file, which ``safetensors.torch`` and others
    read.

    Parameters
    ----------
    model : the network, or its ``state_dict()``.
    path : the file; replaced in one step, so that a reader sees the old or the new one.
    metadata : texts to keep in its header. ``format`` is ``"pt"`` unless given, as PyTorch's users
        expect of these names and layouts.

    Raises
    ------
    CheckpointError
        The system refused; what was there is intact.
    """
    from safetensors.numpy import save

    if not isinstance(model, (Module, Mapping)):
        raise ConfigError(
            "save_safetensors: model must be a Module or its state_dict(), not "
            f"{type(model).__name__}; the file comes second"
        )
    state = model.state_dict() if isinstance(model, Module) else model
    texts = {"format": "pt"} | dict(metadata or {})
    for key, text in texts.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise ConfigError(
                f"save_safetensors: metadata are texts by name, not {short(key)}: {short(text)}"
            )
    arrays = {
        name: np.asarray(value.numpy() if isinstance(value, Tensor) else value, order="C")
        for name, value in state.items()
    }
    target = Path(path)
    if target.is_dir():
        raise CheckpointError(f"cannot write {target}: is a folder, not a file")
    write_atomic(target, save(arrays, metadata=texts))


def _names_by_target(
    targets: Mapping[str, Tensor], found: Mapping[str, Entry]
) -> dict[str, str | None]:
    """For each name of the model, the name in the file that its values come under, if any."""
    present = {id(target): name for name, target in targets.items() if name in found}
    return {
        name: name if name in found else present.get(id(target)) for name, target in targets.items()
    }


def _fault(entry: Entry, target: Tensor, cast: bool) -> str:
    """Why an entry cannot be written over a tensor; empty where it can."""
    if entry.shape != target.shape:
        return f"has shape {short(entry.shape)}, expected {target.shape}"
    wanted = target.dtype
    if entry.dtype == str(wanted):
        return ""
    kept = np.dtype(np.float32 if entry.dtype == BFLOAT16 else entry.dtype)
    if _kind(kept) != _kind(wanted):
        return f"has dtype {entry.dtype}, expected {wanted}"
    if cast or (wanted.name != BFLOAT16 and np.can_cast(kept, wanted, "safe")):
        return ""
    return f"has dtype {entry.dtype}, which loses digits as {wanted} (cast=True allows that)"


def _kind(dtype: np.dtype) -> str:
    return "f" if dtype.name == BFLOAT16 else dtype.kind.replace("u", "i")


def _values(name: str, entry: Entry, target: Tensor) -> np.ndarray:
    """The values of an entry in the dtype of a tensor."""
    values = read(entry)
    if values.dtype == target.dtype:
        return values
    with np.errstate(over="ignore"):
        narrowed = values.astype(target.dtype)
    # Digits may be lost where the caller said so; numbers may not.
    lost = narrowed != values if _kind(target.dtype) == "i" else _overflown(narrowed, values)
    if np.any(lost):
        raise CheckpointError(
            f"{entry.path}: {int(np.sum(lost)):,} values of {name!r} are out of the range of "
            f"{target.dtype}"
        )
    return narrowed


def _overflown(narrowed: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.isinf(narrowed.astype(np.float64)) & np.isfinite(values)
