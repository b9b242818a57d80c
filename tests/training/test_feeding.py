"""Training with the next batch on its way: the same run, and errors at their turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop import nn, optim
from gpubackprop.backends import get_backend
from gpubackprop.backends.random import Generator, using
from gpubackprop.data import ArrayDataset, DataLoader, two_moons
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.optim.schedules import Cosine
from gpubackprop.training import Trainer
from gpubackprop.training.feeding import Feed
from tests.backends.support import fake_lt, shim
from tests.compile.support import graph_cupy
from tests.compile.test_graphs import device

MISSING = shim.missing() or fake_lt.missing()
needs_compilers = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the compilers are there")


def trainer(backend: Any, **options: Any) -> Trainer:
    points, labels = two_moons(150, noise=0.1, seed=3)
    with using(Generator(11)):
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 2)).to(
            backend
        )
    return Trainer(
        model,
        F.cross_entropy,
        optim.Adam(model.parameters(), lr=0.05),
        loader=DataLoader(ArrayDataset(points, labels), 20, shuffle=True, seed=5),
        schedule=Cosine(48),
        clip_norm=2.0,
        **options,
    )


def outcome(run: Trainer) -> tuple[list[float], list[bytes]]:
    losses = [line["train_loss"] for line in run.run.history]
    return losses, [p.numpy().tobytes() for p in run.model.parameters()]


@needs_compilers
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 2}, {"precision": "bf16-mixed"}, {"precision": "fp16-mixed"}],
    ids=lambda options: str(next(iter(options.values()), "whole")),
)
def test_a_run_of_launches_is_that_of_plain_calls_bit_for_bit(options: dict[str, Any]) -> None:
    with graph_cupy.products_captured():
        found = []
        for graph in (False, None):
            backend, cupy = device()
            run = trainer(backend, **options)
            for part in (run._step._numbers, run._step._change):
                part.graph = graph
            run.fit(3)
            found.append(outcome(run))
            # 24 steps, of which 3 have a short batch; each is two launches: gradients and update.
            assert (cupy.launches >= 24) == (graph is None), run._step._numbers.explain()
    assert found[0] == found[1]


@needs_compilers
def test_a_run_agrees_with_the_cpu() -> None:
    with graph_cupy.products_captured():
        backend, _ = device()
        runs = [trainer(b) for b in (get_backend("cpu"), backend)]
        for run in runs:
            run.fit(2)
    expected, got = (outcome(run)[0] for run in runs)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@needs_compilers
def test_losses_and_batches_are_copied_beside_the_work() -> None:
    with graph_cupy.products_captured():
        backend, cupy = device()
        run = trainer(backend)
        run.fit(3)
        there, back = run._step._staging._side.name, backend._arrivals._side.name
        feed = run._step.feed(run.loader.batches(7, 0))
        first = next(feed)
        cupy.log.clear()
        cupy.waits.clear()
        run._updates.ask(first, run.clip_value, run.clip_norm)
    assert there != back
    assert cupy.log == [
        ("to the device", "main"),  # the live numbers
        ("launch", "main"),
        ("wait", back),
        ("to the host", back),
        ("to the device", "main"),
        ("launch", "main"),  # the update does not wait for the loss
        ("wait", there),
        ("to the device", there),
        ("to the device", there),
    ]
    assert set(cupy.waits) <= {"an event"}  # of memory that is used again
    assert not run._updates._asked[0].arriving.done


@needs_compilers
def test_a_loop_that_was_left_early_leaves_no_batch_behind() -> None:
    backend, _ = device()
    run = trainer(backend, compile=False)
    for _ in range(3):
        feed = run._step.feed(run.loader.batches(0, 0))
        run.update(next(feed))
    batch = next(run._step.feed(run.loader.batches(1, 2)))
    (points, _) = run._step._feed.tensors(batch)
    np.testing.assert_array_equal(points.numpy(), batch[0])


class Slow:
    """Staging that notes what it is asked, and moves nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.coming: list[Any] = []

    def put(self, arrays: Any) -> None:
        self.asked.append("put")
        self.coming.append(arrays)

    def take(self) -> Any:
        self.asked.append("take")
        return list(self.coming.pop(0))

    def clear(self) -> None:
        self.asked.append("clear")
        self.coming.clear()


def broken(good: int) -> Iterator[tuple[np.ndarray, ...]]:
    for i in range(good):
        yield np.full(2, i), np.arange(2)
    raise OSError("the file ends here")


def test_an_error_in_a_batch_comes_at_its_turn() -> None:
    feed = Feed(broken(2), get_backend("cpu"), Slow())
    for i in range(2):
        batch = next(feed)
        feed.look_ahead()  # the second time it meets the error
        assert batch[0][0] == i
        assert feed.tensors(batch)[0].tolist() == [i, i]
    with pytest.raises(OSError, match="the file ends here"):
        next(feed)


def test_batches_are_put_once_and_taken_in_order() -> None:
    staging = Slow()
    batches = [(np.full(2, i),) for i in range(3)]
    seen = []
    for batch in (feed := Feed(batches, get_backend("cpu"), staging)):
        feed.look_ahead()
        feed.look_ahead()
        seen.append(feed.tensors(batch)[0].tolist())
        other = (np.full(2, 9),)
        assert feed.tensors(other)[0].tolist() == [9, 9]  # one that the feed does not know
    assert seen == [[0, 0], [1, 1], [2, 2]]
    assert staging.asked == ["clear", "put", "take", "put", "take", "put", "take"]


def test_without_copies_a_batch_is_made_when_it_is_asked_for() -> None:
    made = []

    def batches() -> Iterator[tuple[np.ndarray, ...]]:
        for i in range(3):
            made.append(i)
            yield (np.full(2, i),)

    feed = Feed(batches(), get_backend("cpu"), None)
    for i, batch in enumerate(feed):
        feed.look_ahead()
        assert made == list(range(i + 1))
        assert feed.tensors(batch)[0].tolist() == [i, i]
