"""Matrix products of the CUDA backend over a stand-in for cuBLASLt: every pointer, leading
dimension, transpose, step, scale and attribute, by its result.

The stand-in multiplies on the host (``support/fake_lt.c``). What only the real library can show is
in test_cuda_products_gpu.py.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import warnings
import weakref

import numpy as np
import pytest

from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import CUDABackend, lt, matrices
from gpubackprop.backends.cuda.matrices import Copies, View
from tests.backends.support import fake_cupy, fake_lt

pytestmark = pytest.mark.skipif(bool(fake_lt.missing()), reason=fake_lt.missing() or "gcc is there")

NUMPY = NumPyBackend()
DTYPES = ["float32", "float64", "float16", "bfloat16"]
UNITS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.fixture
def cuda(monkeypatch):
    """A backend that has multiplied nothing yet, over one fake GPU."""
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.FakeCuPy())
    return CUDABackend()


@pytest.fixture
def library(monkeypatch):
    """The stand-in's numbers: ``library("calls")``, and ``library.set("refuse", 1)``."""

    class Numbers:
        def __call__(self, name):
            return fake_lt.number(name).value

        def set(self, name, value):
            fake_lt.number(name).value = value

    numbers = Numbers()
    yield numbers
    numbers.set("refuse", 0)


def dtype_of(name):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def random(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype_of(dtype))


def wide(x):
    return np.asarray(x).astype(np.float64)


def on_gpu(cuda, x):
    """The array with its strides, which the way in would lose."""
    return fake_cupy.ndarray(x, cuda.xp.device())


def close(got, want, dtype, k):
    """Whether a product is as near as its dtype allows: rounding of the operands' products adds up
    over `k` terms, in float32 for the halves."""
    got, unit = wide(got), UNITS[dtype]
    inner = 2.0**-23 if unit > 2.0**-23 else unit
    bound = (k + 2) * inner * 16 + unit * 2 * np.maximum(1.0, np.abs(want))
    assert got.shape == want.shape
    np.testing.assert_array_less(np.abs(got - want), bound + 1e-300)


# How matrices may lie.
def as_it_is(x):
    return x.copy()


def transposed(x):
    """The same matrices, stored as their transposes."""
    return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2) if x.ndim > 1 else x.copy()


def with_gaps(x):
    """Rows that are parts of longer rows."""
    room = np.full((*x.shape[:-1], x.shape[-1] + 3), np.nan, x.dtype)
    room[..., 1:-2] = x
    return room[..., 1:-2]


def transposed_with_gaps(x):
    return with_gaps(x.swapaxes(-1, -2)).swapaxes(-1, -2) if x.ndim > 1 else with_gaps(x)


def every_other(x):
    """No two neighbours lie beside each other along any axis: the library cannot read that."""
    room = np.full(tuple(2 * n for n in x.shape), np.nan, x.dtype)
    room[tuple(slice(None, None, 2) for _ in x.shape)] = x
    return room[tuple(slice(None, None, 2) for _ in x.shape)]


def backwards(x):
    return np.ascontiguousarray(x[..., ::-1, :])[..., ::-1, :] if x.ndim > 1 else x[::-1][::-1]


def batch_inside(x):
    """Axes as attention has them: heads between the rows and the columns."""
    return np.ascontiguousarray(x.swapaxes(-2, -3)).swapaxes(-2, -3) if x.ndim > 2 else x.copy()


