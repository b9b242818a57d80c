"""Random bits, the draws made from them, and the generator that counts along."""

from __future__ import annotations

import json
import math
import statistics
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpubackprop.backends import normal_quantile, philox, random
from gpubackprop.errors import ConfigError, DTypeError

# Random123's known-answer file (kat_vectors, philox4x32, 10 rounds): counter, key, result.
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SEEDS = st.integers(0, 2**64 - 1)
STREAMS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_single_block_gives_the_published_answer(counter, key, result):
    assert philox.philox4x32(counter, key) == result


def test_vectorised_bits_start_with_the_published_answer():
    words = philox.random_bits(0, 0, 0, 4)
    assert words.dtype == np.uint32
    assert tuple(int(w) for w in words) == KNOWN[0][2]


@given(SEEDS, STREAMS, st.integers(0, 2**64 - 1), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_bits_equal_the_definition_word_by_word(seed, stream, offset, n):
    words = philox.random_bits(seed, stream, offset, n)
    assert words.shape == (n,)
    for i, word in enumerate(words):
        counter = (offset + i // 4) % 2**64
        block = philox.philox4x32(
            (counter & 0xFFFFFFFF, counter >> 32, stream, 0), (seed & 0xFFFFFFFF, seed >> 32)
        )
        assert int(word) == block[i % 4]


@given(SEEDS, STREAMS, st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_an_offset_continues_the_sequence(seed, stream, blocks, n):
    whole = philox.random_bits(seed, stream, 0, 4 * blocks + n)
    assert np.array_equal(philox.random_bits(seed, stream, blocks, n), whole[4 * blocks :])


def test_passes_join_without_a_seam(monkeypatch):
    whole = philox.random_bits(5, 6, 2**32 - 9, 4003)  # the counter's low word wraps on the way
    monkeypatch.setattr(philox, "_CHUNK", 37)
    assert np.array_equal(philox.random_bits(5, 6, 2**32 - 9, 4003), whole)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((-1, 0, 0, 4), "seed -1"),
        ((2**64, 0, 0, 4), "seed 18446744073709551616"),
        ((0, 2**32, 0, 4), "stream 4294967296"),
        ((0, 0, 0, -4), "-4 random words"),
    ],
)
def test_wrong_places_are_named(arguments, names):
    with pytest.raises(ConfigError, match=names):
        philox.random_bits(*arguments)


def test_bits_are_balanced_and_streams_unrelated():
    words = philox.random_bits(1, 0, 0, 1 << 16)
    other = philox.random_bits(1, 1, 0, 1 << 16)
    ones = np.unpackbits(words.view(np.uint8)).reshape(-1, 8).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(4 << 16)  # five standard deviations
    agree = np.unpackbits((words ^ other).view(np.uint8)).mean()
    assert abs(agree - 0.5) < 5 * 0.5 / math.sqrt(32 << 16)
    counts = np.bincount(words >> np.uint32(24), minlength=256)
    chi_square = float(((counts - 256.0) ** 2 / 256.0).sum())
    assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)


# The draws.


@pytest.mark.parametrize(
    ("dtype", "bits", "words"), [(np.float32, 24, 1), (np.float64, 53, 2)], ids=["f4", "f8"]
)
def test_uniform_is_an_exact_multiple(dtype, bits, words):
    x = random.uniform((50, 40), seed=3, stream=4, offset=5, dtype=dtype)
    assert x.dtype == dtype and x.shape == (50, 40)
    assert x.min() >= 0 and x.max() < 1
    steps = x.astype(np.float64) * 2.0**bits
    assert np.array_equal(steps, np.floor(steps))
    word = philox.random_bits(3, 4, 5, 2000 * words).astype(np.uint64)
    expected = word >> np.uint64(8) if words == 1 else (word[::2] | word[1::2] << 32) >> 11
    assert np.array_equal(steps.reshape(-1), expected.astype(np.float64))


