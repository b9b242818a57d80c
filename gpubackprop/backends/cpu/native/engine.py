"""Running a list of native kernels on one pool of threads.

Every thread walks the same list and does its part of each instruction; where an instruction reads
what another part may still be writing, all wait for each other first (a *barrier*). From the first
kernel of a step to the last there is no Python, no lock and no other pool: waiting is a short spin.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from gpubackprop.backends.cpu.native import blas
from gpubackprop.backends.cpu.native.abi import (
    FAST,
    Kernel,
    atomic_add,
    atomic_load,
    atomic_store,
    call_kernel,
    longs,
    slot,
)
from gpubackprop.backends.cpu.threads import threads

TROUBLE = {1: "an index is out of range", 2: "a target is no class"}
"""What a kernel may say through the status word."""

_SPINS = 2000  # looks at a barrier before the thread lets another one run

_yield = types.ExternalFunction("sched_yield", types.int32())


@numba.njit(nogil=True, **FAST)
def _walk(program, count, part, parts, barrier):
    """Part `part` of every instruction.

    program : address of (count, 4) int64: kernel, frame, whether all parts work on it, whether to
        wait for the other parts before it.
    barrier : address of int64 words on cache lines of their own: arrivals, generation, status, and
        whether to stop. The generation only grows, so that a thread that is late to notice the end
        of one run cannot take the next one's beginning for it; the last to arrive decides for all
        whether to stop, so that none waits for one that has left; and those that stop wait for each
        other at the end too, so that nobody still has to read the decision when the next run
        begins.
    """
    rows = longs(program, count, 4)
    i = 0
    while True:
        if parts > 1 and (i == count or rows[i, 3]):
            generation = atomic_load(barrier + 64)
            if atomic_add(barrier, 1) == parts - 1:
                atomic_store(barrier + 192, atomic_load(barrier + 128))
                atomic_store(barrier, 0)
                atomic_add(barrier + 64, 1)
            else:
                spins = 0
                while atomic_load(barrier + 64) == generation:
                    spins += 1
                    if spins > _SPINS:
                        _yield()
        if i == count:
            break
        if rows[i, 3] and atomic_load(barrier + (192 if parts > 1 else 128)):
            i = count
            continue
        if rows[i, 2]:
            call_kernel(rows[i, 0], rows[i, 1], part, parts)
        elif part == i % parts:
            call_kernel(rows[i, 0], rows[i, 1], 0, 1)
        i += 1


class Instruction(NamedTuple):
    """One kernel and what it works on.

    Attributes
    ----------
    kernel : what runs.
    slots : the frame: arrays, integers, floats, or objects with a ``slot`` that are replaced before
        each run (see ``Program.bind``).
    parallel : whether all threads work on it; small work is done by one of them.
    wait : whether parts must wait for each other before it.
    """

    kernel: Kernel
    slots: Sequence[Any]
    parallel: bool = True
    wait: bool = True


class Program:
    """A list of instructions, ready to run.

    Parameters
    ----------
    instructions : in order.
    parts : how many threads; at most ``threads()``.
    """

    def __init__(self, instructions: Sequence[Instruction], parts: int) -> None:
        self.parts = max(1, min(parts, threads()))
        self.names = [i.kernel.name for i in instructions]
        self._kept = [s for i in instructions for s in i.slots if isinstance(s, np.ndarray)]
        starts = np.cumsum([0, *(len(i.slots) for i in instructions)])
        self.frames = np.zeros(max(int(starts[-1]), 1), np.int64)
        self.rows = np.zeros((len(instructions), 4), np.int64)
        self.live: list[tuple[Any, int]] = []  # numbers that are written before each run
        at = self.frames.ctypes.data
        for i, (instruction, start) in enumerate(zip(instructions, starts, strict=False)):
            for j, value in enumerate(instruction.slots):
                if getattr(value, "live", None) is not None:
                    self.live.append((value, int(start) + j))
                else:
                    self.frames[start + j] = slot(value)
            self.rows[i] = (
                instruction.kernel.address,
                at + 8 * int(start),
                instruction.parallel,
                instruction.wait,
            )
        self._job = (self.rows.ctypes.data, len(instructions))

    def run(self) -> None:
        """Run every instruction.

        Raises
        ------
        IndexError
            A kernel found data that it cannot use. What comes after it did not run.
        """
        status = TEAM.run(*self._job, self.parts)
        if status:
            raise IndexError(TROUBLE.get(status, f"status {status}"))


class Team:
    """The pool: threads that wait for a program and walk it together with the caller.

    There is one, made when it is first needed; a program that finds it at work waits.
    """

    def __init__(self) -> None:
        words = np.zeros(64, np.int64)
        first = -words.ctypes.data % 64 // 8
        self.words = words[first : first + 32]
        self._barrier = int(self.words.ctypes.data)
        self._forget()

    def _forget(self) -> None:
        """A forked process has none of its parent's threads. Where the words are stays the same:
        frames hold the address of the status."""
        self._lock = threading.Lock()
        self._workers: list[threading.Lock] = []  # a worker takes its lock to begin a job
        self._job: Any = None
        self.words[:] = 0

    def run(self, program: int, count: int, parts: int) -> int:
        """Walk a program with `parts` threads; gives the status word."""
        with self._lock, blas.ONE_THREAD:
            self.words[16] = 0
            if parts > 1:
                while len(self._workers) < parts - 1:
                    self._hire()
                self._job = (program, count, parts)
                # Locks, whose release is one step for the interpreter: were an interrupt from the
                # keyboard raised between it and the walk, workers would wait for ever.
                for k in range(parts - 1):
                    self._workers[k].release()
            _walk(program, count, 0, parts, self._barrier)
            return int(self.words[16])

    def _hire(self) -> None:
        ready = threading.Lock()
        ready.acquire()
        part = len(self._workers) + 1

        def work() -> None:
            while True:
                ready.acquire()
                program, count, parts = self._job
                _walk(program, count, part, parts, self._barrier)

        threading.Thread(target=work, name=f"gpubackprop-native-{part}", daemon=True).start()
        self._workers.append(ready)


TEAM = Team()
STATUS: np.ndarray = TEAM.words[16:17]
"""Where kernels report (``abi.raise_status``)."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=TEAM._forget)
