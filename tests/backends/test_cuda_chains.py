"""Generated kernels of elementwise chains against NumPy: their source run on the CPU, and on a GPU
where there is one."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends import get_backend
from gpubackprop.backends.base import Backend
from gpubackprop.backends.chains.chain import Chain, Operand, Result, Step, eligible, traced
from gpubackprop.backends.chains.layouts import FLAT, Table, table
from gpubackprop.backends.composites import Composites
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import sources
from gpubackprop.backends.live import marked
from tests.backends import test_cuda_backend as fakes
from tests.backends.support import shim
from tests.backends.support.chain_cases import ONE, SPECIAL, TWO, numbers_and_kinds

NUMPY = NumPyBackend()
X, DY = (Operand("input", k) for k in range(2))
PLACES = [
    pytest.param(
        lambda: fakes.BACKEND,
        id="fake",
        marks=pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there"),
    ),
    pytest.param(lambda: get_backend("cuda"), id="cuda", marks=pytest.mark.gpu),
]
try:
    from ml_dtypes import bfloat16

    DTYPES = [np.float32, np.float64, np.float16, bfloat16]
except ImportError:
    DTYPES = [np.float32, np.float64, np.float16]
TOLERANCE = {"float32": 3e-6, "float64": 1e-13, "float16": 2e-3, "bfloat16": 1.6e-2}


@pytest.fixture(params=PLACES)
def cuda(request):
    return request.param()


@pytest.fixture(params=DTYPES, ids=lambda d: np.dtype(d).name)
def dtype(request):
    return np.dtype(request.param)


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def run(cuda, chain: Chain, arrays: Any, outs: Any, *numbers: Any) -> list[np.ndarray]:
    """A chain's results; `outs` are their shapes and dtypes."""
    made = [cuda.asarray(np.full(shape, 3, dtype)) for shape, dtype in outs]
    ready = cuda.chain([cuda.asarray(a) for a in arrays], chain, made)
    assert ready is not None
    ready(*numbers)
    return [cuda.to_numpy(m) for m in made]


def defined(kernel: str, *args: Any) -> np.ndarray:
    """What the contract says; halves are computed with in float."""
    narrow = [isinstance(a, np.ndarray) and a.itemsize == 2 for a in args]
    wide = [a.astype(np.float32) if n else a for a, n in zip(args, narrow, strict=True)]
    if kernel == "astype":
        return np.asarray(wide[0]).astype(wide[1])
    function = vars(Composites).get(kernel)
    with np.errstate(all="ignore"):
        found = getattr(NUMPY, kernel)(*wide) if function is None else function(NUMPY, *wide)
    return np.asarray(found)


def check_calls(cuda, arrays: Any, calls: Any, dtype: Any) -> None:
    """Many calls ``(kernel, *args)`` in one chain, each of them a result."""
    given = [tuple(arrays[a.place] if isinstance(a, Operand) else a for a in c) for c in calls]
    steps = tuple(Step(kernel, args) for kernel, *args in calls)
    nodes, _ = traced(steps, [a.dtype for a in arrays], cuda.chain_floats)
    results = tuple(Result(k, FLAT) for k in range(len(calls)))
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    chain = Chain(table(np.empty(shape, np.float32), arrays), steps, results)
    found = run(cuda, chain, arrays, [(shape, n.dtype) for n in nodes])
    tolerance = TOLERANCE[np.dtype(dtype).name] * (
        1 if isinstance(cuda.xp, fakes.fake_cupy.FakeCuPy) else 10
    )
    for call, got, args in zip(calls, found, given, strict=True):
        with np.errstate(over="ignore"):
            want = defined(*args).astype(got.dtype)
        assert got.dtype == want.dtype
        exact = got.dtype.kind in "bi"
        np.testing.assert_allclose(
            got.astype(float),
            np.broadcast_to(want, shape).astype(float),
            rtol=0 if exact else tolerance,
            atol=0 if exact else tolerance / 10,
            err_msg=str(call),
        )


def test_one_argument(cuda, dtype):
    x = np.concatenate([SPECIAL, normal(99)]).astype(dtype)
    check_calls(cuda, [x], [(kernel, X) for kernel in ONE], dtype)


def test_two_arguments_of_every_kind_of_number(cuda, dtype):
    first, second = SPECIAL, np.concatenate([SPECIAL, normal(5)])
    a, b = (np.ascontiguousarray(m).astype(dtype) for m in np.meshgrid(first, second))
    check_calls(cuda, [a, b], [(kernel, X, DY) for kernel in TWO], dtype)


