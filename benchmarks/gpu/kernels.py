"""Single kernels, each contender in a process of its own that makes one kernel after the other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import interleave

NAMES = (
    "copy",
    "gemm-float32",
    "gemm-tf32",
    "gemm-bf16",
    "update",
    "layer-norm",
    "layer-norm-backward",
    "softmax-cross-entropy",
    "softmax-cross-entropy-backward",
    "gelu",
    "gelu-backward",
)
"""Rows of ``gpubackprop.bench.kernels.CASES``, the ceilings first."""
GEMM = 8192
CONTENDERS = ("torch", "torch-compile", "jax", "gb")


def sizes(nbytes: int, gemm: int = GEMM) -> Any:
    """How large the arrays are: kernels limited by memory move `nbytes`."""
    from gpubackprop.bench.kernels import Sizes

    return Sizes(nbytes, gemm, 128, 16)


def maker(contender: str, device: str, nbytes: int, gemm: int) -> tuple[Callable[..., Any], Any]:
    """What makes the call of a kernel for a contender, and the clock that times it."""
    of = sizes(nbytes, gemm)
    if contender == "gb":
        from gpubackprop.backends import get_backend
        from gpubackprop.bench.kernels import CASES

        backend = get_backend(device)
        return lambda name: CASES[name].work(backend, of).call, backend.clock()
    from gpubackprop.bench.peers import load

    peer = load(contender.partition("-")[0], device)
    if contender == "torch-compile":
        return lambda name: _compiled(peer.work(name, of)), peer.clock
    return lambda name: peer.work(name, of), peer.clock


def _compiled(call: Callable[[], Any]) -> Callable[[], Any]:
    import torch

    torch._dynamo.reset()
    return torch.compile(call)


def serve(contender: str, device: str, nbytes: int, gemm: int) -> None:
    """The contender's side: for ``make KERNEL`` it makes and warms a call, and says ``READY``, or
    ``ABSENT`` with the reason; for ``go SECONDS`` it says its calls per second."""
    make, clock = maker(contender, device, nbytes, gemm)
    call: Callable[[], Any] | None = None
    once = 1.0
    print("READY{}", flush=True)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "make":
            call = None  # its arrays make room first
            try:
                call = make(rest)
                clock.seconds(call, 3)
                once = max(clock.seconds(call, 3) / 3, 1e-7)
                print("READY", json.dumps({"clock": clock.source}), flush=True)
            except Exception as error:  # noqa: BLE001 - the parent prints it
                call = None
                print("ABSENT", " ".join(f"{error}".split())[:300] or repr(error), flush=True)
        elif call is not None:
            calls = max(1, round(float(rest) / once))
            print("RATE", calls / clock.seconds(call, calls), flush=True)


def run(
    names: Sequence[str],
    contenders: Sequence[str],
    device: str,
    nbytes: int,
    gemm: int,
    rounds: int,
    seconds: float,
    environment: dict[str, str],
    patience: float,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Time kernels; ``keep`` is given the result as far as it is after each.

    Returns
    -------
    dict
        ``ceilings``: the best rate of any contender, by kernel; ``kernels``: by name and contender
        median, lowest and highest rate (bytes or operations a second), ``of_ceiling``, ``ratio`` to
        ``torch``; or ``absent``.
    """
    import statistics

    from gpubackprop.bench.kernels import CASES

    of = sizes(nbytes, gemm)
    found: dict[str, Any] = {"nbytes": nbytes, "gemm": gemm, "ceilings": {}, "kernels": {}}
    workers: dict[str, interleave.Worker] = {}
    gone: dict[str, str] = {}
    try:
        for name in contenders:
            options = ["--kernel-worker", name, device, str(nbytes), str(gemm)]
            worker = interleave.Worker(
                [sys.executable, "-m", "benchmarks.gpu", *options], environment, patience
            )
            if worker.hear("READY"):
                workers[name] = worker
                worker.pause()
            else:
                gone[name] = worker.ended()
        for kernel in names:
            absent = dict(gone)
            ready: dict[str, interleave.Worker] = {}
            for name, worker in list(workers.items()):
                worker.go_on()
                worker.tell(f"make {kernel}")
                said = worker.hear("READY", "ABSENT")
                if said.startswith("{"):
                    ready[name] = worker
                elif said:
                    absent[name] = said
                else:
                    absent[name] = gone[name] = workers.pop(name).ended()
                    continue
                worker.pause()
            before = set(ready)
            rates = interleave.take_turns(ready, rounds, seconds, absent)
            for name in before - set(ready):  # ended in the middle of its turn
                gone[name] = absent[name]
                workers.pop(name, None)
            rows = found["kernels"][kernel] = _rows(kernel, of, rates, found["ceilings"])
            base = rates.get("torch")
            for name, each in rates.items():
                if base:
                    ratios = [a / b for a, b in zip(each, base, strict=True)]
                    rows[name]["ratio"] = statistics.median(ratios)
            rows |= {name: {"absent": why} for name, why in absent.items()}
            assert kernel in CASES
            keep(found)
    finally:
        for worker in workers.values():
            worker.stop()
    return found


def _rows(
    kernel: str, of: Any, rates: dict[str, list[float]], ceilings: dict[str, float]
) -> dict[str, Any]:
    import statistics

    from gpubackprop.bench.kernels import CASES

    case = CASES[kernel]
    nbytes, flops = case.worth(of)
    each = nbytes or flops
    if case.ceiling == kernel and rates:
        ceilings[kernel] = max(each * max(found) for found in rates.values())
    ceiling = ceilings.get(case.ceiling)
    return {
        name: {
            "unit": "B/s" if nbytes else "FLOP/s",
            "rate": each * statistics.median(found),
            "lowest": each * min(found),
            "highest": each * max(found),
            "of_ceiling": each * statistics.median(found) / ceiling if ceiling else None,
        }
        for name, found in rates.items()
    }


def table(found: dict[str, Any]) -> str:
    """The result for a reader."""
    lines = [
        f"{'kernel':<32}{'contender':<15}{'rate':>16}{'of ceiling':>12}{'to torch':>10}  spread"
    ]
    for kernel, rows in found["kernels"].items():
        for name, r in rows.items():
            head = f"{kernel:<32}{name:<15}"
            if "absent" in r:
                lines.append(f"{head}absent: {r['absent']}")
                continue
            scale, unit = (1e9, "GB/s") if r["unit"] == "B/s" else (1e12, "TFLOP/s")
            share = "-" if r["of_ceiling"] is None else f"{r['of_ceiling']:.0%}"
            ratio = "-" if "ratio" not in r else f"{r['ratio']:.2f}"
            rate = f"{r['rate'] / scale:.4g} {unit}"
            lines.append(
                f"{head}{rate:>16}{share:>12}{ratio:>10}  "
                f"{r['lowest'] / scale:.4g} .. {r['highest'] / scale:.4g}"
            )
    return "\n".join(lines)
