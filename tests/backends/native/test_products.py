"""Native products against float64."""

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends.cpu.native import blas, products
from gpubackprop.backends.cpu.native.lowering import Site
from tests.backends.support.native import TABLE, executed

if not blas.available():
    pytest.skip("this NumPy brings another BLAS", allow_module_level=True)

RNG = np.random.default_rng(7)
PARTS = [1, 2, 3]
SMALL_TOO = ("products",)
SHAPES = [(1, 1, 1), (2, 3, 5), (17, 1, 40), (1, 33, 65), (48, 16, 1), (10, 784, 30), (65, 70, 129)]


@pytest.fixture(autouse=True)
def short_vectors_too(monkeypatch):
    """Products with a vector are shared among threads, however small."""
    monkeypatch.setattr(products, "LINES", 0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def layouts(x):
    """The same values: in order, as a transposed view, with gaps between rows, with gaps between
    all elements, backwards."""
    *lead, m, n = x.shape
    yield x
    yield np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)
    for rows, columns in ((1, 3), (2, 2)):
        wide = np.full((*lead, m * rows, n * columns), np.nan, np.float32)
        part = wide[..., ::rows, :n] if columns == 3 else wide[..., ::rows, ::columns]
        part[...] = x
        yield part
    yield np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1]


def run(kernel, out, parts, *args):
    executed(kernel, (out,), parts, *args)
    return out


def check(a, b, parts, out=None):
    wanted = np.matmul(a.astype(np.float64), b.astype(np.float64))
    if out is None:
        out = np.full(wanted.shape, np.nan, np.float32)  # what was there must not count
    assert out.shape == wanted.shape
    run("matmul", out, parts, a, b)
    width = np.matmul(abs(a).astype(np.float64), abs(b).astype(np.float64))
    assert np.all(abs(out - wanted) <= 2e-6 * width + 1e-30)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_matrices_of_any_layout(m, k, n, parts):
    for a in layouts(normal(m, k)):
        for b in layouts(normal(k, n)):
            check(a, b, parts)


@pytest.mark.parametrize("parts", PARTS)
def test_result_as_a_view(parts):
    """A part of the arena of gradients, a transposed view, the columns of a wider array."""
    a, b = normal(33, 20), normal(20, 47)
    arena = np.full(33 * 47 + 64, np.nan, np.float32)
    check(a, b, parts, arena[7 : 7 + 33 * 47].reshape(33, 47))
    assert np.isnan(arena[:7]).all() and np.isnan(arena[7 + 33 * 47 :]).all()
    check(a, b, parts, np.full((47, 33), np.nan, np.float32).T)
    wide = np.full((33, 60), np.nan, np.float32)
    check(a, b, parts, wide[:, 5:52])
    assert np.isnan(wide[:, :5]).all() and np.isnan(wide[:, 52:]).all()


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("m", "k", "n"), [*SHAPES, (300, 40, 300)])
def test_products_that_join_a_sum(m, k, n, parts):
    """A sum in order, as a transposed view, as the columns of a wider array."""
    for a in layouts(normal(m, k)):
        for b in (normal(k, n), normal(n, k).T):
            start = normal(m, n)
            exact = a.astype(np.float64) @ b.astype(np.float64)
            width = 1 + abs(start) + abs(a).astype(np.float64) @ abs(b).astype(np.float64)
            for total in list(layouts(start.copy()))[:3]:
                total[...] = start
                run("addmm", total, parts, total, a, b)
                assert np.all(abs(total - (start + exact)) <= 2e-6 * width)