def test_numbers_integers_and_booleans(cuda, dtype):
    x, n = normal(9, dtype=dtype), np.random.default_rng(1).integers(-5, 5, 9)
    arrays = [x, n, x > 0, normal(9, dtype=dtype, seed=2)]
    # NumPy has float64 where integers meet floats of 16 or 32 bits, bfloat16 no common dtype.
    check_calls(cuda, arrays, numbers_and_kinds(dtype), dtype)


def test_integers_wrap_around(cuda):
    n = np.array([2**63 - 1, -(2**63), 2**62, 3], np.int64)
    calls = [(k, X, X) for k in ("add", "subtract", "multiply")]
    check_calls(cuda, [n], [*calls, ("negative", X), ("absolute", X), ("square", X)], np.float32)


def test_a_half_is_compared_with_a_number_as_a_half_holds_it(cuda):
    x = np.array([0.1, 0.2, 0.3], np.float16)
    chain = Chain(table(x, [x]), (Step("equal", (X, 0.1)),), (Result(0, FLAT),))
    (found,) = run(cuda, chain, [x], [((3,), np.dtype(bool))])
    np.testing.assert_array_equal(found, x == 0.1)
    assert found[0]


def test_what_is_written_in_a_narrow_type_is_rounded_once(cuda):
    """Between the steps of a chain halves keep the digits of a float; a cast drops them."""
    x = np.full(5, 2048.0, np.float16)
    kept = (Step("add", (X, 1.0)), Step("subtract", (Operand("step", 0), 2048.0)))
    (found,) = run(cuda, Chain(table(x, [x]), kept, (Result(1, FLAT),)), [x], [((5,), x.dtype)])
    np.testing.assert_array_equal(found, 1.0)
    wide = x.astype(np.float32)
    cast = (
        Step("add", (X, 1.0)),
        Step("astype", (Operand("step", 0), np.dtype(np.float16))),
        Step("astype", (Operand("step", 1), np.dtype(np.float32))),
        Step("subtract", (Operand("step", 2), 2048.0)),
    )
    chain = Chain(table(wide, [wide]), cast, (Result(3, FLAT),))
    (found,) = run(cuda, chain, [wide], [((5,), wide.dtype)])
    np.testing.assert_array_equal(found, 0.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((12, 6, 8), (6, 8)),
        ((12, 6, 7), (12, 6, 1)),
        ((7, 5), (5,)),
        ((70, 64), (64,)),
        ((33, 5), ()),
        ((33, 5), (33, 1)),
        ((1,), (1,)),
        ((3, 70001), (70001,)),
    ],
)
def test_operands_that_repeat(cuda, a, b):
    x, y = normal(*a), normal(*b, seed=1)
    lies = table(x, [x, y])
    assert not lies.lengths
    chain = Chain(lies, (Step("subtract", (X, DY)),), (Result(0, FLAT),))
    (found,) = run(cuda, chain, [x, y], [(a, x.dtype)])
    np.testing.assert_array_equal(found, x - y)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(1, 9), (7, 5), (33, 1), (5, 64)])
def test_nothing_is_written_beside_a_result(cuda, monkeypatch, shape, reverse):
    monkeypatch.setattr(shim.RawModule, "reverse", reverse)
    n = math.prod(shape)
    x = normal(*shape)
    for before in (8, 9):  # packs begin with the array, or within it
        whole = cuda.asarray(np.full(n + 32, 7, np.float32))
        out = whole[before : before + n].reshape(shape)
        chain = Chain(
            Table(*shape, (FLAT, "rows")), (Step("multiply", (X, DY)),), (Result(0, FLAT),)
        )
        scale = normal(shape[0], seed=1)
        cuda.chain([cuda.asarray(x), cuda.asarray(scale)], chain, [out])()
        found = cuda.to_numpy(whole)
        np.testing.assert_array_equal(found[before : before + n], (x * scale[:, None]).ravel())
        assert (found[:before] == 7).all() and (found[before + n :] == 7).all()


def test_results_in_place(cuda):
    x, y = cuda.asarray(normal(301)), cuda.asarray(normal(301, seed=1))
    want = NUMPY.relu_backward(*map(cuda.to_numpy, (x, y)))
    chain = Chain(
        Table(1, 301, (FLAT, FLAT)), (Step("relu_backward", (X, DY)),), (Result(0, FLAT),)
    )
    cuda.chain([x, y], chain, [x])()
    np.testing.assert_array_equal(cuda.to_numpy(x), want)


