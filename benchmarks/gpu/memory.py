"""The most memory of the device that a recipe's training needs, each contender in a process of its
own: the high-water mark of its allocator from an empty device to some steps later.

``peak`` is what arrays took at once, from the first weight on: with PyTorch
``torch.cuda.max_memory_allocated``, with JAX ``peak_bytes_in_use``, here the bytes that CuPy's pool
had handed out (arrays of captured graphs included). ``step`` is the same of the last steps alone.
``taken`` is what the allocator had from the device in the end: ``max_memory_reserved``, and the
pool's size. Memory of CUDA, cuBLAS and cuDNN themselves is in none of them. On a CPU, which is for
a trial, the others do not tell, and here Python's own objects are counted too.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks import interleave
from benchmarks.cpu import agreement

STEPS = 12
"""By then a compiled step is recorded, compared, replayed and captured."""
AT_ONCE = 6
"""Processes that run at once; each sees its own arrays alone."""
CONTENDERS = {"torch": "torch", "jax": "jax", "gb-eager": "", "gb-compiled": ""}
"""Who can be asked, and the library of ``gpubackprop.bench.peers`` that it is."""


def serve(contender: str, place: str) -> None:
    """The contender's side: train by a recipe on a device, given as ``RECIPE@DEVICE``, and say what
    it needed."""
    recipe, _, device = place.partition("@")
    measure = _theirs if CONTENDERS[contender] else _ours
    print("MEMORY", json.dumps(measure(contender, recipe, device)), flush=True)


def _ours(contender: str, recipe: str, device: str) -> dict[str, Any]:
    from gpubackprop.autograd.shortage import holdings
    from gpubackprop.backends import get_backend
    from gpubackprop.bench import networks

    backend = get_backend(device)
    made = networks.make(recipe)
    with backend.memory_meter() as meter:
        start, _ = meter.read()
        run = networks.step(made, backend, compiled=contender == "gb-compiled")
        for _ in range(STEPS):
            run()
        _, peak = meter.read()
        for _ in range(STEPS):
            run()
        _, step = meter.read()
    state = backend.memory_state()
    taken = None
    if state.used is not None and state.pooled is not None:
        taken = state.used + state.pooled + holdings(backend).get("captured graphs", 0)
    return {"peak": peak - start, "step": step - start, "taken": taken, "source": meter.source}


def _theirs(contender: str, recipe: str, device: str) -> dict[str, Any]:
    from gpubackprop.bench import networks
    from gpubackprop.bench.peers import load

    peer = load(CONTENDERS[contender], device)
    made = networks.make(recipe)
    run = peer.twin(made, networks.initial(made)).step
    for _ in range(STEPS):
        run()
    peak, taken = peer.most()
    step = peer.peak(lambda: [run() for _ in range(STEPS)])
    return {"peak": peak, "step": step, "taken": taken, "source": "the library's allocator"}


def run(
    contenders: Sequence[str],
    device: str,
    environment: dict[str, str],
    patience: float,
    recipes: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure.

    Parameters
    ----------
    contenders : those of ``CONTENDERS`` among them are asked.
    device : such as ``"cuda:0"``.
    patience : seconds of one process.
    recipes : all where none is named.

    Returns
    -------
    dict
        By recipe and contender: ``peak``, ``step``, ``taken`` in bytes, ``to_torch`` (the peak as a
        share of PyTorch's), or ``absent``.
    """
    from gpubackprop.recipes import names

    wanted = [
        (recipe, name) for recipe in recipes or names() for name in CONTENDERS if name in contenders
    ]
    running: list[subprocess.Popen[str]] = []

    def one(pair: tuple[str, str]) -> dict[str, Any]:
        recipe, name = pair
        command = ["benchmarks.gpu", "--memory", name, f"{recipe}@{device}"]
        found, why = agreement.said(command, "MEMORY", environment, patience, running)
        return found[0] if found else {"absent": why}

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            answers = list(pool.map(one, wanted))
        except BaseException:  # told to end: the pool would wait for all of them
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                interleave.stop(process)
            raise
    found: dict[str, Any] = {}
    for (recipe, name), row in zip(wanted, answers, strict=True):
        found.setdefault(recipe, {})[name] = row
    for rows in found.values():
        base = rows.get("torch", {}).get("peak")
        for row in rows.values():
            if base and row.get("peak") is not None:
                row["to_torch"] = row["peak"] / base
    return found


def table(found: dict[str, Any]) -> str:
    """The result for a reader."""
    lines = [
        f"{'recipe':<18}{'contender':<13}{'peak MB':>10}{'to torch':>10}{'of a step':>11}"
        f"{'taken':>10}"
    ]
    for recipe, rows in found.items():
        for name, r in rows.items():
            head = f"{recipe:<18}{name:<13}"
            if "absent" in r:
                lines.append(f"{head}absent: {r['absent']}")
                continue
            peak, step, taken = (
                "-" if r[k] is None else f"{r[k] / 1e6:.2f}" for k in ("peak", "step", "taken")
            )
            ratio = f"{r['to_torch']:.2f}" if "to_torch" in r else "-"
            lines.append(f"{head}{peak:>10}{ratio:>10}{step:>11}{taken:>10}")
    return "\n".join(lines)
