"""Products take activations and sums along where it is the same, and the device joins them."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends.cuda import CUDABackend
from gpubackprop.backends.cuda.choices import saved
from gpubackprop.backends.joined import mask_shape
from gpubackprop.compile.compiled import native_trouble
from gpubackprop.compile.joined import joined
from gpubackprop.compile.trace import Call
from gpubackprop.nn import functional as F
from tests.backends.support import fake_lt, shim
from tests.compile.support import graph_cupy
from tests.compile.support.graph_cupy import GraphCuPy
from tests.compile.test_accumulate import HALF, ref

FORTH, BACK, SUMS = "linear_activation", "matmul_activation_backward", "matmul_row_sums"
X, W, B = ref(0, "input"), ref(1, "external"), ref(2, "external", (4,))
DY, ABOVE = ref(3, "input"), ref(4, "external")


def turned(x):
    return replace(x, shape=x.shape[::-1], strides=x.strides[::-1])


class Layer:
    """The calls of a layer with an activation, forth and back."""

    def __init__(self, activation="relu", biased=True, dtype=None):
        kind = {} if dtype is None else {"dtype": dtype}
        self.z, self.y, self.dh, self.dz = (ref(10 + i, **kind) for i in range(4))
        self.dw, self.db = ref(20, "external"), ref(21, "external", (4,), **kind)
        of = self.y if activation == "relu" else self.z
        self.linear = Call("linear", (X, W, B), {}, (self.z,))
        self.activation = Call(activation, (self.z,), {}, (self.y,))
        self.product = Call("matmul", (DY, ABOVE), {}, (self.dh,))
        self.slope = Call(f"{activation}_backward", (self.dh, of), {}, (self.dz,))
        self.weight = Call("matmul", (turned(self.dz), X), {}, (self.dw,))
        self.bias = Call("sum", (self.dz,), {"axis": 0}, (self.db,)) if biased else None

    def calls(self, *between, before=(), after=()):
        parts = (self.linear, *before, self.activation, self.product, *between, self.slope)
        return [c for c in (*parts, self.weight, *after, self.bias) if c is not None]


def device(*kernels, precision="float32"):
    """Something that joins these kernels."""
    asked = []

    def joins(kernel, *args):
        asked.append((kernel, args))
        return kernel in kernels

    return SimpleNamespace(joins=joins, precision=precision, asked=asked)


ALL = device(FORTH, BACK, SUMS)


def kernels(calls, backend=ALL, results=()):
    return [c.kernel for c in joined(calls, results, backend)]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
def test_a_layer_is_three_calls(activation, biased):
    layer = Layer(activation, biased)
    first, last, weight = joined(layer.calls(), [], ALL)
    relu = activation == "relu"
    assert (first.kernel, first.args) == (FORTH, (X, W, B, activation, True))
    y, kept = first.outs
    assert y.same(layer.y)
    if relu:
        assert kept.shape == mask_shape((4, 4)) and kept.whole and kept.dtype == np.uint8
        numbers = {r.buffer.number for c in layer.calls() for r in (*c.reads, *c.outs)}
        assert kept.buffer.number not in numbers
    else:
        assert kept.same(layer.z)
    assert last.kernel == BACK and last.args[:2] == (DY, ABOVE)
    assert last.args[2].same(layer.y if relu else layer.z)
    assert last.args[3:] == (kept if relu else None, activation, biased)
    assert [r.buffer for r in last.outs] == [r.buffer for r in (layer.dz, layer.db)[: 1 + biased]]
    assert weight is layer.weight


def test_two_layers_have_masks_of_their_own():
    one, two = Layer(), Layer()
    first, _, _, second, *_ = joined([*one.calls(), *two.calls()], [], ALL)
    assert first.outs[1].buffer is not second.outs[1].buffer
    assert first.outs[1].buffer.number != second.outs[1].buffer.number


def test_what_the_device_does_not_join_stays():
    for activation in ("relu", "gelu_tanh"):
        calls = Layer(activation).calls()
        assert joined(calls, [], device()) == calls
        both = ["matmul", f"{activation}_backward", "matmul", "sum"]
        forth = joined(calls, [], device(FORTH))
        assert [c.kernel for c in forth] == [FORTH, *both]
        # gelu's derivative reads what it was applied to, relu's what it gave.
        assert forth[0].args[-1] == (activation == "gelu_tanh")
        back = [c.kernel for c in joined(calls, [], device(BACK))]
        # What gelu's reads is there either way; relu's reads a mask that only FORTH writes.
        if activation == "relu":
            assert joined(calls, [], device(BACK)) == calls
        else:
            assert back == ["linear", "gelu_tanh", BACK, "matmul"]


def test_a_call_in_another_precision_than_the_steps_stays():
    """A trial is made in the precision around the step."""
    assert kernels(Layer().calls(), device(FORTH, BACK, SUMS, precision="tf32"))[:2] == [
        "linear",
        "relu",
    ]


def test_without_a_way_back_nothing_is_kept():
    for activation in ("relu", "gelu_tanh"):
        layer = Layer(activation)
        (call,) = joined([layer.linear, layer.activation], [layer.y], ALL)
        assert call.args == (X, W, B, activation, False) and call.outs[0].same(layer.y)
        assert len(call.outs) == 1


@pytest.mark.parametrize("why", ["read", "result", "elsewhere", "twice"])
def test_a_relu_that_stays(why):
    layer, results, before = Layer(), [], ()
    if why == "read":  # what relu is applied to is seen elsewhere
        before = (Call("exp", (layer.z,), {}, (ref(30),)),)
    elif why == "result":
        results = [layer.z]
    elif why == "elsewhere":  # the result lies outside
        layer.activation = Call("relu", (layer.z,), {}, (ref(30, "external"),))
    elif why == "twice":
        before = (Call("copyto", (layer.y, X), {}, (), (layer.y,)),)
    found = kernels(layer.calls(before=before), results=results)
    assert FORTH not in found and "relu" in found


def test_what_gelu_is_applied_to_may_be_seen_elsewhere():
    layer = Layer("gelu_tanh")
    seen = Call("exp", (layer.z,), {}, (ref(30),))
    assert kernels(layer.calls(before=(seen,)), results=[layer.z]) == [FORTH, "exp", BACK, "matmul"]


@pytest.mark.parametrize("why", ["read", "changed", "dtype", "batch", "operand"])
def test_a_way_back_that_stays(why):
    layer, between = Layer(), ()
    if why == "read":  # the product is seen elsewhere
        between = (Call("exp", (layer.dh,), {}, (ref(30),)),)
    elif why == "changed":  # an operand is overwritten before the slope
        between = (Call("copyto", (ABOVE, W), {}, (), (ABOVE,)),)
    elif why == "dtype":
        halves = ref(31, "input", dtype=HALF), ref(32, "external", dtype=HALF)
        layer.product = replace(layer.product, args=halves)
    elif why == "batch":
        layer.product = replace(layer.product, args=(DY, ref(31, "external", (1, 4, 4))))
    elif why == "operand":
        layer.slope = replace(layer.slope, outs=(DY,))
        layer.weight = replace(layer.weight, args=(turned(DY), X))
        layer.bias = replace(layer.bias, args=(DY,))
    found = kernels(layer.calls(*between))
    assert found[0] == FORTH and BACK not in found and "relu_backward" in found


@pytest.mark.parametrize("why", ["touched", "axis", "dtype"])
def test_a_bias_whose_sum_stays(why):
    layer, after = Layer(), ()
    if why == "touched":  # its place is still read
        after = (Call("exp", (layer.db,), {}, (ref(30, shape=(4,)),)),)
    elif why == "axis":
        layer.bias = replace(layer.bias, kwargs={"axis": 1})
    elif why == "dtype":
        layer.bias = replace(layer.bias, outs=(ref(30, "external", (4,), np.dtype(np.float64)),))
    found = joined(layer.calls(after=after), [], ALL)
    assert found[-1].kernel == "sum"
    (back,) = [c for c in found if c.kernel == BACK]
    assert len(back.outs) == 1 and back.args[-1] is False


def test_a_weights_product_takes_the_sum_of_a_bias_along():
    dw, db = ref(20, "external"), ref(21, "external", (4,))
    calls = [Call("matmul", (turned(DY), X), {}, (dw,)), Call("sum", (DY,), {"axis": 0}, (db,))]
    (call,) = joined(calls, [], ALL)
    assert (call.kernel, call.outs) == (SUMS, (dw, db)) and call.args[0].same(turned(DY))
    assert joined(calls, [], device()) == calls


@pytest.mark.parametrize("why", ["chain", "operand", "touched", "before", "other"])
def test_a_sum_that_stays(why):
    dy, dw, db, between, before = DY, ref(20, "external"), ref(21, "external", (4,)), (), ()
    if why == "chain":  # its loop sums as well
        dy = ref(31)
        before = (Call("multiply", (DY, 2.0), {}, (dy,)),)
    elif why == "operand":
        db = replace(X, shape=(4,), strides=(4,))
    elif why == "touched":
        between = (Call("copyto", (db, B), {}, (), (db,)),)
    elif why == "other":
        between, dy = (), ref(32, "input")
    product = Call("matmul", (turned(DY if why == "other" else dy), X), {}, (dw,))
    total = Call("sum", (dy,), {"axis": 0}, (db,))
    rest = [total, product] if why == "before" else [product, *between, total]
    assert SUMS not in kernels([*before, *rest])


# Whole steps.
def train(device, activation, compiled, dtype="float32", precision="float32", pieces=1):
    """Parameters after eight steps, and the kernels of the compiled step."""
    g = gb.Generator(3)
    net = nn.Sequential(
        nn.Linear(6, 16, generator=g, dtype=dtype),
        nn.ReLU() if activation == "relu" else nn.GELU("tanh"),
        nn.Linear(16, 8, generator=g, dtype=dtype),
        nn.ReLU() if activation == "relu" else nn.GELU("tanh"),
        nn.Linear(8, 3, generator=g, dtype=dtype),
    ).to(device)
    rule = optim.SGD(net.parameters(), lr=0.05)

    def work(x, y):
        rule.zero_grad()
        for _ in range(pieces):
            with gb.precision(precision):
                loss = F.cross_entropy(net(x), y)
            loss.backward()
        rule.step()

    run = gb.compile(work) if compiled else work
    rng = np.random.default_rng(0)
    for _ in range(8):
        x = rng.standard_normal((10, 6)).astype(dtype)
        run(gb.tensor(x, device=device), gb.tensor(rng.integers(0, 3, 10), device=device))
    found = None
    if compiled:
        (entry,) = [e for e in run.entries if e.replay is not None]
        found = [c.kernel for c in entry.replay.calls], run.explain()
    return [p.numpy().copy() for p in net.parameters()], found


@pytest.fixture
def gpu(monkeypatch):
    if shim.missing() or fake_lt.missing():
        pytest.skip(shim.missing() or fake_lt.missing())
    monkeypatch.setitem(sys.modules, "cupy", GraphCuPy())
    with graph_cupy.products_captured():
        yield CUDABackend()
    fake_lt.number("keeps_nan").value = 1


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
@pytest.mark.parametrize("precision", ["float32", "fp16-mixed"])
def test_a_step_with_joined_products_is_that_of_the_function(gpu, activation, precision):
    expected, _ = train(gpu, activation, False, precision=precision)
    found, (names, words) = train(gpu, activation, True, precision=precision)
    assert (names.count(FORTH), names.count(BACK)) == (2, 2)
    assert (SUMS in names) == (precision == "float32")
    assert "relu" not in names and "sum" not in names[names.index(BACK) :]
    assert "are one launch" in words, words
    near = 1e-5 if precision == "float32" else 3e-3
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=near, atol=near)


def test_gradients_that_add_up_still_do_so_in_their_products(gpu):
    expected, _ = train(gpu, "relu", False, pieces=2)
    found, (names, _) = train(gpu, "relu", True, pieces=2)
    assert (names.count(FORTH), names.count(BACK)) == (4, 4)
    # Of three layers the second batch is added; of the first batch one sum is left to join.
    assert (names.count("addmm"), names.count(SUMS)) == (3, 1)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_where_relu_drops_a_nan_the_step_is_as_before(gpu):
    fake_lt.number("keeps_nan").value = 0
    expected, _ = train(gpu, "relu", False)
    found, (names, _) = train(gpu, "relu", True)
    assert FORTH not in names and BACK not in names
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


class Clock:
    """Says that products which keep what gelu is applied to are slow, and others are not."""

    source = "the test"

    def seconds(self, call, calls=1):
        call()
        return calls * (2.0 if fake_lt.number("epilogue").value == 164 else 1.0)


def test_what_is_slower_joined_stays_by_itself(gpu, monkeypatch, tmp_path):
    """gelu is on its own on the way forth, and taken along on the way back."""
    monkeypatch.setenv("GPUBACKPROP_CACHE", str(tmp_path))
    expected, _ = train(gpu, "gelu_tanh", False)
    gpu.joining = "auto"
    gpu.clock = Clock
    found, (names, words) = train(gpu, "gelu_tanh", True)
    assert (names.count(FORTH), names.count(BACK), names.count("linear")) == (0, 2, 3)
    assert "are one launch" in words, words
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    (table,) = saved()
    used = {call.split()[0]: choice.use for call, choice in table.choices.items()}
    assert used == {FORTH: "parts", BACK: "joined", SUMS: "joined"}


def test_a_cpus_step_has_none():
    _, (names, _) = train("cpu", "relu", True)
    assert not {FORTH, BACK, SUMS} & set(names)
    if not native_trouble():
        assert "linear" in names