def test_uniform_bounds_and_moments():
    x = random.uniform(100_000, seed=1, low=-3.0, high=5.0, dtype=np.float64)
    assert x.min() >= -3 and x.max() <= 5
    assert abs(x.mean() - 1) < 5 * (8 / math.sqrt(12)) / math.sqrt(1e5)
    assert abs(x.std() - 8 / math.sqrt(12)) < 0.02


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_normal_moments(dtype):
    x = random.normal((400, 501), seed=2, mean=3.0, std=2.0, dtype=dtype)
    assert x.dtype == dtype
    z = (x.astype(np.float64) - 3) / 2
    n = z.size
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)
    pairs = z.reshape(-1)[: n // 2 * 2].reshape(-1, 2)
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) < 5 / math.sqrt(n / 2)


def test_normal_does_not_depend_on_how_many_follow():
    # The last element of an odd count is the cosine of a pair whose sine is thrown away.
    assert np.array_equal(
        random.normal(7, seed=1, dtype=np.float64), random.normal(8, seed=1, dtype=np.float64)[:7]
    )


def test_quantile_agrees_with_the_standard_library():
    p = np.concatenate(
        [np.linspace(1e-6, 1 - 1e-6, 997), 10.0 ** -np.arange(2, 300, 7), [0.075, 0.925]]
    )
    reference = [statistics.NormalDist().inv_cdf(v) for v in p]
    np.testing.assert_allclose(normal_quantile.quantile(p), reference, rtol=1e-14, atol=1e-15)


def test_truncated_normal_stays_inside_and_has_the_right_moments():
    x = random.truncated_normal((1000, 100), seed=9, std=0.5, low=-1.0, high=1.0)
    assert x.dtype == np.float32
    assert x.min() >= -1 and x.max() <= 1
    # Variance of a unit normal cut at +-2: 1 - 4 phi(2) / (Phi(2) - Phi(-2)) (Johnson & Kotz,
    # 13.10).
    unit = statistics.NormalDist()
    variance = 1 - 4 * unit.pdf(2) / (unit.cdf(2) - unit.cdf(-2))
    assert abs(x.mean()) < 5 * 0.5 * math.sqrt(variance) / math.sqrt(x.size)
    assert abs(x.astype(np.float64).var() / 0.25 - variance) < 0.01


@pytest.mark.parametrize(("low", "high"), [(6.0, 7.0), (-7.0, -6.0), (30.0, 31.0)])
def test_truncated_normal_keeps_its_digits_in_the_tail(low, high):
    x = random.truncated_normal(5000, seed=1, low=low, high=high, dtype=np.float64)
    assert x.min() >= low and x.max() <= high
    assert np.unique(x).size > 4990
    # Far out the density falls like exp(-low * distance): the mean distance is about 1/|bound|.
    near = low if low > 0 else high
    assert abs(np.abs(x - near).mean() - 1 / abs(near)) < 0.3 / abs(near)


def test_truncated_normal_refuses_what_cannot_be_drawn():
    with pytest.raises(ConfigError, match="low < high"):
        random.truncated_normal(3, seed=0, low=1.0, high=1.0)
    with pytest.raises(ConfigError, match="std > 0"):
        random.truncated_normal(3, seed=0, std=0.0)
    with pytest.raises(ConfigError, match="never between 50 and 51"):
        random.truncated_normal(3, seed=0, low=50.0, high=51.0)


def test_bernoulli_compares_integers():
    words = philox.random_bits(1, 2, 3, 60)
    p = 0.3
    keep = random.bernoulli((6, 10), p, seed=1, stream=2, offset=3)
    assert keep.dtype == bool
    assert np.array_equal(keep.reshape(-1), words.astype(np.uint64) < round(p * 2**32))
    assert random.bernoulli(50, 1.0, seed=1).all()
    assert not random.bernoulli(50, 0.0, seed=1).any()
    assert abs(random.bernoulli(10**5, p, seed=1).mean() - p) < 5 * math.sqrt(0.21 / 1e5)
    with pytest.raises(ConfigError, match="1.5"):
        random.bernoulli(3, 1.5, seed=1)


