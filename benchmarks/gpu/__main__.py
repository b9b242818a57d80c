"""Training steps and kernels on a GPU: this project, PyTorch eager and compiled, JAX.

    python -m benchmarks.gpu [--only W1,G1,kernels,memory] [--contenders torch,gb-compiled]
                             [--rounds 5] [--seconds 0.5] [--size 1GiB] [--patience 120]
                             [--limit 180] [--json FILE] [--device cuda]

W1 to W5 are the workloads of ``benchmarks.cpu`` in float32, W3-tf32 the third with TF32 products,
G1 a block of GPT-2 small (width 768, 12 heads, context 1,024, batch 16) and G2 a residual network
of 18 layers (batch 128, 32 x 32, channels last), both in bf16-mixed. A step is forward, backward,
clipping where the workload has it, and update, on a batch that is already on the device.

Each contender has a process of its own; they take turns, and the others are stopped meanwhile.
Times are CUDA events around the steps of a turn; JAX gives none, so there it is the host's clock
until the last result is there. Before anything is timed each contender's gradient and update are
compared with float64 on the CPU (``benchmarks.cpu.agreement``); one that differs is named and not
timed, and one that cannot run is named with the reason.

``torch``: eager, default optimizer. ``torch-compile`` and ``torch-max-autotune``: forward and
backward compiled, fused optimizer, channels last. ``gb-compiled``: the recorded step, one CUDA
graph where that is possible. Ratios are of steps per second to ``torch``, round by round.

The limit of a step: its products at the best rate of a large product in its precision, then the
bytes of its update at the best rate of a copy, both measured first in this run by every library.
Memory is what the contender's pools took from the device; that of CUDA and its libraries is not
counted; ``--only memory`` asks for the high-water mark of every recipe instead
(``benchmarks.gpu.memory``). The first step is timed while the other contenders take theirs, with
empty caches.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import interleave
from benchmarks.cpu import agreement, contenders
from benchmarks.cpu.workloads import ALL, AbsentError
from benchmarks.gpu import kernels, memory

CONTENDERS = {
    "torch": ("pytorch", "eager"),
    "torch-compile": ("pytorch", "compile"),
    "torch-max-autotune": ("pytorch", "max-autotune"),
    "jax": ("jax_twin", "gpu"),
    "gb-eager": ("ours", "eager"),
    "gb-compiled": ("ours", "compiled"),
}
"""Module and variant of each contender."""
WORKLOADS = ("W2", "G1", "W3-tf32", "G2", "W5", "W1", "W4", "W3")
"""In order of importance: a run that is ended early has had the first."""
PRODUCTS = {"float32": "gemm-float32", "tf32": "gemm-tf32", "bf16-mixed": "gemm-bf16"}
"""The ceiling of the products of each precision."""
PARTS = ("kernels", "memory")
"""What there is beside the workloads."""
SHORTEST = 10.0
"""Seconds in which a workload can be compared and timed."""
COMPARING, STARTING = 0.5, 0.6
"""Shares of the seconds that are left which contenders may take to compile and be compared, and to
get ready a second time, from a cache."""
HEADER = (
    f"{'contender':<20}{'steps/s':>10}{'ms/step':>10}{'ratio':>7}  {'lowest..highest':<17}"
    f"{'of limit':>9}{'device MB':>11}{'first s':>9}{'gradient':>10}"
)


def one(
    name: str,
    options: argparse.Namespace,
    ceilings: dict[str, float],
    host: dict[str, str],
    time_left: Callable[[], float],
) -> dict[str, Any]:
    """Compare and time the contenders at one workload, and print the table."""
    w = ALL[name]
    left = time_left()
    if left < SHORTEST:
        print(f"\n{name}: not started, {max(left, 0):.0f} s are left", flush=True)
        return {"absent": "no time was left"}
    limit = None
    if "copy" in ceilings and PRODUCTS[w.precision] in ceilings:
        limit = w.floor(ceilings[PRODUCTS[w.precision]], ceilings["copy"])
    said = "" if limit is None else f"; limit {1e3 * limit:.4g} ms"
    print(f"\n{name}: {w.title}, {w.precision}\n{w.flops / 1e9:.4g} GFLOP a step{said}", flush=True)
    place = f"{name}@{options.device}"
    with tempfile.TemporaryDirectory() as folder:
        environment = host | {"TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, "inductor")}
        # Of what is left, a part for compiling and comparing, and the most of the rest for the
        # second start: one that takes longer is ended, and the others are timed.
        names = options.contenders
        infos, absent = agreement.run(
            place,
            names,
            environment,
            min(options.patience, COMPARING * left),
            "benchmarks.gpu",
            together=True,
        )
        patience = min(options.patience, max(1.0, STARTING * time_left()))
        for contender, info in infos.items():
            if info["differs"]:
                absent[contender] = f"not timed: {info['differs']}"
        timed, gone = interleave.run(
            "benchmarks.gpu",
            place,
            [n for n in names if n not in absent],
            options.rounds,
            options.seconds,
            environment,
            patience,
            together=True,
        )
    absent |= gone
    peers = any(r.name == "torch" for r in timed)
    found: dict[str, Any] = {"title": w.title, "precision": w.precision, "flops": w.flops}
    found |= {"limit_s": limit, "contenders": {}, "absent": absent}
    print(HEADER)
    for r in timed:
        skipped = ("cost", "plain_eps", "differs", "note")
        row = {k: v for k, v in infos[r.name].items() if k not in skipped} | {
            "steps_per_s": r.steps_per_second,
            "ratio_to_torch": r.ratio if peers else None,
            "spread": [r.lowest, r.highest] if peers else None,
            "limit_share": None if limit is None else limit * r.steps_per_second,
            **r.info,
        }
        found["contenders"][r.name] = row
        print(_line(r.name, row))
    for contender, why in absent.items():
        print(f"{contender:<20}absent: {why}")
    sys.stdout.flush()
    return found


def _line(name: str, r: dict[str, Any]) -> str:
    ratio = "-" if r["ratio_to_torch"] is None else f"{r['ratio_to_torch']:.2f}"
    spread = "-" if r["spread"] is None else "{:.2f} .. {:.2f}".format(*r["spread"])
    share = "-" if r["limit_share"] is None else f"{r['limit_share']:.1%}"
    return (
        f"{name:<20}{r['steps_per_s']:>10.1f}{1e3 / r['steps_per_s']:>10.3f}{ratio:>7}  "
        f"{spread:<17}{share:>9}{r.get('device_mb', '-'):>11}{r['first_step_s']:>9.2f}"
        f"{r['gradient_error']:>10.0e}"
    )


def worker(run: Callable[..., None], name: str, place: str, *more: str) -> None:
    """Run a contender's side at a workload on a device, given as ``WORKLOAD@DEVICE``."""
    workload, _, device = place.partition("@")
    run(name, workload, *more, table=CONTENDERS, device=device)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the tables, and write what was measured after each of them."""
    given = list(sys.argv[1:] if argv is None else argv)
    inside: dict[str, Callable[[list[str]], None]] = {
        "--worker": lambda a: worker(contenders.serve, *a),
        "--check": lambda a: worker(contenders.check, *a),
        "--memory": lambda a: memory.serve(*a),
        "--kernel-worker": lambda a: kernels.serve(a[0], a[1], int(a[2]), int(a[3])),
    }
    if given and given[0] in inside:
        try:
            inside[given[0]](given[1:])
        except (AbsentError, ImportError, RuntimeError) as error:
            print(" ".join(str(error).split()), file=sys.stderr)
            return 1
        return 0
    options = parse(given)
    if threading.current_thread() is threading.main_thread():
        # A polite end, such as timeout's, has contenders stopped and folders removed too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    problem = trouble(options.device)
    if problem:
        print(f"benchmarks.gpu: {problem}", file=sys.stderr)
        return 1
    report: dict[str, Any] = {"machine": machine(), "device": options.device, "workloads": {}}
    print(json.dumps(report["machine"]), flush=True)

    def keep(part: str | None = None, value: Any = None) -> None:
        if part is not None:
            report[part] = value
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump(report, file, indent=1)

    began = time.monotonic()

    def time_left() -> float:
        return float(options.limit) - (time.monotonic() - began)

    # JAX would take three quarters of the memory at once; the others need room beside it.
    host = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    wanted = list(kernels.NAMES) if "kernels" in options.only else list(kernels.NAMES[:4])
    if "memory" in options.only:
        report["memory"] = memory.run(options.contenders, options.device, host, options.patience)
        print(memory.table(report["memory"]), flush=True)
        keep()
        if options.only == ["memory"]:
            return 0
    names = [n for n in kernels.CONTENDERS if any(c.startswith(n) for c in options.contenders)]
    found = kernels.run(
        wanted,
        names if "kernels" in options.only else [n for n in names if n in ("torch", "gb")],
        options.device,
        options.size,
        options.gemm,
        options.rounds,
        min(options.seconds, 0.2),
        host,
        options.patience,
        lambda found: keep("kernels", found),
    )
    print(kernels.table(found), flush=True)
    for workload in (n for n in options.only if n not in PARTS):
        report["workloads"][workload] = one(workload, options, found["ceilings"], host, time_left)
        keep()
    return 0


def trouble(device: str) -> str:
    """Why a device cannot be used, or nothing."""
    from gpubackprop.backends.device import choose
    from gpubackprop.errors import DeviceError

    try:
        choose(device)
    except DeviceError as error:
        return str(error)
    return ""


def machine() -> dict[str, Any]:
    """Processor, GPUs and versions."""
    from gpubackprop.backends import detect

    return {**interleave.machine(), "gpus": [str(d) for d in detect.devices()]}


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The options, with unknown names refused."""
    from gpubackprop.backends.memory import parse_bytes

    def among(known: Sequence[str]) -> Callable[[str], list[str]]:
        def read(text: str) -> list[str]:
            names = text.split(",")
            for name in names:
                if name not in known:
                    raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
            return names

        return read

    parser = argparse.ArgumentParser("benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", type=among([*ALL, *PARTS]), default=["kernels", *WORKLOADS], metavar="NAMES"
    )
    parser.add_argument("--contenders", type=among(list(CONTENDERS)), default=list(CONTENDERS))
    parser.add_argument("--device", default="cuda:0", help="another for a trial, such as cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn")
    parser.add_argument("--size", type=parse_bytes, default=1 << 30, help="what kernels move")
    parser.add_argument("--gemm", type=int, default=kernels.GEMM, help="width of the products")
    parser.add_argument(
        "--patience",
        type=float,
        default=120.0,
        help="seconds after which a contender that is not ready is ended, and named as timed out",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=math.inf,
        help="seconds for all of it: contenders get a share of what is left, and workloads for "
        "which no time is left are named",
    )
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