LAYOUTS = [as_it_is, transposed, with_gaps, transposed_with_gaps, every_other, backwards]
LAYOUTS += [batch_inside]
VECTORS = ((5,), (5,))  # which are not the library's (inner.py)
SHAPES = [
    ((3, 5), (5, 4)),
    ((1, 1), (1, 1)),
    ((1, 7), (7, 3)),
    ((4, 7), (7, 1)),
    ((4, 1), (1, 6)),
    ((5, 70), (70, 6)),  # long enough to be split by the stand-in
    VECTORS,
    ((5,), (5, 3)),
    ((3, 5), (5,)),
    ((2, 3, 5), (5,)),
    ((5,), (2, 5, 3)),
    ((7, 3, 5), (5, 2)),
    ((7, 1, 5), (5, 2)),
    ((2, 7, 3, 5), (5, 2)),
    ((3, 5), (2, 5, 4)),
    ((2, 3, 5), (2, 5, 4)),
    ((2, 3, 2, 5), (2, 3, 5, 4)),
    ((2, 1, 3, 4), (5, 4, 2)),
    ((2, 3, 4), (1, 4, 5)),
    ((1, 3, 4), (6, 4, 5)),
    ((3, 1, 2, 2, 3), (2, 1, 3, 2)),
]
EMPTY = [((0, 3), (3, 2)), ((2, 0), (0, 3)), ((3, 2), (2, 0)), ((0, 2, 3), (3, 2)), ((0,), (0,))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_products_of_every_layout(cuda, library, dtype, shapes):
    x1, x2 = (random(s, dtype, i) for i, s in enumerate(shapes))
    expected = np.matmul(wide(x1), wide(x2))
    for first, second in itertools.product(LAYOUTS, LAYOUTS):
        a, b = first(x1), second(x2)
        np.testing.assert_array_equal(wide(a), wide(x1))
        before = library("calls")
        y = cuda.matmul(on_gpu(cuda, a), on_gpu(cuda, b))
        asked = library("calls") > before
        assert asked != (shapes == VECTORS), f"{first.__name__}, {second.__name__}: {asked}"
        assert y.dtype == x1.dtype and y.flags.c_contiguous
        close(cuda.to_numpy(y), expected, dtype, x1.shape[-1])
    assert not cuda._refusals


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", EMPTY, ids=str)
def test_empty_products(cuda, library, dtype, shapes):
    x1, x2 = (random(s, dtype) for s in shapes)
    before = library("calls")
    y = cuda.matmul(cuda.asarray(x1), cuda.asarray(x2))
    expected = np.matmul(wide(x1), wide(x2))
    assert y.dtype == x1.dtype
    np.testing.assert_array_equal(wide(cuda.to_numpy(y)), expected)
    assert library("calls") == before
    start = np.ones(expected.shape, x1.dtype)
    total = cuda.addmm(cuda.asarray(start), cuda.asarray(x1), cuda.asarray(x2))
    np.testing.assert_array_equal(cuda.to_numpy(total), start)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_a_result_is_written_where_it_shall_lie_and_nowhere_else(cuda, dtype, layout, shapes):
    x1, x2 = (random(s, dtype, i) for i, s in enumerate(shapes))
    expected = np.matmul(wide(x1), wide(x2))
    if layout is backwards or not expected.ndim:
        layout = as_it_is
    out = layout(random(expected.shape, dtype, 2))
    start = wide(out)
    holder = out
    while holder.base is not None:
        holder = holder.base
    places = np.zeros(holder.shape, bool)  # which elements of the memory are the result's
    mark = np.lib.stride_tricks.as_strided(
        places.reshape(-1)[(out.ctypes.data - holder.ctypes.data) // out.itemsize :],
        out.shape,
        tuple(s // out.itemsize for s in out.strides),
    )
    mark[...] = True
    around = wide(holder)[~places]
    target = on_gpu(cuda, out)
    assert cuda.matmul(on_gpu(cuda, x1), on_gpu(cuda, x2), out=target) is target
    close(cuda.to_numpy(target), expected, dtype, x1.shape[-1])
    np.testing.assert_array_equal(wide(holder)[~places], around)
    out[...] = start.astype(out.dtype)
    assert cuda.addmm(target, on_gpu(cuda, x1), on_gpu(cuda, x2), out=target) is target
    close(cuda.to_numpy(target), start + expected, dtype, x1.shape[-1])
    np.testing.assert_array_equal(wide(holder)[~places], around)
    assert not cuda._refusals, "the library was asked for what it refuses"


def test_what_needs_no_copy_gets_none(cuda, monkeypatch):
    """Transposes, batches, gaps, a batch between rows and columns: the library reads them there."""
    copies = []
    packed = cuda.xp.ascontiguousarray
    cuda.xp.ascontiguousarray = lambda x: copies.append(x.shape) or packed(x)
    x1, x2 = random((4, 3, 6, 5)), random((4, 3, 5, 7), seed=1)
    served = [as_it_is, transposed, with_gaps, transposed_with_gaps, batch_inside]
    for first, second in itertools.product(served, served):
        cuda.matmul(on_gpu(cuda, first(x1)), on_gpu(cuda, second(x2)))
    assert not copies
    cuda.matmul(on_gpu(cuda, every_other(x1)), on_gpu(cuda, x2))
    assert copies == [x1.shape]


@pytest.mark.parametrize(
    ("lead", "calls"), [((2, 3), 2), ((3, 2), 2), ((8, 9), 8), ((9, 10), 1), ((4, 1), 1)]
)
def test_batches_that_are_no_sequence_of_addresses(cuda, library, lead, calls):
    """Few products in the place of copies; where they would be many, copies and one product."""
    x1, x2 = random((*lead, 3, 5)), random((*lead, 5, 4), seed=1)
    before = library("calls")
    y = cuda.matmul(on_gpu(cuda, batch_inside(x1)), on_gpu(cuda, x2))
    assert library("calls") - before == calls
    close(cuda.to_numpy(y), np.matmul(wide(x1), wide(x2)), "float32", 5)


def test_rows_of_a_batch_that_share_a_matrix_are_one_product(cuda, library):
    x, w = random((4, 6, 5)), random((7, 5), seed=1)
    for given in (x, with_gaps(x)):
        before = library("calls")
        y = cuda.linear(on_gpu(cuda, given), on_gpu(cuda, w))
        assert library("calls") - before == 1 and library("batch") == 1
        close(cuda.to_numpy(y), wide(x) @ wide(w).T, "float32", 5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(6,), (1,), (), (2, 3), (0,)])
def test_a_bias_is_added_in_the_product(cuda, library, dtype, lead):
    x, w, b = random((*lead, 5), dtype), random((7, 5), dtype, 1), random((7,), dtype, 2)
    arrays = [cuda.asarray(a) for a in (x, w, b)]
    y = cuda.linear(*arrays)
    assert y.dtype == x.dtype
    expected = wide(x) @ wide(w).T + wide(b)
    close(cuda.to_numpy(y), expected, dtype, 5)
    if 0 not in lead:  # the library has no epilogues for float64
        assert library("epilogue") == (1 if dtype == "float64" else 4)
    out = cuda.empty(expected.shape, x.dtype)
    assert cuda.linear(*arrays, out=out) is out
    close(cuda.to_numpy(out), expected, dtype, 5)
    assert not cuda._refusals, "a refused epilogue is no refused product"


def test_a_bias_that_the_library_cannot_add_is_added_all_the_same(cuda, library):
    x, w, b = random((3, 5)), random((4, 5), seed=1), random((4,), seed=2)
    expected = wide(x) @ wide(w).T + wide(b)
    spread = np.repeat(b, 2)[::2]
    for bias, dtype in ((spread, "float32"), (b.astype(np.float64), "float64")):
        y = cuda.linear(cuda.asarray(x), cuda.asarray(w), on_gpu(cuda, bias))
        assert y.dtype == dtype and library("epilogue") == 1
        close(cuda.to_numpy(y), expected, "float32", 5)
    library.set("refuse", 1)
    arrays, out = [cuda.asarray(a) for a in (x, w, b)], cuda.empty(expected.shape, "float32")
    cuda.linear(*arrays, out=out)
    close(cuda.to_numpy(out), expected, "float32", 5)
    asked = library("asked")
    cuda.linear(*arrays, out=out)
    assert library("asked") == asked, "a refusal is remembered"


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
@pytest.mark.parametrize("biased", [False, True])
def test_activations_behind_a_product(cuda, library, activation, biased):
    x, w, b = random((6, 5)), random((5, 7), seed=1), random((7,), seed=2)
    bias = cuda.asarray(b) if biased else None
    y = cuda._product(cuda.asarray(x), cuda.asarray(w), None, bias, activation)
    inner = wide(x) @ wide(w) + (wide(b) if biased else 0)
    close(cuda.to_numpy(y), getattr(NUMPY, activation)(inner), "float32", 5)
    assert library("epilogue") == matrices.EPILOGUES[biased, activation]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (-0.5, 1.0), (2.0, 0.25)])
