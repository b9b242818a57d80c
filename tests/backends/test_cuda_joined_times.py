"""Products that take others along only where that was measured to be no slower, over stand-ins for
cuBLASLt and CuPy's graphs, with a clock that says which way is faster."""

from __future__ import annotations

import gc
import sys
import warnings

import numpy as np
import pytest

from gpubackprop.backends.cuda import CUDABackend, joined_times
from gpubackprop.backends.cuda import choices as tables
from gpubackprop.backends.cuda.choices import Choice
from gpubackprop.backends.cuda.joined_times import JOINED, PARTS
from gpubackprop.compile.fusion import fused
from gpubackprop.errors import ConfigError
from tests.backends.support import fake_lt, shim
from tests.backends.test_cuda_joined import ALL, asked, expected, layer
from tests.backends.test_cuda_joined import lt as numbers  # noqa: F401
from tests.backends.test_cuda_products import (
    close,
    library,  # noqa: F401
    random,
)
from tests.compile.support import graph_cupy
from tests.compile.support.graph_cupy import GraphCuPy
from tests.compile.test_joined import Layer

MISSING = fake_lt.missing() or shim.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "gcc is there")

PLAIN = (1, 4)
"""Epilogues of a product by itself, and of one with a bias."""
KERNELS = ("linear_activation", "matmul_activation_backward", "matmul_row_sums")


class Clock:
    """Says how long a call takes either way, of whatever is run for it."""

    source = "the test"

    def __init__(self, lt, joined, parts):
        self.lt, self.takes, self.asked = lt, {JOINED: joined, PARTS: parts}, []

    def seconds(self, call, calls=1):
        before = self.lt("calls")
        call()
        way = PARTS if self.lt("epilogue") in PLAIN else JOINED
        runs = self.lt("calls") - before
        self.asked.append((way, runs, getattr(call, "__name__", "")))
        return calls * runs * self.takes[way]


