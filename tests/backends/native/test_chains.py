"""Elementwise kernels and chains of them against the NumPy backend."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends import get_backend
from gpubackprop.backends.chains.chain import Chain, Operand, Result, Step, eligible, traced
from gpubackprop.backends.chains.expressions import ELEMENTWISE, UnfitError
from gpubackprop.backends.chains.layouts import FLAT, Table, table
from gpubackprop.backends.cpu.native.chains import lower_chain
from gpubackprop.backends.cpu.native.engine import Program
from gpubackprop.backends.cpu.native.lowering import Site, load
from gpubackprop.backends.live import marked
from tests.backends.support.chain_cases import ONE, SPECIAL, TWO, numbers_and_kinds

TABLE = load()
NUMPY = get_backend("cpu")
RNG = np.random.default_rng(3)
X, DY = (Operand("input", k) for k in range(2))


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def numpys(kernel, *args, **kwargs):
    with np.errstate(all="ignore"):
        return np.asarray(getattr(NUMPY, kernel)(*args, **kwargs))


def run(instructions, parts):
    assert instructions is not None
    Program(instructions, parts).run()


def check(kernel, *args, parts=2, **kwargs):
    """A kernel by its lowering gives what the NumPy backend gives."""
    wanted = numpys(kernel, *args, **kwargs)
    out = np.empty_like(wanted)
    run(TABLE[kernel].lower(Site(parts), (out,), *args, **kwargs), parts)
    # Near a sum of 0, one unit in the last place of the terms.
    np.testing.assert_allclose(out, wanted, rtol=3e-6, atol=3e-7)


@pytest.fixture
def all_parallel(monkeypatch):
    monkeypatch.setattr("gpubackprop.backends.cpu.native.chains.SERIAL", 0.0)


def test_every_elementwise_kernel_is_in_the_table():
    assert set(TABLE) >= ELEMENTWISE


def check_calls(arrays, calls):
    """Many calls ``(kernel, *args)`` in one loop, which is one to compile; operands stand for the
    arrays."""
    given = [tuple(arrays[a.place] if isinstance(a, Operand) else a for a in c) for c in calls]
    wanted = [numpys(*call) for call in given]
    outs = [np.empty_like(w) for w in wanted]
    steps = tuple(Step(kernel, args) for kernel, *args in calls)
    results = tuple(Result(k, FLAT) for k in range(len(calls)))
    run(lower_chain(Site(2), outs, arrays, Chain(table(outs[0], arrays), steps, results)), 2)
    for call, found, exact in zip(calls, outs, wanted, strict=True):
        np.testing.assert_allclose(found, exact, rtol=3e-6, atol=3e-7, err_msg=str(call))


def check_together(kernels, *arrays):
    operands = tuple(Operand("input", k) for k in range(len(arrays)))
    check_calls(arrays, [(kernel, *operands) for kernel in kernels])


@pytest.mark.parametrize("kernels", [ONE[k::4] for k in range(4)], ids=str)
def test_one_argument(kernels):
    for x in (normal(3, 7), normal(1), np.concatenate([SPECIAL, normal(90)])):
        check_together(kernels, x)


@pytest.mark.parametrize("kernels", [TWO[k::3] for k in range(3)], ids=str)
def test_two_arguments_of_every_kind_of_number(kernels):
    a, b = map(np.ascontiguousarray, np.meshgrid(SPECIAL, np.concatenate([SPECIAL, normal(5)])))
    # Where the definition has 0 and here are digits, 0 * inf is NaN.
    finite = np.where(np.isfinite(a), a, np.float32(2.0))
    check_together([k for k in kernels if k != "silu_backward"], a, b)
    if "silu_backward" in kernels:
        check("silu_backward", finite, b)


def test_no_axes():
    check("exp", normal())
    check("add", normal(), normal(1))


def test_numbers_are_weak():
    x, n = normal(9), RNG.integers(-5, 5, 9)
    check_calls((x, n, x > 0, normal(9)), numbers_and_kinds())
    check("elu", x, alpha=0.5)


@pytest.mark.parametrize(
    ("kernel", "args"),
    [
        ("add", (np.zeros(3), np.zeros(3))),
        ("exp", (np.zeros(3, np.float16),)),
        ("multiply", (np.zeros(3, np.float32), np.zeros(3, np.int64))),
        ("multiply", (np.zeros(3, bool), 2.0)),
        ("divide", (np.zeros(3, np.int64), 2)),
        ("where", (np.zeros(3, bool), 1.0, 2.0)),
        ("add", (np.zeros(3, np.int64), 2**70)),
        ("astype", (np.zeros(3, np.float32), np.dtype(np.int64))),
    ],
)
def test_what_float32_would_compute_otherwise_is_left_to_numpy(kernel, args):
    with np.errstate(all="ignore"):
        try:
            out = np.asarray(getattr(NUMPY, kernel)(*args))
        except OverflowError:
            out = np.zeros(3, np.int64)
    assert TABLE[kernel].lower(Site(1), (out,), *args) is None
    assert not eligible(kernel, args, {}, out)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((12, 6, 8), (6, 8)),
        ((12, 6, 8), (12, 6, 1)),
        ((12, 6, 8), (12, 1, 8)),
        ((2, 3, 4, 5), (1, 3, 1, 1)),
        ((2, 3, 4, 5), (2, 1, 4, 1)),
        ((7, 1), (1, 9)),
        ((5, 4), ()),
        ((1, 4), (5, 1)),
    ],
)
def test_broadcasting(a, b, all_parallel):
    check("subtract", normal(*a), normal(*b), parts=2)
    check("subtract", normal(*b), normal(*a), parts=3)


def test_layouts(all_parallel):
    wide = normal(6, 4, 24)
    part = wide[:, :, 8:16]
    for x in (part, wide.transpose(2, 0, 1), wide[:, ::2], wide[::-1], wide[..., ::-1]):
        check("relu", x)
    check("add", part, normal(6, 4, 8))
    check("multiply", normal(5, 8).T, normal(8, 5))
    check("multiply", normal(8, 10)[:, ::2], normal(8, 5))
    images = normal(2, 4, 5, 3).transpose(0, 3, 1, 2)  # channels last
    check("add", images, normal(1, 3, 1, 1))
    check("maximum", images, normal(2, 3, 4, 5))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,), (130,), (129, 67), (3, 70001)])
def test_sizes_and_parts(shape, all_parallel):
    for parts in (1, 2, 3):
        check("relu_backward", normal(*shape), normal(*shape), parts=parts)


def test_results_in_place():
    x, y = normal(300), normal(300)
    wanted = numpys("gelu_backward", x, y)
    run(TABLE["gelu_backward"].lower(Site(1), (x,), x, y), 1)
    np.testing.assert_allclose(x, wanted, rtol=3e-6, atol=3e-7)


def test_a_result_over_an_argument_in_another_order_is_left_to_numpy():
    x = normal(40)
    lower = TABLE["add"].lower
    assert lower(Site(1), (x[1:],), x[:-1], x[1:]) is None
    assert lower(Site(1), (x,), x, normal()) is not None
    assert lower(Site(1), (x,), x, x[3:4]) is None
    square = normal(6, 6)
    assert lower(Site(1), (square,), square, square.T) is None


def test_live_numbers_are_read_at_each_run():
    x, out = normal(50), np.empty(50, np.float32)
    rate, count = marked(0.5, 0), marked(3, 1)
    steps = (
        Step("multiply", (X, rate)),
        Step("add", (Operand("step", 0), count)),
    )
    chain = Chain(table(out, [x]), steps, (Result(1, FLAT),))
    program = Program(lower_chain(Site(1), (out,), (x,), chain), 1)
    assert [number.live for number, _ in program.live] == [0, 1]
    for a, b in ((0.25, 7), (-2.0, 0)):
        program.frames.view(np.float64)[program.live[0][1]] = a
        program.frames[program.live[1][1]] = b
        program.run()
        np.testing.assert_allclose(out, x * np.float32(a) + np.float32(b), rtol=1e-6)
    assert not eligible("dropout_backward", (x, x > 0, marked(0.5, 0)), {}, x)


def test_order_of_operations_is_kept():
    x = np.full(64, 1e30, np.float32)
    out = np.empty_like(x)
    steps = (  # x * 0 * x * x is 0; x * x overflows
        Step("multiply", (X, DY)),
        Step("multiply", (Operand("step", 0), X)),
        Step("multiply", (Operand("step", 1), X)),
        Step("add", (Operand("step", 2), X)),
        Step("subtract", (Operand("step", 3), X)),
    )
    small = np.full(64, 0.0, np.float32)
    chain = Chain(table(out, [x, small]), steps, (Result(4, FLAT),))
    run(lower_chain(Site(1), (out,), (x, small), chain), 1)
    np.testing.assert_array_equal(out, 0.0)
    x[...], small[...] = 1.0, 1e8
    steps = (Step("add", (X, DY)), Step("subtract", (Operand("step", 0), DY)))
    run(lower_chain(Site(1), (out,), (x, small), chain._replace(steps=steps,
        results=(Result(1, FLAT),))), 1)  # fmt: skip
    np.testing.assert_array_equal(out, 0.0)


def test_equal_values_are_computed_once():
    steps = (Step("silu_backward", (DY, X)), Step("silu", (X,)), Step("sigmoid", (X,)))
    nodes, constants = traced(steps, [np.dtype(np.float32)] * 2)
    assert nodes[1].args[1] is nodes[2]
    assert len(constants) == 1
    deep = (Step("square", (X,)),) + tuple(
        Step("multiply", (Operand("step", k),) * 2) for k in range(60)
    )
    assert len(traced(deep, [np.dtype(np.float32)])[0]) == 61  # and is not walked 2**60 times


def test_only_elementwise_kernels_are_steps():
    for kernel in ("sum", "node", "reshape"):
        with pytest.raises(UnfitError):
            traced((Step(kernel, (X,)),), [np.dtype(np.float32)])


# Reductions at the end of a chain.
GRADIENT = (Step("relu_backward", (DY, X)),)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 900), (33, 7), (128, 512), (515, 64), (2, 3), (70, 1)]
)
@pytest.mark.parametrize("op", ["sum", "max"])
def test_reductions(shape, parts, op, all_parallel, monkeypatch):
    x, dy = normal(*shape), normal(*shape)
    site = Site(parts)
    kind = Table(*shape, (FLAT, FLAT))
    outs = [
        np.empty(shape, "f"),
        np.empty(shape[1], "f"),
        np.empty(shape[0], "f"),
        np.empty((), "f"),
    ]
    results = tuple(Result(0, how, op) for how in (FLAT, "columns", "rows", "all"))
    run(lower_chain(site, outs, (x, dy), Chain(kind, GRADIENT, results)), parts)
    wanted = np.where(x > 0, dy, 0).astype(np.float32)
    np.testing.assert_array_equal(outs[0], wanted)
    for out, axis in zip(outs[1:], (0, 1, None), strict=True):
        exact = getattr(np, op)(wanted.astype(float), axis=axis)
        np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("gpubackprop.backends.cpu.native.chains.WIDE", 64)
    for out, result in zip(outs[1:], results[1:], strict=True):  # each alone, and by columns
        out[...] = -5
        run(lower_chain(site, [out], (x, dy), Chain(kind, GRADIENT, (result,))), parts)
    for out, axis in zip(outs[1:], (0, 1, None), strict=True):
        exact = getattr(np, op)(wanted.astype(float), axis=axis)
        np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["columns", "rows", "all"])
def test_reductions_of_what_is_not_finite(how):
    x = normal(40, 50)
    out = np.empty({"columns": 50, "rows": 40, "all": ()}[how], np.float32)
    axis = {"columns": 0, "rows": 1, "all": None}[how]
    for value in (np.nan, np.inf, -np.inf):
        x[7, 9] = value
        for op in ("sum", "max"):
            step = (Step("copy", (X,)),)
            chain = Chain(Table(40, 50, (FLAT,)), step, (Result(0, how, op),))
            run(lower_chain(Site(2), [out], (x,), chain), 2)
            np.testing.assert_allclose(out, getattr(np, op)(x, axis=axis), rtol=1e-4, atol=1e-5)


def test_a_sum_of_booleans_counts():
    target = RNG.integers(-2, 2, (40, 10))
    out = np.empty((), np.int64)
    chain = Chain(Table(1, 400, (FLAT,)), (Step("not_equal", (X, -1)),), (Result(0, "all"),))
    run(lower_chain(Site(2), [out], (target,), chain), 2)
    assert out == (target != -1).sum()


def test_the_same_sum_at_each_run(all_parallel):
    x, out = normal(300, 70), np.empty((), np.float32)
    chain = Chain(Table(300, 70, (FLAT,)), (Step("exp", (X,)),), (Result(0, "all"),))
    program = Program(lower_chain(Site(2), [out], (x,), chain), 2)
    found = set()
    for _ in range(20):
        program.run()
        found.add(out.tobytes())
    assert len(found) == 1


def test_dtypes_of_results_must_be_right():
    x, out = normal(4, 5), np.empty((4, 5), np.float32)
    step = (Step("greater", (X, 0)),)
    assert (
        lower_chain(Site(1), (out,), (x,), Chain(table(out, [x]), step, (Result(0, FLAT),))) is None
    )


def test_tables_can_be_split():
    assert Table(1, 60, (FLAT, "scalar")).split(5) == Table(12, 5, (FLAT, "scalar"))
    assert Table(12, 5, ("columns",)).split(5) is not None
    assert Table(12, 5, ("columns",)).split(10) is None
    assert Table(1, 60, (FLAT,)).split(7) is None


# The kernels on disk.
PROGRAM = """
import numpy as np
from gpubackprop.backends.cpu.native.abi import Kernel
from gpubackprop.backends.cpu.native.chains import SERIAL
from gpubackprop.backends.cpu.native.engine import Program
from gpubackprop.backends.cpu.native.lowering import Site, load
table = load()
for n in (10, 5000):
    x = np.linspace(-1, 1, n, dtype=np.float32)
    out = np.empty_like(x)
    Program(table["gelu"].lower(Site(1), (out,), x), 1).run()
    Program(table["add"].lower(Site(1), (out,), x, 2.0 + n), 1).run()
    assert np.allclose(out, x + 2.0 + n)
print(Kernel.compiled)
"""


def compiled(cache):
    environment = {**os.environ, "GPUBACKPROP_CACHE": str(cache)}
    environment.pop("NUMBA_CACHE_DIR", None)
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert not found.returncode, found.stderr
    return int(found.stdout)


def test_a_second_process_compiles_nothing(tmp_path):
    cache = tmp_path / "kernels"
    assert compiled(cache) == 2  # one for each chain, whatever its sizes and numbers
    (folder,) = cache.iterdir()
    assert len(list(folder.glob("*.py"))) == 2
    assert compiled(cache) == 0


def test_a_cache_that_cannot_be_written_is_no_trouble(tmp_path):
    place = tmp_path / "file"
    place.write_text("in the way")
    assert compiled(place) == 2


def test_gelu_is_the_definition_at_infinity():
    x = np.float32([np.inf, -np.inf, np.nan, 30.0, -30.0])
    out = np.empty_like(x)
    run(TABLE["gelu"].lower(Site(1), (out,), x), 1)
    np.testing.assert_array_equal(out, [math.inf, math.nan, math.nan, 30.0, 0.0])
