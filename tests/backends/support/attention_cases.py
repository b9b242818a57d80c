"""Arguments for the kernels of ``backends/attention.py``: what overrides are compared on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpubackprop.backends.attention import AttentionKernels
from gpubackprop.backends.cpu.backend import NumPyBackend

Case = tuple[str, tuple[Any, ...], dict[str, Any]]

# Batches, heads, heads of keys, queries, keys, features, features of a value.
SIZES = (
    (2, 2, 2, 3, 4, 3, 3),
    (1, 1, 1, 1, 1, 1, 1),
    (1, 4, 2, 5, 7, 8, 3),
    (2, 3, 1, 33, 65, 16, 16),
    (0, 2, 1, 2, 3, 2, 2),
    (1, 2, 1, 0, 3, 2, 2),
    (1, 1, 1, 2, 0, 2, 2),
    (1, 2, 1, 70, 70, 5, 4),
)
DROPOUT = {"p": 0.3, "seed": 2**63 + 1, "stream": 5, "offset": 2**64 - 3}


def fill(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal numbers, the same for the same seed."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


def cases(kernel: str) -> Iterator[Case]:
    """A note, arguments and options of each call to compare; nothing for other kernels."""
    if kernel == "rotary":
        yield from _rotary()
    if not kernel.startswith("attention"):
        return
    for note, arrays, options in _attention():
        if kernel == "attention":
            yield note, arrays, options
            continue
        if kernel == "attention_mask_backward" and (
            arrays[3] is None or arrays[3].dtype == np.bool_
        ):
            continue
        with np.errstate(all="ignore"):
            y, lse = AttentionKernels.attention(NumPyBackend(), *arrays, **options)
        yield note, (fill(y.shape, 9), *arrays, y, lse), options


def _attention() -> Iterator[Case]:
    for seed, (b, h, hkv, tq, tk, d, dv) in enumerate(SIZES):
        q, k, v = fill((b, h, tq, d), seed), fill((b, hkv, tk, d), 50), fill((b, hkv, tk, dv), 60)
        note, scale = f"{(b, h, hkv, tq, tk, d, dv)}", {"scale": d**-0.5}
        yield note, (q, k, v, None), scale
        yield f"{note} causal", (q, k, v, None), {"causal": True, **scale}
        yield f"{note} causal, past", (q, k, v, None), {"causal": True, "past": 2, **scale}
        yield f"{note} dropout", (q, k, v, None), {"causal": True, **DROPOUT, **scale}
        bias = fill((h, tq, tk), seed + 70)
        yield f"{note} bias", (q, k, v, bias), scale
        seen = bias > 0.5  # some queries see nothing
        yield f"{note} mask", (q, k, v, seen), scale
        yield f"{note} mask of keys", (q, k, v, seen[:1, :1]), {"causal": True, **scale, **DROPOUT}
        apart = np.where(seen, bias, -np.inf)
        yield f"{note} minus infinity", (q, k, v, apart), scale
    q, k, v = (fill((2, 5, 3, 4), s).transpose(0, 2, 1, 3) for s in (1, 2, 3))
    yield "heads between the features", (q, k, v, None), {"causal": True, "scale": 0.5}
    yield "large scores", (q * 20, k, v, None), {"scale": 0.5}
    yield "everything dropped", (q, k, v, None), {**DROPOUT, "p": 1.0}
    yield "a bias for all", (q, k, v, fill((1, 5), 4)), {"causal": True}
    yield "a bias of batches", (q, k, v, fill((2, 1, 5, 1), 4)), {"causal": True}


def _rotary() -> Iterator[Case]:
    for seed, (lead, t, d) in enumerate((((2, 3), 5, 8), ((), 1, 2), ((1,), 4, 6), ((0,), 3, 2))):
        x, angles = fill((*lead, t, d), seed), fill((t, d // 2), seed + 1)
        for interleaved in (False, True):
            note = f"{x.shape} interleaved={interleaved}"
            yield note, (x, np.cos(angles), np.sin(angles)), {"interleaved": interleaved}
