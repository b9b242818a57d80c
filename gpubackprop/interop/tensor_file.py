"""Reading safetensors files that may be damaged, truncated or hostile.

The format is 8 bytes (the length of the header, little-endian), the header (JSON: for each tensor
its dtype, shape and the bytes it takes) and the data; see
https://huggingface.co/docs/safetensors#format. Nothing is allocated for a size that a header merely
claims: every claim is held against the size of the file first.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.data.reading import open_file, os_reason
from gpubackprop.errors import CheckpointError, DataError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

MAX_HEADER = 100_000_000
"""The most bytes of a header: the format's own limit."""
MAX_INDEX = 1 << 26
MAX_AXES = 64
"""NumPy's limit."""

BFLOAT16 = "bfloat16"
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": BFLOAT16,
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Names of dtypes in a file, and here."""


class Entry(NamedTuple):
    """A tensor in a file.

    Attributes
    ----------
    path : the file.
    dtype : its name.
    shape : its shape.
    start, stop : its bytes, from the beginning of the file.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def entries(path: str | os.PathLike[str]) -> dict[str, Entry]:
    """The tensors of a file, of a folder, or of the files that an index names; nothing is read but
    headers.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, truncated or of another format.
    """
    path = Path(path)
    if path.is_dir():
        path = _inside(path)
    return _indexed(path) if path.name.endswith(".index.json") else dict(_header(path))


def read(entry: Entry) -> np.ndarray:
    """The values of a tensor; bfloat16 as float32, which holds each of its values."""
    stored = _stored(entry.dtype)
    with _opened(entry.path) as stream:
        try:
            stream.seek(entry.start)
            data = stream.read(entry.stop - entry.start)
        except OSError as error:
            raise CheckpointError(f"cannot read {entry.path}: {os_reason(error)}") from None
    if len(data) != entry.stop - entry.start:
        raise CheckpointError(f"{entry.path} is truncated: it became shorter while it was read")
    values = np.frombuffer(data, stored).reshape(entry.shape)
    if entry.dtype == BFLOAT16:
        # The upper half of a float32.
        values = np.left_shift(values.astype(np.uint32), 16).view(np.float32)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


class _opened:  # noqa: N801 - used as a function
    """A file to read, with errors as ``CheckpointError``."""

    def __init__(self, path: Path) -> None:
        self._context = open_file(path, "safetensors file")

    def __enter__(self) -> Any:
        try:
            return self._context.__enter__()
        except DataError as error:
            raise CheckpointError(str(error)) from None

    def __exit__(self, *details: Any) -> Any:
        return self._context.__exit__(*details)


def _inside(folder: Path) -> Path:
    """The index or the file that a folder holds."""
    for name in (INDEX, SINGLE):
        if (folder / name).is_file():
            return folder / name
    found = sorted(p.name for p in folder.glob("*.safetensors"))
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise CheckpointError(
            f"{folder} holds {len(found)} safetensors files and no {INDEX}: name the one to read "
            f"({', '.join(found[:5])}{', ...' if len(found) > 5 else ''})"
        )
    raise CheckpointError(f"{folder} holds no safetensors file")


def _indexed(path: Path) -> dict[str, Entry]:
    """The tensors of the files that an index names, each from the file that it names for it."""
    with _opened(path) as stream:
        data = stream.read(MAX_INDEX + 1)
    index = _json(path, data) if len(data) <= MAX_INDEX else None
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path} is no index of safetensors files: it has no weight_map")
    for name, file in places.items():
        plain = isinstance(file, str) and file == Path(file).name and file not in ("", ".", "..")
        if not plain or "\\" in file or "\0" in file:
            raise CheckpointError(
                f"{path}: the file of {short(name)} is {short(file)}, not the name of a file in "
                "the same folder"
            )
    files = {file: dict(_header(path.parent / file)) for file in dict.fromkeys(places.values())}
    for name, file in places.items():
        if name not in files[file]:
            raise CheckpointError(
                f"{path} says that {short(name)} is in {file}, which does not hold it"
            )
    return {name: files[file][name] for name, file in places.items()}


def _header(path: Path) -> Iterator[tuple[str, Entry]]:
    """The entries of one file, each checked against the file's size and the others."""
    with _opened(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        begin = stream.read(8)
        length = int.from_bytes(begin, "little")
        _recognise(path, begin, size, length)
        header = _json(path, stream.read(length))
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is damaged: its header is no table")
    data = 8 + length
    place = data
    found = []
    for name, value in header.items():
        if name != "__metadata__":
            found.append((name, _entry(path, name, value, data)))
    for name, entry in sorted(found, key=lambda pair: (pair[1].start, pair[1].stop)):
        if entry.start != place:
            raise CheckpointError(
                f"{path} is damaged: {short(name)} begins at byte {entry.start:,}, where the one "
                f"before ends at {place:,}"
            )
        place = entry.stop
    if place != size:
        what = "truncated" if place > size else "damaged"
        raise CheckpointError(
            f"{path} is {what}: its header tells of {place:,} bytes, it has {size:,}"
        )
    yield from found


def _recognise(path: Path, begin: bytes, size: int, length: int) -> None:
    """Refuse what cannot be a safetensors file by its first bytes."""
    if len(begin) < 8 or length < 2 or length > size - 8:
        # Only here: the length of a sound header may begin with the same byte.
        if begin[:4] == b"PK\x03\x04" or begin[:1] == b"\x80":
            raise CheckpointError(
                f"{path} is a pickle, as torch.save writes it, which could run any code when it is "
                "read; turn it into a safetensors file with safetensors.torch.save_file(state_dict,"
                " name), where you trust it"
            )
        raise CheckpointError(
            f"{path} is truncated or no safetensors file: a header of {length:,} bytes does not "
            f"fit in a file of {size:,}"
        )
    if length > MAX_HEADER:
        raise CheckpointError(f"{path}: its header has more than {MAX_HEADER:,} bytes")


def _entry(path: Path, name: str, value: Any, data: int) -> Entry:
    """One entry of a header; `data` is where the file's data begin."""
    wrong = CheckpointError(f"{path} is damaged: its header describes {short(name)} wrongly")
    if not isinstance(value, Mapping):
        raise wrong
    kind, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        raise wrong
    if len(offsets) != 2 or len(shape) > MAX_AXES:
        raise wrong
    if not all(type(n) is int and 0 <= n < 1 << 60 for n in [*shape, *offsets]):
        raise wrong
    if math.prod(n for n in shape if n) >= 1 << 60:  # an empty array of a size beyond any memory
        raise wrong
    if kind not in DTYPES:
        raise CheckpointError(
            f"{path}: {short(name)} is of dtype {kind[:20]!r}; read are {', '.join(DTYPES)}"
        )
    dtype = DTYPES[kind]
    if math.prod(shape) * _stored(dtype).itemsize != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"{path} is damaged: {short(name)} of {kind}{shape} takes {offsets[1] - offsets[0]:,} "
            "bytes"
        )
    return Entry(path, dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _json(path: Path, data: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands twice")
        return found

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = "it is not JSON" if not str(error).startswith("a name") else str(error)
        raise CheckpointError(f"{path} is damaged or of another format: {reason}") from None


def _stored(dtype: str) -> np.dtype:
    """How a file holds a dtype: little-endian, and bfloat16 as the integers of its bits."""
    return np.dtype("<u2" if dtype == BFLOAT16 else dtype).newbyteorder("<")


def short(value: Any) -> str:
    """A value of a file for a message: quoted, and not longer than a line."""
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:100]}...{text[-12:]}"
