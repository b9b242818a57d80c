"""Where the memory of a step lies: when each buffer is in use, and its place in one arena.

A buffer is in use from the call that first writes it to the last call that touches it. Two buffers
that are never in use at once may lie at the same place. A call that works element for element may
also write its result over an argument that it is the last to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpubackprop.autograd.shortage import named
from gpubackprop.backends import Array, Backend
from gpubackprop.backends.memory import HOLDERS
from gpubackprop.compile.trace import Buffer, Call, Ref

ALIGNMENT = 64

InPlace = Callable[[Call, Ref], tuple[Ref, ...]]
"""Arguments in whose memory a call may write a result."""


@dataclass
class Plan:
    """Places in the arena.

    Attributes
    ----------
    offsets : first byte of each buffer.
    nbytes : length of the arena.
    total : bytes of all buffers together.
    peak_before : most bytes in use at once, each buffer in memory of its own.
    shared : how many buffers lie in the memory of an argument.
    """

    offsets: dict[Buffer, int] = field(default_factory=dict)
    nbytes: int = 0
    total: int = 0
    peak_before: int = 0
    shared: int = 0

    def describe(self) -> str:
        """The figures in words."""
        total, most, arena = map(size_of, (self.total, self.peak_before, self.nbytes))
        return (
            f"{total} of intermediate results, at most {most} at once, in an arena of {arena} "
            f"({self.shared} written in place)"
        )


def size_of(n: int) -> str:
    """Bytes in words."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n >= scale:
            return f"{n / scale:.1f} {unit}"
    return f"{n} bytes"


@dataclass
class Life:
    """When a buffer is in use: from before call `start` to after call `end`."""

    start: int
    end: int


def lifetimes(
    calls: Sequence[Call], results: Iterable[Ref], inputs: Iterable[Ref]
) -> dict[Buffer, Life]:
    """The life of every buffer that the plan places."""
    lives: dict[Buffer, Life] = {}
    for ref in inputs:
        lives[ref.buffer] = Life(0, 0)
    for i, call in enumerate(calls):
        for ref in [*call.reads, *call.outs, *call.writes]:
            if ref.buffer.kind == "external":
                continue
            life = lives.get(ref.buffer)
            if life is None:
                lives[ref.buffer] = Life(i, i)
            else:
                life.end = i
    for ref in results:
        if ref.buffer.kind != "external":
            lives.setdefault(ref.buffer, Life(0, len(calls))).end = len(calls)
    return lives


def plan_memory(
    calls: Sequence[Call],
    results: Sequence[Ref],
    inputs: Sequence[Ref],
    inplace: InPlace,
) -> Plan:
    """Give every made and input buffer its place.

    Parameters
    ----------
    calls : in order.
    results : what must be there after the last call.
    inputs : what is there before the first.
    inplace : see :data:`InPlace`.
    """
    lives = lifetimes(calls, results, inputs)
    plan = Plan(total=sum(b.nbytes for b in lives))
    plan.peak_before = peak_of(lives)[0]
    hosts = _hosts(calls, lives, inplace)
    plan.shared = len(hosts)
    # A buffer that lies in another's memory makes that one's life longer.
    groups: dict[Buffer, Life] = {}
    for buffer, life in lives.items():
        root = buffer
        while root in hosts:
            root = hosts[root]
        group = groups.setdefault(root, Life(life.start, life.end))
        group.start, group.end = min(group.start, life.start), max(group.end, life.end)
    _place(plan, groups)
    for buffer in lives:
        root = buffer
        while root in hosts:
            root = hosts[root]
        plan.offsets[buffer] = plan.offsets[root]
    return plan


def peak_of(lives: dict[Buffer, Life]) -> tuple[int, int]:
    """The most bytes in use at once, and the first call at which they are."""
    changes: dict[int, int] = {}
    for buffer, life in lives.items():
        changes[life.start] = changes.get(life.start, 0) + buffer.nbytes
        changes[life.end + 1] = changes.get(life.end + 1, 0) - buffer.nbytes
    now = peak = at = 0
    for i in sorted(changes):
        now += changes[i]
        if now > peak:
            peak, at = now, i
    return peak, at


