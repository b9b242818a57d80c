"""Recorded calls as native programs: which thread waits where, and what stays with NumPy."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from gpubackprop.backends import Backend
from gpubackprop.backends.cpu.native.abi import Kernel, slot
from gpubackprop.backends.cpu.native.engine import Instruction, Program
from gpubackprop.backends.cpu.native.lowering import Site, load
from gpubackprop.backends.cpu.threads import threads
from gpubackprop.backends.live import LiveFloat
from gpubackprop.backends.primitives import Primitives
from gpubackprop.compile.plan import chain_in_place
from gpubackprop.compile.trace import Call, Ref

if TYPE_CHECKING:
    from gpubackprop.compile.replay import Replay

SMALL_STEP = 2e7
"""A step of less work (multiply-adds, and elements passed over) is left to one thread: waking and
waiting would cost more than the others bring."""

Range = tuple[int, int]


class Pool(Site):
    """A site whose scratch memory is used again by each call.

    The pool is larger than it needs to be; what no call touches never becomes real memory.
    """

    SIZE = 1 << 28

    def __init__(self, parts: int) -> None:
        super().__init__(parts)
        self._memory = np.empty(self.SIZE + 4096, np.uint8)
        self._start = -self._memory.ctypes.data % 4096
        self._used = 0

    def begin(self) -> None:
        """The next call begins: all scratch memory is free."""
        self._used = 0
        self.scratches = []

    def scratch(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self._used + size > self.SIZE:
            return super().scratch(shape, dtype)
        first = self._start + self._used
        self._used += -(-size // 64) * 64
        made: np.ndarray = self._memory[first : first + size].view(dtype).reshape(shape)
        self.scratches.append(made)
        return made


class Hazards:
    """Memory that threads may be reading and writing since they last waited for each other."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """All have waited."""
        self.reads: list[Range] = []
        self.writes: list[Range] = []

    def meet(self, reads: Sequence[Range], writes: Sequence[Range]) -> bool:
        """Whether an instruction with these ranges must wait; notes the ranges."""
        clash = _meet(writes, self.writes) or _meet(writes, self.reads) or _meet(reads, self.writes)
        if clash:
            self.clear()
        self.reads.extend(reads)
        self.writes.extend(writes)
        return clash


def _meet(first: Sequence[Range], second: Sequence[Range]) -> bool:
    return any(a < d and c < b for (a, b), (c, d) in itertools.product(first, second))


def work(call: Call) -> float:
    """A rough measure of a call's work: multiply-adds of products, elements of the rest."""
    reads = call.reads
    largest = max((r.size for r in [*reads, *call.outs]), default=0)
    if call.kernel == "addmm":
        reads = reads[1:]
    if call.kernel in ("matmul", "linear", "addmm") and len(reads) > 1 and reads[0].shape:
        inner = reads[0].shape[-1]
        return float(inner * max(sum(r.size for r in call.outs), 1))
    if call.kernel.startswith(("conv", "attention", "lstm", "gru", "rnn")):
        return 50.0 * largest
    return 4.0 * largest


def assemble(replay: Replay) -> list[Callable[[], None]]:
    """Native programs and plain calls, in order, for the calls of a step."""
    table = load()
    total = sum(map(work, replay.calls))
    parts = 1 if total < SMALL_STEP else threads()
    replay.report.parts = parts
    site = Pool(parts)
    pending: list[Instruction] = []
    before = Kernel.compiled
    hazards = Hazards()

    def flush() -> None:
        if pending:
            ready([i.kernel for i in pending])
            replay.steps.append(_runner(Program(pending, parts), replay.numbers))
            replay.report.programs += 1
            pending.clear()
        hazards.clear()

    for i, call in enumerate(replay.calls):
        if i == replay.split:
            flush()
            replay.reach(i)
        entry = table.get(call.kernel)
        instructions = None
        site.begin()
        if entry is not None:
            args, kwargs, outs = replay.arguments(call)
            instructions = entry.lower(site, outs, *args, **kwargs)
        if instructions is None:
            flush()
            replay.add_plain(call)
            continue
        replay.report.native += 1
        if not instructions:
            continue
        scratch = [np.lib.array_utils.byte_bounds(s) for s in site.scratches if s.size]
        reads = [_range(replay, r) for r in call.reads if r.size]
        writes = [_range(replay, r) for r in [*call.outs, *call.writes] if r.size]
        wait = hazards.meet([*reads, *scratch], [*writes, *scratch])
        first, *rest = instructions
        pending.append(first._replace(wait=wait))
        pending.extend(rest)
    flush()
    replay.report.compiled = Kernel.compiled - before
    return replay.steps


def in_place(call: Call, out: Ref) -> tuple[Ref, ...]:
    """Arguments in whose memory a native kernel may write its first result."""
    entry = load().get(call.kernel)
    if entry is None or not entry.inplace or not call.outs or out is not call.outs[0]:
        return ()
    if out.size < 2:
        return ()
    if call.kernel == "chain":
        return chain_in_place(call, out)
    names = _argument_names(call.kernel)
    found = []
    for name in entry.inplace:
        value = call.kwargs.get(name)
        if value is None and name in names and names.index(name) < len(call.args):
            value = call.args[names.index(name)]
        if isinstance(value, Ref):
            found.append(value)
    return tuple(found)


def _argument_names(kernel: str) -> list[str]:
    method = getattr(Backend, kernel, None)
    if method is None:  # a primitive, or made of several kernels
        return ["x1", "x2"] if "Binary" in str(Primitives.__annotations__.get(kernel)) else ["x"]
    return list(inspect.signature(method).parameters)[1:]


def ready(kernels: Sequence[Kernel]) -> None:
    """Compile what is not in the cache. The first time takes seconds, so it is shown where somebody
    is looking: in a file a bar would stand before the next line, an error's too."""
    for made in tqdm(
        [k for k in dict.fromkeys(kernels) if not k.loaded],
        desc="compiling kernels (kept for later runs)",
        unit="kernel",
        leave=False,
        delay=0.7,
        disable=None,
        file=sys.stderr,
    ):
        _ = made.address


def _range(replay: Replay, ref: Ref) -> Range:
    return np.lib.array_utils.byte_bounds(replay.memory.view(ref))


def _runner(program: Program, numbers: list[float | int]) -> Callable[[], None]:
    """Runs a program with the live numbers as they are now."""
    run, frames = program.run, program.frames
    floats = frames.view(np.float64)
    real = [(value.live, at) for value, at in program.live if isinstance(value, LiveFloat)]
    whole = [(value.live, at) for value, at in program.live if not isinstance(value, LiveFloat)]
    if not program.live:
        return run

    def step() -> None:
        for i, at in real:
            floats[at] = numbers[i]
        for i, at in whole:
            frames[at] = slot(numbers[i])
        run()

    return step
