"""Whether a contender's step is the workload's: its gradient, running means and update against
float64.

A step that is one compiled function shows no gradient, but what it did to the optimizer's first
mean, or under plain gradient descent to the parameters, is the gradient times a known number.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import interleave
from benchmarks.cpu import contenders
from benchmarks.cpu.workloads import ALL, BATCHES, batches

GRADIENT = 2e-4
"""Largest difference of a gradient from the one in float64, relative to the largest number of its
parameter's gradient."""
ROUNDED = {"float32": GRADIENT, "tf32": 2e-2, "bf16-mixed": 0.3}
"""By the precision of a workload. A factor of bfloat16 is rounded by up to 0.4 %, one of TF32 by
0.05 %, each layer adds its own, and a relu that rounding switches takes a whole term with it: so
other precisions than float32 are judged by the length of the difference, as a share of the
gradient's."""
UPDATE = 2e-3
"""Largest difference of an update from what the optimizer's formula gives, relative to the learning
rate."""
EPS = 1e-8


def gradients(workload: str, cost: str, weights: list[np.ndarray]) -> tuple[str, list[np.ndarray]]:
    """Gradients in float64, clipped as the workload says, and whose they are."""
    w = ALL[workload]
    batch = batches(workload)[contenders.WARM % BATCHES]
    library: Any
    try:
        from benchmarks.cpu import pytorch as library

        library.load()
        whose = "PyTorch"
    except ImportError:
        from benchmarks.cpu import ours as library

        whose = "this project"
    found = library.reference(workload, cost, weights, batch)
    if w.clip is not None:
        norm = np.sqrt(sum(float((g * g).sum()) for g in found))
        found = [g * min(1.0, w.clip / (norm + 1e-6)) for g in found]
    return whose, found


def compare(workload: str, arrays: Any, cost: str, plain_eps: bool) -> dict[str, Any]:
    """Compare one step with the formulas.

    Parameters
    ----------
    arrays : what :func:`.contenders.check` kept.
    cost : that the contender trains with.
    plain_eps : whether eps is added before the correction of the second mean.

    Returns
    -------
    dict
        ``gradient_error`` and ``update_error``, ``at`` (the parameter of the larger gradient
        error), ``reference``, and ``differs``: what is wrong, in words, or "".
    """
    w = ALL[workload]
    n = len(w.shapes)
    weights = [arrays[f"weight{i}"] for i in range(n)]
    whose, wanted = gradients(workload, cost, weights)
    worst, at, moved = 0.0, "", 0.0  # an error that is no number is the largest
    beta1, beta2 = w.betas
    t = contenders.WARM + 1
    for i, key in enumerate(w.shapes):
        g = np.ravel(wanted[i])[contenders.places(wanted[i].size, i)]

        def kept(what: str, number: int = i) -> np.ndarray:
            return arrays[f"{what}{number}"].astype(np.float64)

        before, after = kept("before-weights"), kept("after-weights")
        scale = np.abs(g).max()
        if w.optimizer == "sgd":
            error = np.abs((before - after) / w.lr - g).max() / scale
        else:
            first, second = kept("after-first"), kept("after-second")
            shown = (first - beta1 * kept("before-first")) / (1 - beta1)
            squared = (second - beta2 * kept("before-second")) / (1 - beta2)
            # A thousandth of the square goes into the second mean: ten times the rounding.
            if w.precision == "float32":
                apart = [(shown - g) / scale, (squared - g * g) / scale**2 / 10]
                error = np.abs(np.stack(apart)).max()
            else:
                error = max(_distance(shown, g), _distance(squared, shown * shown) / 10)
            root = np.sqrt(1 - beta2**t)
            below = np.sqrt(second) / root + (EPS / root if plain_eps else EPS)
            shrunk = before * (1 - w.lr * w.decay) if len(w.shapes[key]) > 1 else before
            expected = shrunk - w.lr / (1 - beta1**t) * first / below
            step = float(np.abs(after - expected).max() / w.lr)
            if not np.isnan(moved) and not step <= moved:
                moved = step
        if not np.isnan(worst) and not error <= worst:
            worst, at = float(error), key
    differs = ""
    if not worst <= ROUNDED[w.precision]:
        differs = f"the gradient by {at} is {worst:.2g} from {whose}'s in float64"
    elif not moved <= UPDATE:
        differs = f"the update is {moved:.2g} learning rates from the formula's"
    return {
        "gradient_error": worst,
        "update_error": moved,
        "at": at,
        "reference": whose,
        "differs": differs,
    }


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    """Length of the difference, as a share of the length of the second."""
    return float(np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-30))


def reference(workload: str, folder: str) -> None:
    """Compare every contender whose step lies in `folder`; prints a line for each."""
    for file in sorted(Path(folder).glob("*.npz")):
        info = json.loads(file.with_suffix(".json").read_text())
        with np.load(file) as arrays:
            found = compare(workload, arrays, info["cost"], info["plain_eps"])
        print("FOUND" + json.dumps({"name": file.stem, **found}), flush=True)


def run(
    workload: str,
    names: Sequence[str],
    environment: dict[str, str],
    patience: float,
    package: str = "benchmarks.cpu",
    together: bool = False,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Let each contender take its steps in a process of its own and compare them.

    Parameters
    ----------
    workload : its name; what follows an ``@`` is the package's business.
    package : whose command knows the contenders.
    together : take all steps at once, where the cores are not what is timed.

    Returns
    -------
    infos, absent : what is known of each contender that ran (see :func:`compare`), and why the
        others did not.
    """
    infos: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        running: list[subprocess.Popen[str]] = []

        def one(name: str) -> tuple[list[dict[str, Any]], str]:
            command = [package, "--check", name, workload, folder]
            return said(command, "CHECK", environment, patience, running)

        with ThreadPoolExecutor(len(names) if together and names else 1) as pool:
            try:
                answers = list(pool.map(one, names))
            except BaseException:  # told to end: the pool would wait for all of them
                pool.shutdown(wait=False, cancel_futures=True)
                for process in running:
                    interleave.stop(process)
                raise
        for name, (info, why) in zip(names, answers, strict=True):
            if not info:
                absent[name] = why
                continue
            infos[name] = info[0]
            (Path(folder) / f"{name}.json").write_text(json.dumps(info[0]))
        command = ["benchmarks.cpu", "--reference", workload.partition("@")[0], folder]
        found, why = said(command, "FOUND", environment, patience, [])
        for each in found:
            infos[each.pop("name")] |= each
    for info in infos.values():
        info.setdefault("differs", f"could not be compared: {why}")
    return infos, absent


def said(
    arguments: list[str],
    word: str,
    environment: dict[str, str] | None,
    patience: float,
    running: list[subprocess.Popen[str]],
) -> tuple[list[Any], str]:
    """What a process of this benchmark says in lines that begin with `word`, or why it ended; it is
    in `running` meanwhile."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
            preexec_fn=interleave.die_with_parent,
        )
        running.append(process)
        try:
            out, _ = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            return [], f"timed out: not done within {patience:.3g} s"
        finally:
            interleave.stop(process)
            running.remove(process)
        lines = [line[len(word) :] for line in out.splitlines() if line.startswith(word)]
        why = interleave.ended(process, errors) if not lines else ""
        return [json.loads(line) for line in lines], why