def _hosts(
    calls: Sequence[Call], lives: dict[Buffer, Life], inplace: InPlace
) -> dict[Buffer, Buffer]:
    """For each result that is written over an argument, the argument's buffer."""
    hosts: dict[Buffer, Buffer] = {}
    taken: set[Buffer] = set()
    for i, call in enumerate(calls):
        for out in call.outs:
            buffer = out.buffer
            if buffer.kind != "made" or lives[buffer].start != i or not _whole(out):
                continue
            for ref in inplace(call, out):
                host = ref.buffer
                if (
                    host.kind == "made"
                    and host not in taken
                    and lives[host].end == i
                    and lives[host].start < i
                    and host.nbytes == buffer.nbytes
                    and _whole(ref)
                    and ref.shape == out.shape
                    and ref.strides == out.strides
                    and ref.dtype.itemsize == out.dtype.itemsize
                    and sum(r.buffer is host for r in call.reads) == 1
                ):
                    hosts[buffer] = host
                    taken.add(host)
                    break
    return hosts


def _whole(ref: Ref) -> bool:
    """Whether a ref is every byte of its buffer, in any order of its axes."""
    low, high = ref.bounds
    return low == 0 and high == ref.buffer.nbytes == ref.nbytes


def _place(plan: Plan, groups: dict[Buffer, Life]) -> None:
    """The largest first, each at the lowest place that is free for all of its life."""
    placed: list[tuple[int, int, Life]] = []  # first byte, byte after the last, life
    order = sorted(groups.items(), key=lambda item: (-item[0].nbytes, item[0].number))
    for buffer, life in order:
        size = max(-(-buffer.nbytes // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
        at = 0
        for low, high, other in placed:  # in order of their places
            if other.start <= life.end and life.start <= other.end:
                if low - at >= size:
                    break
                at = max(at, high)
        plan.offsets[buffer] = at
        plan.nbytes = max(plan.nbytes, at + size)
        entry = (at, at + size, life)
        index = next((k for k, p in enumerate(placed) if p[0] > at), len(placed))
        placed.insert(index, entry)


class Memory:
    """The arena of a plan, and the arrays of refs in it.

    Parameters
    ----------
    plan : where each buffer lies.
    backend : whose arrays.
    """

    def __init__(self, plan: Plan, backend: Backend) -> None:
        self.plan, self.backend = plan, backend
        with named("the arena of a compiled step", backend):
            self.arena = backend.owner(backend.empty((plan.nbytes + ALIGNMENT,), "uint8"))
        self._first = -backend.extent(self.arena)[0] % ALIGNMENT
        self._views: dict[int, tuple[Ref, Array]] = {}
        HOLDERS.add(self)

    def holdings(self) -> Iterator[tuple[str, Array]]:
        """The arena, for the error that says what holds a device's memory."""
        yield "arenas of compiled steps", self.arena

    def view(self, ref: Ref) -> Any:
        """The array of a ref; the same one each time."""
        found = self._views.get(id(ref))
        if found is None:
            found = self._views[id(ref)] = (ref, self._made(ref))
        return found[1]

    def meet(self, a: Ref, b: Ref) -> bool:
        """Whether two refs may have bytes in common where they lie now."""
        if a.buffer.kind == "external" or b.buffer.kind == "external":
            return a.overlaps(b)
        (first, end), (start, last) = a.bounds, b.bounds
        i, j = self.plan.offsets[a.buffer], self.plan.offsets[b.buffer]
        return i + first < j + last and j + start < i + end

    def _made(self, ref: Ref) -> Array:
        buffer = ref.buffer
        if buffer.kind == "external":
            owner, first = buffer.array, 0
        else:
            owner, first = self.arena, self._first + self.plan.offsets[buffer]
        return self.backend.view_at(owner, first + ref.offset, ref.shape, ref.strides, ref.dtype)


def chain_in_place(call: Call, out: Ref) -> tuple[Ref, ...]:
    """Arguments in whose memory a chain may write its first result."""
    if call.kernel != "chain" or out is not call.outs[0] or out.size < 2:
        return ()
    inputs, chain = call.args
    if chain.results[0].how != "flat":
        return ()
    return tuple(x for x, kind in zip(inputs, chain.table.kinds, strict=True) if kind == "flat")
