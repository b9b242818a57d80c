"""The first minute on a GPU: does each part work at all? One line for each, the first that fails
shows at once.

    python -m benchmarks.gpu.smoke [--only compile,product] [--device cuda:0] [--patience 50]

Each check has a process of its own, some of which run at once: one that hangs or breaks the
device's context ends nothing but itself. Values are compared with the CPU's. Ends with status 1
where a check failed; what is not installed is said and is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.cpu import agreement
from benchmarks.cpu.workloads import AbsentError

STEPS = 12
"""By then a compiled step is recorded, compared, replayed and captured."""
AT_ONCE = 4


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _close(what: str, found: np.ndarray, wanted: np.ndarray, most: float) -> str:
    """Say how far a result is from the CPU's, or fail."""
    scale = float(np.abs(wanted).max()) or 1.0
    apart = float(np.abs(found.astype(np.float64) - wanted).max()) / scale
    if not apart <= most:
        raise RuntimeError(f"{what} is {apart:.2g} of its largest number from the CPU's")
    return f"{what} to {apart:.0e}"


def _device(device: str) -> str:
    """Copies there and back, and an addition."""
    from gpubackprop.backends import detect, get_backend

    K = get_backend(device)
    x = _random(1000)
    said = _close("an addition", K.to_numpy(K.add(K.asarray(x), K.asarray(x))), x + x, 0.0)
    return f"{'; '.join(str(d) for d in detect.devices()) or K.device}; {said}"


def _compile(device: str) -> str:
    """Every ``.cu`` file in three element types, compiled for this GPU and loaded."""
    if device == "cpu":
        raise AbsentError("a CPU has no CUDA sources")
    import cupy

    from gpubackprop.backends.cuda import sources

    elements = ("float", "__half", "__nv_bfloat16")

    def load(pair: tuple[str, str]) -> int:
        file, element = pair
        names = sources.instantiations(file, element)
        module = cupy.RawModule(
            code=sources.source(file, element), options=sources.OPTIONS, name_expressions=names
        )
        with cupy.cuda.Device(int(device.partition(":")[2] or 0)):
            for name in names:
                module.get_function(name)
        return len(names)

    with ThreadPoolExecutor(min(12, os.cpu_count() or 1)) as pool:
        counts = list(pool.map(load, [(f, e) for f in sources.FILES for e in elements]))
    return f"{sum(counts)} kernels of {len(sources.FILES)} files"


def _product(device: str) -> str:
    """A product with bias and GELU, its gradients, and a batch with a transpose."""
    import gpubackprop as gb
    from gpubackprop.nn import functional as F  # noqa: N812

    def run(place: str) -> list[np.ndarray]:
        x, w, b = (
            gb.tensor(a, device=place, requires_grad=True)
            for a in (_random(96, 256), _random(128, 256, seed=1), _random(128, seed=2))
        )
        y = F.gelu(F.linear(x, w, b))
        y.sum().backward()
        batch = _random(4, 64, 32, seed=3)
        K = y.backend
        z = K.matmul(K.asarray(batch), K.transpose(K.asarray(batch), (0, 2, 1)))
        return [y.detach().numpy(), *(t.grad.numpy() for t in (x, w, b)), K.to_numpy(z)]

    pairs = zip(("y", "dx", "dw", "db", "a batch"), run(device), run("cpu"), strict=True)
    said = [_close(what, found, wanted, 2e-5) for what, found, wanted in pairs]
    problem = getattr(gb.tensor([0.0], device=device).backend, "_library_problem", None)
    if device != "cpu" and problem:
        raise RuntimeError(f"cuBLASLt was not used: {problem}")
    return ", ".join(said)


def _cudnn(device: str) -> str:
    """A convolution by cuDNN, forward and by its weight."""
    from gpubackprop.backends import detect, get_backend

    if device == "cpu":
        raise AbsentError("a CPU has no cuDNN")
    problem = detect.cudnn_problem()
    if problem is not None:
        raise AbsentError(f"no cuDNN: {problem}")
    from gpubackprop.backends.cuda import CUDABackend

    K: Any = CUDABackend(int(device.partition(":")[2] or 0), cudnn="always")
    C = get_backend("cpu")
    x, w = _random(8, 16, 16, 32), _random(64, 32, 3, 3, seed=1)
    options: Any = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    y, wanted = (B.to_numpy(B.conv(B.asarray(x), B.asarray(w), None, *options)) for B in (K, C))
    said = _close("y", y, wanted, 5e-5)
    found, wanted = (
        B.to_numpy(B.conv_weight(B.asarray(x), B.asarray(wanted), (3, 3), *options)) for B in (K, C)
    )
    return f"{said}, {_close('dw', found, wanted, 5e-5)}"


