"""The contenders by name, and what one does in a process of its own."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import interleave
from benchmarks.cpu.workloads import ALL, Contender

CONTENDERS = {
    "torch": ("pytorch", "eager"),
    "torch-best": ("pytorch", "best"),
    "torch-compile": ("pytorch", "compile"),
    "jax": ("jax_twin", ""),
    "sklearn": ("sklearn_twin", ""),
    "tinygrad": ("tinygrad_twin", ""),
    "gb-eager": ("ours", "eager"),
    "gb-compiled": ("ours", "compiled"),
    "gb-compiled-fast": ("ours", "compiled-fast"),
}
"""Module and variant of each contender."""

COMPILED = ("torch-compile", "jax", "tinygrad", "gb-compiled", "gb-compiled-fast")
WARM = 5
"""Steps before gradients are compared: by then every contender runs what it compiled."""
SAMPLE = 1 << 20
"""At so many places of a parameter, drawn at random, are gradients and updates compared; most
parameters have fewer."""


def places(size: int, number: int) -> np.ndarray | slice:
    """Where parameter `number` is compared."""
    if size <= SAMPLE:
        return slice(None)
    return np.random.default_rng(number).integers(0, size, SAMPLE)


Table = Mapping[str, tuple[str, str]]


def build(
    name: str, workload: str, dropout: float, table: Table = CONTENDERS, device: str = "cpu"
) -> tuple[Contender, dict[str, Any]]:
    """A contender and what importing it cost.

    Parameters
    ----------
    name, workload : which.
    dropout : probability of dropout in its place.
    table : module and variant by name.
    device : where it trains.
    """
    module, variant = table[name]
    library = importlib.import_module(f"benchmarks.cpu.{module}")
    library.load(variant)
    peak = interleave.peak_memory()
    info = {"import_mb": peak["peak_mb"]} if peak else {}
    made: Contender = library.build(workload, variant, dropout, device)
    return made, info


def timed(step: Callable[[int], Any], sync: Callable[[], Any], i: int) -> float:
    """Seconds of a step."""
    start = time.perf_counter()
    step(i)
    sync()
    return time.perf_counter() - start


def check(
    name: str, workload: str, folder: str, table: Table = CONTENDERS, device: str = "cpu"
) -> None:
    """Take some steps without dropout, then one whose parameters and means before and after go to
    a file, from which :mod:`.agreement` reads the gradient that the step had."""
    made, info = build(name, workload, 0.0, table, device)
    times = [timed(made.step, made.sync, i) for i in range(WARM)]
    state = made.state()
    arrays: dict[str, np.ndarray] = {}
    for i, weight in enumerate(state.weights):
        arrays[f"weight{i}"] = np.array(weight)
    _keep(arrays, "before", state)
    steady = timed(made.step, made.sync, WARM)
    _keep(arrays, "after", made.state())
    np.savez(Path(folder) / f"{name}.npz", allow_pickle=False, **arrays)
    info |= {
        "first_step_s": round(times[0], 6),
        "compile_s": round(max(0.0, sum(times) - WARM * steady), 6),
        "cost": made.cost or ALL[workload].cost,
        "plain_eps": made.plain_eps,
        "note": made.note,
    }
    print("CHECK" + json.dumps(info), flush=True)


def _keep(arrays: dict[str, np.ndarray], when: str, state: Any) -> None:
    parts = {"weights": state.weights, "first": state.first, "second": state.second}
    for part, values in parts.items():
        for i, value in enumerate(values or []):
            at = places(value.size, i)
            arrays[f"{when}-{part}{i}"] = np.array(np.ravel(value)[at])


def serve(name: str, workload: str, table: Table = CONTENDERS, device: str = "cpu") -> None:
    """Run steps when told."""
    made, info = build(name, workload, ALL[workload].dropout, table, device)
    turn = -1

    def step() -> None:
        nonlocal turn
        turn += 1
        made.step(turn)

    for _ in range(WARM):
        step()
    made.sync()
    if (taken := made.memory()) is not None:
        info["device_mb"] = round(taken / 1e6)
    interleave.serve(made.call or step, info, made.steps_per_call, made.sync, made.measure)
