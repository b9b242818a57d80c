"""The pool of threads that walks native programs: waiting, stopping, several callers, forks."""

import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends.cpu.native import blas
from gpubackprop.backends.cpu.native.abi import atomic_add, kernel, longs, raise_status
from gpubackprop.backends.cpu.native.engine import STATUS, TEAM, Instruction, Program

PARTS = [1, 2, 3]


@kernel
def pass_on(frame, part, parts):
    """Each part writes 3 a + b + 1 for what its neighbour wrote (a) and itself (b).
    Frame: read, write, n."""
    n = frame[2]
    other = (part + 1) % parts
    a = longs(frame[0] + 8 * n * other, n)
    b, c = longs(frame[0] + 8 * n * part, n), longs(frame[1] + 8 * n * part, n)
    for i in range(n):
        c[i] = 3 * a[i] + b[i] + 1


@kernel
def count(frame, part, parts):
    """Adds one. Frame: the number."""
    atomic_add(frame[0], 1)


@kernel
def complain(frame, part, parts):
    """Frame: status, code, the part that complains."""
    if part == frame[2]:
        raise_status(frame[0], frame[1])


@kernel
def dawdle(frame, part, parts):
    """The last part works much longer than the others. Frame: numbers (parts,), how much."""
    if part == parts - 1:
        for _ in range(frame[1]):
            atomic_add(frame[0] + 8 * part, 1)


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("parts", PARTS)
def test_parts_see_what_others_wrote_before(parts, size):
    """A chain of instructions, each of which reads what another part wrote in the one before."""
    two = np.zeros((2, parts, size), np.int64)
    two[0] = np.arange(parts * size).reshape(parts, size)
    expected = two[0].copy()
    instructions = []
    with np.errstate(over="ignore"):
        for i in range(400):
            instructions.append(Instruction(pass_on, [two[i % 2], two[(i + 1) % 2], size]))
            expected = 3 * np.roll(expected, -1, axis=0) + expected + 1
    Program(instructions, parts).run()
    np.testing.assert_array_equal(two[0], expected)


@pytest.mark.parametrize("parts", PARTS)
def test_instructions_that_need_not_wait_and_small_ones(parts):
    numbers = np.zeros(4, np.int64)
    instructions = [
        Instruction(count, [numbers[i % 4 :]], parallel=i % 3 == 0, wait=i % 5 == 0)
        for i in range(60)
    ]
    Program(instructions, parts).run()
    assert numbers.sum() == 20 * parts + 40


@pytest.mark.parametrize("by", [0, 1, 2])
@pytest.mark.parametrize("parts", PARTS)
def test_trouble_stops_every_part_at_the_same_place(parts, by):
    """Whoever complains, and however late the others come."""
    numbers, time = np.zeros(3, np.int64), np.zeros(3, np.int64)
    program = Program(
        [
            Instruction(count, [numbers]),
            Instruction(dawdle, [time, 20000]),
            Instruction(complain, [STATUS, 2, min(by, parts - 1)], wait=False),
            Instruction(count, [numbers[1:]], wait=False),
            Instruction(count, [numbers[2:]]),
            Instruction(count, [numbers[2:]], parallel=False),
        ],
        parts,
    )
    for i in range(1, 21):
        with pytest.raises(IndexError, match="target"):
            program.run()
        assert numbers.tolist() == [i * parts, i * parts, 0]
    Program([Instruction(count, [numbers[2:]])], parts).run()  # what comes next is not stopped
    assert numbers[2] == parts


@pytest.mark.parametrize("parts", PARTS)
def test_trouble_in_the_last_instruction_is_told(parts):
    program = Program([Instruction(complain, [STATUS, 1, parts - 1])], parts)
    with pytest.raises(IndexError, match="index"):
        program.run()


@pytest.mark.parametrize("parts", PARTS)
def test_ten_thousand_tiny_programs(parts):
    numbers = np.zeros(1, np.int64)
    one = Program([Instruction(count, [numbers])], parts)
    other = Program([], parts)
    for _ in range(5000 if parts == 2 else 500):
        one.run()
        other.run()
    assert numbers[0] == (5000 if parts == 2 else 500) * parts


def test_programs_of_different_sizes_by_turns():
    numbers = np.zeros(1, np.int64)
    programs = [Program([Instruction(count, [numbers])] * 5, parts) for parts in (1, 2, 3)]
    for i in range(600):
        programs[i % 3].run()
    assert numbers[0] == 200 * 5 * 6


