"""Native attention against its definition in float64."""

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends import get_backend
from gpubackprop.backends.attention import AttentionKernels
from gpubackprop.backends.cpu.native.lowering import Site
from tests.backends.support.native import TABLE, executed

SMALL_TOO = ("attention",)
NUMPY = get_backend("cpu")
RNG = np.random.default_rng(7)
PARTS = [1, 2, 3]
# Batches, heads, heads of keys, queries, keys, features, features of values.
SIZES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 3, 7, 7, 5, 3),
    (2, 4, 2, 33, 33, 8, 16),
    (1, 2, 1, 64, 64, 32, 32),
    (3, 2, 2, 25, 70, 17, 33),
    (1, 6, 2, 100, 40, 4, 20),
]


def wide(a):
    return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype != bool else a


def defined(kernel, *args):
    return getattr(AttentionKernels, kernel)(NUMPY, *map(wide, args))


def computed(kernel, like, parts, *args):
    outs = tuple(np.full_like(a, np.nan) for a in like)
    return executed(kernel, outs, parts, *args)


def heads(b, h, t, d, between=True):
    """(B, H, T, D), with the heads between the features of wider rows or in order."""
    if not between:
        return RNG.standard_normal((b, h, t, d)).astype(np.float32)
    x = RNG.standard_normal((b, t, h * d + 3)).astype(np.float32)
    return x[:, :, 3:].reshape(b, t, h, d).transpose(0, 2, 1, 3)


def masks(kind, b, h, tq, tk):
    shape = {"": (b, h, tq, tk), "rows": (tq, tk), "keys": (b, 1, 1, tk)}[kind[4:]]
    if kind.startswith("bool"):
        allowed = RNG.random(shape) < 0.7
        allowed[..., 0, :] = False
        return allowed
    return RNG.standard_normal(shape).astype(np.float32) * 3


def compare(size, mask, causal, past, between, parts, scale=0.3):
    b, h, groups, tq, tk, d, dv = size
    q = heads(b, h, tq, d, between)
    k, v = heads(b, groups, tk, d, between), heads(b, groups, tk, dv, between)
    dy = heads(b, h, tq, dv, between)
    mask = None if mask is None else masks(mask, b, h, tq, tk)
    options = (causal, past, scale)
    expected = defined("attention", q, k, v, mask, *options)
    lse = np.empty((b, h, tq), np.float32)
    y, lse = computed("attention", (dy, lse), parts, q, k, v, mask, *options)
    np.testing.assert_allclose(y, expected[0], rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-5, atol=1e-5)
    given = (dy, q, k, v, mask, y, lse, *options)
    expected = defined("attention_backward", *given)
    found = computed("attention_backward", (q, k, v), parts, *given)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-4, atol=5e-6 * max(1.0, np.abs(e).max()))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_heads_of_every_size(size, causal, parts):
    compare(size, None, causal, 0, True, parts)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", ["bool", "boolrows", "boolkeys", "real", "realrows", "realkeys"])
def test_masks(mask, causal):
    for size in SIZES[1:5]:
        compare(size, mask, causal, 0, False, PARTS[-1])


@pytest.mark.parametrize("past", [1, 5, 200])
def test_keys_before_the_first_query(past):
    compare((2, 2, 2, 30, 41, 8, 8), None, True, past, True, PARTS[-1])


@pytest.mark.parametrize("scale", [-0.5, 0.0, 4.0])
def test_scales(scale):
    compare(SIZES[2], None, True, 0, True, 1, scale)


def test_large_scores_do_not_overflow():
    q, k, v = (heads(1, 2, 30, 8) for _ in range(3))
    q, k = q * np.float32(50), k * np.float32(50)
    expected = defined("attention", q, k, v, None, True, 0, 1.0)
    y, lse = np.empty_like(q), np.empty((1, 2, 30), np.float32)
    y, lse = computed("attention", (y, lse), 1, q, k, v, None, True, 0, 1.0)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-6)
    np.testing.assert_allclose(y, expected[0], rtol=1e-2, atol=1e-2)


def test_a_query_that_may_attend_to_nothing_gives_zeros():
    q, k, v = (heads(1, 1, 9, 4) for _ in range(3))
    mask = np.ones((9, 9), bool)
    mask[4] = False
    y, lse = computed("attention", (q, np.empty((1, 1, 9), np.float32)), 1, q, k, v, mask)
    assert not y[0, 0, 4].any() and lse[0, 0, 4] == np.inf
    assert np.isfinite(np.delete(lse, 4, 2)).all()
    found = computed("attention_backward", (q, k, v), 1, q, q, k, v, mask, y, lse)
    assert not found[0][0, 0, 4].any() and all(np.isfinite(f).all() for f in found)


def test_what_a_query_may_not_see_does_not_reach_its_weights():
    q, k, v = (heads(1, 1, 40, 4) for _ in range(3))
    k[0, 0, 39] = np.nan
    y, lse = computed("attention", (q, np.empty((1, 1, 40), np.float32)), 1, q, k, v, None, True)
    assert np.isfinite(lse[0, 0, :39]).all() and np.isnan(lse[0, 0, 39])
    assert np.isfinite(y[0, 0, :39]).all() and np.isnan(y[0, 0, 39]).all()


def test_the_same_bits_with_any_number_of_parts():
    q, k, v = (heads(3, 2, 50, 8) for _ in range(3))
    lse = np.empty((3, 2, 50), np.float32)
    found = [computed("attention", (q, lse), parts, q, k, v, None, True) for parts in PARTS]
    for other in found[1:]:
        assert all((a == b).all() for a, b in zip(found[0], other, strict=True))


def test_what_is_not_served():
    q, k, v = (heads(1, 2, 5, 4) for _ in range(3))
    outs = (np.empty_like(q), np.empty((1, 2, 5), np.float32))

    def lower(q=q, mask=None, p=0.0):
        return TABLE["attention"].lower(Site(1), outs, q, k, v, mask, False, 0, 1.0, p)

    assert lower() is not None
    assert lower(p=0.1) is None
    assert lower(q.astype(np.float64)) is None
    assert lower(np.ascontiguousarray(q.swapaxes(2, 3)).swapaxes(2, 3)) is None
    assert lower(mask=np.ones((5, 1), bool)) is None
    assert lower(q[:0]) is None
