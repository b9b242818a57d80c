"""Training steps of six networks on the CPU: this project, PyTorch, JAX, scikit-learn, tinygrad.

    python -m benchmarks.cpu [--only W1,W2] [--contenders torch,gb-eager] [--rounds 7]
                             [--seconds 1.0] [--json FILE] [--chart FILE] [--cold]

A step is forward, backward, clipping where the workload has it, and update, in float32, on a
batch that is already in memory in the contender's own form. Each contender has a process of its own
with as many threads as there are cores; they take turns, and the others are stopped meanwhile.
Ratios are of steps per second to PyTorch eager with its default optimizer, round by round. A
contender whose gradient or update differs from float64's is named and not timed; one that cannot
run is named with the reason.

``torch-best``: eager, fused optimizer, pictures with their channels last. ``torch-compile``: the
same with the forward and backward pass compiled. ``gb-compiled``: the recorded step on plain NumPy;
``gb-compiled-fast``: with native kernels (the extra ``fast``). ``jax``: the whole step jitted, with
donated arguments. ``sklearn``: ``MLPClassifier.partial_fit``. ``tinygrad``: TinyJit.

Memory is the most that the process which is timed ever held (VmHWM), imports included; what
imports alone take stands beside it. The first step is timed in a fresh process, without dropout,
with the compilers' caches empty but for Numba's; ``--cold`` empties that too. The time to compile
is what the first five steps take beyond five later ones.

The limit: floating point operations of the products that a step needs, at the machine's best rate
of any library here, and then the bytes that the update has to move, at its bandwidth.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

from benchmarks import interleave
from benchmarks.cpu import agreement, contenders, rates
from benchmarks.cpu.workloads import WORKLOADS, AbsentError

HEADER = (
    f"{'contender':<18}{'steps/s':>10}{'ms/step':>10}{'ratio':>7}  {'lowest..highest':<17}"
    f"{'of limit':>9}{'peak MB':>9}{'imports':>9}{'first s':>9}{'compile s':>10}{'gradient':>10}"
)


def row(name: str, r: dict[str, Any]) -> str:
    """One line of a table."""
    ratio, spread = "-", "-"
    if r["ratio_to_torch"] is not None:
        ratio = f"{r['ratio_to_torch']:.2f}"
        spread = "{:.2f} .. {:.2f}".format(*r["spread"])
    rate = r["steps_per_s"]
    compiled = f"{r['compile_s']:.1f}" if name in contenders.COMPILED else "-"
    return (
        f"{name:<18}{rate:>10.1f}{1e3 / rate:>10.3f}{ratio:>7}  {spread:<17}"
        f"{r['limit_share']:>9.1%}{r.get('peak_mb', '-'):>9}{r.get('import_mb', '-'):>9}"
        f"{r['first_step_s']:>9.2f}{compiled:>10}{r['gradient_error']:>10.0e}"
    )


def one(
    name: str, names: Sequence[str], options: argparse.Namespace, machine: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Compare and time the contenders at one workload, and print the table.

    Returns
    -------
    results, absent, limit : by contender, why not, and what the machine allows.
    """
    w = WORKLOADS[name]
    bandwidth = rates.bandwidth_for(machine, w.parameters)
    floor = w.floor(machine["flops_per_s"], bandwidth)
    limit = {
        "flops": w.flops,
        "update_bytes": w.update_bytes,
        "parameters": w.parameters,
        "flops_per_s": machine["flops_per_s"],
        "bytes_per_s": bandwidth,
        "seconds": floor,
    }
    print(
        f"\n{name}: {w.title}\n{w.parameters:,} parameters, {w.flops / 1e9:.4g} GFLOP, "
        f"{w.update_bytes / 1e6:.4g} MB; limit {1e3 * floor:.4g} ms",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = rates.environment(rates.cores())
        environment |= {
            "TMPDIR": folder,  # PyTorch's compiler keeps headers there, whatever its cache is
            "TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, "inductor"),
            "CACHEDB": os.path.join(folder, "tinygrad.db"),
        }
        if options.cold:
            environment["NUMBA_CACHE_DIR"] = os.path.join(folder, "numba")
        infos, absent = agreement.run(name, names, environment, options.patience)
        for contender, info in infos.items():
            if info["differs"]:
                absent[contender] = f"not timed: {info['differs']}"
        good = [contender for contender in names if contender not in absent]
        timed, gone = interleave.run(
            "benchmarks.cpu",
            name,
            good,
            options.rounds,
            options.seconds,
            environment,
            options.patience,
        )
        absent |= gone
    peers = any(r.name == "torch" for r in timed)
    results: dict[str, Any] = {}
    for r in timed:
        info = {k: v for k, v in infos[r.name].items() if k not in ("cost", "plain_eps", "differs")}
        results[r.name] = {
            "steps_per_s": r.steps_per_second,
            "ratio_to_torch": r.ratio if peers else None,
            "spread": [r.lowest, r.highest] if peers else None,
            "limit_share": floor * r.steps_per_second,
            **info,
            **r.info,
        }
    print(HEADER)
    for contender in names:
        if contender in results:
            print(row(contender, results[contender]))
        else:
            print(f"{contender:<18}absent: {absent[contender]}")
    if any(r["limit_share"] > 1 for r in results.values()):
        print("more than the limit: something else kept the machine busy while it was measured")
    for contender, r in results.items():
        if r["note"]:
            print(f"{contender}: {r['note']}")
    return results, absent, limit


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print the tables."""
    given = list(sys.argv[1:] if argv is None else argv)
    inside = {
        "--worker": lambda a: contenders.serve(*a),
        "--check": lambda a: contenders.check(*a),
        "--reference": lambda a: agreement.reference(*a),
        "--rate": lambda a: rates.worker(a[0], float(a[1])),
    }
    if given and given[0] in inside:
        try:
            inside[given[0]](given[1:])
        except AbsentError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    options = parse(given)
    if threading.current_thread() is threading.main_thread():
        # A polite end, such as timeout's, has contenders stopped and folders removed too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = options.contenders
    # Ratios refer to the first.
    names = [*(["torch"] if "torch" in names else []), *(n for n in names if n != "torch")]
    load = os.getloadavg()[0]
    machine = {**interleave.machine(), "threads": rates.cores(), "load": load, **rates.measure()}
    if load > 0.5:
        print(f"the machine is busy with something else (load {load:.1f}): libraries whose threads")
        print("wait actively lose most by that, and no ratio below is worth much")
    print(f"{machine['processor']}, {machine['threads']} threads; {machine['versions']}")
    print(
        "Products, GFLOP/s: "
        + ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in machine["gemm"].items())
        + "; bandwidth, GB/s: "
        + ", ".join(f"{n} MiB {rate / 1e9:.0f}" for n, rate in machine["bytes_per_s"].items())
    )
    report: dict[str, Any] = {"machine": machine, "workloads": {}, "absent": {}, "limits": {}}
    for workload in options.only:
        found = one(workload, names, options, machine)
        for part, value in zip(("workloads", "absent", "limits"), found, strict=True):
            report[part][workload] = value
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=2)
    if options.chart:
        from benchmarks.cpu.chart import draw

        draw(report, options.chart)
    return 0


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The options, with unknown names refused."""

    def among(known: Sequence[str]) -> Any:
        def read(text: str) -> list[str]:
            names = text.split(",")
            for name in names:
                if name not in known:
                    raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
            return names

        return read

    parser = argparse.ArgumentParser("benchmarks.cpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=among(list(WORKLOADS)), default=list(WORKLOADS))
    parser.add_argument(
        "--contenders",
        type=among(list(contenders.CONTENDERS)),
        default=list(contenders.CONTENDERS),
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to get ready in")
    parser.add_argument("--cold", action="store_true", help="compile native kernels anew too")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--chart", metavar="FILE", help="a PNG; needs matplotlib")
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
