"""The CUDA kernels of recurrent layers, executed on the CPU from the same source: one step each."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import CUDABackend, geometry
from gpubackprop.backends.recurrent import RecurrentKernels
from tests.backends.support import fake_cupy, shim
from tests.backends.support.shim_cases import DTYPES, close, cpp, launch, random  # noqa: F401

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

NUMPY = NumPyBackend()
SHAPES = [(1, 1), (3, 5), (7, 90)]
# A sequence that ends before step 0 has length 0.
ENDS = [None, "some"]


def define(name, *arrays, **options):
    """A kernel by its definition, in float64: a step of a sequence of one step."""
    wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    return getattr(RecurrentKernels, name)(NUMPY, *wide, **options)


def lengths_of(ends, batch):
    return None if ends is None else np.arange(batch) % 2


def product_of(state, weight, dtype):
    return (state.astype(np.float64) @ weight.astype(np.float64).T).astype(dtype)


def arrays_of(kind, shape, dtype):
    """projected, state, weight of one step."""
    batch, size = shape
    rows = {"rnn": 1, "lstm": 4, "gru": 3}[kind] * size
    weight = random((rows, size), dtype, 3, 1 / np.sqrt(size))
    return random((1, batch, rows), dtype, 1), random(shape, dtype, 2, 0.5), weight


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn_step(launch, nonlinearity, shape, dtype, ends):  # noqa: F811
    projected, h, weight = arrays_of("rnn", shape, dtype)
    lengths, relu = lengths_of(ends, shape[0]), nonlinearity == "relu"
    template, grid = (cpp(dtype),), geometry.over(h.size)
    after = product_of(h, weight, dtype)
    launch("rnn_step", template, grid, projected, lengths, h, after, 0, *shape, relu)
    options = {"lengths": lengths, "nonlinearity": nonlinearity}
    hidden = define("rnn_steps", projected, h, weight, **options)
    close(after, hidden[1], dtype, 10)

    dy, dh = random((1, *shape), dtype, 4), random(shape, dtype, 5)
    carry = None if lengths is None else random(shape, dtype, 6)
    whole = dh if carry is None else dh + carry
    d = np.empty_like(projected)
    launch("rnn_step_backward", template, grid, dy, after, lengths, dh, carry, d, 0, *shape, relu)
    states = np.stack([h, after])
    want, dh0 = define("rnn_steps_backward", dy, whole, weight, states, **options)
    close(d, want, dtype, 10)
    if carry is not None:
        close(carry, dh0 - want[0] @ weight.astype(np.float64), dtype, 10)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_lstm_step(launch, shape, dtype, ends):  # noqa: F811
    projected, h, weight = arrays_of("lstm", shape, dtype)
    c, lengths = random(shape, dtype, 7), lengths_of(ends, shape[0])
    template, grid = (cpp(dtype),), geometry.over(h.size)
    gates = product_of(h, weight, dtype)
    h_after, c_after = np.empty_like(h), np.empty_like(c)
    arrays = (projected, lengths, h, c, gates, h_after, c_after)
    launch("lstm_step", template, grid, *arrays, 0, *shape)
    found = define("lstm_steps", projected, h, c, weight, lengths=lengths)
    for got, want in zip((h_after, c_after, gates), found, strict=True):
        close(got, want[-1], dtype, 10)

    dy, dh, dc = random((1, *shape), dtype, 4), random(shape, dtype, 5), random(shape, dtype, 6)
    carry = None if lengths is None else random(shape, dtype, 8)
    whole = dh if carry is None else dh + carry
    d, cells, before = np.empty_like(projected), np.stack([c, c_after]), dc.copy()
    launch(
        "lstm_step_backward",
        template,
        grid,
        *(dy, gates, c, c_after, lengths, dh, carry, dc, d),
        *(0, *shape),
    )
    want, dh0, dc0 = define(
        "lstm_steps_backward", dy, whole, before, weight, cells, gates[None], lengths=lengths
    )
    close(d, want, dtype, 20)
    close(dc, dc0, dtype, 20)
    if carry is not None:
        close(carry, dh0 - want[0] @ weight.astype(np.float64), dtype, 20)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gru_step(launch, shape, dtype, ends, bias):  # noqa: F811
    projected, h, weight = arrays_of("gru", shape, dtype)
    lengths = lengths_of(ends, shape[0])
    b = random(projected.shape[2], dtype, 9) if bias else None
    template, grid = (cpp(dtype),), geometry.over(h.size)
    product = product_of(h, weight, dtype)
    gates, inner, after = np.empty_like(projected), np.empty_like(h), np.empty_like(h)
    given = (projected, product, b, lengths, h)
    launch("gru_step", template, grid, *given, gates, inner, after, 0, *shape)
    wide = None if b is None else b.astype(np.float64)
    found = define("gru_steps", projected, h, weight, b_hh=wide, lengths=lengths)
    for got, want in zip((after, gates[0], inner), found, strict=True):
        close(got, want[-1], dtype, 10)

    dy, dh, carry = (random(s, dtype, 4 + k) for k, s in enumerate(((1, *shape), shape, shape)))
    whole, d, dq = dh + carry, np.empty_like(gates), np.empty_like(gates)
    arrays = (dy, h, gates, inner, lengths, dh, carry, d, dq)
    launch("gru_step_backward", template, grid, *arrays, 0, *shape)
    kept = (np.stack([h, after]), gates, inner[None])
    *want, dh0 = define("gru_steps_backward", dy, whole, weight, *kept, lengths=lengths)
    close(d, want[0], dtype, 20)
    close(dq, want[1], dtype, 20)
    close(carry, dh0 - want[1][0] @ weight.astype(np.float64), dtype, 20)


def test_elements_beyond_the_grid_are_reached(launch):  # noqa: F811
    projected, h, weight = arrays_of("rnn", (7, 30), np.float32)
    after = product_of(h, weight, np.float32)
    small = geometry.Launch(2, 32)
    launch("rnn_step", ("float",), small, projected, None, h, after, 0, 7, 30, False)
    close(after, define("rnn_steps", projected, h, weight)[1], np.float32, 10)


def test_a_relu_hides_no_nan(launch):  # noqa: F811
    projected = np.array([[[np.nan, -1.0, 2.0]]], np.float32)
    h, after = np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)
    shape = geometry.Launch(1)
    launch("rnn_step", ("float",), shape, projected, None, h, after, 0, 1, 3, True)
    np.testing.assert_array_equal(after, [[np.nan, 0.0, 2.0]])


@pytest.mark.parametrize("lengths", [None, [4, 2, 3]])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_layer_launches_one_kernel_a_step_and_never_waits(monkeypatch, kind, lengths):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.FakeCuPy())
    cuda = CUDABackend()
    here = getattr(nn, kind)(5, 6, bidirectional=True)
    there = getattr(nn, kind)(5, 6, bidirectional=True, device=cuda)
    there.load_state_dict(here.state_dict())
    names = []
    start = cuda.kernels.launch
    monkeypatch.setattr(
        cuda.kernels, "launch", lambda name, *rest: (names.append(name), start(name, *rest))
    )
    x = random((4, 3, 5))
    on_gpu = gb.tensor(x, device=cuda, requires_grad=True)
    before = cuda.xp.transfers, cuda.xp.synchronised
    y, _ = there(on_gpu, lengths=lengths)
    y.sum().backward()
    assert (cuda.xp.transfers, cuda.xp.synchronised) == before
    step = f"{kind.lower()}_step"
    assert names.count(step) == names.count(f"{step}_backward") == 2 * 4
    on_cpu = gb.tensor(x, requires_grad=True)
    want, _ = here(on_cpu, lengths=lengths)
    want.sum().backward()
    np.testing.assert_allclose(y.numpy(), want.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(on_gpu.grad.numpy(), on_cpu.grad.numpy(), rtol=1e-4, atol=1e-5)
