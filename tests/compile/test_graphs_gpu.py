"""Compiled steps as one launch on a GPU: the bits of plain launches, one launch a step, no waiting,
and memory that goes back."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends import get_backend
from gpubackprop.backends.cuda.order import MOST_RANKED
from gpubackprop.compile.graph import WARM_UPS
from gpubackprop.errors import CompileError
from gpubackprop.nn import functional as F  # noqa: N812

pytestmark = pytest.mark.gpu

RULES = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05, lr_decay=0.1),
}


@pytest.fixture(scope="module")
def cuda() -> Any:
    return get_backend("cuda")


class Training:
    """A network with every kind of state, and a step that clips, updates and moves a schedule."""

    def __init__(self, backend: Any, kind: str, rule: str, **options: Any) -> None:
        g = gb.Generator(4)
        if kind == "rows":
            self.net: Any = nn.Sequential(
                nn.Linear(64, 128, generator=g),
                nn.GELU(),
                nn.LayerNorm(128),
                nn.Dropout(0.3, generator=g.split()),
                nn.Linear(128, 10, generator=g),
            )
        elif kind == "pictures":
            self.net = nn.Sequential(
                nn.Conv2d(3, 8, 3, generator=g),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(8 * 7 * 7, 10, generator=g),
            )
        else:
            self.net = nn.TransformerLM(50, 32, 2, 2, 16, generator=g)
        self.backend, self.kind = backend, kind
        self.net.to(backend)
        self.optimizer = RULES[rule](self.net.parameters())
        self.scheduler = optim.Scheduler(self.optimizer, optim.schedules.Cosine(steps=30))
        self.rng = np.random.default_rng(2)
        self.run = gb.compile(self.step, **options)

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        output = self.net(x)
        loss = F.cross_entropy(output.reshape((-1, output.shape[-1])), y.reshape((-1,)))
        loss.backward()
        optim.clip_grad_norm_(self.optimizer, 1.0)
        self.optimizer.step()
        self.scheduler.step()
        return loss

    def batch(self) -> tuple[Any, Any]:
        if self.kind == "text":
            x, y = self.rng.integers(0, 50, (2, 4, 16))
        else:
            shape = (32, 64) if self.kind == "rows" else (8, 3, 16, 16)
            x = self.rng.standard_normal(shape).astype(np.float32)
            y = self.rng.integers(0, 10, shape[0])
        return gb.tensor(x, device=self.backend), gb.tensor(y, device=self.backend)

    @property
    def launch(self) -> Any:
        found = [e.replay.launch for e in self.run.entries if e.replay is not None]
        return found[0] if found else None

    def bits(self, steps: int) -> list[bytes]:
        losses = [self.run(*self.batch()) for _ in range(steps)]
        return [x.numpy().tobytes() for x in [*losses, *self.net.parameters()]]


@pytest.mark.parametrize("rule", RULES)
def test_a_graph_gives_the_bits_of_plain_launches(cuda: Any, rule: str) -> None:
    training = Training(cuda, "rows", rule)
    plain = Training(cuda, "rows", rule, graph=False)
    assert training.bits(24) == plain.bits(24)
    assert training.launch.launches >= 14, training.run.explain()
    assert plain.launch is None


@pytest.mark.parametrize("kind", ["pictures", "text"])
def test_other_networks_give_the_bits_of_plain_launches(cuda: Any, kind: str) -> None:
    training, plain = Training(cuda, kind, "adam"), Training(cuda, kind, "adam", graph=False)
    assert training.bits(20) == plain.bits(20)
    # Where one of their kernels cannot be captured, that is said.
    assert training.launch.launches or training.launch.reason, training.run.explain()


def test_steps_are_one_launch_each_and_the_host_waits_for_none(cuda: Any) -> None:
    training = Training(cuda, "rows", "adam", graph=True)
    batch = training.batch()
    for _ in range(8 + WARM_UPS):
        training.run(*batch)
    launches = training.launch.launches
    assert launches > 0
    cuda.synchronize()
    # Work that takes far longer than asking for six steps: they are asked for before it is done.
    long = cuda.asarray(np.ones((8192, 8192), np.float32))
    for _ in range(6):
        cuda.matmul(long, long)
    done = cuda.xp.cuda.Event(disable_timing=True)
    done.record()
    for _ in range(6):
        loss = training.run(*batch)
    assert not done.done
    assert training.launch.launches == launches + 6
    assert np.isfinite(loss.item())


def test_the_memory_of_a_graph_goes_with_the_compiled_function(cuda: Any) -> None:
    training = Training(cuda, "rows", "adam", graph=True)
    training.bits(8 + WARM_UPS)
    held = training.launch._captured._pool
    assert held.total_bytes() > 0
    gc.collect()
    cuda.synchronize()
    free = cuda.xp.cuda.runtime.memGetInfo()[0]
    nbytes = held.total_bytes()
    training.run, held = None, None
    gc.collect()
    assert cuda.xp.cuda.runtime.memGetInfo()[0] >= free + nbytes


def test_a_failed_capture_leaves_the_device_as_it_was(cuda: Any) -> None:
    x = cuda.asarray(np.arange(4.0))
    found = cuda.capture([("to the host", lambda: cuda.xp.asnumpy(x))])
    assert isinstance(found, str) and "kernel call 0 (to the host)" in found
    found = cuda.capture([("from the host", lambda: cuda.asarray(np.ones(3)))])
    assert isinstance(found, str) and "copies from the host" in found
    out = cuda.empty((4,), np.float64)
    launchable = cuda.capture([("add", lambda: cuda.add(x, 1.0, out=out))])
    assert not isinstance(launchable, str), launchable
    launchable.launch()
    np.testing.assert_array_equal(cuda.to_numpy(out), np.arange(4.0) + 1)


def test_products_sums_and_joins_can_be_captured(cuda: Any) -> None:
    """Each by itself, so that a failure names its kernel."""
    rng = np.random.default_rng(0)
    x = cuda.asarray(rng.standard_normal((64, 32)).astype(np.float32))
    w = cuda.asarray(rng.standard_normal((16, 32)).astype(np.float32))
    flat = cuda.reshape(x, (-1,))
    places = cuda.asarray(rng.integers(0, 9, 64))
    parts = [x] * 20
    calls = {
        "matmul": lambda: cuda.matmul(x, w.T),
        "linear": lambda: cuda.linear(x, w),
        "inner product": lambda: cuda.matmul(flat, flat),
        "sum": lambda: cuda.sum(x),
        "sum of rows": lambda: cuda.sum(x, axis=0),
        "max": lambda: cuda.max(x, axis=1),
        "scatter_take": lambda: cuda.scatter_take(x, places, 0, 9),
        "argmax": lambda: cuda.argmax(x, axis=1),
        "concatenate": lambda: cuda.concatenate(parts),
        "transpose": lambda: cuda.copy(x.T),
        "where": lambda: cuda.where(cuda.isfinite(x), x, 0.0),
    }
    found = {}
    for name, call in calls.items():
        expected = cuda.to_numpy(call())
        out = cuda.empty(expected.shape, expected.dtype)
        launchable = cuda.capture([(name, lambda call=call, out=out: cuda.copyto(out, call()))])
        if isinstance(launchable, str):
            found[name] = launchable
            continue
        launchable.launch()
        np.testing.assert_array_equal(cuda.to_numpy(out), expected, err_msg=name)
    assert not found


@pytest.mark.parametrize("size", [500, 50_257])
@pytest.mark.parametrize("count", [1, 300, 16384, MOST_RANKED, MOST_RANKED + 1, 1_000_003])
def test_sums_by_key_are_those_of_a_stable_sort_on_either_way(
    cuda: Any, count: int, size: int
) -> None:
    rng = np.random.default_rng(count)
    keys, dy = rng.integers(0, size, count), rng.standard_normal((count, 3))
    expected = np.argsort(keys, kind="stable")
    for order in (cuda._order_of, cuda._order_by_digits):
        np.testing.assert_array_equal(cuda.to_numpy(order(cuda.asarray(keys), size)), expected)
    found = cuda.to_numpy(cuda.scatter_take(cuda.asarray(dy), cuda.asarray(keys), 0, size))
    expected = np.zeros((size, 3))
    np.add.at(expected, keys, dy)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_sixty_four_fillings_that_nobody_waits_for_keep_their_order(cuda: Any) -> None:
    numbers = cuda.device_numbers(["float64", "uint64"])
    seen = []
    for i in range(64):
        numbers.fill([0.5 * i, 2**64 - 1 - i])
        seen.append([cuda.copy(v) for v in numbers.views])
    for i, (real, whole) in enumerate(seen):
        assert float(cuda.to_numpy(real)) == 0.5 * i
        assert int(cuda.to_numpy(whole)) == 2**64 - 1 - i


def test_batches_arrive_beside_the_work(cuda: Any) -> None:
    staging = cuda.staging()
    assert staging is not None
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((n, 1000)).astype(np.float32) for n in [512] * 6 + [3, 700]]
    long = cuda.asarray(np.ones((4096, 4096), np.float32))
    sums, expected = [], [b.sum(axis=0, dtype=np.float64) for b in batches]
    staging.put((batches[0],))
    for i in range(len(batches)):
        (x,) = staging.take()
        cuda.matmul(long, long)
        sums.append(cuda.fetch(cuda.sum(cuda.astype(x, np.float64), axis=0)))
        if i + 1 < len(batches):
            staging.put((batches[i + 1],))
    for found, want in zip(sums, expected, strict=True):
        np.testing.assert_allclose(found(), want, rtol=1e-9, atol=1e-9)


def test_graph_true_says_what_stands_in_the_way(cuda: Any) -> None:
    training = Training(cuda, "rows", "adam", graph=True)
    cuda.capture, real = lambda calls: "it was forbidden for this test", cuda.capture
    try:
        with pytest.raises(CompileError, match="it was forbidden for this test"):
            training.bits(8 + WARM_UPS)
    finally:
        del cuda.capture
    assert cuda.capture.__func__ is real.__func__


def test_many_keys_are_captured(cuda: Any) -> None:
    rng = np.random.default_rng(0)
    keys, dy = rng.integers(0, 500, 2 * MOST_RANKED), rng.standard_normal((2 * MOST_RANKED, 3))
    given = [cuda.zeros(a.shape, a.dtype) for a in (dy, keys)]
    out = cuda.zeros((500, 3), np.float64)
    call = ("scatter_take", lambda: cuda.copyto(out, cuda.scatter_take(*given, 0, 500)))
    call[1]()
    found = cuda.capture([call])
    assert not isinstance(found, str), found
    for target, a in zip(given, (dy, keys), strict=True):
        cuda.copyto(target, cuda.asarray(a))
    found.launch()
    expected = np.zeros((500, 3))
    np.add.at(expected, keys, dy)
    np.testing.assert_allclose(cuda.to_numpy(out), expected, rtol=1e-10, atol=1e-10)


def test_steps_on_different_streams_follow_one_another(cuda: Any) -> None:
    import cupy

    there, here = (Training(cuda, "rows", "adam") for _ in range(2))
    streams, losses = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)], []
    for i in range(40):
        with streams[i % 2]:
            losses.append(there.run(*there.batch()))
        if not there.launch or not there.launch.launches:  # the function itself orders nothing
            streams[i % 2].synchronize()
    for stream in streams:
        stream.synchronize()
    found = [x.numpy().tobytes() for x in [*losses, *there.net.parameters()]]
    assert found == here.bits(40)
    assert there.launch.launches > 20
