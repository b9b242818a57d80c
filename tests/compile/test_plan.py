"""The memory plan: buffers that are in use at once never share a byte, and a step that runs in the
arena gives what it gives in memory of its own."""

from __future__ import annotations

import time

import numpy as np
import pytest

from gpubackprop.backends import get_backend
from gpubackprop.compile.plan import ALIGNMENT, Memory, Plan, lifetimes, plan_memory
from gpubackprop.compile.trace import Buffer, Call, Ref
from gpubackprop.testing import StandInBackend

CPU = get_backend("cpu")
INT = np.dtype(np.int64)


def buffer(number: int, nbytes: int, kind="made", array=None) -> Buffer:
    return Buffer(number, nbytes, kind, array)


def whole(b: Buffer, dtype=INT) -> Ref:
    return Ref(b, 0, (b.nbytes // dtype.itemsize,), (dtype.itemsize,), dtype)


def vector(number: int, n: int = 100, kind="made", dtype=INT) -> Ref:
    return whole(buffer(number, n * dtype.itemsize, kind), dtype)


def call(kernel: str, out: Ref, *args: Ref) -> Call:
    return Call(kernel, args, {}, (out,))


def every_argument(c: Call, out: Ref) -> tuple[Ref, ...]:
    return tuple(c.reads)


def no_argument(c: Call, out: Ref) -> tuple[Ref, ...]:
    return ()


def apart(plan: Plan, x: Ref, y: Ref) -> bool:
    a, b = plan.offsets[x.buffer], plan.offsets[y.buffer]
    return a + x.buffer.nbytes <= b or b + y.buffer.nbytes <= a


# Random steps. Each call mixes its arguments element for element, in a way that no other order or
# choice of arguments gives.


class Step:
    """A random step of integers, and what it gives."""

    def __init__(self, seed: int, length: int = 40) -> None:
        rng = self.rng = np.random.default_rng(seed)
        self.count = 0
        self.refs: list[Ref] = []
        self.calls: list[Call] = []
        self.memory: dict[Buffer, np.ndarray] = {}
        self.inputs = [self._new(int(rng.choice([8, 24])), "input") for _ in range(2)]
        for _ in range(length):
            self._add()
        self.results = [self.refs[i] for i in rng.choice(len(self.refs), 3, replace=False)]

    def _new(self, n: int, kind="made") -> Ref:
        shape = (n,) if self.rng.random() < 0.5 else (2, n // 2)
        strides = (8,) if len(shape) == 1 else (8 * shape[1], 8)
        array = None
        if kind == "external":
            array = self.rng.integers(0, 1000, n)
        b = buffer(self.count, 8 * n, kind, array)
        self.count += 1
        ref = Ref(b, 0, shape, strides, INT)
        self.refs.append(ref)
        return ref

    def _viewed(self, ref: Ref, n: int) -> Ref:
        """`n` elements of a ref's buffer: in order, backwards, some of them, or one n times."""
        size = ref.buffer.nbytes // 8
        first = int(self.rng.integers(size - n + 1)) if size >= n else 0
        ways = [(8 * first, 8), (8 * (first + n - 1), -8)] if size >= n else []
        ways.append((8 * int(self.rng.integers(size)), 0))
        offset, stride = ways[int(self.rng.integers(len(ways)))]
        return Ref(ref.buffer, offset, (n,), (stride,), INT)

    def _argument(self, shape: tuple[int, ...]) -> Ref:
        alike = [r for r in self.refs if r.shape == shape]
        if alike and self.rng.random() < 0.6:
            return alike[-1 - int(self.rng.integers(min(3, len(alike))))]
        ref = self.refs[int(self.rng.integers(len(self.refs)))]
        n = int(np.prod(shape))
        view = self._viewed(ref, n)
        if len(shape) == 2:
            step = view.strides[0]
            view = Ref(view.buffer, view.offset, shape, (shape[1] * step, step), INT)
        return view

    def _add(self) -> None:
        kind = "external" if self.rng.random() < 0.1 else "made"
        if self.rng.random() < 0.15:  # a part of an earlier result is written over
            target = self.refs[int(self.rng.integers(len(self.refs)))]
            n = max(target.buffer.nbytes // 16, 1)
            part = Ref(target.buffer, 0, (n,), (8,), INT)
            source = self._argument((n,))
            if source.buffer is not target.buffer:
                self.calls.append(Call("copyto", (part, source), {}, (), (part,)))
                return
        args: list[Ref] = []
        out = self._new(int(self.rng.choice([2, 8, 24, 64])), kind)
        self.refs.remove(out)
        for _ in range(int(self.rng.integers(1, 4))):
            args.append(self._argument(out.shape))
        self.refs.append(out)
        self.calls.append(Call("mixed", tuple(args), {"salt": len(self.calls)}, (out,)))

    def run(self, view, calls: list[Call] | None = None) -> list[np.ndarray]:
        """What each call gives, and the results at the end, in memory seen with `view`."""
        rng = np.random.default_rng(1)
        for x in self.inputs:
            view(x)[...] = rng.integers(0, 1000, x.shape)
        seen = []
        for c in self.calls if calls is None else calls:
            if c.kernel == "copyto":
                view(c.args[0])[...] = view(c.args[1])
                continue
            out = view(c.outs[0])
            # Element for element, as a kernel that works in place would.
            flat = [view(a) for a in c.args]
            for at in np.ndindex(out.shape):
                total = c.kwargs["salt"]
                for factor, a in zip((3, 7, 11), flat, strict=False):
                    total += factor * int(a[at])
                out[at] = total % 99991
            seen.append(out.copy())
        return seen + [view(r).copy() for r in self.results]


class Apart:
    """Each buffer in memory of its own."""

    def __init__(self) -> None:
        self.arrays: dict[Buffer, np.ndarray] = {}

    def view(self, ref: Ref) -> np.ndarray:
        b = ref.buffer
        if b not in self.arrays:
            self.arrays[b] = np.zeros(b.nbytes, np.uint8)
        return np.ndarray(ref.shape, ref.dtype, self.arrays[b], ref.offset, ref.strides)


@pytest.mark.parametrize("inplace", [every_argument, no_argument])
@pytest.mark.parametrize("seed", range(60))
def test_a_step_gives_the_same_in_the_arena(seed, inplace):
    step = Step(seed)
    expected = step.run(Apart().view)
    plan = plan_memory(step.calls, step.results, step.inputs, inplace)
    memory = Memory(plan, CPU)
    memory.arena.view(np.uint8)[...] = 0xA5
    first = {b for c in step.calls for b in [r.buffer for r in c.reads] if b.kind == "external"}
    for b in first:
        b.array[...] = 0
    for found, wanted in zip(step.run(memory.view), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("seed", range(40))
def test_buffers_in_use_at_once_lie_apart(seed):
    step = Step(seed, 60)
    plan = plan_memory(step.calls, step.results, step.inputs, no_argument)
    lives = lifetimes(step.calls, step.results, step.inputs)
    buffers = list(lives)
    for i, a in enumerate(buffers):
        assert plan.offsets[a] % ALIGNMENT == 0
        assert plan.offsets[a] + a.nbytes <= plan.nbytes
        for b in buffers[:i]:
            if lives[a].start <= lives[b].end and lives[b].start <= lives[a].end:
                low, high = plan.offsets[a], plan.offsets[b]
                assert low + a.nbytes <= high or high + b.nbytes <= low
    assert plan.total == sum(b.nbytes for b in buffers)
    now = [
        sum(b.nbytes for b in buffers if lives[b].start <= t <= lives[b].end)
        for t in range(len(step.calls) + 1)
    ]
    assert plan.peak_before == max(now) <= plan.nbytes
    assert not {b for b in plan.offsets if b.kind == "external"}


def test_a_chain_in_place_needs_one_buffer():
    refs = [vector(i) for i in range(6)]
    calls = [call("exp", y, x) for x, y in zip(refs, refs[1:], strict=False)]
    calls.insert(0, call("zeros", refs[0]))
    plan = plan_memory(calls, [refs[-1]], [], every_argument)
    assert len(set(plan.offsets.values())) == 1
    assert (plan.shared, plan.nbytes) == (5, 832)
    assert plan.total == 6 * 800
    assert plan.peak_before == 2 * 800
    without = plan_memory(calls, [refs[-1]], [], no_argument)
    assert (without.shared, without.nbytes) == (0, 2 * 832)
    assert "4.7 KiB" in plan.describe() and "5 written in place" in plan.describe()


def used_later(x: Ref, y: Ref) -> list[Call]:
    return [call("exp", y, x), call("exp", vector(9), x)]


def twice(x: Ref, y: Ref) -> list[Call]:
    return [call("add", y, x, Ref(x.buffer, 792, x.shape, (-8,), INT))]


def backwards(x: Ref, y: Ref) -> list[Call]:
    return [call("exp", y, Ref(x.buffer, 792, x.shape, (-8,), INT))]


def one_element(x: Ref, y: Ref) -> list[Call]:
    return [call("exp", y, Ref(x.buffer, 0, x.shape, (0,), INT))]


@pytest.mark.parametrize("rest", [used_later, twice, backwards, one_element])
def test_not_in_place(rest):
    """Where an argument is read again, in another order or only in part, it stays."""
    x, y = vector(0), vector(1)
    calls = [call("zeros", x), *rest(x, y)]
    plan = plan_memory(calls, [y], [], every_argument)
    assert apart(plan, x, y)


def test_in_place_over_another_dtype_of_the_same_size_only():
    x = vector(0)
    for dtype, reused in ((np.dtype(np.float64), True), (np.dtype(np.float32), False)):
        y = vector(1, 100, "made", dtype)
        plan = plan_memory([call("zeros", x), call("cast", y, x)], [y], [], every_argument)
        assert apart(plan, x, y) is not reused


def test_two_results_do_not_take_one_argument():
    x, y, z = vector(0), vector(1), vector(2)
    calls = [call("zeros", x), Call("both", (x,), {}, (y, z))]
    plan = plan_memory(calls, [y, z], [], every_argument)
    assert apart(plan, y, z)
    assert plan.shared == 1


def test_results_and_inputs_keep_their_places():
    """A result stays to the end although no call reads it again; an input is there before the
    first call."""
    x, early, late, other = vector(0, 100, "input"), vector(1), vector(2), vector(3)
    calls = [call("zeros", early), call("zeros", other), call("exp", late, x)]
    plan = plan_memory(calls, [early, late], [x], no_argument)
    assert apart(plan, early, late)
    assert apart(plan, x, early) and apart(plan, x, other)


def test_not_in_place_where_the_result_was_there_before():
    x, y = vector(0), vector(1)
    calls = [call("zeros", x), call("zeros", y), call("add", y, x)]
    assert apart(plan_memory(calls, [y], [], every_argument), x, y)


def test_a_result_that_no_call_touches_has_a_place():
    x = vector(0, 100, "input")
    plan = plan_memory([call("zeros", vector(1))], [x], [x], no_argument)
    assert x.buffer in plan.offsets and plan.nbytes == 2 * 832


def test_nothing_to_plan():
    plan = plan_memory([], [], [], no_argument)
    assert (plan.nbytes, plan.total, plan.peak_before) == (0, 0, 0)
    Memory(plan, CPU)


def test_empty_buffers():
    x, y = vector(0, 0), vector(1, 0)
    plan = plan_memory([call("zeros", x), call("exp", y, x)], [y], [], every_argument)
    assert Memory(plan, CPU).view(y).shape == (0,)


def test_six_hundred_calls_are_planned_quickly():
    step = Step(0, 600)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        plan_memory(step.calls, step.results, step.inputs, every_argument)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.25, "600 calls take about 0.03 s on a quiet machine"


@pytest.mark.parametrize("backend", [CPU, StandInBackend()], ids=lambda b: b.device)
class TestMemory:
    def arena(self, backend, kind="made"):
        array = None
        if kind == "external":
            array = backend.owner(backend.asarray(np.arange(24.0)))
        ref = whole(buffer(0, 24 * 8, kind, array), np.dtype(np.float64))
        plan = plan_memory([call("zeros", ref)], [ref], [], no_argument)
        return ref.buffer, Memory(plan, backend)

    def seen(self, backend, memory, b, offset, shape, strides):
        ref = Ref(b, offset, shape, strides, np.dtype(np.float64))
        return np.array(backend.to_numpy(memory.view(ref)))

    @pytest.mark.parametrize("kind", ["made", "external"])
    def test_views(self, backend, kind):
        b, memory = self.arena(backend, kind)
        numbers = np.arange(24.0)
        everything = memory.view(whole(b, np.dtype(np.float64)))
        backend.copyto(everything, backend.asarray(numbers))
        assert backend.layout(everything)[0] % (ALIGNMENT if kind == "made" else 8) == 0

        def check(expected, *place):
            np.testing.assert_array_equal(self.seen(backend, memory, b, *place), expected)

        check(numbers.reshape(4, 6), 0, (4, 6), (48, 8))
        check(numbers.reshape(4, 6).T, 0, (6, 4), (8, 48))
        check(numbers[::-1], 23 * 8, (24,), (-8,))
        check(numbers[3::5], 3 * 8, (5,), (40,))
        check(np.full((2, 3), 7.0), 7 * 8, (2, 3), (0, 0))
        check(np.array(5.0), 5 * 8, (), ())
        check(np.empty((0, 3)), 0, (0, 3), (24, 8))

    def test_a_ref_has_one_array(self, backend):
        b, memory = self.arena(backend)
        ref = whole(b, np.dtype(np.float64))
        assert memory.view(ref) is memory.view(ref)

    def test_what_is_written_to_outside_memory_is_seen_there(self, backend):
        array = backend.asarray(np.arange(24.0))
        b = buffer(0, 24 * 8, "external", backend.owner(array))
        memory = Memory(plan_memory([], [], [], no_argument), backend)
        part = memory.view(Ref(b, 8, (2,), (8,), np.dtype(np.float64)))
        backend.copyto(part, backend.asarray(np.array([-1.0, -2.0])))
        np.testing.assert_array_equal(backend.to_numpy(array)[:4], [0.0, -1.0, -2.0, 3.0])


def test_outside_memory_in_another_order_or_with_gaps():
    """Offsets count from the first byte in memory, wherever the element at index 0 is."""
    base = np.arange(24.0)
    for array in (base.reshape(4, 6).copy(order="F"), np.arange(24.0).reshape(4, 6)[::-1]):
        owner = CPU.owner(array)
        low, high = CPU.extent(owner)
        address, strides = CPU.layout(array)
        b = buffer(0, high - low, "external", owner)
        ref = Ref(b, address - low, array.shape, strides, array.dtype)
        memory = Memory(plan_memory([], [], [], no_argument), CPU)
        found = memory.view(ref)
        np.testing.assert_array_equal(found, array)
        found[1, 2] = -5.0
        assert array[1, 2] == -5.0
