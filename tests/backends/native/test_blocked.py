"""Native products in blocks against float64: edges of every kind of block."""

import itertools

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends.cpu.native import blas, blocked, products
from gpubackprop.backends.cpu.native.engine import Instruction, Program
from gpubackprop.backends.cpu.native.lowering import Site
from gpubackprop.backends.cpu.native.panels import TALL, WIDE
from gpubackprop.backends.cpu.native.vectors import LANES

if not blas.available():
    pytest.skip("this NumPy brings another BLAS", allow_module_level=True)

RNG = np.random.default_rng(11)
DEEP, HIGH, BROAD = blocked.DEEP, blocked.HIGH, blocked.BROAD
# Rows, columns, terms: one; less than a tile; whole blocks; more than a block, with rests.
SHAPES = [
    (1, 1, 1),
    (3, LANES, 5),
    (TALL - 1, LANES + 1, LANES),
    (TALL, WIDE, DEEP),
    (2 * TALL + 1, WIDE + LANES, LANES + 3),
    (4 * TALL + 5, 2 * WIDE - 1, DEEP + 1),
    (37, 65, 2 * DEEP + 7),
    (64, BROAD + WIDE, 30),
    (HIGH + 3, WIDE, 17),
    (21, max(blocked.MANY, BROAD) + 40, 19),
]
LAYOUTS = list(itertools.product((0, 1), (0, 1)))


def stored(x, transposed, gap):
    """A matrix as it lies in memory, its rows `gap` NaNs apart."""
    x = x.T if transposed else x
    wide = np.full((x.shape[0], x.shape[1] + gap), np.nan, np.float32)
    wide[:, : x.shape[1]] = x
    return wide


def run(m, n, k, trans_a, trans_b, parts, bias=False, beta=0, gap=0):
    a, b = (RNG.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n)))
    plus = RNG.standard_normal(n).astype(np.float32)
    c = np.full((m, n + 3), np.nan, np.float32)
    if beta:
        c[:, :n] = RNG.standard_normal((m, n))
    wanted = a.astype(np.float64) @ b
    wanted += (plus if bias else 0) + (c[:, :n] if beta else 0)
    left, right = stored(a, trans_a, gap), stored(b, trans_b, gap)
    size = blocked.room(trans_a, n)
    slots = [trans_a, trans_b, m, n, k, left, left.shape[1], right, right.shape[1], c, n + 3]
    slots += [plus if bias else 0, beta, np.full((parts, size // 4), np.nan, np.float32), size]
    Program([Instruction(blocked.blocked_product, slots)], parts).run()
    width = abs(a).astype(np.float64) @ abs(b) + 3
    assert np.all(abs(c[:, :n] - wanted) <= 2e-6 * width)
    assert np.isnan(c[:, n:]).all()
    return c[:, :n]


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(("trans_a", "trans_b"), LAYOUTS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_any_shape_and_layout(m, n, k, trans_a, trans_b, parts):
    run(m, n, k, trans_a, trans_b, parts)
    run(m, n, k, trans_a, trans_b, parts, gap=5)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("trans_a", "trans_b"), LAYOUTS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES[2:])
def test_biases_and_sums_that_go_on(m, n, k, trans_a, trans_b, parts):
    run(m, n, k, trans_a, trans_b, parts, bias=True)
    run(m, n, k, trans_a, trans_b, parts, beta=1)


@pytest.mark.parametrize(("trans_a", "trans_b"), LAYOUTS)
def test_parts_do_not_change_a_bit(trans_a, trans_b):
    global RNG
    found = []
    for parts in (1, 2, 3):
        RNG = np.random.default_rng(3)
        found.append(run(67, 5 * WIDE, DEEP + 40, trans_a, trans_b, parts, bias=True))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_infinity_stays_in_its_row_and_column():
    a, b = np.ones((40, 33), np.float32), np.ones((33, 64), np.float32)
    a[3, 4], a[7, 1], b[2, 5] = np.nan, np.inf, -np.inf
    c, size = np.empty((40, 64), np.float32), blocked.room(0, 64)
    memory = np.full(size // 4, np.nan, np.float32)
    slots = [0, 0, 40, 64, 33, a, 33, b, 64, c, 64, 0, 0, memory, size]
    Program([Instruction(blocked.blocked_product, slots)], 1).run()
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(c, a @ b)


def test_who_serves_whom(monkeypatch):
    """Blocks on the processor and the shapes that they were measured on, unless a library was
    chosen."""
    monkeypatch.delenv(blas.VARIABLE, raising=False)
    monkeypatch.setattr(blocked, "LANES", 16)
    a, b, c = (np.zeros(s, np.float32) for s in ((256, 128), (128, 512), (256, 512)))

    def name(a, b, c):
        return products.multiply(Site(2), a, b, c).kernel.name

    assert name(a, b, c) == "blocked_product"
    assert name(a[:9], b, c[:9]) == "product"
    assert name(a[:9, :8], b[:8], c[:9]) == "product"
    assert name(a, b[:, :8], c[:, :8]) == "product"
    monkeypatch.setenv(blas.VARIABLE, "numpy")
    assert name(a, b, c) == "product"
    monkeypatch.delenv(blas.VARIABLE)
    monkeypatch.setattr(blocked, "LANES", 8)
    assert name(a, b, c) == "product"
