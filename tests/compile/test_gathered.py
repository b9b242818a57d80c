"""Results that are made side by side where they are only put side by side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.compile.gathered import gathered
from gpubackprop.compile.passes import touched
from gpubackprop.compile.trace import Buffer, Call, Ref
from gpubackprop.testing import require_close, tolerance
from tests.backends.support import fake_lt, shim
from tests.compile.support import graph_cupy
from tests.compile.test_graphs import device

MISSING = shim.missing() or fake_lt.missing()
needs_compilers = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the compilers are there")
FLOAT = np.dtype(np.float32)


@pytest.fixture
def _products() -> Iterator[None]:
    with graph_cupy.products_captured():
        yield


def made(number: int, *shape: int) -> Ref:
    """All of a new buffer."""
    x = np.empty(shape, FLOAT)
    return Ref(Buffer(number, x.nbytes, "made"), 0, shape, x.strides, FLOAT)


def view(ref: Ref, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Ref:
    return Ref(ref.buffer, offset, shape, tuple(4 * s for s in strides), FLOAT)


def steps(*others: Call, axis: int = -1, at: int = 1) -> list[Call]:
    """Heads (2, 3, 4, 5) of batches, heads, rows, features, made as (2, 4, 3, 5); then joined."""
    a, b, joint = made(0, 2, 4, 15), made(1, 2, 4, 15), made(2, 2, 4, 30)
    if axis == 0:
        joint = made(2, 4, 4, 15)
    heads = [view(x, (2, 3, 4, 5), (60, 5, 15, 1)) for x in (a, b)]
    calls = [
        Call("backward", (), {}, tuple(heads)),
        Call("concatenate", ((a, b),), {"axis": axis}, (joint,)),
        Call("sum", (joint,), {}, (made(3),)),
    ]
    calls[at:at] = others
    return calls


def elements(ref: Ref) -> np.ndarray:
    """Where in its buffer each element of a view lies."""
    places = np.asarray(ref.offset)
    for n, stride in zip(ref.shape, ref.strides, strict=True):
        places = places[..., None] + np.arange(n) * stride
    return places


@pytest.mark.parametrize("axis", [-1, 2, 0])
def test_each_part_is_made_in_its_place(axis: int) -> None:
    calls = steps(axis=axis)
    found = gathered(calls, [], {"backward"})
    assert [c.kernel for c in found] == ["backward", "sum"]
    a, b = calls[0].outs
    parts = [np.arange(120.0).reshape(2, 4, 15), np.arange(120.0).reshape(2, 4, 15) + 1000]
    joint = np.full(240, np.nan)
    for before, after, part in zip((a, b), found[0].outs, parts, strict=True):
        assert after.buffer is found[1].args[0].buffer
        joint[elements(after) // 4] = part.reshape(-1)[elements(before) // 4]
    want = np.concatenate(parts, axis=axis)
    np.testing.assert_array_equal(joint.reshape(want.shape), want)


def test_what_others_need_stays() -> None:
    for at in (1, 2):  # read before and after it is joined
        calls = steps(at=at)
        calls.insert(at, Call("sum", (calls[0].outs[0],), {}, (made(4),)))
        assert gathered(calls, [], {"backward"})[-2 if at == 1 else 1].kernel == "concatenate"
    calls = steps()
    assert len(gathered(calls, [calls[0].outs[1]], {"backward"})) == 3  # a result of the step
    assert len(gathered(calls, [], {"forward"})) == 3  # another kernel's
    again = Call("fill", (), {}, (), (calls[0].outs[0],))
    assert len(gathered([calls[0], again, *calls[1:]], [], {"backward"})) == 4  # written twice
    twice = [calls[0], Call("concatenate", ((calls[1].args[0][0],) * 2,), {}, (made(5, 4, 4, 15),))]
    assert len(gathered(twice, [], {"backward"})) == 2


def test_a_view_that_runs_over_the_end_of_a_row_stays() -> None:
    calls = steps()
    first = calls[0].outs[0]
    for odd in (
        view(first, (2, 4, 15), (60, 15, 1), 4),  # from the second element of a row
        view(first, (60, 2), (2, 1)),
        view(first, (2, 4, 15), (60, 15, -1), 14 * 4),
    ):
        calls[0].outs = (odd, calls[0].outs[1])
        assert len(gathered(calls, [], {"backward"})) == 3


@needs_compilers
@pytest.mark.usefixtures("_products")
@pytest.mark.parametrize("half", ["", "bf16-mixed"])
def test_cotangents_of_queries_keys_and_values_are_not_copied_together(half: str) -> None:
    if half:
        pytest.importorskip("ml_dtypes")
    backend, _ = device()
    gb.manual_seed(3)
    model = nn.TransformerLM(11, 16, 2, 2, 8, bias=False).to(backend)
    tokens = np.random.default_rng(1).integers(0, 11, (2, 8))
    x = gb.tensor(tokens, device=backend)

    def grads(x):
        model.zero_grad()
        with gb.precision(half or "float32"):
            loss = gb.mean(model(x) ** 2)
            loss.backward()
        return loss

    grads(x)
    want = [p.grad.numpy().copy() for p in model.parameters()]
    step = gb.compile(grads)
    for _ in range(5):
        step(x)
    (entry,) = step.entries
    names = [c.kernel for c in entry.replay.calls]
    assert "concatenate" not in names and "attention_backward" in names
    back = next(c for c in entry.replay.calls if c.kernel == "attention_backward")
    assert len({r.buffer for r in touched(back)}) == 1
    for p, grad in zip(model.parameters(), want, strict=True):
        close = tolerance(np.float16 if half else np.float32, 1000)
        require_close("gradient", p.grad.numpy(), grad, close)
