"""Compiled steps as one launch, on a stand-in for CuPy that captures and is strict about it."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends.cuda import CUDABackend, graphs
from gpubackprop.compile.graph import CAPTURES, WARM_UPS
from gpubackprop.errors import CompileError
from gpubackprop.nn import functional as F  # noqa: N812
from tests.backends.support import fake_lt, shim
from tests.compile.support import graph_cupy
from tests.compile.support.graph_cupy import GraphCuPy

MISSING = shim.missing() or fake_lt.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the compilers are there")


@pytest.fixture(autouse=True)
def _products() -> Iterator[None]:
    with graph_cupy.products_captured():
        yield


RULES = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05, lr_decay=0.1),
}


def device(lt: bool = True, index: int = 0) -> tuple[CUDABackend, GraphCuPy]:
    """A CUDA backend over a stand-in of its own, with cuBLASLt or without."""
    cupy = GraphCuPy(index + 1)
    with mock.patch.dict(sys.modules, {"cupy": cupy}):
        backend = CUDABackend(index)
    if not lt:
        backend._library_problem = "it is not there"
    return backend, cupy


class Training:
    """A network, an optimizer with a schedule, and a step that clips the gradients of a batch in
    two pieces."""

    def __init__(self, rule: str = "adam", lt: bool = True) -> None:
        self.backend, self.cupy = device(lt)
        g = gb.Generator(4)
        self.net = nn.Sequential(
            nn.Linear(6, 8, generator=g),
            nn.GELU(),
            nn.LayerNorm(8),
            nn.Dropout(0.3, generator=g.split()),
            nn.Linear(8, 3, generator=g),
        ).to(self.backend)
        self.optimizer = RULES[rule](self.net.parameters())
        self.scheduler = optim.Scheduler(self.optimizer, optim.schedules.Cosine(steps=20))
        self.rng = np.random.default_rng(1)
        self.pieces = 2
        self.run: Any = self.step

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        total = 0.0
        for k in range(self.pieces):
            part = slice(k * 4, (k + 1) * 4)
            loss = F.cross_entropy(self.net(x[part]), y[part]) / self.pieces
            loss.backward()
            total = loss.detach() + total
        optim.clip_grad_norm_(self.optimizer, 0.5)
        self.optimizer.step()
        self.scheduler.step()
        return total

    def compile(self, **options: Any) -> Training:
        self.run = gb.compile(self.step, **options)
        return self

    def batch(self) -> tuple[Any, Any]:
        x = self.rng.standard_normal((8, 6)).astype(np.float32)
        y = self.rng.integers(0, 3, 8)
        return gb.tensor(x, device=self.backend), gb.tensor(y, device=self.backend)

    def losses(self, steps: int) -> list[float]:
        return [self.run(*self.batch()).item() for _ in range(steps)]

    def weights(self) -> list[np.ndarray]:
        return [p.numpy() for p in self.net.parameters()]

    @property
    def replay(self) -> Any:
        (entry,) = [e for e in self.run.entries if e.replay is not None]
        return entry.replay


def captured(**options: Any) -> Training:
    """A training whose next step is a launch."""
    training = Training().compile(**options)
    training.losses(6 + WARM_UPS)
    assert training.cupy.launches > 0, training.run.explain()
    return training


@pytest.mark.parametrize("rule", RULES)
def test_twenty_steps_are_those_of_the_function(rule: str) -> None:
    eager, training = Training(rule), Training(rule).compile()
    plain = Training(rule).compile(graph=False)
    losses = training.losses(20)
    assert losses == plain.losses(20)
    np.testing.assert_allclose(losses, eager.losses(20), rtol=1e-5)
    trainings = (training, plain, eager)
    for found, same, close in zip(*(t.weights() for t in trainings), strict=True):
        np.testing.assert_array_equal(found, same)
        np.testing.assert_allclose(found, close, rtol=1e-3, atol=1e-5)
    assert training.cupy.launches >= 14, training.run.explain()
    words = training.run.explain()
    assert "calls are one launch with" in words
    assert "1 capture(s)" in words
    assert eager.cupy.launches == plain.cupy.launches == 0


class Steps(nn.Module):
    """The class of a sequence by the last step of a recurrent layer."""

    def __init__(self, kind: type[nn.Module], generator: gb.Generator) -> None:
        self.cells = kind(3, 6, batch_first=True, generator=generator)
        self.head = nn.Linear(6, 11, generator=generator)

    def forward(self, x: Any) -> Any:
        return self.head(self.cells(x)[0][:, -1])


def words(g: gb.Generator) -> tuple[nn.Module, tuple[int, ...], tuple[int, ...]]:
    """Embeddings, whose gradient sorts, and attention with dropout."""
    return nn.TransformerLM(11, 16, 1, 2, 8, dropout=0.2, generator=g), (3, 8), (3, 8)


def pictures(g: gb.Generator) -> tuple[nn.Module, tuple[int, ...], tuple[int, ...]]:
    """Convolutions, statistics of a batch, pooling, channels left out."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, generator=g),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, stride=2, groups=2, generator=g),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 11, generator=g),
    )
    return net, (5, 1, 12, 12), (5,)


