"""Arguments for the kernels of ``backends/recurrent.py``: what overrides are compared on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.recurrent import RecurrentKernels
from gpubackprop.testing.calls import layouts

Case = tuple[str, tuple[Any, ...], dict[str, Any]]

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
# Steps, batch, hidden size.
SIZES = ((3, 2, 4), (1, 1, 1), (2, 0, 3), (5, 3, 1), (6, 5, 40))


def fill(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal numbers, the same for the same seed."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


def cases(kernel: str) -> Iterator[Case]:
    """A note, arguments and options of each call to compare; nothing for other kernels."""
    kind, _, rest = kernel.partition("_steps")
    if kind not in GATES or rest not in ("", "_backward"):
        return
    for seed, sizes in enumerate(SIZES):
        for reverse in (False, True):
            for lengths in (None, *some_lengths(sizes[0], sizes[1])):
                note = f"{sizes} reverse={reverse} lengths={lengths}"
                options: dict[str, Any] = {"lengths": lengths, "reverse": reverse}
                if kind != "rnn":
                    yield note, arguments(kind, rest, sizes, seed, options), options
                    continue
                for nonlinearity in ("tanh", "relu"):
                    given = {**options, "nonlinearity": nonlinearity}
                    yield f"{note} {nonlinearity}", arguments(kind, rest, sizes, seed, given), given
    first, options = arguments(kind, rest, SIZES[0], 9, {}), {"lengths": np.array([3, 1])}
    for place, array in enumerate(first):
        for layout, moved in layouts(array):
            yield f"argument {place} {layout}", (*first[:place], moved, *first[place + 1 :]), {}
    for layout, moved in layouts(options["lengths"]):
        yield f"lengths {layout}", first, {"lengths": moved}
    if kernel == "gru_steps":
        yield "no bias", first[:3], {}


def some_lengths(steps: int, batch: int) -> Iterator[np.ndarray]:
    """In no order; none at all, one and all of the steps among them."""
    if batch:
        yield np.random.default_rng(steps).integers(0, steps + 1, batch)
        yield np.full(batch, steps, np.int32)


def arguments(
    kind: str, rest: str, sizes: tuple[int, int, int], seed: int, options: dict[str, Any]
) -> tuple[np.ndarray, ...]:
    """The arrays of one call; for a backward kernel, after a call of the forward one."""
    steps, batch, size = sizes
    rows = GATES[kind] * size
    projected, state = fill((steps, batch, rows), seed), fill((batch, size), seed + 1)
    weight = fill((rows, size), seed + 2) / np.sqrt(size)
    states = (state, fill((batch, size), seed + 3))[: 2 if kind == "lstm" else 1]
    given: tuple[np.ndarray, ...] = (projected, *states, weight)
    if kind == "gru":
        given = (*given, fill((rows,), seed + 4))
    if not rest:
        return given
    forward = getattr(RecurrentKernels, f"{kind}_steps")
    found = forward(NumPyBackend(), *given, **options)
    kept = found if isinstance(found, tuple) else (found,)
    dy = fill((steps, batch, size), seed + 5)
    cotangents = [fill(s.shape, seed + 6 + k) for k, s in enumerate(states)]
    return (dy, *cotangents, weight, *(kept[1:] if kind == "lstm" else kept))
