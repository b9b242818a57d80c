"""What repeatable bits cost: kernels that have a faster way whose sums come in another order at
each run, beside the way that is the default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends import Array, Backend
from gpubackprop.bench.measure import AbsentError, Candidate, interleaved
from gpubackprop.bench.networks import Made, make, step

ROWS, TOKENS, WIDTH = 50_000, 1 << 15, 256
STEPS = 4


def _scatter(K: Backend) -> Callable[[], Array]:
    indices = np.minimum(np.random.default_rng(0).geometric(1e-3, TOKENS) - 1, ROWS - 1)
    dy, places = K.uniform((TOKENS, WIDTH), 1, 2, 3), K.asarray(indices)
    return lambda: K.scatter_take(dy, places, 0, ROWS)


def _matmul(K: Backend) -> Callable[[], Array]:
    x, y = (K.uniform((1 << 16, 128), 1, i, 3) for i in range(2))
    return lambda: K.matmul(K.transpose(x), y)  # few results, long sums: worth cutting in pieces


def _pictures(K: Backend) -> tuple[Array, Array]:
    return K.uniform((32, 32, 32, 64), 1, 2, 3), K.uniform((64, 64, 3, 3), 1, 3, 3)


def _conv_weight(K: Backend) -> Callable[[], Array]:
    x, _ = _pictures(K)
    same = ((1, 1), (1, 1))
    return lambda: K.conv_weight(x, x, (3, 3), (1, 1), same, (1, 1), 1)


def _attention_backward(K: Backend) -> Callable[[], Any]:
    q = K.uniform((2, 4, 512, 64), 1, 2, 3)
    y, lse = K.attention(q, q, q, causal=True, scale=0.125)
    return lambda: K.attention_backward(q, q, q, q, None, y, lse, causal=True, scale=0.125)[0]


KERNELS: dict[str, Callable[[Backend], Callable[[], Any]]] = {
    "scatter_take": _scatter,
    "matmul": _matmul,
    "conv_weight": _conv_weight,
    "attention_backward": _attention_backward,
}
"""Kernels whose order of summation may depend on the numerics: the gradient of an embedding, a
product with long sums (the gradient of a weight), and those that cuDNN has several ways for."""


def kernels(backend: Backend, rounds: int, seconds: float) -> dict[str, Any]:
    """Deterministic beside native numerics of one device.

    Returns
    -------
    dict
        By kernel: seconds of a call under each of the two, their ratio (``cost``), and whether
        repeated calls gave the same bits; ``absent`` says why a kernel has only one way.
    """
    found: dict[str, Any] = {}
    for name, made in KERNELS.items():
        if name not in backend.undetermined():
            found[name] = {"absent": f"{backend.device} has one way only, which is repeatable"}
            continue
        ways = {n: backend.with_numerics(n) for n in ("deterministic", "native")}
        calls = {n: made(K) for n, K in ways.items()}
        timed, absent = interleaved(
            {n: Candidate(call, backend.clock()) for n, call in calls.items()}, rounds, seconds
        )
        if absent:
            found[name] = {"absent": "; ".join(f"{n}: {why}" for n, why in absent.items())}
            continue
        found[name] = {
            "seconds": {n: t.seconds for n, t in timed.items()},
            "cost": timed["deterministic"].seconds / timed["native"].seconds,
            "same_bits": {n: _repeats(ways[n], calls[n]) for n in ways},
        }
    return found


def _repeats(K: Backend, call: Callable[[], Any], times: int = 5) -> bool:
    first = K.to_numpy(call()).tobytes()
    return all(K.to_numpy(call()).tobytes() == first for _ in range(times - 1))


def recipe(name: str, backend: Backend) -> dict[str, Any]:
    """Whether two runs of a recipe, a few compiled steps each, give the same costs bit for bit."""
    try:
        made = make(name)
    except AbsentError as error:
        return {"absent": str(error)}
    return {"steps": STEPS, "same_bits": costs(made, backend) == costs(made, backend)}


def costs(made: Made, backend: Backend, steps: int = STEPS) -> list[float]:
    """Cost of each of the first steps of a fresh run."""
    run = step(made, backend)
    return [run() for _ in range(steps)]
