"""What a recording is made of: calls of kernels on views of memory.

A *buffer* is a stretch of memory, a *ref* a view of one. Two refs of one buffer may overlap; refs
of different buffers never do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gpubackprop.backends import Array, Shape


@dataclass(eq=False)
class Buffer:
    """A stretch of memory.

    Attributes
    ----------
    number : in order of appearance.
    nbytes : its length.
    kind : ``"made"`` within the step (the plan places it), ``"input"`` (an argument is copied into
        it at each call; the plan places it), or ``"external"`` (memory that lives outside of the
        step: parameters, gradients, optimizer state, constants).
    array : what holds external memory, and keeps it alive.
    made_by : name of the kernel that made it, for reports.
    """

    number: int
    nbytes: int
    kind: Literal["made", "input", "external"]
    array: Array = None
    made_by: str = ""


@dataclass(frozen=True, eq=False)
class Ref:
    """A view of a buffer.

    Attributes
    ----------
    buffer : which.
    offset : of the element at index 0, in bytes from the buffer's first byte.
    shape, strides : strides in bytes; may be 0 (broadcast) or negative (flipped).
    dtype : NumPy's.
    """

    buffer: Buffer
    offset: int
    shape: Shape
    strides: Shape
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in C order without gaps."""
        step = self.dtype.itemsize
        for n, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n != 1 and stride != step:
                return not self.size
            step *= n
        return True

    @property
    def whole(self) -> bool:
        """Whether it is all of its buffer, in order."""
        return self.contiguous and self.offset == 0 and self.nbytes == self.buffer.nbytes

    @property
    def bounds(self) -> tuple[int, int]:
        """First byte and the byte after the last, in the buffer."""
        if not self.size:
            return self.offset, self.offset
        low = sum(min(0, (n - 1) * s) for n, s in zip(self.shape, self.strides, strict=True))
        high = sum(max(0, (n - 1) * s) for n, s in zip(self.shape, self.strides, strict=True))
        return self.offset + low, self.offset + high + self.dtype.itemsize

    def same(self, other: Ref) -> bool:
        """Whether both are the same elements in the same order."""
        return (
            self.buffer is other.buffer
            and self.offset == other.offset
            and self.shape == other.shape
            and self.dtype == other.dtype
            and all(
                n == 1 or a == b
                for n, a, b in zip(self.shape, self.strides, other.strides, strict=True)
            )
        )

    def overlaps(self, other: Ref) -> bool:
        """Whether the two may have bytes in common."""
        if self.buffer is not other.buffer:
            return False
        (a, b), (c, d) = self.bounds, other.bounds
        return a < d and c < b

    def __repr__(self) -> str:
        return f"{self.dtype}{list(self.shape)}@{self.buffer.number}"


@dataclass(eq=False)
class Call:
    """One call of a kernel.

    Attributes
    ----------
    kernel : its name in the contract.
    args, kwargs : as it was called, with a ``Ref`` in the place of each array (also within tuples
        and lists) and a ``Live`` number (``gpubackprop.backends.live``) in the place of each number
        that is read anew at each replay. An ``out=`` argument is not among them.
    outs : what it makes or fills, in order; for ``out=`` the array that was given.
    writes : arguments that it overwrites (``copyto``, the updates).
    precision : of products of float32 arrays, as it was when the call was made.
    """

    kernel: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: tuple[Ref, ...]
    writes: tuple[Ref, ...] = ()
    precision: str = "float32"

    @property
    def reads(self) -> list[Ref]:
        """Every array among the arguments."""
        found: list[Ref] = []
        collect((self.args, self.kwargs), found)
        return found


def collect(tree: Any, found: list[Ref]) -> None:
    """Add every ref in nested tuples, lists, dictionaries and slices to `found`."""
    if isinstance(tree, Ref):
        found.append(tree)
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            collect(item, found)
    elif isinstance(tree, dict):
        for item in tree.values():
            collect(item, found)


def replaced(tree: Any, change: Any) -> Any:
    """The tree with ``change(ref)`` in the place of each ref."""
    if isinstance(tree, Ref):
        return change(tree)
    if type(tree) in (tuple, list):
        return type(tree)(replaced(item, change) for item in tree)
    if isinstance(tree, dict):
        return {key: replaced(item, change) for key, item in tree.items()}
    return tree
