"""Recurrent layers beside PyTorch's: a character model's costs and all gradients, without update.

    python -m benchmarks.recurrent [--only lstm-128] [--threads 2] [--rounds 7]

A workload is named kind-hidden size, with the number of layers where there are two. The model reads
64 steps of 32 sequences over 65 characters: embedding of the hidden size, recurrent layers, linear
layer, cross-entropy. Threads count for both contenders.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import interleave

STEPS, BATCH, CHARACTERS = 64, 32, 65
CONTENDERS = ("torch", "gb-numpy")


class Shape(NamedTuple):
    """One model."""

    kind: str
    hidden: int
    layers: int = 1


WORKLOADS = {
    "lstm-128": Shape("LSTM", 128),
    "lstm-128-2": Shape("LSTM", 128, 2),
    "lstm-256": Shape("LSTM", 256),
    "lstm-512": Shape("LSTM", 512),
    "gru-128": Shape("GRU", 128),
    "gru-256": Shape("GRU", 256),
    "rnn-128": Shape("RNN", 128),
}


def arrays(s: Shape) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Characters, those that follow, and the parameters in the order of the modules."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, CHARACTERS, (STEPS + 1, BATCH))
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[s.kind] * s.hidden
    shapes: list[tuple[int, ...]] = [(CHARACTERS, s.hidden)]
    for _ in range(s.layers):
        shapes += [(rows, s.hidden), (rows, s.hidden), (rows,), (rows,)]
    shapes += [(CHARACTERS, s.hidden), (CHARACTERS,)]
    scale = 1.0 / np.sqrt(s.hidden)
    parameters = [rng.uniform(-scale, scale, shape).astype(np.float32) for shape in shapes]
    return text[:-1], text[1:], parameters


def gb_step(s: Shape) -> Callable[[], tuple[Any, list[Any]]]:
    """A step of this project: the cost and the gradients."""
    import gpubackprop as gb
    from gpubackprop import nn

    x, target, values = arrays(s)
    inputs, targets = gb.tensor(x), gb.tensor(target.reshape(-1))
    embedding = nn.Embedding(CHARACTERS, s.hidden)
    layer = getattr(nn, s.kind)(s.hidden, s.hidden, s.layers)
    head = nn.Linear(s.hidden, CHARACTERS)
    parameters = [p for m in (embedding, layer, head) for p in m.parameters()]
    for p, value in zip(parameters, values, strict=True):
        p.array[...] = value

    def step() -> tuple[Any, list[Any]]:
        for p in parameters:
            p.grad = None
        y, _ = layer(embedding(inputs))
        logits = head(y).reshape(-1, CHARACTERS)
        cost = nn.functional.cross_entropy(logits, targets)
        cost.backward()
        return cost, [p.grad for p in parameters]

    return step


def torch_step(s: Shape, threads: int) -> Callable[[], tuple[Any, list[Any]]]:
    """The same step by PyTorch."""
    import torch

    torch.set_num_threads(threads)
    x, target, values = arrays(s)
    inputs, targets = torch.tensor(x), torch.tensor(target.reshape(-1))
    embedding = torch.nn.Embedding(CHARACTERS, s.hidden)
    layer = getattr(torch.nn, s.kind)(s.hidden, s.hidden, s.layers)
    head = torch.nn.Linear(s.hidden, CHARACTERS)
    parameters = [p for m in (embedding, layer, head) for p in m.parameters()]
    with torch.no_grad():
        for p, value in zip(parameters, values, strict=True):
            p.copy_(torch.tensor(value))

    def step() -> tuple[Any, list[Any]]:
        for p in parameters:
            p.grad = None
        y, _ = layer(embedding(inputs))
        logits = head(y).reshape(-1, CHARACTERS)
        cost = torch.nn.functional.cross_entropy(logits, targets)
        cost.backward()
        return cost.detach(), [p.grad for p in parameters]

    return step


def main(argv: list[str] | None = None) -> int:
    """Print milliseconds a step and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=WORKLOADS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    options = parser.parse_args(argv)
    if options.worker:
        name, workload = options.worker
        shape, threads = workload.split(" ")
        s = WORKLOADS[shape]
        interleave.serve(gb_step(s) if name == "gb-numpy" else torch_step(s, int(threads)), {})
        return 0
    os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)  # for the processes started below
    for shape in [options.only] if options.only else WORKLOADS:
        results, absent = interleave.run(
            "benchmarks.recurrent",
            f"{shape} {options.threads}",
            CONTENDERS,
            options.rounds,
            options.seconds,
        )
        interleave.show(f"{shape}, {options.threads} threads", results, absent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
