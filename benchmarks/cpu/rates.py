"""What the machine can do: its rate at matrix products and its bandwidth to memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SIZE = 2048
SETS = (4, 16, 64, 256)
"""Sizes of the working set that the bandwidth is measured at, in MiB."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUM_CPU_THREADS")


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(threads: int) -> dict[str, str]:
    """The environment of a process whose libraries take so many threads."""
    return {**os.environ, **{name: str(threads) for name in THREADS}}


def best(call: Callable[[], Any], seconds: float) -> float:
    """The shortest time of a call, of as many as fit."""
    call()
    end, shortest = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def gemm(library: str, seconds: float) -> float:
    """Floating point operations a second of a product of square float32 matrices."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIZE, SIZE), dtype=np.float32) for _ in range(2))
    if library == "numpy":
        out = np.empty_like(a)
        return 2 * SIZE**3 / best(lambda: np.matmul(a, b, out=out), seconds)
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    made = torch.empty_like(x)
    return 2 * SIZE**3 / best(lambda: torch.matmul(x, y, out=made), seconds)


def bandwidth(mebibytes: int, threads: int, seconds: float) -> float:
    """Bytes a second that all threads move together: ``a = b + c`` on parts of three arrays, two
    reads and a write an element (the traffic of STREAM's triad)."""
    n = mebibytes * 2**20 // 12 // threads
    rounds = 5
    rate = [[0.0] * threads for _ in range(rounds)]
    barrier = threading.Barrier(threads)

    def work(place: int) -> None:
        a, b, c = (np.ones(n, np.float32) for _ in range(3))
        for made in rate:
            barrier.wait()
            start, passes = time.perf_counter(), 0
            while (taken := time.perf_counter() - start) < seconds / rounds or not passes:
                np.add(b, c, out=a)
                passes += 1
            made[place] = 12 * n * passes / taken

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    return max(map(sum, rate))


def worker(what: str, seconds: float) -> None:
    """Measure one rate in this process and print it."""
    if what == "bandwidth":
        print(json.dumps({str(size): bandwidth(size, cores(), seconds) for size in SETS}))
    else:
        print(json.dumps(gemm(what, seconds)))


def measure(seconds: float = 0.4, attempts: int = 3) -> dict[str, Any]:
    """Rates of the machine, each measured in a process of its own; the best of some attempts.

    Returns
    -------
    dict
        ``flops_per_s``: the largest rate of a matrix product over NumPy on one to all threads and
        PyTorch on all; ``gemm``: each of them; ``bytes_per_s``: bandwidth by working set in MiB.
    """

    def run(what: str, threads: int) -> Any:
        command = [sys.executable, "-m", "benchmarks.cpu", "--rate", what, str(seconds)]
        made = subprocess.run(command, capture_output=True, text=True, env=environment(threads))
        return json.loads(made.stdout.splitlines()[-1]) if made.returncode == 0 else None

    counts = sorted({1, *(2**i for i in range(1, 8) if 2**i < cores()), cores()})
    wanted = [("numpy", n) for n in counts] + [("torch", cores())]
    rates: dict[str, float] = {}
    moved: dict[int, float] = {}
    for _ in range(attempts):
        for library, n in wanted:
            if rate := run(library, n):
                key = f"{library} x{n}"
                rates[key] = max(rate, rates.get(key, 0.0))
        for size, rate in run("bandwidth", cores()).items():
            moved[int(size)] = max(rate, moved.get(int(size), 0.0))
    return {"flops_per_s": max(rates.values()), "gemm": rates, "bytes_per_s": moved}


def bandwidth_for(rates: dict[str, Any], parameters: int) -> float:
    """The bandwidth at the largest measured set that is no larger than a network's parameters,
    gradients and two means, or at the smallest: what is nearer to the core is faster, so that the
    floor stays one."""
    table: dict[int, float] = rates["bytes_per_s"]
    mebibytes = 16 * parameters / 2**20
    fitting = [size for size in table if size <= mebibytes]
    return table[max(fitting, default=min(table))]