def test_scales(cuda, dtype, alpha, beta):
    x1, x2, y = random((3, 5), dtype), random((5, 4), dtype, 1), random((3, 4), dtype, 2)
    total = cuda.asarray(np.full_like(y, np.nan) if not beta else y)  # beta 0 reads nothing
    cuda._product(cuda.asarray(x1), cuda.asarray(x2), total, alpha=alpha, beta=beta)
    expected = alpha * (wide(x1) @ wide(x2)) + beta * wide(y)
    close(cuda.to_numpy(total), expected, dtype, 5)
    nothing = [cuda.empty(s, x1.dtype) for s in ((3, 0), (0, 4))]
    kept = cuda.asarray(y)
    cuda._product(*nothing, kept, alpha=alpha, beta=beta)
    close(cuda.to_numpy(kept), beta * wide(y), dtype, 1)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("refused", [0, 2])
def test_halves_may_add_up_into_float32(cuda, library, half, refused):
    x1, x2, y = random((3, 5), half), random((5, 4), half, 1), random((3, 4), seed=2)
    library.set("refuse", refused)
    total, operands = cuda.asarray(y), (cuda.asarray(x1), cuda.asarray(x2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert cuda.addmm(total, *operands, out=total) is total
        product = cuda.wide_matmul(*operands)
        filled = cuda.wide_matmul(*operands, out=cuda.empty((3, 4), "float32"))
    assert product.dtype == filled.dtype == np.float32
    close(cuda.to_numpy(total), wide(y) + wide(x1) @ wide(x2), "float32", 5)
    for found in (product, filled):
        close(cuda.to_numpy(found), wide(x1) @ wide(x2), "float32", 5)


def test_precision_is_an_argument(cuda, library):
    x1, x2 = (cuda.asarray(random((9, 9), seed=i)) for i in range(2))
    exact = wide(cuda.to_numpy(x1)) @ wide(cuda.to_numpy(x2))
    errors = {}
    for precision, compute in (("float32", 69), ("tf32", 77), ("float32", 69)):
        cuda.precision = precision
        errors[precision] = np.abs(wide(cuda.to_numpy(cuda.matmul(x1, x2))) - exact).max()
        assert library("compute") == compute
    assert errors["float32"] < 1e-5 < errors["tf32"] < 9 * 2.0**-9
    cuda.precision = "tf32"
    for dtype, compute in (("float64", 71), ("float16", 68)):
        cuda.matmul(cuda.astype(x1, dtype), cuda.astype(x2, dtype))
        assert library("compute") == compute


def test_mixed_dtypes(cuda):
    x1, x2 = random((3, 5), "float16"), random((5, 4), "float32", 1)
    for a, b in ((x1, x2), (x2.T, x1.T), (x1, x2.astype(np.float64))):
        y = cuda.matmul(on_gpu(cuda, a), on_gpu(cuda, b))
        assert y.dtype == np.result_type(a, b)
        close(cuda.to_numpy(y), wide(a) @ wide(b), "float32", 5)
    whole = np.arange(12).reshape(3, 4)
    y = cuda.matmul(cuda.asarray(whole), cuda.asarray(whole.T))
    np.testing.assert_array_equal(cuda.to_numpy(y), whole @ whole.T)
    assert y.dtype == whole.dtype


def test_shapes_that_do_not_fit_are_errors(cuda):
    for s1, s2 in (((3, 5), (4, 3)), ((2, 3, 5), (3, 5, 2)), ((), (3,))):
        with pytest.raises(ValueError):
            cuda.matmul(cuda.asarray(np.ones(s1)), cuda.asarray(np.ones(s2)))
    with pytest.raises(ValueError):
        cuda.matmul(cuda.ones((3, 5), "f"), cuda.ones((5, 4), "f"), out=cuda.zeros((4, 3), "f"))


@pytest.mark.parametrize("start", [0, 1, 2, 4])
def test_addresses_are_as_aligned_as_was_said(cuda, start):
    """The stand-in refuses an address that is less aligned than the algorithm was asked for."""
    flat = random((200,), "float16")
    x1 = flat[start : start + 15].reshape(3, 5)
    x2 = flat[50 + start : 70 + start].reshape(5, 4)
    b = flat[101 + start : 105 + start]
    room = np.zeros(60, np.float16)
    out = on_gpu(cuda, room[start : start + 12].reshape(3, 4))
    cuda.linear(on_gpu(cuda, x1), on_gpu(cuda, x2.T), on_gpu(cuda, b), out=out)
    close(cuda.to_numpy(out), wide(x1) @ wide(x2) + wide(b), "float16", 5)


def test_how_long_sums_are_split(cuda, library, monkeypatch):
    """In the workspace and in a fixed order; in the result only where the run asks for speed."""
    x1, x2 = cuda.asarray(random((3, 64))), cuda.asarray(random((64, 4), seed=1))
    before = library("in_place"), library("apart")
    cuda.matmul(x1, x2)
    assert (library("in_place"), library("apart")) == (before[0], before[1] + 1)
    monkeypatch.setitem(sys.modules, "cupy", cuda.xp)
    fast = CUDABackend(numerics="native")
    fast.matmul(x1, x2)
    assert library("in_place") == before[0] + 1
    fast.matmul(fast.astype(x1, "float16"), fast.astype(x2, "float16"))
    assert library("in_place") == before[0] + 1, "partial sums were rounded to half precision"


def test_a_product_is_enqueued_on_the_current_stream_without_waiting(cuda):
    x = cuda.asarray(random((8, 80)))
    stream = fake_lt.number("stream")
    for handle in (0, 0x51, 0x52):
        cuda.xp.stream = handle
        cuda.matmul(x, x.T)
        assert stream.value == handle
    assert not cuda.xp.synchronised
    assert cuda.xp.transfers == 0


def test_a_product_is_planned_once(cuda, library):
    x1, x2, y = (cuda.asarray(random(s)) for s in ((8, 5), (5, 4), (8, 4)))
    cuda.matmul(x1, x2, out=y)
    asked = library("asked")
    for _ in range(3):
        cuda.matmul(x1, x2, out=y)
        cuda.addmm(y, x1, x2, out=y)
    assert library("asked") == asked
    cuda.matmul(x1[:7], x2, out=y[:7])
    assert library("asked") == asked + 1
    cuda._signatures.clear()
    cuda.matmul(x1, x2, out=y)
    assert library("asked") == asked + 1


def test_descriptors_are_given_back(cuda, library, monkeypatch):
    monkeypatch.setattr(lt, "MOST_PLANS", 3)
    gc.collect()
    before = library("live")
    for n in range(1, 12):
        cuda.matmul(cuda.ones((n, 2), "f"), cuda.ones((2, n), "f"))
        cuda._signatures.clear()
    gc.collect()
    assert 0 < library("live") - before <= 3 * 4
    cuda._library = None
    gc.collect()
    assert library("live") == before


def test_threads_do_not_take_each_others_bias(cuda):
    x, w = cuda.asarray(random((4, 5))), cuda.asarray(random((6, 5)))
    biases = [cuda.asarray(np.full(6, i, np.float32)) for i in range(4)]
    plain = cuda.to_numpy(cuda.linear(x, w))
    wrong = []

    def work(i):
        for _ in range(300):
            if not np.allclose(cuda.to_numpy(cuda.linear(x, w, biases[i])), plain + i, atol=1e-5):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_a_product_joins_a_sum(cuda, dtype, layout, shapes):
    """The sum is read where it lies and is not changed; the result is an array of its own."""
    x1, x2 = (random(s, dtype, i) for i, s in enumerate(shapes))
    product = np.matmul(wide(x1), wide(x2))
    start = np.asarray(random(product.shape, dtype, 2))
    given = layout(start) if start.ndim else start
    apart = with_gaps(start) if start.ndim else start.copy()
    for out in (None, cuda.empty(start.shape, start.dtype), on_gpu(cuda, apart)):
        y = cuda.addmm(on_gpu(cuda, given), on_gpu(cuda, x1), on_gpu(cuda, x2), out=out)
        assert y.dtype == x1.dtype and (out is None or y is out)
        close(cuda.to_numpy(y), wide(start) + product, dtype, x1.shape[-1])
        np.testing.assert_array_equal(wide(given), wide(start))
    assert not cuda._refusals


# Where the library does not serve.
def test_without_the_library_products_are_cupys_and_say_so(cuda, monkeypatch):
    def nowhere(cupy):
        raise lt.LtError("cuBLASLt was not found: no such file")

    monkeypatch.setattr(lt, "find", nowhere)
    x1, x2 = (cuda.asarray(random((3, 3), seed=i)) for i in range(2))
    with pytest.warns(RuntimeWarning, match="not found.*CuPy's, without CUDA graphs"):
        y = cuda.matmul(x1, x2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        for given in (x1, x2.T):
            cuda.linear(given, x2, cuda.ones((3,), "f"))
        total = cuda.addmm(y, x1, x2)
        cuda.einsum("ij,jk->ik", x1, x2)
    close(cuda.to_numpy(total), 2 * wide(cuda.to_numpy(y)), "float32", 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [s for s in SHAPES if s != VECTORS], ids=str)
def test_without_the_library_products_are_the_same(cuda, library, dtype, shapes):
    x1, x2 = (random(s, dtype, i) for i, s in enumerate(shapes))
    library.set("refuse", 2)
    with pytest.warns(RuntimeWarning, match=f"cuBLASLt refuses the product of {dtype} .*status 15"):
        y = cuda.matmul(cuda.asarray(x1), cuda.asarray(x2))
    expected = np.matmul(wide(x1), wide(x2))
    close(cuda.to_numpy(y), expected, dtype, x1.shape[-1])
    out = cuda.empty(expected.shape, x1.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cuda.matmul(cuda.asarray(x1), cuda.asarray(x2), out=out)
    close(cuda.to_numpy(out), expected, dtype, x1.shape[-1])
    assert list(cuda._refusals) == [tuple((s, dtype) for s in shapes)]


def test_a_refusal_at_the_last_moment(cuda, library):
    x1, x2, y = (cuda.asarray(random((3, 3), seed=i)) for i in range(3))
    library.set("refuse", 3)
    with pytest.warns(RuntimeWarning, match="refuses the product of float32"):
        cuda.matmul(x1, x2, out=y)
    close(cuda.to_numpy(y), wide(cuda.to_numpy(x1)) @ wide(cuda.to_numpy(x2)), "float32", 3)
    library.set("refuse", 0)
    calls = library("calls")
    cuda.matmul(x1, x2, out=y)
    assert library("calls") == calls, "it was asked again"


def test_what_the_library_does_not_know_for_the_moment_is_asked_again(cuda, library):
    """cuBLASLt of CUDA 13.3 proposes no algorithm while a stream is captured, by this thread or
    another. A product that was first made then is the library's later on."""
    x, w, bias = (cuda.asarray(random(s)) for s in ((3, 5), (4, 5), (4,)))
    library.set("refuse", 5)
    with pytest.warns(RuntimeWarning, match="refuses the product of float32"):
        y = cuda.linear(x, w, bias)
    expected = wide(cuda.to_numpy(x)) @ wide(cuda.to_numpy(w)).T + wide(cuda.to_numpy(bias))
    close(cuda.to_numpy(y), expected, "float32", 5)
    library.set("refuse", 0)
    calls = library("calls")
    close(cuda.to_numpy(cuda.linear(x, w, bias)), expected, "float32", 5)
    assert library("calls") == calls + 1, "the answer of a moment was kept"


def test_a_refusal_keeps_no_array_alive(cuda, library):
    library.set("refuse", 2)
    x = cuda.asarray(random((3, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = cuda.linear(x, x, x[0])
    memory = weakref.ref(y.on_host)
    del y
    assert memory() is None


def test_a_failure_is_an_error(cuda, library):
    library.set("refuse", 4)
    x, w = cuda.asarray(random((2, 3, 5))), cuda.asarray(random((2, 5, 4)))
    with pytest.raises(lt.LtError) as caught:
        cuda.matmul(x, w)
    text = str(caught.value)
    for word in ("float32 (3, 5) and (5, 4)", "batch 2", "status 13 (failed)", "LAUNCH_BLOCKING"):
        assert word in text


def test_a_library_of_another_cuda_is_refused(monkeypatch):
    module = fake_cupy.FakeCuPy()
    module.cuda.runtime.runtimeGetVersion = lambda: 12040
    with pytest.raises(lt.LtError, match="for CUDA 0 and CuPy for CUDA 12; install one extra"):
        lt.CublasLt(module)


def test_a_library_that_does_not_start_within_a_capture_is_asked_again(cuda, library):
    """The first product of a process may be one that a user captures."""
    x, w = cuda.asarray(random((3, 5))), cuda.asarray(random((5, 4)))
    expected = wide(cuda.to_numpy(x)) @ wide(cuda.to_numpy(w))
    library.set("refuse", 6)
    cuda.xp.capturing = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(cuda.to_numpy(cuda.matmul(x, w)), expected, "float32", 5)
    assert "cannot start" in cuda._library_problem
    library.set("refuse", 0)
    cuda.xp.capturing = False
    calls = library("calls")
    close(cuda.to_numpy(cuda.matmul(x, w)), expected, "float32", 5)
    assert library("calls") == calls + 1 and cuda._library_problem is None


def test_a_library_that_does_not_start_is_asked_once(cuda, library, monkeypatch):
    x = cuda.asarray(random((3, 3)))
    library.set("refuse", 6)
    cuda.xp.capturing = True
    cuda.matmul(x, x)
    cuda.xp.capturing = False
    with pytest.warns(RuntimeWarning, match="cuBLASLt cannot start.*products on cuda:0 are CuPy's"):
        cuda.matmul(x, x)
    monkeypatch.setattr(lt, "library", lambda path: pytest.fail("it was asked again"))
    cuda.matmul(x, x)


def test_what_is_no_cublaslt_is_refused(tmp_path):
    with pytest.raises(lt.LtError, match="cannot be used"):
        lt.library(str(tmp_path / "libcublasLt.so"))
    with pytest.raises(lt.LtError, match="cublasLtCreate"):
        lt.library("libm.so.6")


# Einstein summation.
@pytest.mark.parametrize(
    ("subscripts", "s1", "s2"),
    [
        ("ij,jk->ik", (3, 5), (5, 4)),
        ("ij,jk->ki", (3, 5), (5, 4)),
        ("bij,bkj->bik", (2, 3, 5), (2, 4, 5)),
        ("bij,bjk->ibk", (2, 3, 5), (2, 5, 4)),
        ("ij,kl->ikjl", (2, 3), (4, 5)),
        ("ijk,ijk->", (2, 3, 4), (2, 3, 4)),
        ("ijk,kl->jl", (2, 3, 4), (4, 5)),  # i is summed before
        ("abij,abjc->aibc", (2, 3, 4, 5), (2, 3, 5, 2)),
        ("ij,ij->ij", (2, 3), (2, 3)),
        ("i,j->ij", (3,), (4,)),
    ],
)
def test_einsum_is_a_product(cuda, library, subscripts, s1, s2):
    x1, x2 = random(s1), random(s2, seed=1)
    before = library("calls")
    y = cuda.einsum(subscripts, cuda.asarray(x1), cuda.asarray(x2))
    assert library("calls") == before + 1
    expected = np.einsum(subscripts, wide(x1), wide(x2))
    assert y.shape == expected.shape and y.dtype == np.float32
    close(cuda.to_numpy(y), expected, "float32", 24)


@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("ii,ij->j", ((3, 3), (3, 4))),
        ("ij,jk,kl->il", ((2, 3), (3, 4), (4, 2))),
        ("ij->ji", ((2, 3),)),
        ("ij,jk->ik", ((2, 1), (3, 4))),
    ],
)
def test_einsum_that_is_no_product(cuda, subscripts, shapes):
    arrays = [random(s, seed=i) for i, s in enumerate(shapes)]
    y = cuda.einsum(subscripts, *map(cuda.asarray, arrays))
    close(cuda.to_numpy(y), np.einsum(subscripts, *map(wide, arrays)), "float32", 24)


# The arithmetic below.
def view(x):
    return View(x.shape, tuple(s // x.itemsize for s in x.strides))


def test_what_must_be_copied_is_named():
    x1, x2, y = np.ones((3, 5)), np.ones((5, 4)), np.ones((3, 4))
    bad = every_other
    assert matrices.arrange(view(bad(x1)), view(x2), view(y)) == Copies(True, False, False)
    assert matrices.arrange(view(x1), view(bad(x2)), view(y)) == Copies(False, True, False)
    assert matrices.arrange(view(x1), view(x2), view(bad(y))) == Copies(False, False, True)
    wide_rows = np.lib.stride_tricks.as_strided(np.ones(20), (3, 5), (16, 8))  # rows overlap
    assert matrices.arrange(view(wide_rows), view(x2), view(y)) == Copies(True, False, False)


def test_a_large_product_has_64_bit_offsets():
    """Shapes beyond 31 bits, which no memory here holds."""
    n = 70_000
    x1 = View((3, 40, n, n), (n * n, 7 * n * n, n, 1))
    x2 = View((3, 40, n, n), (40 * n * n, n * n, n, 1))
    work = matrices.arrange(x1, x2, x2)
    assert work.batch == 40 and len(work.offsets) == 3
    assert work.steps == (7 * n * n, n * n, n * n)
    assert work.offsets[2] == (2 * n * n, 80 * n * n, 80 * n * n)


@pytest.mark.parametrize(
    ("address", "expected"),
    [(0, 256), (512, 256), (128, 16), (48, 16), (24, 8), (4, 4), (6, 2), (7, 1)],
)
def test_alignment(address, expected):
    assert matrices.alignment(address) == expected
