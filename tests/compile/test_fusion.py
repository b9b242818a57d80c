"""Elementwise calls taken together: what joins, what must not, and the kernels that a GPU gets."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any
from unittest import mock

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.backends import get_backend, live
from gpubackprop.backends.cuda import CUDABackend
from tests.backends.support import shim
from tests.compile.support.graph_cupy import GraphCuPy


def fake() -> CUDABackend:
    with mock.patch.dict(sys.modules, {"cupy": GraphCuPy()}):
        return CUDABackend(0)


NEEDS = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")
PLACES = [
    pytest.param(lambda: get_backend("cpu"), id="cpu"),
    pytest.param(fake, id="fake", marks=NEEDS),
    pytest.param(lambda: get_backend("cuda"), id="cuda", marks=pytest.mark.gpu),
]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def replayed(step: Any, backend: Any, *arrays: np.ndarray, calls: int = 6, **options: Any) -> Any:
    """A compiled function after a few calls, each compared with the function itself."""
    run = gb.compile(step, **options)
    for k in range(calls):
        given = [gb.tensor(a + np.asarray(k / 8, a.dtype), device=backend) for a in arrays]
        found, want = run(*given), step(*given)
        several = found if isinstance(found, tuple) else (found,)
        for a, b in zip(several, want if isinstance(want, tuple) else (want,), strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
    (entry,) = run.entries
    assert entry.calls >= 2, run.explain()
    return run


def kernels(run: Any) -> Counter[str]:
    (entry,) = run.entries
    return Counter(c.kernel for c in entry.replay.calls)


def fuses(backend: Any) -> bool:
    from gpubackprop.compile.compiled import native_trouble

    return bool(backend.chain_floats) or native_trouble() is None


@pytest.mark.parametrize("place", PLACES)
def test_a_chain_with_its_sums_is_one_call(place: Any) -> None:
    backend = place()

    def step(x: Any, y: Any) -> Any:
        z = (x * y + 1.0).relu() * 0.5
        return z, z.sum(axis=0), z.sum()

    run = replayed(step, backend, normal(33, 20), normal(20))
    if fuses(backend):
        assert kernels(run) == {"chain": 1}, run.explain(calls=True)


@pytest.mark.parametrize("place", PLACES)
def test_what_a_chain_sums_up_is_not_read_within_it(place: Any) -> None:
    backend = place()

    def step(x: Any) -> Any:
        e = x.exp()
        return e / e.sum()

    run = replayed(step, backend, normal(10, 30))
    if fuses(backend):
        first, second = next(iter(run.entries)).replay.calls
        assert first.kernel == "chain" and len(first.outs) == 2
        assert second.kernel == ("chain" if backend.chain_floats else "divide")


@pytest.mark.parametrize("place", PLACES)
def test_single_elements(place: Any) -> None:
    """Where the table is one element, every operand is of the chain's own kind."""

    def step(x: Any) -> Any:
        total = x.sum()
        half = total * 0.5
        return (half + total).exp() - half

    replayed(step, place(), normal(3, 4) * 0.1)


@pytest.mark.parametrize("place", PLACES)
def test_rows_and_columns_of_one_chain(place: Any) -> None:
    def step(x: Any) -> Any:
        y = x.tanh() * 2.0
        return y.sum(axis=1), y.sum(axis=0), y

    replayed(step, place(), normal(17, 9))


@NEEDS
def test_a_call_writes_where_its_result_is_wanted() -> None:
    """No result of an elementwise call is made elsewhere and copied on a device that fuses."""
    backend = fake()
    run = replayed(lambda x: (x + 1.0).sum(axis=0, keepdims=True) * x, backend, normal(5, 6))
    assert set(kernels(run)) == {"chain"}
    (entry,) = run.entries
    with mock.patch.object(backend, "copyto", side_effect=AssertionError("a copy")):
        for step in entry.replay.steps:
            step()


@NEEDS
@pytest.mark.parametrize("graph", [None, False])
def test_live_numbers_of_a_chain(graph: bool | None) -> None:
    """A captured step reads them from the device: they change, and it is captured once."""
    backend, count = fake(), [0]

    def read() -> live.Numbers:
        count[0] += 1
        return 0.5 * count[0], count[0]

    def undo() -> None:
        count[0] -= 1

    def step(x: Any) -> Any:
        rate, steps = live.call(read, undo)
        K = x.backend  # noqa: N806
        array = K.add(K.relu(K.multiply(x.array, rate)), steps)
        return gb.Tensor(array, K)

    x = normal(40).astype(np.float64)  # what a marked number makes of narrower ones
    run = gb.compile(step, graph=graph)
    for k in range(1, 12):
        found = run(gb.tensor(x, device=backend)).numpy()
        np.testing.assert_allclose(found, np.maximum(x * (0.5 * k), 0) + k, rtol=1e-12)
    (entry,) = run.entries
    assert kernels(run) == {"chain": 1}
    launch = entry.replay.launch
    if graph is None:
        assert launch.reason is None and launch.captures == 1 and launch.launches >= 5
    else:
        assert launch is None


def test_a_device_that_fuses_nothing_runs_the_calls_as_they_are() -> None:
    from gpubackprop import testing

    stand_in = next(p for p in testing.backends() if p.name == "stand-in").backend
    run = replayed(lambda x: (x + 1.0) * x, stand_in, normal(5, 6))
    assert "chain" not in kernels(run)


def test_chains_are_put_together_without_the_extra_for_the_cpu() -> None:
    """A GPU's chains need neither Numba nor CuPy until they are written."""
    program = (
        "import sys\n"
        "sys.modules['numba'] = sys.modules['llvmlite'] = sys.modules['cupy'] = None\n"
        "import gpubackprop.compile.fusion, gpubackprop.backends.cuda.chains\n"
        "assert not [m for m in sys.modules if m.startswith('gpubackprop.backends.cpu.native')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("place", [PLACES[0], PLACES[2]])
def test_a_column_with_gaps_stays_outside_of_a_chain(place: Any) -> None:
    """It is found by its stride, which a chain of several calls does not keep."""
    weight = np.ones((3, 4), np.float32)

    def step(x: Any, w: Any) -> Any:
        return gb.matmul(x * (1.0 + x[:, :1] * 2.0), w)

    x = normal(5, 4)
    run = gb.compile(step)
    backend = place()
    for _ in range(5):
        y = run(
            gb.tensor(x, device=backend.device), gb.tensor(weight.T.copy(), device=backend.device)
        )
    np.testing.assert_allclose(y.numpy(), (x * (1 + x[:, :1] * 2)) @ weight.T, rtol=1e-5)