@pytest.fixture
def lt(numbers, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("GPUBACKPROP_CACHE", str(tmp_path))
    yield numbers
    numbers.set("version", 130300)


@pytest.fixture
def process(monkeypatch, lt):
    """A function that gives a backend as a new process has it, and its clock."""

    def begun(joined=1e-4, parts=1e-4, mode="auto"):
        monkeypatch.setitem(sys.modules, "cupy", GraphCuPy())
        backend = CUDABackend(0, joined=mode)
        clock = Clock(lt, joined, parts)
        backend.clock = lambda: clock
        return backend, clock

    with graph_cupy.products_captured():
        yield begun


def kept():
    """The calls of the only table, by their words."""
    (table,) = tables.saved()
    return table.choices


@pytest.mark.parametrize(
    ("parts", "use"), [(2e-4, JOINED), (1e-4, JOINED), (0.98e-4, JOINED), (0.96e-4, PARTS)]
)
def test_the_faster_way_is_taken_and_a_tie_saves_a_launch(process, parts, use):
    cuda, clock = process(1e-4, parts)
    assert asked(cuda) == (ALL if use == JOINED else set())
    assert len(kept()) == len(ALL)
    for call, choice in kept().items():
        assert choice.use == use and choice.reason == "measured"
        assert choice.seconds == pytest.approx({JOINED: 1e-4, PARTS: parts}), call
        assert call.split()[0] in KERNELS and call.endswith("deterministic")
    before = len(clock.asked)
    assert asked(cuda) == (ALL if use == JOINED else set())
    assert len(clock.asked) == before, "it is measured once"


def test_what_is_timed_are_graphs_of_several_calls(process):
    cuda, clock = process(1e-4, 3e-4)
    x, w, b = layer(cuda)
    cuda.joins("linear_activation", x, w, b, "relu", True)
    # One run of the parts says how many fill a millisecond.
    assert clock.asked[0] == (PARTS, 1, "")
    assert set(clock.asked[1:]) == {(JOINED, 4, "launch"), (PARTS, 4, "launch")}
    cuda, clock = process(1e-6, 1e-6)
    cuda.joins("matmul_row_sums", cuda.asarray(random((7, 9))), cuda.asarray(random((9, 5))))
    assert clock.asked[-1][1] == tables.MOST_CALLS
    cuda, clock = process(1, 1)
    cuda.joins("matmul_row_sums", cuda.asarray(random((7, 8))), cuda.asarray(random((8, 5))))
    assert clock.asked[-1][1] == 1


@pytest.mark.parametrize(("parts", "use"), [(2e-4, JOINED), (0.5e-4, PARTS)])
def test_the_next_process_reads_what_was_measured(process, lt, parts, use):
    first = asked(process(1e-4, parts)[0])
    before, calls = kept(), lt("calls")
    cuda, clock = process(1, 1)
    assert asked(cuda) == first and not clock.asked and kept() == before
    # What is faster by itself is not even tried; what is joined is, for its digits.
    assert (lt("calls") == calls) == (use == PARTS)


def test_another_version_of_the_library_is_measured_anew(process, lt):
    assert asked(process(1e-4, 2e-4)[0]) == ALL
    lt.set("version", 130301)
    cuda, clock = process(2e-4, 1e-4)
    assert asked(cuda) == set() and clock.asked
    found = {t.versions["cublaslt"]: {c.use for c in t.choices.values()} for t in tables.saved()}
    assert found == {"130300": {JOINED}, "130301": {PARTS}}


def test_a_call_is_kept_by_all_that_it_depends_on(process):
    cuda, _ = process()
    x, w, b = layer(cuda)
    wide, turned = layer(cuda, k=6)[0], cuda.transpose(cuda.asarray(random((5, 16))), (1, 0))
    for precision in ("float32", "tf32"):
        cuda.precision = precision
        for args in ((x, w, b, "relu"), (x, w, None, "relu"), (x, w, b, "relu", True)):
            assert cuda.joins("linear_activation", *args)
        assert cuda.joins("linear_activation", x, w, b, "gelu_tanh")
        assert cuda.joins("linear_activation", x, turned, b, "relu")
    cuda.numerics = "native"
    assert cuda.joins("linear_activation", wide, layer(cuda, k=6)[1], b, "relu")
    assert len(kept()) == 11
    assert "linear_activation float32 6x5 float32 16x5/1,0 float32 16 relu tf32 deterministic" in (
        kept()
    )
    assert any(call.endswith("native") for call in kept())


@pytest.mark.parametrize(("mode", "found"), [("always", ALL), ("never", set())])
def test_either_way_can_be_forced(process, lt, monkeypatch, mode, found):
    calls = lt("calls")
    cuda, clock = process(1, 1, mode)
    assert asked(cuda) == found and not clock.asked and not tables.saved()
    assert (lt("calls") > calls) == (mode == "always")
    assert cuda.with_numerics("native").joining == mode
    monkeypatch.setenv("GPUBACKPROP_JOINED", mode)
    assert process(mode=None)[0].joining == mode
    monkeypatch.delenv("GPUBACKPROP_JOINED")
    assert process(mode=None)[0].joining == "auto"
    monkeypatch.setenv("GPUBACKPROP_JOINED", "allways")
    with pytest.raises(ConfigError, match=r"joined \(from GPUBACKPROP_JOINED\).*allways.*always"):
        process(mode=None)


@pytest.mark.parametrize(
    ("knob", "value", "lost", "why"),
    [
        ("keeps_nan", 0, {"relu", "relu kept"}, "other numbers than its parts"),
        ("without", 512, {"sums"}, "not one call of cuBLASLt"),
    ],
)
def test_what_is_not_right_is_kept_with_its_reason(process, lt, knob, value, lost, why):
    lt.set(knob, value)
    assert asked(process(1e-4, 2e-4)[0]) == ALL - lost
    others = [c for c in kept().values() if c.reason != "measured"]
    assert others == [Choice(PARTS, {}, why)] * len(lost)
    lt.set(knob, 1 - value if knob == "keeps_nan" else 0)
    assert asked(process(1e-4, 2e-4)[0]) == ALL - lost, "it is tried again"


# Around captures.
def test_nothing_is_tried_or_measured_within_a_capture(process, lt):
    cuda, clock = process()
    x, w, b = layer(cuda)
    args = ("linear_activation", x, w, b, "relu", True)
    stream = cuda.xp.cuda.Stream(non_blocking=True)
    calls, waits = lt("calls"), len(cuda.xp.waits)
    with stream:
        stream.begin_capture()
        assert not cuda.joins(*args)
        graph = stream.end_capture()
    assert not graph.nodes and not clock.asked and not tables.saved()
    assert (lt("calls"), len(cuda.xp.waits)) == (calls, waits)
    assert cuda.joins(*args) and clock.asked
    with stream:
        stream.begin_capture()
        assert cuda.joins(*args), "what is known is known there too"
        assert not stream.end_capture().nodes


def test_nothing_that_was_measured_stays_in_memory(process):
    cuda, _ = process()
    x, w, b = layer(cuda)
    cuda.linear(x, w, b)
    gc.collect()
    room, alive, freed = cuda.xp.room, len(cuda.xp.roots), []
    cuda.xp.pool.free_all_blocks = lambda: freed.append(len(cuda.xp.roots))
    assert cuda.joins("linear_activation", x, w, b, "gelu_tanh", True)
    assert (cuda.xp.room, len(cuda.xp.roots)) == (room, alive)
    assert cuda.xp.pools and not any(pool() for pool in cuda.xp.pools)
    assert freed[-1] == alive, "the pool kept what had been tried"


def test_a_refusal_of_a_graph_for_the_moment_is_not_kept(process, monkeypatch):
    cuda, clock = process()
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "capture", lambda calls: "another stream is being captured")
        assert asked(cuda) == set()
    assert not tables.saved() and not cuda._trials
    assert asked(cuda) == ALL