def _attention(device: str) -> str:
    """Causal attention and its gradients."""
    from gpubackprop.backends import get_backend

    q, k, v, dy = (_random(2, 2, 128, 32, seed=i) for i in range(4))

    def run(place: str) -> list[np.ndarray]:
        K = get_backend(place)
        Q, A, V, D = (K.asarray(a) for a in (q, k, v, dy))
        y, lse = K.attention(Q, A, V, causal=True, scale=0.2)
        g = K.attention_backward(D, Q, A, V, None, y, lse, causal=True, scale=0.2)
        return [K.to_numpy(a) for a in (y, *g[:3])]

    pairs = zip(("y", "dq", "dk", "dv"), run(device), run("cpu"), strict=True)
    return ", ".join(_close(*each, 1e-4) for each in pairs)


def _losses(device: str, precision: str | None, **options: Any) -> tuple[list[float], Any]:
    """Costs of some compiled steps of a small network with every kind of update, and the step."""
    import gpubackprop as gb
    from gpubackprop import nn, optim
    from gpubackprop.nn import functional as F  # noqa: N812

    g = gb.Generator(1)
    model = nn.Sequential(
        nn.Linear(64, 128, generator=g),
        nn.GELU(),
        nn.LayerNorm(128),
        nn.Linear(128, 8, generator=g),
    ).to(device)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    x, target = _random(32, 64, seed=5), np.arange(32) % 8

    def train(x: Any, target: Any) -> Any:
        optimizer.zero_grad()
        if precision is None:
            loss = F.cross_entropy(model(x), target)
            loss.backward()
        else:
            with gb.precision(precision):
                loss = F.cross_entropy(model(x), target)
                loss.backward()
        optim.clip_grad_norm_(optimizer, 1.0)
        optimizer.step()
        return loss

    step: Any = gb.compile(train, **options)
    given = gb.tensor(x, device=device), gb.tensor(target, device=device)
    return [step(*given).item() for _ in range(STEPS)], step


def _step(device: str) -> str:
    """A compiled training step, captured as one graph."""
    found, step = _losses(device, None, **({} if device == "cpu" else {"graph": True}))
    wanted, _ = _losses("cpu", None)
    said = _close("costs", np.array(found), np.array(wanted), 1e-3)
    if device == "cpu":
        return said
    launches = max(e.replay.launch.launches for e in step.entries if e.replay is not None)
    if not launches:
        raise RuntimeError(f"no launch of a graph: {' '.join(step.explain().split())[:300]}")
    return f"{said}, {launches} launches of a graph"


def _half(device: str) -> str:
    """A compiled step in bf16-mixed."""
    try:
        import ml_dtypes  # noqa: F401
    except ImportError:
        raise AbsentError("ml_dtypes, which has bfloat16, is not installed") from None
    found, _ = _losses(device, "bf16-mixed")
    wanted, _ = _losses("cpu", None)
    return _close("costs", np.array(found), np.array(wanted), 5e-2)


CHECKS: dict[str, Callable[[str], str]] = {
    "device": _device,
    "compile": _compile,
    "product": _product,
    "step": _step,
    "cudnn": _cudnn,
    "attention": _attention,
    "bf16-mixed": _half,
}
"""Each check, in order of importance: what it says where it is well."""


def serve(name: str, device: str) -> None:
    """One check in this process."""
    print("WELL", json.dumps(CHECKS[name](device)), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks and print a line for each."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["--one"]:
        try:
            serve(*given[1:])
        except AbsentError as error:
            print(f"absent: {error}", file=sys.stderr)
            return 1
        except Exception as error:  # noqa: BLE001 - one line, whatever it is
            words = " ".join(str(error).split())
            print(f"{type(error).__name__}: {words}"[:600], file=sys.stderr)
            return 1
        return 0
    parser = argparse.ArgumentParser("benchmarks.gpu.smoke")
    parser.add_argument("--only", default=",".join(CHECKS))
    parser.add_argument("--device", default="cuda:0", help="another for a trial, such as cpu")
    parser.add_argument(
        "--patience", type=float, default=50.0, help="seconds that a check may take"
    )
    options = parser.parse_args(given)
    names = options.only.split(",")
    for name in names:
        if name not in CHECKS:
            parser.error(f"{name!r} is none of {', '.join(CHECKS)}")
    from benchmarks.gpu.__main__ import trouble

    if problem := trouble(options.device):
        print(f"benchmarks.gpu.smoke: {problem}", file=sys.stderr)
        return 1
    running: list[subprocess.Popen[str]] = []
    failed = 0

    def one(name: str) -> tuple[str, str, float]:
        start = time.monotonic()
        command = ["benchmarks.gpu.smoke", "--one", name, options.device]
        said, why = agreement.said(command, "WELL", None, options.patience, running)
        return str(said[0]) if said else "", why, time.monotonic() - start

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for name, (said, why, taken) in zip(names, pool.map(one, names), strict=True):
            absent = why.startswith("absent: ")
            failed += not said and not absent
            word = "well" if said else "absent" if absent else "FAILED"
            print(f"{name:<12}{word:<8}{taken:>5.1f} s  {said or why.removeprefix('absent: ')}")
            sys.stdout.flush()
    print(f"{len(names)} checks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