@given(
    st.integers(-(2**40), 2**40),
    st.integers(1, 2**32),
    st.integers(0, 50),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_integers_are_the_exact_product(low, width, n, seed):
    got = random.integers(low, low + width, n, seed=seed)
    words = [int(w) for w in philox.random_bits(seed, 0, 0, 2 * n)]
    expected = [low + ((words[2 * i] | words[2 * i + 1] << 32) * width >> 64) for i in range(n)]
    assert got.dtype == np.int64
    assert got.tolist() == expected


def test_integers_of_other_dtypes_and_their_errors():
    x = random.integers(0, 256, 5000, seed=3, dtype=np.uint8)
    assert x.dtype == np.uint8 and x.min() == 0 and x.max() == 255
    big = random.integers(2**63, 2**63 + 5, 100, seed=3, dtype=np.uint64)
    assert big.dtype == np.uint64
    assert set(big.tolist()) == set(range(2**63, 2**63 + 5))
    with pytest.raises(ConfigError, match="do not fit dtype uint8"):
        random.integers(0, 257, 3, seed=0, dtype=np.uint8)
    with pytest.raises(ConfigError, match=r"low=4, high=4"):
        random.integers(4, 4, 3, seed=0)
    with pytest.raises(ConfigError, match=r"2\*\*32"):
        random.integers(0, 2**32 + 1, 3, seed=0)


@given(st.integers(0, 400), SEEDS)
@settings(max_examples=40, deadline=None)
def test_permutation_has_every_number_once(n, seed):
    order = random.permutation(n, seed=seed)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, random.permutation(n, seed=seed))


def test_permutation_puts_every_number_everywhere():
    places = np.stack([random.permutation(5, seed=11, offset=3 * i) for i in range(4000)])
    counts = np.stack([np.bincount(places[:, i], minlength=5) for i in range(5)])
    assert np.abs(counts - 800).max() < 5 * math.sqrt(4000 * 0.2 * 0.8)


@pytest.mark.parametrize("draw", [random.uniform, random.normal, random.truncated_normal])
def test_only_real_dtypes_are_drawn(draw):
    for dtype in (np.int32, np.complex64, bool, "S4"):
        with pytest.raises(DTypeError, match="float dtype"):
            draw(3, seed=1, dtype=dtype)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), 4, [2, 3]])
def test_shapes(shape):
    expected = (shape,) if isinstance(shape, int) else tuple(shape)
    for x in (
        random.uniform(shape, seed=1),
        random.normal(shape, seed=1),
        random.truncated_normal(shape, seed=1),
        random.bernoulli(shape, 0.5, seed=1),
        random.integers(0, 9, shape, seed=1),
    ):
        assert isinstance(x, np.ndarray) and x.shape == expected


# The generator.

DRAWS = {
    "uniform": lambda g, n: g.uniform(n, low=1.0, high=2.0),
    "uniform64": lambda g, n: g.uniform(n, dtype=np.float64),
    "normal": lambda g, n: g.normal((n,), std=3.0),
    "normal64": lambda g, n: g.normal(n, dtype=np.float64),
    "truncated": lambda g, n: g.truncated_normal(n),
    "bernoulli": lambda g, n: g.bernoulli(n, 0.25),
    "integers": lambda g, n: g.integers(-5, 5, n),
    "permutation": lambda g, n: g.permutation(n),
}