# Reductions at the end of a chain.
GRADIENT = (Step("relu_backward", (DY, X)),)
SHAPES = [(1, 1), (1, 900), (33, 7), (128, 512), (515, 64), (2, 3), (70, 1), (1030, 10)]


def reduced(shape: tuple[int, int], dtype: Any) -> dict[str, Any]:
    return {
        FLAT: (shape, dtype),
        "columns": (shape[1:], dtype),
        "rows": (shape[:1], dtype),
        "all": ((), dtype),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", ["sum", "max"])
def test_reductions(cuda, dtype, shape, op):
    x, dy = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    outs = reduced(shape, dtype)
    lies = Table(*shape, (FLAT, FLAT))
    hows = (FLAT, "columns", "rows", "all")
    exact = np.where(x > 0, dy, 0).astype(float)
    tolerance = max(TOLERANCE[dtype.name], 1e-6) * 5
    parts = ((FLAT, "columns"), ("rows", FLAT), ("columns",), ("all",))
    for wanted in (hows, *(parts if dtype == np.float32 else ())):
        chain = Chain(lies, GRADIENT, tuple(Result(0, how, op) for how in wanted))
        found = run(cuda, chain, [x, dy], [outs[how] for how in wanted])
        for how, got in zip(wanted, found, strict=True):
            axis = {FLAT: (), "columns": 0, "rows": 1, "all": None}[how]
            want = exact if how == FLAT else getattr(np, op)(exact, axis=axis)
            got = got.astype(float)
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=how)


@pytest.mark.parametrize("op", ["sum", "max"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_reductions_of_what_is_not_finite(cuda, op, value):
    x = normal(40, 50)
    x[7, 9] = value
    outs = reduced((40, 50), np.float32)
    for how, axis in (("columns", 0), ("rows", 1), ("all", None)):
        chain = Chain(Table(40, 50, (FLAT,)), (Step("copy", (X,)),), (Result(0, how, op),))
        (found,) = run(cuda, chain, [x], [outs[how]])
        np.testing.assert_allclose(found, getattr(np, op)(x, axis=axis), rtol=1e-4, atol=1e-5)


def test_a_sum_of_booleans_counts(cuda):
    target = np.random.default_rng(0).integers(-2, 2, (40, 10))
    step = (Step("not_equal", (X, -1)),)
    chain = Chain(Table(1, 400, (FLAT,)), step, (Result(0, "all"),))
    (found,) = run(cuda, chain, [target], [((), np.dtype(np.int64))])
    assert found == (target != -1).sum()


@pytest.mark.parametrize("how", ["columns", "rows", "all"])
def test_sums_do_not_depend_on_where_an_array_lies(cuda, how):
    values = normal(37 * 64)
    found = []
    for start in (0, 1):
        whole = cuda.asarray(np.concatenate([np.zeros(start, np.float32), values]))
        x = whole[start:].reshape(37, 64)
        shape, dtype = reduced((37, 64), np.float32)[how]
        out = cuda.empty(shape, dtype)
        chain = Chain(Table(37, 64, (FLAT,)), (Step("exp", (X,)),), (Result(0, how),))
        ready = cuda.chain([x], chain, [out])
        for _ in range(2):
            ready()
            found.append(cuda.to_numpy(out).tobytes())
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    "hows", [("columns", "columns", FLAT, "all", "all"), ("rows", "rows", "all")]
)
def test_threads_may_come_in_any_order(monkeypatch, hows):
    if shim.missing():
        pytest.skip(shim.missing())
    x, outs = normal(300, 70), reduced((300, 70), np.float32)
    steps = (Step("exp", (X,)), Step("square", (X,)))
    results = tuple(Result(k % 2, how) for k, how in enumerate(hows))
    chain = Chain(Table(300, 70, (FLAT,)), steps, results)
    for reverse in (False, True):
        monkeypatch.setattr(shim.RawModule, "reverse", reverse)
        found = run(fakes.BACKEND, chain, [x], [outs[how] for how in hows])
        for result, how, got in zip(results, hows, found, strict=True):
            exact = np.square(x) if result.step else np.exp(x)
            axis = {FLAT: (), "columns": 0, "rows": 1, "all": None}[how]
            want = exact if how == FLAT else exact.sum(axis=axis)
            np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=how)


