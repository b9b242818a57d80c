"""The error for lack of memory: what asked, what holds the memory, what to try."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpubackprop.autograd.tape import Node
from gpubackprop.backends import Array, Backend
from gpubackprop.backends.memory import HOLDERS, MemoryState, asked_bytes, words
from gpubackprop.errors import OutOfMemoryError

ACTIVATIONS, OTHERS = "activations kept by the tape", "other arrays"
TRY = (
    "a smaller batch, the batch in pieces (--accumulate, accumulate=), gb.checkpoint around a part "
    "of the network, or gb.compile(..., recompute=True)"
)


@contextmanager
def named(operation: str, backend: Backend) -> Iterator[None]:
    """Within the block a lack of memory is an error that names `operation` and what holds the
    memory; one that was named already passes.

    Parameters
    ----------
    operation : what runs, for example ``"the update"``.
    backend : where.

    Raises
    ------
    OutOfMemoryError
        In place of the array library's error.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not backend.lacks_memory(error):
            raise
        raise shortage(error, operation, backend) from error


def brought(backend: Backend, data: Any, dtype: Any) -> Array:
    """``backend.asarray(data, dtype)`` of an array, or the named error."""
    try:
        return backend.asarray(data, dtype)
    except Exception as error:
        if not backend.lacks_memory(error):
            raise
        raise shortage(error, f"tensor {list(data.shape)}", backend) from error


def shortage(error: BaseException, operation: str, backend: Backend) -> OutOfMemoryError:
    """The error to raise in place of an array library's error for lack of memory.

    Parameters
    ----------
    error : what the library raised.
    operation : what asked for the memory.
    backend : the device that has none left.
    """
    nbytes = asked_bytes(error)
    state = backend.memory_state()
    held = holdings(backend, state.used)
    asked = f"{words(nbytes)} more" if nbytes is not None else "what it needs"
    parts = [f"{operation}: {backend.device} has no memory for {asked}"]
    if state.total is not None and state.available is not None:
        parts[0] += f" ({words(state.available)} of {words(state.total)} are free)"
    if state.limit is not None:
        parts.append(f"its pool is limited to {words(state.limit)}")
    if held:
        listed = ", ".join(f"{what} {words(n)}" for what, n in held.items())
        parts.append(f"in use: {listed}")
    if state.pooled:
        parts.append(f"free blocks of the pool: {words(state.pooled)}{_scattered(nbytes, state)}")
    higher = ", or a higher limit (--gpu-memory-limit)" if state.limit is not None else ""
    parts.append(f"try {TRY}{higher}")
    return OutOfMemoryError(
        "; ".join(parts),
        operation=operation,
        device=backend.device,
        nbytes=nbytes,
        held=held,
        free=state.pooled,
    )


def _scattered(nbytes: int | None, state: MemoryState) -> str:
    assert state.pooled is not None
    enough = nbytes is not None and nbytes <= state.pooled
    return ", but none of them is large enough" if enough else ""


def holdings(backend: Backend, used: int | None = None) -> dict[str, int]:
    """Bytes of one device by what holds them, the most first; memory that two hold counts once.

    Parameters
    ----------
    backend : the device.
    used : bytes in use in all, where they are known: what of them nobody claims is in other arrays.
    """
    seen: set[int] = set()
    found: dict[str, int] = {}
    beside: dict[str, int] = {}

    def book(what: str, array: Any) -> None:
        if isinstance(array, int):
            beside[what] = beside.get(what, 0) + array
            return
        owner = _owner(backend, array)
        if id(owner) not in seen:
            seen.add(id(owner))
            found[what] = found.get(what, 0) + _nbytes(owner)

    for holder in list(HOLDERS):
        if holder.backend is backend:
            for what, array in holder.holdings():
                book(what, array)
    for array in _kept(backend):
        book(ACTIVATIONS, array)
    if used is not None:
        found[OTHERS] = max(0, used - sum(found.values()))
    found |= beside
    return {k: n for k, n in sorted(found.items(), key=lambda item: -item[1]) if n}


def _kept(backend: Backend) -> Iterator[Any]:
    """Arrays that recorded calls keep for their derivatives. Nobody has a list of them: the graph
    hangs on the tensors of whoever runs, so the collector of garbage is asked."""
    try:
        objects = gc.get_objects()
    except MemoryError:  # on the host the list itself may be too long
        return
    for node in objects:
        if type(node) is Node and node.backend is backend and node.saved is not None:
            for value in node.saved:
                if backend.owns(value):
                    yield value


def _owner(backend: Backend, array: Any) -> Any:
    try:
        owner = backend.owner(array)
    except NotImplementedError:
        return array
    return owner if hasattr(owner, "shape") else array


def _nbytes(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize
