"""Copies beside the kernels, on a stand-in for CuPy whose streams are as early or as late as they
may be."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from tests.backends.support import fake_lt, shim
from tests.compile.test_graphs import device

MISSING = shim.missing() or fake_lt.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the compilers are there")

# Which of the streams do their work only when somebody waits for them.
LATE = {"copies": (False, True), "work": (True, False), "both": (True, True)}


def batch(i: int, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    return np.full((n, 3), i, np.float32), np.arange(i, i + n)


@pytest.mark.parametrize("late", LATE)
def test_each_batch_is_worked_on_as_it_was_put(late: str) -> None:
    backend, cupy = device()
    staging = backend.staging()
    assert staging is not None
    cupy.main.late, cupy.streams[-1].late = LATE[late]
    seen: list[list[np.ndarray]] = []

    def look(arrays: list[Any]) -> None:
        seen.append([np.array(a.on_host) for a in arrays])

    # A short last batch of a first epoch, a longer one that needs more memory, odd sizes.
    sizes = [5, 5, 5, 5, 2, 5, 5, 9, 9, 1, 0, 7]
    staging.put(batch(0, sizes[0]))
    for i in range(len(sizes)):
        arrays = staging.take()
        cupy.main.do(lambda arrays=arrays: look(arrays))
        if i + 1 < len(sizes):
            given = batch(i + 1, sizes[i + 1])
            staging.put(given)
            for a in given:  # what was put may be changed at once
                a[...] = -1
    cupy.main.synchronize()
    assert len(seen) == len(sizes)
    for i, (found, n) in enumerate(zip(seen, sizes, strict=True)):
        for got, want in zip(found, batch(i, n), strict=True):
            np.testing.assert_array_equal(got, want)
            assert got.dtype == want.dtype


def test_copies_go_beside_the_work_and_the_work_waits_for_them() -> None:
    backend, cupy = device()
    staging = backend.staging()
    assert staging is not None
    side = cupy.streams[-1].name
    cupy.log.clear()
    staging.put(batch(0))
    assert cupy.log == [("wait", side), ("to the device", side), ("to the device", side)]
    staging.take()
    assert cupy.log[3:] == [("wait", "main")]
    assert not cupy.waits  # the host waited for nothing


def test_two_batches_are_under_way_at_most() -> None:
    backend, _ = device()
    staging = backend.staging()
    assert staging is not None
    with pytest.raises(RuntimeError, match="nothing was put"):
        staging.take()
    staging.put(batch(0))
    staging.put(batch(1))
    with pytest.raises(RuntimeError, match="2 batches are under way already"):
        staging.put(batch(2))
    staging.take()
    with pytest.raises(RuntimeError, match="2 batches"):  # the first is being worked on
        staging.put(batch(2))
    staging.clear()
    staging.put(batch(3))
    (x, _) = staging.take()
    np.testing.assert_array_equal(backend.to_numpy(x), batch(3)[0])


def test_a_batch_that_cannot_be_put_takes_no_place() -> None:
    backend, cupy = device()
    staging = backend.staging()
    assert staging is not None
    usual = cupy.pinned_allocator

    def full(size: int) -> Any:
        raise MemoryError(f"no {size} bytes of pinned memory")

    for _ in range(3):
        cupy.pinned_allocator = full
        with pytest.raises(MemoryError):
            staging.put(batch(0))
    cupy.pinned_allocator = usual
    staging.put(batch(1))
    staging.put(batch(2))
    np.testing.assert_array_equal(backend.to_numpy(staging.take()[1]), batch(1)[1])


def test_copies_wait_for_whoever_had_their_memory_before(monkeypatch: Any) -> None:
    backend, cupy = device()
    staging = backend.staging()
    assert staging is not None
    before = backend.empty((4096,), np.uint8)
    cupy.main.late, cupy.streams[-1].late = True, False
    cupy.main.do(lambda: before.on_host.fill(0x55))  # work on it that is not done yet
    monkeypatch.setattr(backend, "empty", lambda shape, dtype: before)  # as a pool gives it again
    staging.put(batch(3))
    (x, _) = staging.take()
    cupy.main.synchronize()
    np.testing.assert_array_equal(x.on_host, batch(3)[0])


def test_what_was_put_and_forgotten_is_waited_for_by_the_work_that_gets_its_memory() -> None:
    backend, cupy = device()
    staging = backend.staging()
    assert staging is not None
    staging.put(batch(0))
    cupy.log.clear()
    del staging
    gc.collect()
    assert cupy.log == [("wait", "main")]


def test_what_was_taken_is_whole_though_its_staging_is_gone() -> None:
    backend, cupy = device()
    staging = backend.staging()
    assert staging is not None
    staging.put(batch(3))
    cupy.main.late = True
    (x, y) = staging.take()
    del staging  # its pinned memory is somebody else's from now on
    gc.collect()
    cupy.main.synchronize()
    for found, want in zip((x, y), batch(3), strict=True):
        np.testing.assert_array_equal(found.on_host, want)


def test_numbers_arrive_as_they_were_when_they_were_asked_for() -> None:
    backend, cupy = device()
    x = backend.zeros((3,), np.float32)
    waiting = []
    for i in range(4):
        backend.copyto(x, backend.full((3,), i, np.float32))
        # The copy is late, as everything that nobody waits for: what is copied is what lies there.
        y = backend.copy(x)
        waiting.append((i, backend.fetch(y), y))
    assert not cupy.waits
    for i, wait, _ in waiting:
        assert not wait.done
        np.testing.assert_array_equal(wait(), np.full(3, i, np.float32))
        assert wait.done
    assert cupy.waits == ["an event"] * 4


def test_numbers_arrive_beside_the_work_and_after_what_makes_them() -> None:
    backend, cupy = device()
    x = backend.zeros((3,), np.float32)
    backend.fetch(x)()  # makes the stream
    cupy.log.clear()
    cupy.main.late = True  # the work is as far behind as it may be
    cupy.main.do(lambda: x.on_host.fill(5.0))
    wait = backend.fetch(x)
    later: list[int] = []
    cupy.main.do(lambda: later.append(1))
    side = cupy.streams[-1].name
    assert cupy.log == [("wait", side), ("to the host", side)]
    np.testing.assert_array_equal(wait(), np.full(3, 5.0, np.float32))
    assert not later  # nothing that was asked for later was waited for


def test_the_device_keeps_what_is_on_its_way() -> None:
    backend, cupy = device()
    wait = backend.fetch(backend.asarray(np.arange(3.0)))  # nobody else holds the array
    gc.collect()
    np.testing.assert_array_equal(wait(), np.arange(3.0))
    del wait
    backend.fetch(backend.asarray(np.ones(2)))
    gc.collect()
    cupy.streams[-1].run(len(cupy.streams[-1].tasks))  # raises where the memory is gone


def test_numbers_that_nobody_reads_keep_their_memory_until_they_are_there() -> None:
    backend, cupy = device()
    x = backend.asarray(np.arange(3.0))
    backend.fetch(x)
    gc.collect()
    landing, side = cupy.physical[-1], cupy.streams[-1]
    side.run(len(side.tasks))  # the copy is made after all
    np.testing.assert_array_equal(landing.view(np.float64)[:3], np.arange(3.0))
    wait = backend.fetch(x)  # and the next one lets the first go
    assert (landing == 0xAA).all()
    np.testing.assert_array_equal(wait(), np.arange(3.0))


def test_a_backend_without_a_device_has_its_numbers_at_once() -> None:
    from gpubackprop.backends import get_backend

    cpu = get_backend("cpu")
    assert cpu.staging() is None
    np.testing.assert_array_equal(cpu.fetch(cpu.asarray([1.0, 2.0]))(), [1.0, 2.0])