class Recorder:
    """Stands in for random_bits and notes every block that was read."""

    def __init__(self):
        self.blocks = []

    def __call__(self, seed, stream, offset, n):
        self.blocks += range(offset, offset + -(-n // 4))
        return philox.random_bits(seed, stream, offset, n)


@pytest.mark.parametrize("name", DRAWS)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_no_block_is_read_twice_and_none_is_skipped(name, sizes):
    recorder = Recorder()
    generator = random.Generator(1, 2, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpubackprop.backends.draws.random_bits", recorder)
        for n in sizes:
            DRAWS[name](generator, n)
    end = generator.state()[2]
    assert recorder.blocks == list(range(100, end))


@pytest.mark.parametrize("name", DRAWS)
def test_a_state_restores_the_sequence(name):
    generator = random.Generator(2**64 - 1, 7)
    DRAWS[name](generator, 13)
    stored = json.loads(json.dumps(generator.state()))
    following = [DRAWS[name](generator, n) for n in (5, 6)]
    again = random.Generator.from_state(stored)
    assert all(
        np.array_equal(x, DRAWS[name](again, n)) for x, n in zip(following, (5, 6), strict=True)
    )


def test_methods_are_the_functions_at_the_generators_place():
    generator = random.Generator(5, 6, 7)
    assert np.array_equal(
        generator.normal((3, 3), mean=1.0),
        random.normal((3, 3), seed=5, stream=6, offset=7, mean=1.0),
    )
    assert generator.state() == (5, 6, 10)  # ten words used, three blocks
    assert generator.take(9) == (5, 6, 10)
    assert generator.state() == (5, 6, 13)
    assert repr(generator) == "Generator(seed=5, stream=6, offset=13)"
    assert generator.take(0) == (5, 6, 13)


def test_the_offset_wraps_like_the_counter():
    generator = random.Generator(1, 0, 2**64 - 1)
    generator.uniform(8)
    assert generator.state()[2] == 1


def test_threads_never_share_a_block():
    generator = random.Generator(1)
    starts: list[int] = []

    def work():
        starts.extend([generator.take(4)[2] for _ in range(500)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(starts) == list(range(2000))


def test_split_is_deterministic_and_unrelated_to_the_parent():
    parent, twin = random.Generator(3), random.Generator(3)
    children = [parent.split() for _ in range(50)]
    assert [c.state() for c in children] == [twin.split().state() for _ in range(50)]
    assert parent.state() == (3, 0, 50)
    assert len({c.state()[:2] for c in children} | {parent.state()[:2]}) == 51
    grandchild = children[0].split()
    series = [g.uniform(20_000, dtype=np.float64) for g in (parent, *children[:3], grandchild)]
    correlation = np.corrcoef(series) - np.eye(len(series))
    assert np.abs(correlation).max() < 5 / math.sqrt(20_000)


def test_a_split_seed_is_not_a_drawn_word():
    # The child's key comes from another counter domain than random bits do.
    seed, stream, _ = random.Generator(3).split().state()
    words = random.random_bits(3, 0, 0, 4).tolist()
    assert seed & 0xFFFFFFFF not in words and seed >> 32 not in words and stream not in words


@pytest.mark.parametrize(
    "place", [(-1, 0, 0), (0, -1, 0), (0, 2**32, 0), (0, 0, -1), (0, 0, 2**64)]
)
def test_a_generator_refuses_a_wrong_place(place):
    with pytest.raises(ConfigError, match="out of range"):
        random.Generator(*place)


# The ambient generator.


@pytest.fixture(autouse=True)
def _fresh_default(monkeypatch):
    monkeypatch.setattr(random, "_process_generator", None)


def test_manual_seed_settles_what_follows():
    random.manual_seed(4)
    first = random.default_generator().normal(5)
    random.manual_seed(4)
    assert np.array_equal(random.default_generator().normal(5), first)
    assert random.default_generator() is random.default_generator()


def test_unseeded_generators_differ(monkeypatch):
    first = random.default_generator().state()[0]
    monkeypatch.setattr(random, "_process_generator", None)
    assert random.default_generator().state()[0] != first


def test_manual_seed_reaches_other_threads():
    # A notebook may run each cell in its own context and a loader its own thread; the seed holds
    # for all.
    random.manual_seed(12)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(random.default_generator().state()))
    thread.start()
    thread.join()
    assert seen == [(12, 0, 0)]


def test_using_holds_for_its_block_and_its_thread():
    outer = random.manual_seed(1)
    mine = random.Generator(2)
    with random.using(mine) as given_back:
        assert given_back is mine and random.default_generator() is mine
        seen = []
        thread = threading.Thread(target=lambda: seen.append(random.default_generator()))
        thread.start()
        thread.join()
        assert seen == [outer]
        random.manual_seed(3)
        assert random.default_generator().state() == (3, 0, 0)
    assert random.default_generator() is outer
    with pytest.raises(RuntimeError), random.using(mine):
        raise RuntimeError
    assert random.default_generator() is outer
