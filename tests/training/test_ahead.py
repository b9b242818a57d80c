"""Steps that are asked for before the ones before them were heard of: the same run, bit for bit,
and a step that is not finite leaves everything as it was before it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends import get_backend
from gpubackprop.backends.random import Generator, using
from gpubackprop.data import ArrayDataset, DataLoader, two_moons
from gpubackprop.errors import NonFiniteError, OutOfMemoryError
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.optim.schedules import Cosine
from gpubackprop.training import EarlyStopping, Trainer
from gpubackprop.training.ahead import Buffers
from gpubackprop.training.checkpoint import CheckpointFolder
from gpubackprop.training.interrupt import Interrupted
from gpubackprop.training.progress import Progress
from tests.backends.support import fake_lt, shim
from tests.compile.support import graph_cupy
from tests.compile.test_graphs import device
from tests.training.conftest import everything

MISSING = shim.missing() or fake_lt.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the compilers are there")

BATCHES = 8
AHEAD = 4


@pytest.fixture(autouse=True)
def _products() -> Iterator[None]:
    with graph_cupy.products_captured():
        yield


class Watching(Progress):
    """Notes each cost, how many steps are under way by then, and what is to be noted."""

    def __init__(self, note: Callable[[], Any] = lambda: None) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.under_way: list[int] = []
        self.notes: list[Any] = []
        self.note = note
        self.trainer: Any = None

    def batch(self, loss: float) -> None:
        self.losses.append(loss)
        self.under_way.append(len(self.trainer._updates))
        self.notes.append(self.note())


def root(y: gb.Tensor, target: gb.Tensor) -> gb.Tensor:
    """A cost that is finite where a target is 0; its derivative is not."""
    return gb.mean(gb.sqrt(gb.abs(y[:, 0] * target.astype(np.float32))))


def trainer(ahead: int, bad: int | None = None, **options: Any) -> Trainer:
    """A run on the stand-in for a GPU; `bad` is the place of a batch with a NaN, or under the loss
    :func:`root` of one with a target of 0."""
    points, labels = map(np.array, two_moons(150, noise=0.1, seed=3))
    loss = options.pop("loss", F.cross_entropy)
    if loss is root:
        labels[...] = 1
    if bad is not None and loss is root:
        labels[20 * bad + 3] = 0
    elif bad is not None:
        points[20 * bad + 3, 1] = np.nan
    backend, _ = device()
    backend.run_ahead = ahead
    with using(Generator(11)):
        model = nn.Sequential(
            nn.Linear(2, 16),
            nn.BatchNorm1d(16),
            nn.Tanh(),
            nn.Dropout(0.2),
            nn.Linear(16, 2),
        ).to(backend)
    progress = options.setdefault("progress", Watching())
    settings: dict[str, Any] = {
        "loader": DataLoader(ArrayDataset(points, labels), 20),
        "schedule": Cosine(48),
        "clip_norm": 2.0,
        "compile": False,
    }
    if options.get("scaler") is not None:
        options["scaler"] = optim.GradScaler(backend, init_scale=options["scaler"])
    rule = options.pop("optimizer", optim.Adam)(model.parameters(), lr=0.05)
    made = Trainer(model, loss, rule, **(settings | options))
    progress.trainer = made
    return made


def state(run: Trainer) -> dict[str, Any]:
    """All that a run is, the scale of its loss too."""
    return everything(run) | {"scale": run.numerics.state()}


def validation() -> DataLoader:
    return DataLoader(ArrayDataset(*two_moons(60, noise=0.1, seed=4)), 50)


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "compiled": {"compile": True},
    "pieces": {"accumulate": 2},
    "by value": {"clip_value": 0.05, "clip_norm": None, "optimizer": optim.SGD},
    "fp16": {"precision": "fp16-mixed", "compile": True},
    "fp16 by value": {"precision": "fp16-mixed", "clip_value": 0.05},
    "stopped early": {"accuracy": True},
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_ahead_is_the_run_that_waits_bit_for_bit(kind: str) -> None:
    found, losses = [], []
    for ahead in (0, AHEAD):
        more = dict(RUNS[kind])
        if kind == "stopped early":
            more |= {"validation": validation(), "stopping": EarlyStopping(patience=1)}
        run = trainer(ahead, **more)
        run.fit(4)
        found.append(state(run))
        watched: Any = run.progress
        losses.append(watched.losses)
        # The numbers come late, as everything that nobody waits for: as many are under way as may
        # be, until the epoch ends.
        epoch = [AHEAD] * (BATCHES - AHEAD) + [*range(AHEAD - 1, -1, -1)]
        assert watched.under_way[:BATCHES] == ([0] * BATCHES if ahead == 0 else epoch)
    assert found[0] == found[1]
    assert losses[0] == losses[1]


def test_between_two_steps_the_host_waits_for_nothing_but_the_oldest_loss() -> None:
    run = trainer(AHEAD, compile=True)
    run.fit(2)
    cupy = run.backend.xp
    cupy.waits.clear()
    run.fit(3)
    # One wait for each loss, and those of buffers that are used again, whose work is long done.
    assert set(cupy.waits) <= {"an event", "a copy to the host"}
    assert len(run._updates) == 0


def bits(tmp_path: Any, ahead: int) -> Any:
    folder = tmp_path / str(ahead)
    run = trainer(ahead, out=folder, checkpoint_steps=3)
    seen = []
    run.save, plain = lambda: (plain(), seen.append(CheckpointFolder(folder).read())), run.save
    run.fit(2)
    times = ("seconds", "epoch_seconds", "train_seconds")
    return [
        (
            {k: v for k, v in c.meta["progress"].items() if k not in times},
            c.meta["random"],
            {k: v.tobytes() for k, v in c.tensors.items()},
        )
        for c in seen
    ]


def test_each_checkpoint_is_that_of_a_run_that_waits(tmp_path: Any) -> None:
    waiting, ahead = (bits(tmp_path, n) for n in (0, AHEAD))
    assert [c[0]["step"] for c in waiting] == [0, 3, 6, 8, 9, 12, 15, 16]
    assert waiting == ahead


# Steps that are not finite.


CASES: dict[str, dict[str, Any]] = {
    "first": {"bad": 0},
    "in the middle": {"bad": 2},
    "last": {"bad": BATCHES - 1},
    "compiled": {"bad": 3, "compile": True},
    "pieces": {"bad": 3, "accumulate": 2},
    "by value": {"bad": 2, "clip_value": 0.1, "optimizer": optim.RMSprop},
    "fp16": {"bad": 3, "precision": "fp16-mixed", "scaler": 2.0**-14, "compile": True},
    "the derivative": {"bad": 3, "loss": root},
    "the derivative, by value": {"bad": 3, "loss": root, "clip_value": 0.1, "compile": True},
}


def before_the_error(**options: Any) -> tuple[str, Any]:
    """What a run that waits says, and what it was before that step."""
    states: list[Any] = []
    watching = Watching(lambda: states.append(state(run)))
    run = trainer(0, progress=watching, **options)
    start = state(run)
    with pytest.raises(NonFiniteError) as caught:
        run.fit(2)
    return str(caught.value), (states or [start])[-1]


@pytest.mark.parametrize("case", CASES)
def test_a_step_that_is_not_finite_changes_nothing(case: str) -> None:
    words, expected = before_the_error(**CASES[case])
    run = trainer(AHEAD, **CASES[case])
    with pytest.raises(NonFiniteError) as caught:
        run.fit(2)
    assert str(caught.value) == words
    found = state(run)
    if found["step"]:  # the samples of a batch are booked before its loss is shown
        assert found == expected
    assert found["weights"] == expected["weights"]  # running averages are among them
    assert len(run._updates) == 0


def test_the_run_can_go_on_where_the_data_are_mended() -> None:
    good, run = trainer(AHEAD, compile=True), trainer(AHEAD, bad=5, compile=True)
    good.fit(2)
    with pytest.raises(NonFiniteError, match=r"step 6 \(epoch 1, batch 6\): input 0 of the batch"):
        run.fit(2)
    run.loader.dataset = good.loader.dataset
    run.fit(2)
    assert state(run) == state(good)


def test_a_gradient_that_is_large_and_finite_is_no_error() -> None:
    run = trainer(AHEAD, optimizer=optim.SGD, clip_norm=None, schedule=None)
    run.optimizer.param_groups[0]["lr"] = 1e-30
    run.loss = lambda y, target: gb.sum(y * 1e25)
    run.fit(1)
    assert run.run.step == BATCHES


def test_an_update_is_looked_at_by_itself_too() -> None:
    run = trainer(AHEAD, bad=1)
    first, second = list(run.loader.batches(0))[:2]
    assert np.isfinite(run.update(first)) and run.run.step == 1
    with pytest.raises(NonFiniteError, match="step 2 "):
        run.update(second)
    assert np.isfinite(run.update(first)) and run.run.step == 2
    assert run.optimizer.state_dict()["state"][0]["step"] == 2


# Other ends of a loop.


def ended(run: Trainer, at: int, error: BaseException) -> None:
    """Let a step fail when it is asked for."""
    plain, count = run._step.gradients, iter(range(10**6))

    def gradients(batch: Any) -> Any:
        if next(count) == at:
            raise error
        return plain(batch)

    run._step.gradients = gradients  # type: ignore[method-assign]


@pytest.mark.parametrize("error", [OSError("the file ends"), KeyboardInterrupt()])
def test_an_error_leaves_the_steps_before_it_done(error: BaseException) -> None:
    waiting, run = trainer(0), trainer(AHEAD)
    for each in (waiting, run):
        ended(each, 6, error)
        with pytest.raises(type(error)):
            each.fit(1)
    assert state(run) == state(waiting)
    assert run.run.step == run.run.batch == 6 and len(run._updates) == 0


def test_a_lack_of_memory_names_its_own_step() -> None:
    run = trainer(AHEAD)
    ended(run, 6, OutOfMemoryError("no room"))
    with pytest.raises(OutOfMemoryError, match=r"^step 7 \(epoch 1, batch 7\): "):
        run.fit(1)
    assert run.run.step == 6


def test_a_step_that_is_not_finite_comes_before_the_error_after_it() -> None:
    run = trainer(AHEAD, bad=3)
    ended(run, 5, OSError("the file ends"))
    with pytest.raises(NonFiniteError, match=r"step 4 "):
        run.fit(1)


def test_an_interruption_stays_one() -> None:
    _, expected = before_the_error(bad=3)
    run = trainer(AHEAD, bad=3)
    ended(run, 5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run.fit(1)
    assert state(run) == expected


def test_a_step_that_was_broken_off_holds_nothing_back() -> None:
    """It ends between the look at its gradients, which are NaN, and its update."""
    run = trainer(AHEAD, bad=0)
    bad, good = list(run.loader.batches(0))[:2]
    plain = run._step.update

    def broken(*options: Any) -> None:
        raise KeyboardInterrupt

    run._step.update = broken  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.update(bad)
    run._step.update = plain  # type: ignore[method-assign]
    before = run.model[0].weight.numpy().copy()
    run.update(good)
    assert (run.model[0].weight.numpy() != before).any()


def test_a_signal_ends_the_run_with_all_steps_heard_and_saved(tmp_path: Any) -> None:
    good = trainer(AHEAD)
    good.fit(2)
    run = trainer(AHEAD, out=tmp_path)
    plain, count = run._step.gradients, iter(range(10**6))

    def gradients(batch: Any) -> Any:
        if next(count) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(batch)

    run._step.gradients = gradients  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="interrupted after step 11"):
        run.fit(2)
    assert CheckpointFolder(tmp_path).read().meta["progress"]["step"] == 11
    again = trainer(AHEAD, out=tmp_path)
    assert again.resume()
    again.fit(2)
    assert state(again) == state(good)


# The parts.


def test_buffers_are_kept_and_put_back() -> None:
    cpu = get_backend("cpu")
    buffers = [
        gb.Tensor(np.arange(6, dtype=np.float32).reshape(2, 3), cpu),
        gb.Tensor(np.array(7), cpu),
        gb.Tensor(np.arange(4.0), cpu),
        gb.Tensor(np.ones((0, 3), np.float32), cpu),
        gb.Tensor(np.full((3,), 2, np.float32), cpu),
        gb.Tensor(np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2], cpu),  # has no flat view
    ]
    kept = Buffers(buffers)
    for at in range(3):
        before = [b.numpy().copy() for b in buffers]
        put_back = kept.keep()
        for b in buffers:
            b.array[...] = -1
        put_back()
        for b, x in zip(buffers, before, strict=True):
            np.testing.assert_array_equal(b.numpy(), x)
            b.array[...] = x + 1  # as a step does
        buffers[0].array = np.full((2, 3), at, np.float32)  # as a checkpoint that is loaded may


def test_a_step_makes_no_kernel_call_for_each_buffer() -> None:
    backend, cupy = device()
    buffers = [gb.tensor(np.full((2, 3), i, np.float32), device=backend) for i in range(20)]
    kept = Buffers(buffers)
    kept.keep()
    before = cupy.eager
    kept.keep()
    assert cupy.eager == before + 1


def test_a_scale_that_is_held_stays() -> None:
    cpu = get_backend("cpu")
    p = nn.Parameter(np.ones(3, np.float32))
    rule, scaler = optim.SGD([p], lr=0.5), optim.GradScaler("cpu", growth_interval=1)
    for gradient in (np.inf, 1.0):
        for hold in (True, False):
            before, state = p.numpy().copy(), scaler.state_dict()
            p.grad = gb.Tensor(np.full(3, gradient, np.float32), cpu)
            scaler.look(rule)
            scaler.take_step(rule, hold=np.array(hold))
            scaler.update(np.array(hold))
            same = scaler.state_dict() == state
            assert same == hold
            assert np.array_equal(p.numpy(), before) == (hold or gradient == np.inf)