def test_parts_that_no_graph_can_hold_are_left_for_this_process(process, monkeypatch):
    cuda, clock = process()
    capture = cuda.capture
    refused = []

    def some(calls):
        if calls[0][0] in KERNELS:
            return capture(calls)
        refused.append(calls)
        return "kernel call 0 (matmul): the product is CuPy's"

    monkeypatch.setattr(cuda, "capture", some)
    assert asked(cuda) == ALL
    count = len(refused)
    assert count == len(ALL) and asked(cuda) == ALL and len(refused) == count
    assert not tables.saved()


def test_without_room_nothing_is_kept_or_said(process, monkeypatch):
    cuda, _ = process()

    def full(*_):
        raise MemoryError

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(joined_times, "measured", full)
        assert asked(cuda) == set() and not cuda._trials
    assert asked(cuda) == ALL


# What is timed.
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("lead", [(6,), (1,), (2, 3)])
def test_the_parts_give_what_the_joined_call_gives(process, lt, dtype, lead):
    cuda, _ = process()
    x, w, b = layer(cuda, dtype, lead)
    dy, above = cuda.asarray(random((*lead, 9), dtype, 3)), cuda.asarray(random((9, 16), dtype, 4))
    value = cuda.asarray(random((*lead, 16), dtype, 5))
    cases = [
        ("linear_activation", x, w, bias, activation, keep)
        for bias in (b, None)
        for activation, keep in (("relu", False), ("gelu_tanh", False), ("gelu_tanh", True))
    ]
    cases += [
        ("matmul_activation_backward", dy, above, value, None, activation, summed)
        for activation in ("relu", "gelu_tanh")
        for summed in (False, True)
    ]
    if len(lead) == 1:
        cases += [("matmul_row_sums", cuda.transpose(value, (1, 0)), x)]
    for kernel, *args in cases:
        wanted = [v for v in expected(kernel, *args) if v is not None]
        outs = [cuda.empty(v.shape, x.dtype) for v in wanted]
        for name, call in joined_times.PARTS_OF[kernel](cuda, *args, outs=outs):
            assert name in ("linear", "matmul", "chain", "sum")
            assert call() is None or name != "chain"
        for got, want in zip(outs, wanted, strict=True):
            close(cuda.to_numpy(got), want, dtype, 9 * 6)


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
@pytest.mark.parametrize("summed", [False, True])
def test_the_parts_are_the_chains_of_a_compiled_step(process, monkeypatch, activation, summed):
    cuda, _ = process()
    whole = Layer(activation, biased=summed)
    report = type("Report", (), {"fused": 0})()
    calls = fused(whole.calls(), [whole.y], report, cuda.chain_floats)
    wanted = [c.args[1] for c in calls if c.kernel == "chain"]
    found, chain = [], cuda.chain
    monkeypatch.setattr(
        cuda, "chain", lambda inputs, c, outs: found.append(c) or chain(inputs, c, outs)
    )
    x, w, b = layer(cuda, lead=(4,), k=4, n=4)
    y, z, total = (
        cuda.empty((4, 4), np.float32),
        cuda.empty((4, 4), np.float32),
        cuda.empty((4,), np.float32),
    )
    keep = activation != "relu"
    joined_times.PARTS_OF[KERNELS[0]](cuda, x, w, b, activation, keep, outs=[y, z][: 1 + keep])
    joined_times.PARTS_OF[KERNELS[1]](
        cuda, x, w, z, None, activation, summed, outs=[y, total][: 1 + summed]
    )
    assert found == wanted and len(found) == 2
    assert [c.kernel for c in calls] == ["linear", "chain", "matmul", "chain", "matmul"]
