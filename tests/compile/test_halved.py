"""Normalisation that rounds its result itself, and takes a half cotangent, where it is the same."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends.cuda import CUDABackend
from gpubackprop.compile.halved import halved
from gpubackprop.compile.trace import Call
from gpubackprop.nn import functional as F
from tests.backends.support import fake_lt, shim
from tests.compile.support import graph_cupy
from tests.compile.support.graph_cupy import GraphCuPy
from tests.compile.test_accumulate import HALF, ref

X, W, B, DY = ref(0, "input"), ref(1, "external", (4,)), ref(2, "external", (4,)), ref(3, "input")
ROW = (4, 1)
MEAN, RSTD = ref(4, shape=ROW), ref(5, shape=ROW)


def forth(y, *outs, kernel="layer_norm", between=(), results=()):
    """Kernels of a normalisation whose result y is rounded to each of `outs`."""
    given = (X, W, B, 1, 1e-5) if kernel == "layer_norm" else (X, W, 1, 1e-5)
    made = (y, MEAN, RSTD) if kernel == "layer_norm" else (y, RSTD)
    calls = [Call(kernel, given, {}, made), *between]
    calls += [Call("astype", (y, out.dtype), {}, (out,)) for out in outs]
    calls += [
        Call("linear", (out, W), {}, (ref(20 + k, dtype=HALF),)) for k, out in enumerate(outs)
    ]
    return halved(calls, results)


@pytest.mark.parametrize("kernel", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("products", [1, 3])
def test_what_is_only_rounded_is_written_so(kernel, products):
    outs = [ref(10 + k, dtype=HALF) for k in range(products)]
    norm, *linears = forth(ref(6), *outs, kernel=kernel)
    assert norm.kernel == kernel and norm.args[-1] == HALF
    assert norm.outs[0].dtype == HALF and norm.outs[0].whole
    assert norm.outs[-1] is RSTD
    assert [c.kernel for c in linears] == ["linear"] * products
    assert all(c.args[0].same(norm.outs[0]) for c in linears)


@pytest.mark.parametrize("why", ["read", "result", "two types", "in part", "returned", "half"])
def test_what_stays_float32(why):
    y, out = ref(6), ref(10, dtype=HALF)
    outs, between, results = [out], [], []
    if why == "read":  # a residual sum after the normalisation
        between = [Call("add", (y, X), {}, (ref(7),))]
    elif why == "result":
        results = [y]
    elif why == "two types":
        outs += [ref(11, dtype=np.dtype(np.float64))]
    elif why == "in part":
        part = replace(y, shape=(2, 4))
        between = [Call("astype", (part, HALF), {}, (ref(12, shape=(2, 4), dtype=HALF),))]
    elif why == "returned":
        results = [out]
    elif why == "half":
        y = ref(6, dtype=HALF)
        between = [Call("copy", (y,), {}, (ref(7, dtype=HALF),))]
    kernels = [c.kernel for c in forth(y, *outs, between=between, results=results)]
    assert kernels.count("astype") == len(outs) + (why == "in part")


def back(*between, wide=None, given=None, results=(), kernel="layer_norm_backward", x=X):
    wide, given = wide or ref(8), given or ref(7, dtype=HALF)
    moments = (MEAN, RSTD) if kernel == "layer_norm_backward" else (RSTD,)
    outs = (ref(30), ref(31, shape=(4,)), ref(32, shape=(4,)))
    calls = [
        Call("matmul", (DY, W), {}, (given,)),
        Call("astype", (given, wide.dtype), {}, (wide,)),
        *between,
        Call(kernel, (wide, x, W, *moments, 1), {}, outs[: 1 + len(moments)]),
    ]
    return halved(calls, results)


@pytest.mark.parametrize("kernel", ["layer_norm_backward", "rms_norm_backward"])
def test_what_is_only_widened_is_read_as_it_is(kernel):
    given = ref(7, dtype=HALF)
    product, slope = back(given=given, kernel=kernel)
    assert slope.kernel == kernel and slope.args[0].same(given) and slope.args[1] is X
    # As the rows lie, whatever shape the product made them in.
    flat = ref(7, shape=(2, 2, 4), dtype=HALF)
    slope = back(given=flat, wide=ref(8, shape=(2, 2, 4)), x=ref(0, "input", (2, 2, 4)))[-1]
    assert slope.args[0].same(flat)
    assert product.kernel == "matmul"


@pytest.mark.parametrize("why", ["read", "result", "changed", "float64", "half x"])
def test_what_is_widened_first(why):
    wide, given, x, between, results = ref(8), ref(7, dtype=HALF), X, [], []
    if why == "read":
        between = [Call("sum", (wide,), {"axis": 0}, (ref(9, shape=(4,)),))]
    elif why == "result":
        results = [wide]
    elif why == "changed":
        between = [Call("copyto", (given, 0.0), {}, (), (given,))]
    elif why == "float64":
        wide = ref(8, dtype=np.dtype(np.float64))
        x = ref(0, "input", dtype=np.dtype(np.float64))
    elif why == "half x":
        x = ref(0, "input", dtype=HALF)
    calls = back(*between, wide=wide, given=given, x=x, results=results)
    assert "astype" in [c.kernel for c in calls]


def train(device, compiled, precision, norm, kv_heads=None):
    """Parameters after some steps of a block between norms, and its calls where it is compiled."""
    place = {"generator": gb.Generator(1), "device": device}
    block = nn.TransformerBlock(16, 2, kv_heads=kv_heads, **place)
    if norm is nn.RMSNorm:
        block.norm1, block.norm2 = (norm(16, device=device) for _ in range(2))
    net = nn.Sequential(block, norm(16, device=device), nn.Linear(16, 3, **place))
    rule = optim.SGD(net.parameters(), lr=0.1)

    def step(x, target):
        rule.zero_grad()
        with gb.precision(precision):
            cost = F.mse_loss(net(x), target)
        cost.backward()
        rule.step()
        return cost

    run = gb.compile(step) if compiled else step
    rng = np.random.default_rng(0)
    for _ in range(7):
        data = (rng.standard_normal((3, 5, n)).astype(np.float32) for n in (16, 3))
        run(*(gb.tensor(a, device=device) for a in data))
    calls = None
    if compiled:
        (entry,) = [e for e in run.entries if e.replay is not None]
        calls = entry.replay.calls
    return [p.numpy().copy() for p in net.parameters()], calls


@pytest.mark.parametrize("kv_heads", [None, 1], ids=["one projection", "three"])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm], ids=["layer", "rms"])
@pytest.mark.parametrize("precision", ["float32", "fp16-mixed", "bf16-mixed"])
def test_a_block_on_a_gpu(monkeypatch, precision, norm, kv_heads):
    if shim.missing() or fake_lt.missing():
        pytest.skip(shim.missing() or fake_lt.missing())
    if precision == "bf16-mixed":
        pytest.importorskip("ml_dtypes")
    monkeypatch.setitem(sys.modules, "cupy", GraphCuPy())
    backend = CUDABackend()
    with graph_cupy.products_captured():
        found, calls = train(backend, True, precision, norm, kv_heads)
        expected, _ = train(backend, False, precision, norm, kv_heads)
    written = [c.outs[0].dtype.itemsize for c in calls if c.kernel in ("layer_norm", "rms_norm")]
    read = [c.args[0].dtype.itemsize for c in calls if c.kernel.endswith("norm_backward")]
    mixed = precision.endswith("mixed")
    assert written == [2 if mixed else 4] * 3
    # Three cotangents of queries, keys and values add up in float32, at the end of the step.
    assert read == ([2, 2, 4 if kv_heads else 2] if mixed else [4] * 3)
    near = {"float32": 1e-5, "fp16-mixed": 1e-4, "bf16-mixed": 1e-3}[precision]
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=near, atol=near)
