"""The order of keys by comparison of each with each, run on the CPU: the stable sort's."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.cuda import geometry
from tests.backends.support import shim
from tests.backends.support.shim_cases import launch  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")


def order_of(launch, keys, parts, shape):  # noqa: F811
    count = keys.size
    ranks, order = np.full((parts, count), -5, np.int32), np.full(count, -5)
    launch("rank_keys", (geometry.BLOCK,), shape, keys, ranks, count, parts)
    launch("order_keys", (), geometry.over(count), ranks, order, count, parts)
    return order


@pytest.mark.parametrize("size", [1, 7, 100_000, 2**31 - 1])
@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 1000, 3001])
def test_the_order_is_the_stable_one(launch, count, size):  # noqa: F811
    keys = np.random.default_rng(count).integers(-1, size, count)
    expected = np.argsort(keys, kind="stable")
    chosen = geometry.over_ranks(count)
    # As chosen; in one part; in parts of which the last are empty; on a grid smaller than its jobs.
    for parts, shape in [chosen, (1, geometry.Launch(1)), (5, geometry.Launch(40))]:
        np.testing.assert_array_equal(order_of(launch, keys, parts, shape), expected)
    np.testing.assert_array_equal(order_of(launch, keys, chosen[0], geometry.Launch(3)), expected)


def test_enough_blocks_for_a_gpu_and_scratch_memory_within_reason():
    for count in (1, 256, 257, 4096, 16384, 32768):
        parts, shape = geometry.over_ranks(count)
        blocks = -(-count // geometry.BLOCK)
        assert 1 <= parts <= min(blocks, 32)
        assert shape.grid == blocks * parts
        assert parts * count * 4 <= 2 << 20
    assert geometry.over_ranks(16384) == (16, geometry.Launch(1024))
