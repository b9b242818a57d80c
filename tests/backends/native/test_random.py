"""Native random bits, and what is drawn with them, against the definitions: bit by bit."""

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends import get_backend
from gpubackprop.backends.composites import Composites
from gpubackprop.backends.cpu.native.engine import Program
from gpubackprop.backends.cpu.native.lowering import Site
from gpubackprop.backends.live import LiveFloat, LiveInt, marked
from tests.backends.support.native import TABLE, executed

SMALL_TOO = ("random",)
NUMPY = get_backend("cpu")
RNG = np.random.default_rng(5)
PARTS = [1, 2, 3]
COUNTS = [1, 3, 4, 255, 256, 257, 5000, 70001]
PLACES = [
    (0, 0, 0),
    (2**64 - 1, 2**32 - 1, 2**64 - 1),
    (0x9E3779B97F4A7C15, 12345, 2**32 - 3),
    (7, 2**31, 2**64 - 20),
]


def computed(kernel, like, parts, *args):
    outs = tuple(
        np.full(a.shape, 77, a.dtype) if a.dtype != bool else np.empty_like(a) for a in like
    )
    return executed(kernel, outs, parts, *args)


def same_bits(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("place", PLACES)
def test_words(place, parts):
    for n in COUNTS:
        expected = NUMPY.random_bits(*place, n)
        same_bits(computed("random_bits", [expected], parts, *place, n)[0], expected)


@pytest.mark.parametrize("p", [0.0, 1e-12, 0.3, 0.5, 1 - 2**-40, 1.0])
def test_bernoulli(p):
    for shape in [(), (3, 5), (40, 300)]:
        expected = Composites.bernoulli(NUMPY, shape, p, *PLACES[2])
        same_bits(computed("bernoulli", [expected], PARTS[-1], shape, p, *PLACES[2])[0], expected)


def test_uniform():
    for shape in [(1,), (3, 5), (40, 300)]:
        expected = Composites.uniform(NUMPY, shape, *PLACES[1])
        same_bits(computed("uniform", [expected], PARTS[-1], shape, *PLACES[1])[0], expected)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_dropout(p, parts):
    for shape in [(1,), (7, 9), (128, 100)]:
        x = RNG.standard_normal(shape).astype(np.float32)
        x.flat[0] = np.nan
        y, keep = Composites.dropout(NUMPY, x, p, *PLACES[3])
        found = computed("dropout", (y, keep), parts, x, p, *PLACES[3])
        np.testing.assert_array_equal(found[0], y)
        same_bits(found[1], keep)


def test_the_place_is_read_anew():
    out = np.empty(100, np.uint32)
    place = (marked(3, 0), marked(4, 1), marked(5, 2))
    program = Program(TABLE["random_bits"].lower(Site(1), (out,), *place, 100), 1)
    assert [value.live for value, _ in program.live] == [0, 1, 2]
    for numbers in [(9, 8, 7), (2**63 - 1, 1, 0)]:
        for value, at in program.live:
            program.frames[at] = numbers[value.live]
        program.run()
        same_bits(out, NUMPY.random_bits(*numbers, 100))


def test_what_is_not_served():
    x = RNG.standard_normal((4, 6)).astype(np.float32)

    def lower(a, p=0.5):
        outs = (np.empty_like(a), np.empty(a.shape, bool))
        return TABLE["dropout"].lower(Site(1), outs, a, p, 0, 0, LiveInt(0))

    assert lower(x) is not None
    assert lower(x.astype(np.float64)) is None
    assert lower(x.T) is None
    assert lower(x[:0]) is None
    live = LiveFloat(0.5)
    live.live = 0
    assert lower(x, live) is None