NETWORKS = {
    "words": words,
    "pictures": pictures,
    "lstm": lambda g: (Steps(nn.LSTM, g), (4, 5, 3), (4,)),
    "gru": lambda g: (Steps(nn.GRU, g), (4, 5, 3), (4,)),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_other_networks_are_one_launch(network: str) -> None:
    found = []
    for options in ({"graph": False}, {"graph": True}):
        backend, cupy = device()
        net, shape, targets = NETWORKS[network](gb.Generator(4))
        net.to(backend)
        optimizer = optim.AdamW(net.parameters(), lr=0.01)

        def step(x: Any, y: Any, net: Any = net, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x).reshape((-1, 11)), y.reshape((-1,)))
            loss.backward()
            optimizer.step()
            return loss

        run, rng = gb.compile(step, **options), np.random.default_rng(3)
        losses = []
        for _ in range(9):
            x: Any = rng.standard_normal(shape).astype(np.float32)
            if network == "words":
                x = rng.integers(0, 11, shape)
            y = rng.integers(0, 11, targets)
            losses.append(run(*(gb.tensor(a, device=backend) for a in (x, y))).item())
        found.append((losses, [p.numpy().tobytes() for p in net.parameters()]))
        assert (cupy.launches >= 3) == options["graph"], run.explain()
    assert found[0] == found[1]


def test_a_step_is_one_launch_and_the_host_does_not_wait() -> None:
    training = captured()
    batch = training.batch()
    cupy = training.cupy
    cupy.log.clear()
    cupy.waits.clear()
    launches, eager = cupy.launches, cupy.eager
    for _ in range(4):
        training.run(*batch)
    assert cupy.launches == launches + 4
    # Beside it: two inputs copied to their places, the result taken out.
    assert cupy.eager == eager + 4 * 3
    assert cupy.log == [("to the device", "main"), ("launch", "main")] * 4
    assert set(cupy.waits) <= {"an event"}


def test_what_a_capture_makes_lies_in_a_pool_of_its_own() -> None:
    training = captured()
    (pool,) = [p() for p in training.cupy.pools]
    assert pool is not None and pool.total_bytes() > 0
    assert pool.reused > 0  # so that a launch that mixed its calls up would give other numbers
    assert training.replay.launch._captured.nbytes == pool.total_bytes()


def test_the_pool_goes_with_the_compiled_function() -> None:
    training = captured()
    (pool,) = training.cupy.pools
    gc.collect()
    gc.disable()
    try:
        training.run = training.step
        assert pool() is None
    finally:
        gc.enable()


def test_a_graph_keeps_what_it_reads_and_writes() -> None:
    backend, cupy = device()
    x, out = backend.asarray(np.ones(4, np.float32)), backend.empty((4,), np.float32)
    address = out.data.ptr

    # The call is the only one that holds them.
    call = partial(lambda x, out: backend.add(backend.add(x, x), 4.0, out=out), x, out)
    kept = weakref.ref(out)
    del x, out
    found = backend.capture([("add", call)])
    assert not isinstance(found, str), found
    del call
    gc.collect()
    again = kept()
    assert again is not None and again.data.ptr == address
    before = cupy.eager
    found.launch()
    np.testing.assert_array_equal(backend.to_numpy(again), np.full(4, 6.0, np.float32))
    assert cupy.eager == before and found.calls == 1


def test_a_launch_reads_what_lies_there_by_then() -> None:
    backend, _ = device()
    x, out = backend.zeros((3,), np.float32), backend.zeros((3,), np.float32)
    found = backend.capture([("add", lambda: backend.add(x, 1.0, out=out))])
    np.testing.assert_array_equal(backend.to_numpy(out), 0.0)  # nothing was carried out
    for value in (5.0, 7.0):
        backend.copyto(x, backend.full((3,), value, np.float32))
        found.launch()
        np.testing.assert_array_equal(backend.to_numpy(out), value + 1.0)


def test_all_of_it_works_on_another_gpu_than_the_current_one() -> None:
    backend, cupy = device(index=1)
    x, out = backend.zeros((3,), np.float32), backend.zeros((3,), np.float64)
    numbers = backend.device_numbers(["float64"])
    calls = [("add", lambda: backend.copyto(out, backend.add(x, numbers.views[0])))]
    found = backend.capture(calls)
    assert not isinstance(found, str), found
    staging = backend.staging()
    assert staging is not None
    staging.put((np.arange(3, dtype=np.float32),))
    backend.copyto(x, staging.take()[0])
    numbers.fill([0.5])
    found.launch()
    np.testing.assert_array_equal(backend.fetch(out)(), [0.5, 1.5, 2.5])
    assert cupy.current == 0