def test_live_numbers_are_read_at_each_run(cuda):
    x = normal(50)
    steps = (
        Step("multiply", (X, marked(0.5, 4))),
        Step("add", (Operand("step", 0), marked(3, 7))),
        Step("multiply", (Operand("step", 1), marked(0.5, 4))),
    )
    chain = Chain(Table(1, 50, (FLAT,)), steps, (Result(2, FLAT),))
    out = cuda.empty((50,), np.float32)
    ready = cuda.chain([cuda.asarray(x)], chain, [out])
    places = cuda.zeros((), np.float64), cuda.zeros((), np.int64)
    for a, b in ((0.25, 7), (-2.0, 0)):
        want = (x * np.float32(a) + np.float32(b)) * np.float32(a)
        ready([a, b])
        np.testing.assert_array_equal(cuda.to_numpy(out), want)
        out.fill(0)
        for place, value in zip(places, (a, b), strict=True):
            place.fill(value)
        ready(places)  # the same kernel, the numbers where they lie
        np.testing.assert_array_equal(cuda.to_numpy(out), want)


def test_one_kernel_serves_all_numbers_and_sizes(monkeypatch):
    if shim.missing():
        pytest.skip(shim.missing())
    cuda = fakes.make()
    compiled = []
    module = cuda.xp.RawModule
    monkeypatch.setattr(
        cuda.kernels,
        "_cupy",
        SimpleNamespace(RawModule=lambda **k: compiled.append(k) or module(**k)),
    )
    for size, value in ((5, 2.0), (700, 2.0), (5, 3.0)):
        x = normal(size)
        chain = Chain(table(x, [x]), (Step("multiply", (X, value)),), (Result(0, FLAT),))
        (found,) = run(cuda, chain, [x], [((size,), x.dtype)])
        np.testing.assert_array_equal(found, x * np.float32(value))
    assert len(compiled) == 1


@pytest.mark.gpu
def test_more_elements_than_32_bits_count():
    cuda = get_backend("cuda")
    free, _ = cuda.xp.cuda.runtime.memGetInfo()
    n = 2**31 + 24
    if free < 6 * n:
        pytest.skip(f"needs {6 * n / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free")
    x, total = cuda.full((n,), 0.5, np.float16), cuda.empty((), np.float32)
    marks = [0, 2**31 - 1, 2**31, n - 1]
    for place in marks:
        x[place] = 2.0
    steps = (Step("multiply", (X, 3.0)), Step("astype", (Operand("step", 0), np.dtype("f4"))))
    chain = Chain(Table(1, n, (FLAT,)), steps, (Result(0, FLAT), Result(1, "all")))
    cuda.chain([x], chain, [x, total])()
    assert [float(cuda.to_numpy(x[place])) for place in marks] == [6.0] * 4
    assert float(cuda.to_numpy(x[2**31 + 5])) == 1.5
    assert float(cuda.to_numpy(total)) == pytest.approx(1.5 * n + 4.5 * 4, rel=1e-6)
    squares, nonfinite = cuda.square_norm(x)
    assert float(cuda.to_numpy(squares)) == pytest.approx(2.25 * n + 33.75 * 4, rel=1e-12)
    assert not cuda.to_numpy(nonfinite)


@pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")
def test_a_quotient_of_any_size():
    """Divisions in 32 bits where these are enough; beyond, as many as it takes."""
    text = (
        "__global__ void quotients(const i64* a, const i64* b, i64* c, i64 n) {\n"
        "  for (i64 i = thread_index(); i < n; i += thread_count()) c[i] = quotient(a[i], b[i]);\n"
        "}\n"
    )
    kernel = shim.build(sources.around(text, ()), ("quotients",))["quotients"]
    sizes = [1, 2, 3, 7, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 5, 2**62]
    a, b = (np.ascontiguousarray(m.ravel()) for m in np.meshgrid([0, *sizes], sizes))
    found = np.empty_like(a)
    kernel(1, 32, (a, b, found, np.int64(a.size)))
    np.testing.assert_array_equal(found, a // b)


def test_what_is_not_served():
    cuda = fakes.BACKEND
    x = cuda.asarray(np.zeros(3, np.int32))
    chain = Chain(Table(1, 3, (FLAT,)), (Step("add", (X, 1)),), (Result(0, FLAT),))
    assert cuda.chain([x], chain, [x]) is None
    y = cuda.asarray(np.zeros(3, np.float32))
    assert cuda.chain([y], chain, [cuda.asarray(np.zeros(3))]) is None
    counts = chain._replace(steps=(Step("greater", (X, 0)),), results=(Result(0, "rows"),))
    assert cuda.chain([y], counts, [cuda.asarray(np.zeros(1, np.int64))]) is None
    assert not eligible("add", (x, 1), {}, x, cuda.chain_floats)
    assert NumPyBackend().chain_floats == () and Backend.chain(NUMPY, [y], chain, [y]) is None