def test_two_python_threads_run_programs_at_once():
    numbers = np.zeros((2, 1), np.int64)
    errors = []

    def work(which, parts, complains):
        more = [Instruction(complain, [STATUS, 1, 0])] if complains else []
        program = Program([Instruction(count, [numbers[which]]), *more], parts)
        for _ in range(400):
            try:
                program.run()
            except IndexError:
                errors.append(which)

    callers = [
        threading.Thread(target=work, args=(0, 3, False)),
        threading.Thread(target=work, args=(1, 2, True)),
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    assert numbers.ravel().tolist() == [1200, 800]
    assert errors == [1] * 400  # each caller hears of its own trouble alone


def _in_child(answer):
    numbers = np.zeros(1, np.int64)
    Program([Instruction(count, [numbers])] * 3, 3).run()
    try:
        Program([Instruction(complain, [STATUS, 1, 2])], 3).run()
        answer.send((int(numbers[0]), "nothing"))
    except IndexError:
        answer.send((int(numbers[0]), "trouble"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_a_pool_of_its_own():
    Program([Instruction(count, [np.zeros(1, np.int64)])], 3).run()
    assert len(TEAM._workers) >= 2
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_in_child, args=(theirs,))
    child.start()
    try:
        assert ours.poll(60), "the child hangs"
        assert ours.recv() == (9, "trouble")
        child.join(60)
        assert child.exitcode == 0
    finally:
        if child.is_alive():
            child.kill()
    Program([Instruction(count, [np.zeros(1, np.int64)])], 3).run()


def test_the_library_for_products_has_its_threads_back(monkeypatch):
    found = blas.chosen()
    assert found is not None
    now = [4]
    seen = []

    def put(n):
        now[0] = n
        seen.append(n)

    fake = found._replace(get_threads=lambda: now[0], set_threads=put)
    monkeypatch.setattr(blas, "chosen", lambda: fake)
    Program([], 2).run()
    assert (seen, now) == ([1, 4], [4])
    with pytest.raises(IndexError):
        Program([Instruction(complain, [STATUS, 1, 0])], 2).run()
    assert (seen, now) == ([1, 4] * 2, [4])


# In a process of its own, whose BLAS has two threads: products and elementwise work, natively and
# by NumPy.
FIGHT = """
import threading
import time
from pathlib import Path
import numpy as np
from gpubackprop.backends.cpu.native import blas
from gpubackprop.backends.cpu.native.engine import Program
from gpubackprop.backends.cpu.native.lowering import Site, load

table, site = load(), Site(2)
rng = np.random.default_rng(0)
x = rng.standard_normal((256, 512)).astype(np.float32)
w = rng.standard_normal((512, 512)).astype(np.float32) / 16
layers = [np.empty((256, 512), np.float32) for _ in range(6)]
instructions, before = [], x
for i in range(0, 6, 2):
    instructions += table["linear"].lower(site, (layers[i],), before, w)
    instructions += table["tanh"].lower(site, (layers[i + 1],), layers[i])
    before = layers[i + 1]
program = Program(instructions, 2)

def plain():
    h = x
    for _ in range(3):
        h = np.tanh(h @ w.T)
    return h

program.run()
threads, best = blas.chosen().get_threads(), [9.0, 9.0]
for i, work in enumerate((program.run, plain)):  # not by turns: the BLAS's threads rest late
    for _ in range(40):
        start = time.perf_counter()
        work()
        best[i] = min(best[i], time.perf_counter() - start)
np.testing.assert_allclose(layers[-1], plain(), rtol=1e-4, atol=1e-5)
assert blas.chosen().get_threads() == threads

def busy():
    # Nanoseconds that threads which Python does not know have run.
    ours = {str(t.native_id) for t in threading.enumerate()}
    tasks = Path("/proc/self/task")
    others = [t for t in tasks.glob("*") if t.name not in ours]
    return sum(int((t / "schedstat").read_text().split()[0]) for t in others)

share = 0.0
if Path("/proc/self/schedstat").exists():
    time.sleep(0.3)  # threads of the BLAS look out for more work for a while
    before, start = busy(), time.thread_time_ns()
    for _ in range(40):
        program.run()
    share = (busy() - before) / (time.thread_time_ns() - start)
print(threads, *best, share)
"""


def test_two_pools_do_not_fight():
    """Threads of the BLAS beside our own made such a program ten times slower. The bound of the
    times is wide, since other programs may run here; that the BLAS's threads rest is exact."""
    made = subprocess.run(
        [sys.executable, "-c", FIGHT],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "2", blas.VARIABLE: "numpy"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    threads, native, numpy, others = map(float, made.stdout.split())
    if threads != 2:
        pytest.skip("this machine gives the BLAS one thread")
    assert others < 0.02
    assert native < 4 * numpy, (native, numpy)
