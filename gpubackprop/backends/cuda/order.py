"""The stable order of keys on a GPU, by kernels that neither wait nor ask a library: a captured
graph can hold them.

Few keys are compared each with each. Many are sorted digit by digit, the lowest first (a radix
sort); each pass keeps the order of the one before it where digits are equal.
"""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.cuda import geometry
from gpubackprop.backends.cuda.arrays import DeviceArrays
from gpubackprop.backends.primitives import Array

MOST_RANKED = 32768
"""Up to this many keys are put in order by comparing each with each, in two launches."""

DIGIT_BITS = 8
"""A thread of a block for each value of a digit."""


class KeyOrder(DeviceArrays):
    """Puts keys in order."""

    def _order_of(self, keys: Array, size: int) -> Array:
        """The numbers of the keys in the stable order of the keys, which are -1 to `size` - 1."""
        if keys.size > MOST_RANKED or size >= 2**31:
            return self._order_by_digits(keys, size)
        return self._order_by_ranks(keys)

    def _order_by_ranks(self, keys: Array) -> Array:
        count = keys.size
        parts, shape = geometry.over_ranks(count)
        ranks, order = self.empty((parts, count), np.int32), self.empty((count,), np.int64)
        self.kernels.launch("rank_keys", (geometry.BLOCK,), shape, keys, ranks, count, parts)
        self.kernels.launch("order_keys", (), geometry.over(count), ranks, order, count, parts)
        return order

    def _order_by_digits(self, keys: Array, size: int) -> Array:
        count, template = keys.size, (geometry.BLOCK,)
        span, shape = over_digits(count)
        digits = geometry.Launch(geometry.BLOCK)
        counts = self.empty((geometry.BLOCK, shape.grid), np.int64)
        totals = self.empty((geometry.BLOCK,), np.int64)
        order: Array | None = None  # that of the passes before: at first the keys' own
        for shift in shifts(size):
            given, order = order, self.empty((count,), np.int64)
            where = (count, span, shift)
            self.kernels.launch("count_digits", template, shape, keys, given, counts, *where)
            self.kernels.launch("scan_digits", template, digits, counts, totals, shape.grid)
            arrays = (keys, given, order, counts, totals)
            self.kernels.launch("place_digits", template, shape, *arrays, *where)
        assert order is not None
        return order


def shifts(size: int) -> range:
    """The lowest bit of each digit of the keys + 1, which are 0 to `size` > 0."""
    return range(0, size.bit_length(), DIGIT_BITS)


def over_digits(count: int) -> tuple[int, geometry.Launch]:
    """How `count` > 0 keys are cut into stretches, one for each block.

    Returns
    -------
    span : keys of a stretch, a multiple of the block's threads; the last stretch may have fewer.
    launch : the launch; no more blocks than a block has threads, which add up their counts.
    """
    tiles = -(-count // geometry.BLOCK)
    each = -(-tiles // geometry.BLOCK)
    return each * geometry.BLOCK, geometry.Launch(-(-tiles // each))
