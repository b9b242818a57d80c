"""A product that is only added to a sum, or only widened, is one call with that, where it is the
same."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends.cuda import CUDABackend
from gpubackprop.compile.accumulate import APART, accumulated, widened
from gpubackprop.compile.compiled import native_trouble
from gpubackprop.compile.trace import Buffer, Call, Ref
from gpubackprop.nn import functional as F
from tests.backends.support import fake_lt, shim
from tests.compile.support.graph_cupy import GraphCuPy

FLOAT = np.dtype(np.float32)


def ref(number, kind="made", shape=(4, 4), dtype=FLOAT, buffer=None):
    size = int(np.prod(shape)) * dtype.itemsize
    strides = tuple(dtype.itemsize * int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return Ref(buffer or Buffer(number, size, kind), 0, shape, strides, dtype)


A, B, TOTAL = ref(0, "input"), ref(1, "input"), ref(2, "external")


def step(*between, out=TOTAL, args=None, product=None, results=()):
    product = product or ref(3)
    calls = [
        Call("matmul", (A, B), {}, (product,)),
        *between,
        Call("add", args or (TOTAL, product), {}, (out,)),
    ]
    return [c.kernel for c in accumulated(calls, results)]


def test_a_product_and_its_addition_are_one_call():
    assert step() == ["addmm"]
    product = ref(3)
    assert step(product=product, args=(product, TOTAL)) == ["addmm"]  # in either order
    other = Call("relu", (A,), {}, (ref(4),))
    assert step(other) == ["relu", "addmm"]
    made = ref(5)  # a cotangent that adds up within the step
    assert step(Call("relu", (A,), {}, (made,)), args=(made, product), out=made, product=product)
    calls = [Call("matmul", (A, B), {}, (product,)), Call("add", (TOTAL, product), {}, (TOTAL,))]
    (call,) = accumulated(calls, [])
    assert call.args == (TOTAL, A, B) and call.outs == (TOTAL,)


@pytest.mark.parametrize(
    "why",
    ["read", "result", "elsewhere", "changed", "far", "dtype", "shape", "itself", "operand", "two"],
)
def test_what_stays_two_calls(why):
    product, more = ref(3), {}
    between = []
    if why == "read":
        between = [Call("relu", (product,), {}, (ref(4),))]
    elif why == "result":
        more["results"] = [product]
    elif why == "elsewhere":  # the sum is another array
        more["out"] = ref(4)
    elif why == "changed":  # an operand is overwritten before the addition
        between = [Call("copyto", (A, B), {}, (), (A,))]
    elif why == "far":
        between = [Call("relu", (A,), {}, (ref(9 + i),)) for i in range(APART)]
    elif why == "dtype":
        product = ref(3, dtype=np.dtype(np.float64))
    elif why == "shape":  # one row, which the addition repeats
        product = ref(3, shape=(1, 4))
    elif why == "itself":
        more["args"] = (product, product)
        more["out"] = product
    elif why == "operand":  # the sum is one of what is multiplied
        more.update(args=(A, product), out=A)
    elif why == "two":  # made by two calls
        between = [Call("copyto", (product, B), {}, (), (product,))]
    found = step(*between, product=product, **more)
    assert found[0] == "matmul" and found[-1] == "add"


HALF = np.dtype(np.float16)
C, D = ref(10, "input", dtype=HALF), ref(11, "input", dtype=HALF)


def mixed(*between, out=TOTAL, dtype=HALF, operands=(C, D), results=()):
    """A product of halves that is then made float32."""
    product = ref(12, dtype=dtype)
    calls = [
        Call("matmul", operands, {}, (product,)),
        *(Call(kernel, (product,), {}, (ref(13),)) for kernel in between),
        Call("astype", (product, FLOAT), {}, (out,)),
    ]
    return widened(calls, [product] if results else [])


def test_a_product_of_halves_that_is_widened_is_never_rounded():
    (call,) = mixed()
    assert (call.kernel, call.args, call.outs) == ("wide_matmul", (C, D), (TOTAL,))
    made = ref(14)
    calls = [*mixed(out=made), Call("add", (TOTAL, made), {}, (TOTAL,))]
    (call,) = accumulated(calls, [])
    assert (call.kernel, call.args, call.outs) == ("addmm", (TOTAL, C, D), (TOTAL,))


def test_a_product_of_halves_that_is_seen_elsewhere_is_rounded():
    for found in (mixed("relu"), mixed(results=True)):
        assert found[0].kernel == "matmul" and found[-1].kernel == "astype"
    (first, second) = mixed(out=ref(15, dtype=np.dtype(np.float64)))
    assert (first.kernel, second.kernel) == ("matmul", "astype")
    assert len(mixed(dtype=FLOAT, operands=(A, B))) == 2  # nothing to widen


# Whole steps.
class Twice(nn.Module):
    """A layer that is used twice, so that its gradient and a cotangent add up."""

    def __init__(self, dtype):
        super().__init__()
        self.first, self.second = (nn.Linear(6, 6, dtype=dtype) for _ in range(2))

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.first(h) + self.second(h) * self.second(x)


def train(device, compiled, dtype="float32", precision="float32"):
    """Parameters after four steps of two batches each, and the kernels of the compiled step."""
    gb.manual_seed(3)
    net = Twice(dtype).to(device)
    rule = optim.SGD(net.parameters(), lr=0.05)

    def work(x, y):
        rule.zero_grad()
        for half in (slice(0, 5), slice(5, 10)):
            with gb.precision(precision):
                loss = F.mse_loss(net(x[half]), y[half])
            loss.backward()
        rule.step()

    run = gb.compile(work, fast=None if device == "cpu" else False) if compiled else work
    rng = np.random.default_rng(0)
    for _ in range(4):
        data = (rng.standard_normal((10, 6)).astype(dtype) for _ in range(2))
        run(*(gb.tensor(a, device=device) for a in data))
    kernels = None
    if compiled:
        (entry,) = [e for e in run.entries if e.replay is not None]
        kernels = [c.kernel for c in entry.replay.calls]
    return [p.numpy().copy() for p in net.parameters()], kernels


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_add_up_in_their_products_on_a_cpu(dtype):
    if native_trouble():
        pytest.skip(native_trouble())
    expected, _ = train("cpu", False, dtype)
    found, kernels = train("cpu", True, dtype)
    assert kernels.count("addmm") >= 3
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "tf32", "fp16-mixed", "bf16-mixed"])
def test_gradients_add_up_in_their_products_on_a_gpu(monkeypatch, precision):
    if shim.missing() or fake_lt.missing():
        pytest.skip(shim.missing() or fake_lt.missing())
    if precision == "bf16-mixed":
        pytest.importorskip("ml_dtypes")
    monkeypatch.setitem(sys.modules, "cupy", GraphCuPy())
    backend = CUDABackend()
    expected, _ = train(backend, False, precision=precision)
    found, kernels = train(backend, True, precision=precision)
    assert kernels.count("addmm") >= 2
    assert ("wide_matmul" in kernels) == precision.endswith("mixed")
    near = 3e-3 if precision.endswith("mixed") else 1e-5
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=near, atol=near)
