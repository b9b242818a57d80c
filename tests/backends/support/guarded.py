"""Copies of arrays before memory that nobody may touch, for kernels that run on a CPU."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

# What lies around an array up to a boundary of so many bytes may be read, though it means nothing:
# no allocation of a GPU ends within them.
WORD = 16
_PAGE = mmap.PAGESIZE
_FILL = 0xFF  # not a number, in every type of floats
_protect = ctypes.CDLL(None, use_errno=True).mprotect
_protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Guarded:
    """A copy of an array without gaps that ends where a page ends that cannot be accessed, and
    begins as far from a boundary as the array does.

    Parameters
    ----------
    array : what is copied.

    Attributes
    ----------
    address : of the copy.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        offset, size = array.ctypes.data % WORD, array.nbytes
        words = -(-(offset + size) // WORD) * WORD
        room = -(-(words + WORD) // _PAGE) * _PAGE
        self._memory = mmap.mmap(-1, room + _PAGE)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        start = self._bytes.ctypes.data
        if _protect(start + room, _PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect failed")
        self._first = room - words + offset
        self.address = start + self._first
        self._inside = slice(self._first, self._first + size)
        self._bytes[:room] = _FILL
        self._bytes[self._inside] = _bytes_of(array)
        self._around = [slice(0, self._first), slice(self._first + size, room)]

    def take_back(self) -> bool:
        """Write what became of the copy to the array. Whether nothing was written beside it."""
        _bytes_of(self.array)[...] = self._bytes[self._inside]
        return all(bool((self._bytes[part] == _FILL).all()) for part in self._around)


def apart(arrays: list[np.ndarray]) -> list[bool]:
    """Whether each array is without gaps and has no byte in common with another one."""
    bounds = [np.lib.array_utils.byte_bounds(a) for a in arrays]
    return [
        a.flags.c_contiguous
        and a.size > 0
        and not any(low < other[1] and other[0] < high for j, other in enumerate(bounds) if j != k)
        for k, (a, (low, high)) in enumerate(zip(arrays, bounds, strict=True))
    ]


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
