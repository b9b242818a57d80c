"""The order of keys, by comparison of each with each and by digits, run on the CPU: the stable
sort's."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.cuda import geometry
from gpubackprop.backends.cuda.order import over_digits, shifts
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


def order_by_digits(launch, keys, size, span, shape):  # noqa: F811
    order, template = None, (geometry.BLOCK,)
    counts, totals = np.full((256, shape.grid), -5), np.full(256, -5)
    for shift in shifts(size):
        given, order = order, np.full(keys.size, -5)
        where = (keys.size, span, shift)
        launch("count_digits", template, shape, keys, given, counts, *where)
        launch("scan_digits", template, geometry.Launch(256), counts, totals, shape.grid)
        launch("place_digits", template, shape, keys, given, order, counts, totals, *where)
    return order


@pytest.mark.parametrize("size", [1, 7, 255, 256, 50_257, 2**40])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 3001])
def test_the_order_by_digits_is_the_stable_one(launch, count, size):  # noqa: F811
    keys = np.random.default_rng(count).integers(-1, size, count)
    keys[-1] = size - 1  # the largest
    expected = np.argsort(keys, kind="stable")
    stretches = [over_digits(count)]
    if count > 512:
        stretches += [(512, geometry.Launch(-(-count // 512))), (2**12, geometry.Launch(1))]
    for span, shape in stretches:
        np.testing.assert_array_equal(order_by_digits(launch, keys, size, span, shape), expected)


def test_every_key_lies_in_one_stretch_and_every_bit_in_one_digit():
    for count in (1, 256, 257, 32769, 65536, 65537, 2**20, 2**33 + 1):
        span, shape = over_digits(count)
        assert span % geometry.BLOCK == 0
        assert (shape.grid - 1) * span < count <= shape.grid * span
        assert shape.grid <= geometry.BLOCK == shape.block
    assert over_digits(32769)[1].grid == 129
    for size, digits in {1: 1, 254: 1, 255: 1, 256: 2, 50_257: 2, 65_536: 3, 2**31: 4}.items():
        assert len(shifts(size)) == digits
        assert size >> shifts(size)[-1] < 256