def test_many_arrays_are_joined_without_a_table_from_the_host() -> None:
    backend, _ = device()
    parts = [backend.asarray(np.full((2, 3), i, np.float32)) for i in range(70)]
    out = backend.empty((140, 3), np.float32)
    calls = [("concatenate", lambda: backend.copyto(out, backend.concatenate(parts)))]
    found = backend.capture(calls)
    assert not isinstance(found, str), found
    found.launch()
    np.testing.assert_array_equal(backend.to_numpy(out)[::2, 0], np.arange(70))


# Numbers that change.


def test_numbers_on_the_device_follow_each_filling_in_order() -> None:
    backend, cupy = device()
    numbers = backend.device_numbers(["float64", "uint64"])
    seen: list[tuple[float, int]] = []
    real, whole = numbers.views
    cupy.main.late = True  # the device is as far behind as it may be
    given = [(0.5 * i, 2**64 - 1 - i) for i in range(3 * graphs.RUN_AHEAD)]
    for values in given:
        numbers.fill(values)
        cupy.main.do(lambda: seen.append((float(real.on_host), int(whole.on_host))))
    assert len(seen) == 2 * graphs.RUN_AHEAD - 1  # the host waited for the rows that it wrote again
    cupy.main.synchronize()
    assert seen == given


def test_a_number_given_by_value_that_changes_is_captured_anew() -> None:
    plain, training = Training("momentum").compile(graph=False), Training("momentum").compile()
    costs = [t.losses(12) for t in (plain, training)]
    for t in (plain, training):
        t.optimizer.param_groups[0]["momentum"] = 0.5
    costs = [a + t.losses(8) for a, t in zip(costs, (plain, training), strict=True)]
    assert costs[0] == costs[1]
    assert training.replay.launch.captures == 2
    assert len([p for p in training.cupy.pools if p() is not None]) == 1


def test_a_number_given_by_value_that_always_changes_ends_the_attempts() -> None:
    plain, training = Training("momentum").compile(graph=False), Training("momentum").compile()
    costs: list[list[float]] = [[], []]
    for i in range(20):
        for found, t in zip(costs, (plain, training), strict=True):
            t.optimizer.param_groups[0]["momentum"] = 0.9 - 0.01 * i
            found += t.losses(1)
    assert costs[0] == costs[1]
    assert training.replay.launch.captures == CAPTURES
    assert training.cupy.launches == CAPTURES
    assert "momentum of sgd_update" in training.run.explain()
    assert "change from step to step" in training.run.explain()


# Where a step cannot be one launch.


def test_products_that_cannot_be_captured_leave_the_step_as_it_was() -> None:
    plain = Training(lt=False).compile(graph=False)
    training = Training(lt=False).compile()
    assert training.losses(16) == plain.losses(16)
    assert training.cupy.launches == 0
    launch = training.replay.launch
    assert launch.captures == 1  # tried once
    words = training.run.explain()
    assert "launched call by call: kernel call" in words
    product = "the product of float32 (4, 6) and float32 (6, 8) is CuPy's, which no graph can hold"
    assert f"(linear): LtError: {product}: it is not there" in words


def test_a_refused_product_keeps_its_own_step_from_being_one_launch_and_no_other() -> None:
    backend, cupy = device()
    refuse = fake_lt.number("refuse")

    def compiled(n: int) -> Any:
        net = nn.Linear(n, 3, generator=gb.Generator(1)).to(backend)
        run = gb.compile(lambda x: net(x).sum())
        with mock.patch("warnings.warn"):
            for _ in range(6):
                run(gb.tensor(np.ones((2, n), np.float32), device=backend))
        return run

    refuse.value = 2
    try:
        refused = compiled(5)
    finally:
        refuse.value = 0
    assert cupy.launches == 0
    for words in (
        "the product of float32 (2, 5) and float32 (5, 3) is CuPy's, which no graph can hold",
        "cuBLASLt refuses the product of float32 (2, 5) and (5, 3)",
    ):
        assert words in refused.explain()
    assert "are one launch" in compiled(6).explain() and cupy.launches


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda b: b.asarray(np.ones(3)), "copies from the host"),
        (lambda b: b.to_numpy(b.zeros((2,), np.float32)), "waiting for a copy to the host"),
        (lambda b: b.synchronize(), "waiting for the device"),
        (lambda b: b.xp.argsort(b.zeros((4,), np.int64)), "thrust waits"),
        (lambda b: b.no_such_kernel, "AttributeError"),
    ],
    ids=["from the host", "to the host", "waits", "sorts", "fails"],
)
def test_what_cannot_be_captured_is_named_and_leaves_nothing_behind(call: Any, words: str) -> None:
    backend, cupy = device()
    x = backend.zeros((3,), np.float32)
    usual = cupy.pinned_allocator
    found = backend.capture([("add", lambda: backend.add(x, 1.0)), ("odd", lambda: call(backend))])
    assert isinstance(found, str)
    assert found.startswith("kernel call 1 (odd): ") and words in found
    assert all(s.graph is None for s in cupy.streams)
    assert cupy.stream_now() is cupy.main and not cupy.allocators
    assert cupy.pinned_allocator == usual and gc.isenabled()
    assert backend.concatenate([x] * 20).shape == (60,)  # as outside of a capture
    assert not isinstance(backend.capture([("add", lambda: backend.add(x, x))]), str)


