"""What lies under a launch while it is under way: memory, pinned numbers, streams.

On the stand-in for CuPy that does its work as late as it may.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends.cuda import order
from tests.backends.support import fake_lt, shim
from tests.compile.support import graph_cupy
from tests.compile.test_graphs import Training, captured, device

MISSING = shim.missing() or fake_lt.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the compilers are there")


@pytest.fixture(autouse=True)
def _products() -> Iterator[None]:
    with graph_cupy.products_captured():
        yield


def test_a_driver_without_room_ends_the_capture_and_not_what_was_captured() -> None:
    """CuPy's pool would give its free blocks back, whose addresses are in the graph already."""
    backend, cupy = device()
    x, out = backend.zeros((64,), np.float32), backend.zeros((128,), np.float32)
    more = backend.zeros((1024,), np.float32)
    calls = [
        ("add", lambda: backend.copyto(out, backend.concatenate([backend.add(x, 1.0)] * 2))),
        ("negative", lambda: backend.copyto(more, backend.negative(more))),
    ]
    cupy.room = 4096 + 512  # the second call fits once the first one's blocks are given back
    found = backend.capture(calls)
    assert isinstance(found, str), "the graph uses memory that its pool gave back"
    assert "kernel call 1 (negative): MemoryError: the graph's pool cannot have 4096" in found
    cupy.room = 8192
    found = backend.capture(calls)
    assert not isinstance(found, str), found
    found.launch()
    np.testing.assert_array_equal(backend.to_numpy(out), 1.0)


def test_numbers_that_nobody_holds_any_more_arrive_all_the_same() -> None:
    backend, cupy = device()
    numbers = backend.device_numbers(["float64"])
    (view,) = numbers.views
    cupy.main.late = True
    numbers.fill([7.5])
    del numbers  # the pinned row is somebody else's from now on
    gc.collect()
    cupy.main.synchronize()
    assert float(view.on_host) == 7.5


def test_steps_on_different_streams_follow_one_another() -> None:
    training, expected = captured(), captured()
    cupy = training.cupy
    first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    cupy.log.clear()
    found = []
    for stream in (first, first, second, first, cupy.main, second):
        with stream:
            loss = training.run(*training.batch())
        stream.run(len(stream.tasks))  # what the test reads itself, it waits for
        found.append(loss.item())
    assert found == expected.losses(6)
    waits = [name for what, name in cupy.log if what == "wait"]
    assert waits == [s.name for s in (first, second, first, cupy.main, second)]


def test_the_first_replay_follows_the_comparison_with_the_function() -> None:
    """It may be on another stream, and lies in the same memory."""
    training, expected = Training().compile(), Training()
    cupy = training.cupy
    first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    found = []
    for stream in (first, first, first, first, second):  # recorded, compared, replayed
        replays = [e.replay for e in training.run.entries if e.replay is not None]
        cupy.log.clear()
        with stream:
            loss = training.run(*training.batch())
        stream.run(len(stream.tasks))
        found.append(loss.item())
    assert len(replays) == 1, training.run.explain()
    assert [name for what, name in cupy.log if what == "wait"] == [second.name]
    assert found == expected.losses(5)


@pytest.mark.parametrize("ranked", [1000, 8], ids=["by ranks", "by digits"])
def test_sums_by_key_are_captured_however_many_keys_there_are(
    monkeypatch: Any, ranked: int
) -> None:
    monkeypatch.setattr(order, "MOST_RANKED", ranked)
    backend, _ = device()
    rng = np.random.default_rng(0)
    keys, dy = rng.integers(-300, 300, 700), rng.standard_normal((700, 3)).astype(np.float32)
    given = [backend.asarray(np.zeros_like(a)) for a in (keys, dy)]
    out = backend.zeros((300, 3), np.float32)
    call = ("scatter_take", lambda: backend.copyto(out, backend.scatter_take(*given[::-1], 0, 300)))
    call[1]()
    found = backend.capture([call])
    assert not isinstance(found, str), found
    for target, a in zip(given, (keys, dy), strict=True):
        backend.copyto(target, backend.asarray(a))
    found.launch()
    expected = np.zeros((300, 3))
    np.add.at(expected, keys, dy)
    np.testing.assert_allclose(backend.to_numpy(out), expected, rtol=1e-4, atol=1e-5)