@pytest.mark.parametrize("lead", [(3, 7), (1, 5)])
def test_products_of_stacks_that_join_a_sum(lead):
    total, a, b = normal(*lead, 6), normal(*lead, 4), normal(4, 6)
    wanted = total + a.astype(np.float64) @ b
    run("addmm", total, 2, total, a, b)
    np.testing.assert_allclose(total, wanted, rtol=1e-5, atol=1e-5)
    apart = np.empty_like(total)  # the result is not where the sum is
    assert TABLE["addmm"].lower(Site(1), (apart,), total, a, b) is None


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3, 5, 4), (4, 6)),
        ((2, 3, 5, 4), (4, 6)),
        ((3, 5, 4), (3, 4, 6)),
        ((2, 3, 5, 4), (2, 3, 4, 6)),
        ((5, 4), (3, 4, 6)),
        ((1, 5, 4), (3, 4, 6)),
        ((2, 1, 5, 4), (3, 4, 6)),
        ((4,), (3, 4, 6)),
        ((3, 5, 4), (4,)),
        ((3, 5, 4), (3, 4, 1)),
    ],
)
def test_stacks(left, right, parts):
    a, b = normal(*left), normal(*right)
    check(a, b, parts)
    if len(left) > 1:
        check(np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2), b, parts)
    if len(left) > 2:  # leading axes that do not lie one after the other
        check(np.ascontiguousarray(a.swapaxes(0, -2)).swapaxes(0, -2), b, parts)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("n", [1, 5, 4096, 4097, 50_001])
def test_inner_products(n, parts):
    check(normal(n), normal(n), parts)


def test_norm_of_many_elements_keeps_its_digits():
    x = np.full(4_000_000, 0.1, np.float32)
    out = run("matmul", np.empty((), np.float32), 2, x, x)
    np.testing.assert_allclose(out, np.dot(x.astype(np.float64), x.astype(np.float64)), rtol=1e-6)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(
    ("m", "n"), [(1, 1), (3, 200), (200, 3), (1000, 65), (191, 193), (64, 5000), (70, 9000)]
)
def test_vectors_and_matrices(m, n, parts):
    row, column = normal(m), normal(n)
    for a in layouts(normal(m, n)):
        check(row, a, parts)
        check(a, column, parts)
    check(normal(2 * m)[::2], normal(m, n), parts)


def test_column_sums_of_many_rows_keep_their_digits():
    a = np.full((200_000, 8), 0.1, np.float32)
    out = run("matmul", np.empty(8, np.float32), 2, np.ones(200_000, np.float32), a)
    np.testing.assert_allclose(out, 200_000 * np.float64(np.float32(0.1)), rtol=1e-4)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("lead", [(1,), (37,), (3, 7), (2, 3, 5), (1, 1)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear(lead, biased, parts):
    x, weight, bias = normal(*lead, 20), normal(33, 20), normal(33) if biased else None
    wanted = x.astype(np.float64) @ weight.T.astype(np.float64) + (0 if bias is None else bias)
    for given in (x, np.concatenate([x, x], -1)[..., :20], normal(*lead, 40)[..., ::2]):
        given[...] = x
        for w in layouts(weight):
            y = run("linear", np.full(wanted.shape, np.nan, np.float32), parts, given, w, bias)
            np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


def test_infinity_and_nan_reach_the_result():
    a, b = np.ones((20, 9), np.float32), np.ones((9, 20), np.float32)
    a[3, 4], a[7, 1], b[2, 5] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        wanted = a @ b
    np.testing.assert_array_equal(run("matmul", np.empty_like(wanted), 2, a, b), wanted)


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 6, 8, 12, 16])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (16, 40), (128, 512), (4096, 30), (768, 768)])
def test_tiles_cover_a_result_once(m, n, parts):
    across = products.grid.py_func(m, n, parts)
    assert parts % across == 0
    if parts == 2 and max(m, n) >= 32:
        assert across == (2 if n > m else 1)
    share = products.share.py_func
    times = np.zeros((m, n), int)
    for part in range(parts):
        top, bottom = share(m, part // across, parts // across, 16)
        left, right = share(n, part % across, across, 16)
        times[top:bottom, left:right] += 1
    assert (times == 1).all()


def test_many_parts_make_tiles_of_few_reads():
    """Four parts of a square result are two by two."""
    assert products.grid.py_func(512, 512, 4) == 2
    assert products.grid.py_func(512, 512, 16) == 4
    assert products.grid.py_func(4096, 64, 4) == 1


def test_what_is_not_served():
    double = np.ones((4, 4))
    single = double.astype(np.float32)
    lower = TABLE["matmul"].lower
    assert lower(Site(1), (double,), double, double) is None
    assert lower(Site(1), (single.copy(),), single, double) is None
    empty = np.empty((4, 0), np.float32)
    assert lower(Site(1), (single.copy(),), empty, empty.T) is None
    assert TABLE["linear"].lower(Site(1), (single.copy(),), single, single, double[0]) is None
