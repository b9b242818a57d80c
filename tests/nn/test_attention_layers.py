"""Attention's functions and modules: what PyTorch does not tell, and errors in words."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError, DTypeError, GradientError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812

RNG = np.random.default_rng(3)


def draw(*shape, grad=False):
    return gb.tensor(RNG.standard_normal(shape), requires_grad=grad)


# Dropout.


def test_dropout_keeps_the_mean_and_repeats_with_its_seed():
    q, k = draw(4, 2, 6, 8), draw(4, 2, 64, 8)
    v = gb.tensor(np.ones((4, 2, 64, 1)))
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5, generator=Generator(1))
    assert y.numpy().mean() == pytest.approx(1.0, abs=0.1)
    assert y.numpy().std() > 0.05
    again = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5, generator=Generator(1))
    np.testing.assert_array_equal(y.numpy(), again.numpy())
    other = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5, generator=Generator(2))
    assert (y.numpy() != other.numpy()).any()


def test_dropout_moves_the_generator_by_what_it_used():
    g = Generator(1)
    F.scaled_dot_product_attention(
        draw(2, 3, 5, 4), draw(2, 3, 7, 4), draw(2, 3, 7, 4), dropout_p=0.5, generator=g
    )
    assert g.state() == (1, 0, 2 * 3 * 5 * 8 // 4)


def test_a_module_drops_in_training_only_and_resumes():
    m = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True, generator=Generator(4))
    x = gb.tensor(RNG.standard_normal((2, 5, 8)).astype(np.float32))
    place = m.random_state()
    first, second = (m(x, x, x, need_weights=False)[0].numpy() for _ in range(2))
    assert (first != second).any()
    m.load_random_state(place)
    np.testing.assert_array_equal(m(x, x, x, need_weights=False)[0].numpy(), first)
    m.eval()
    y, w = m(x, x, x)
    np.testing.assert_allclose(m(x, x, x, need_weights=False)[0].numpy(), y.numpy(), atol=1e-6)
    np.testing.assert_allclose(w.numpy().sum(axis=-1), 1.0, rtol=1e-6)


# Queries without keys.


def test_a_query_that_may_attend_to_nothing_gives_zeros_and_no_gradient():
    m = nn.MultiheadAttention(4, 2, bias=False, dtype=np.float64)
    x = draw(3, 1, 4, grad=True)
    mask = np.zeros((3, 3), bool)
    mask[1] = True
    for need_weights in (False, True):
        x.grad = None
        y, w = m(x, x, x, attn_mask=gb.tensor(mask), need_weights=need_weights)
        assert not y.numpy()[1].any()
        (y[1] ** 2).sum().backward()
        assert not x.grad.numpy().any()
    assert not w.numpy()[0, 1].any()


# Causal attention and the cache.


@pytest.mark.parametrize("kv_heads", [None, 2, 1])
@pytest.mark.parametrize("rotary", [False, True])
def test_the_cache_gives_what_the_whole_sequence_gives(rotary, kv_heads):
    positions = nn.RotaryPositions(2) if rotary else None
    m = nn.MultiheadAttention(
        8, 4, batch_first=True, num_kv_heads=kv_heads, rotary=positions, dtype=np.float64
    )
    x = draw(2, 7, 8)
    whole, _ = m(x, x, x, need_weights=False, is_causal=True)
    for need_weights in (False, True):
        cache, parts = nn.KeyValueCache(7), []
        with gb.no_grad():
            for start, stop in ((0, 3), (3, 4), (4, 7)):
                part = x[:, start:stop]
                y, _ = m(part, part, part, need_weights=need_weights, is_causal=True, cache=cache)
                parts.append(y.numpy())
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole.numpy(), atol=1e-12)
    assert cache.length == cache.capacity


def test_a_cache_is_full_and_takes_no_gradient():
    cache = nn.KeyValueCache(3)
    with pytest.raises(GradientError, match="no_grad"):
        cache.append(draw(1, 1, 2, 4, grad=True), draw(1, 1, 2, 4))
    cache.append(draw(1, 1, 2, 4), draw(1, 1, 2, 4))
    with pytest.raises(ShapeError, match="does not continue"):
        cache.append(draw(2, 1, 1, 4), draw(2, 1, 1, 4))
    with pytest.raises(ConfigError, match="no room for 2 positions behind 2 of 3"):
        cache.append(draw(1, 1, 2, 4), draw(1, 1, 2, 4))


def test_shared_heads_have_projections_of_their_own_size():
    m = nn.MultiheadAttention(8, 4, num_kv_heads=2)
    shapes = {n: p.shape for n, p in m.named_parameters()}
    assert shapes["q_proj_weight"] == (8, 8) and shapes["k_proj_weight"] == (4, 8)
    assert shapes["in_proj_bias"] == (16,) and "in_proj_weight" not in shapes
    x = gb.tensor(RNG.standard_normal((5, 2, 8)).astype(np.float32))
    y, w = m(x, x, x, average_attn_weights=False)
    assert y.shape == (5, 2, 8) and w.shape == (2, 4, 5, 5)
    np.testing.assert_allclose(m(x, x, x, need_weights=False)[0].numpy(), y.numpy(), atol=1e-6)


# Positions.


def test_sinusoidal_positions_are_those_of_the_paper():
    table = nn.sinusoidal_positions(6, 5, offset=2, dtype=np.float64).numpy()
    for t in range(6):
        for i in range(5):
            angle = (t + 2) / 10000 ** (2 * (i // 2) / 5)
            assert table[t, i] == pytest.approx(np.cos(angle) if i % 2 else np.sin(angle))
    x = draw(2, 3, 5)
    np.testing.assert_allclose(
        nn.SinusoidalPositions(5)(x, 4).numpy() - x.numpy(), table[2:5][None] + 0 * x.numpy()
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_products_depend_on_the_distance(interleaved):
    rotary = nn.RotaryPositions(6, interleaved=interleaved)
    q, k = draw(1, 6), draw(1, 6)

    def product(i, j):
        return float((rotary(q, i) * rotary(k, j)).sum().item())

    assert product(5, 2) == pytest.approx(product(40, 37), abs=1e-12)
    assert product(5, 2) != pytest.approx(product(5, 3), abs=1e-6)
    assert product(3, 3) == pytest.approx(float((q * k).sum().item()))
    # The tables grow with the positions asked for.
    assert rotary(q, 1000).shape == (1, 6)


def test_learned_positions_end_where_they_end():
    positions = nn.LearnedPositions(4, 3, dtype=np.float64)
    x = draw(2, 2, 3)
    np.testing.assert_allclose(positions(x, 2).numpy(), x.numpy() + positions.weight.numpy()[2:])
    with pytest.raises(ShapeError, match="positions 3 to 5 go beyond the 4"):
        positions(x, 3)


def test_positions_are_copied_with_their_module():
    m = nn.MultiheadAttention(4, 2, rotary=nn.RotaryPositions(2))
    x = gb.tensor(np.ones((3, 1, 4), np.float32))
    expected = m(x, x, x)[0].numpy()
    for twin in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        np.testing.assert_array_equal(twin(x, x, x)[0].numpy(), expected)


# Errors.

X = gb.tensor(np.ones((2, 4, 5, 3), np.float32))
Y = gb.tensor(np.ones((5, 2, 8), np.float32))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: F.scaled_dot_product_attention(X, X[:, :, :, :2], X), ShapeError, "3 features"),
        (lambda: F.scaled_dot_product_attention(X, X[:, :2], X[:, :2]), ShapeError, "enable_gqa"),
        (
            lambda: F.scaled_dot_product_attention(X, X[:, :3], X[:, :3], enable_gqa=True),
            ShapeError,
            "3 heads of k and v must divide the 4 heads",
        ),
        (lambda: F.scaled_dot_product_attention(X, X, X[0]), ShapeError, "same number of axes"),
        (lambda: F.scaled_dot_product_attention(X, X, X, dropout_p=2.0), ConfigError, "between"),
        (
            lambda: F.scaled_dot_product_attention(X, X, X, X[0, 0, :, :1] > 0, is_causal=True),
            ConfigError,
            "exclude each other",
        ),
        (
            lambda: F.scaled_dot_product_attention(X, X, X, gb.tensor(np.ones((5, 5), int))),
            DTypeError,
            "compare with 0",
        ),
        (
            lambda: F.scaled_dot_product_attention(X, X, X, gb.tensor(np.ones((5, 4)))),
            ShapeError,
            r"mask must broadcast to \(2, 4, 5, 5\)",
        ),
        (
            lambda: nn.MultiheadAttention(8, 4)(Y, Y, Y[:4]),
            ShapeError,
            r"key \(5, 2, 8\) and value \(4, 2, 8\) must have the same length, and the batch",
        ),
        (
            lambda: nn.MultiheadAttention(8, 4, batch_first=True)(Y, Y[:3], Y[:3]),
            ShapeError,
            r"the batch of query \(5, 2, 8\); the batch is axis 0 \(batch_first=True\)",
        ),
        (lambda: nn.MultiheadAttention(8, 4)(Y[0], Y, Y), ShapeError, r"as query \(2, 8\)"),
        (lambda: nn.MultiheadAttention(8, 3), ConfigError, "num_heads 3 must divide embed_dim 8"),
        (lambda: nn.MultiheadAttention(8, 4, num_kv_heads=3), ConfigError, "num_kv_heads 3"),
        (lambda: nn.MultiheadAttention(8, 4, dropout=1.5), ConfigError, "dropout"),
        (lambda: nn.MultiheadAttention(3, 1)(X, X, X), ShapeError, "query"),
        (
            lambda: nn.MultiheadAttention(3, 1)(X[0], X[0], X[0], X[0, 0] > 0),
            ShapeError,
            r"key_padding_mask \(5, 3\) must have the shape \(5, 4\)",
        ),
        (
            lambda: nn.MultiheadAttention(3, 1)(X[0], X[0], X[0], attn_mask=X[0, 0]),
            ShapeError,
            r"attn_mask \(5, 3\)",
        ),
        (lambda: nn.RotaryPositions(3), ConfigError, "even"),
        (lambda: nn.RotaryPositions(4)(X), ShapeError, r"must end in \(T, 4\)"),
        (lambda: F.rotary(X, X[0, 0], X[0, 0]), ShapeError, "pairs"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_mask_of_numpys_default_dtype_does_not_widen_the_network():
    q = draw(2, 2, 5, 8).astype("float32")
    mask = np.triu(np.full((5, 5), -np.inf), 1)
    y = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    assert y.dtype == np.float32
    causal = F.scaled_dot_product_attention(q, q, q, is_causal=True)
    np.testing.assert_allclose(y.numpy(), causal.numpy(), rtol=1e-5, atol=1e-6)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = draw(2, 5, 8).astype("float32")
    assert layer(x, x, x, attn_mask=mask, need_weights=False)[0].dtype == np.float32
    wide = draw(2, 2, 5, 8)
    assert F.scaled_dot_product_attention(wide, wide, wide, attn_mask=mask).dtype == np.float64
