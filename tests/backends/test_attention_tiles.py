"""Attention in tiles: the same result whatever their size, and memory that grows with the length of
the sequences, not with its square."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import testing
from gpubackprop.autograd import REGISTRY, apply
from gpubackprop.backends import attention as definition
from gpubackprop.backends.attention import AttentionKernels
from gpubackprop.backends.cpu import attention as override
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.testing import StandInBackend
from tests.backends.support.attention_cases import cases

NUMPY = NumPyBackend()
KERNELS = ("attention", "attention_backward", "attention_mask_backward")


@pytest.mark.parametrize("tile", [1, 7, 100])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_size_of_a_tile_does_not_matter(kernel, tile, monkeypatch):
    calls = list(cases(kernel))
    whole = [getattr(AttentionKernels, kernel)(NUMPY, *a, **o) for _, a, o in calls]
    monkeypatch.setattr(definition, "TILE", tile)
    monkeypatch.setattr(override, "TILE", tile)
    ways = (getattr(AttentionKernels, kernel).__get__(NUMPY), getattr(NUMPY, kernel))
    for way in ways:
        for (note, args, options), expected in zip(calls, whole, strict=True):
            with np.errstate(all="ignore"):
                found = way(*args, **options)
            both = [x if isinstance(x, tuple) else (x,) for x in (found, expected)]
            for got, want in zip(*both, strict=True):
                testing.require_close(f"{kernel} {note}", got, want, 1e-12)


def test_second_derivatives_pass_through_the_blocks(monkeypatch):
    monkeypatch.setattr(definition, "TILE", 10)
    monkeypatch.setattr(override, "TILE", 10)
    op = REGISTRY["attention"]
    for sample in testing.samples_of(op):
        testing.check_second_order(op, sample)


LENGTH, WIDTH = 4096, 64
LIMIT = 1 << 30


def step(backend, causal):
    """A training step of one head: attention, a cost, the derivatives."""
    rng = np.random.default_rng(0)
    q, k, v = (
        gb.Tensor(
            backend.asarray(rng.standard_normal((1, 1, LENGTH, WIDTH), np.float32)), backend, True
        )
        for _ in range(3)
    )
    y = apply(REGISTRY["attention"], q, k, v, None, causal=causal)
    y.sum().backward()
    return [backend.to_numpy(x.grad.array) for x in (q, k, v)]


def peak(function, *args):
    tracemalloc.start()
    try:
        result = function(*args)
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", [NUMPY, StandInBackend()], ids=lambda b: b.name)
def test_a_long_sequence_stays_within_its_memory(backend, causal):
    # The stand-in runs the definition, as a device without a kernel of its own does.
    gradients, used = peak(step, backend, causal)
    assert all(np.isfinite(g).all() for g in gradients)
    assert used < LIMIT / 8, f"{used / 2**20:.0f} MiB"


def test_without_tiles_it_would_not(monkeypatch):
    # One array of all weights is 64 MiB, and several are alive at once.
    monkeypatch.setattr(definition, "TILE", LENGTH * LENGTH)
    _, used = peak(step, StandInBackend(), True)
    assert used > LIMIT / 8


def test_memory_grows_with_the_length(monkeypatch):
    monkeypatch.setattr(override, "TILE", 2**14)
    used = {}
    for length in (512, 2048):
        x = np.ones((1, 1, length, 8), np.float32)

        def both(x=x):
            y, lse = NUMPY.attention(x, x, x, None, True)
            return NUMPY.attention_backward(x, x, x, x, None, y, lse, True)

        _, used[length] = peak(both)
    assert used[2048] < 6 * used[512]