def test_a_graph_takes_what_the_limit_of_memory_leaves() -> None:
    backend, cupy = device()
    backend.limit_memory(8192)
    x = backend.zeros((1000,), np.float32)  # 4096 bytes of it
    calls = [("add", lambda: backend.add(x, 1.0)), ("stack", lambda: backend.concatenate([x, x]))]
    assert not isinstance(backend.capture(calls[:1]), str)
    found = backend.capture(calls)
    assert isinstance(found, str) and "kernel call 1 (stack): OutOfMemoryError" in found
    assert "limit set to: 4,096 bytes" in found
    backend.limit_memory(None)
    assert not isinstance(backend.capture(calls), str)


def test_an_interruption_ends_the_capture_and_goes_on() -> None:
    backend, cupy = device()

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.capture([("add", interrupted)])
    assert all(s.graph is None for s in cupy.streams) and not cupy.allocators
    assert not isinstance(backend.capture([]), str)


def test_a_kernel_that_its_module_excludes_is_not_tried(monkeypatch: Any) -> None:
    monkeypatch.setattr(graphs, "UNCAPTURABLE", frozenset({"layer_norm"}))
    training = Training().compile()
    training.losses(10)
    assert training.cupy.launches == 0 and len(training.cupy.streams) == 1
    assert "(layer_norm) is one that cannot be captured" in training.run.explain()


def test_within_another_capture_a_step_is_launched_call_by_call() -> None:
    backend, cupy = device()
    with cupy.cuda.Stream(non_blocking=True) as other:
        other.begin_capture()
        assert "the current stream is being captured" in str(backend.capture([]))
        other.end_capture()

    def illegal() -> bool:
        raise RuntimeError("cudaErrorStreamCaptureImplicit")

    cupy.main.is_capturing = illegal  # type: ignore[method-assign]
    assert "another stream is being captured (RuntimeError: cuda" in str(backend.capture([]))


@pytest.mark.parametrize("graph", [False, True])
def test_a_product_has_the_precision_of_its_block_again(graph: bool) -> None:
    backend, _ = device()
    weight = gb.tensor(np.full((6, 6), 1.0 + 2.0**-12, np.float32), device=backend)
    plain = 6 * (1.0 + 2.0**-12)

    def work(x: Any) -> Any:
        with gb.precision("tf32"):  # rounds to 10 bits
            y = x @ weight
        return y, x @ weight

    run = gb.compile(work, graph=graph)
    for _ in range(7):
        rounded, exact = run(gb.tensor(np.ones((2, 6), np.float32), device=backend))
        np.testing.assert_array_equal(rounded.numpy(), np.float32(6.0))
        np.testing.assert_allclose(exact.numpy(), plain, rtol=1e-7)
    with gb.precision("tf32"):
        _, outer = run(gb.tensor(np.ones((2, 6), np.float32), device=backend))
        np.testing.assert_array_equal(outer.numpy(), np.float32(6.0))


def test_graph_true_is_an_error_where_it_cannot_be() -> None:
    training = Training(lt=False).compile(graph=True)
    with pytest.raises(
        CompileError, match=r"graph=True, but the step cannot be one launch: .*CuPy's"
    ):
        training.losses(12)
    count = training.optimizer._steps[0][0]
    with pytest.raises(CompileError, match="one launch"):
        training.losses(1)
    assert training.optimizer._steps[0][0] == count  # the step that was not made is not counted
    on_cpu = gb.compile(lambda x: x + x, graph=True)
    with pytest.raises(CompileError, match="graph=True, but the kernels of cpu are plain func"):
        for _ in range(3):
            on_cpu(gb.tensor([1.0]))


def test_graph_false_launches_call_by_call() -> None:
    training = Training().compile(graph=False)
    training.losses(12)
    assert training.cupy.launches == 0 and training.replay.launch is None
    assert "launch" not in training.run.explain()


def test_graph_true_gives_what_the_default_gives() -> None:
    assert captured(graph=True).losses(3) == captured().losses(3)
