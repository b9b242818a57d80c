"""Stacks of transformer layers: copies, dropout, causality, learning."""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError, ShapeError

RNG = np.random.default_rng(2)


def draw(*shape):
    return gb.tensor(RNG.standard_normal(shape).astype(np.float32))


def test_layers_of_a_stack_begin_alike_and_drop_differently():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, generator=Generator(1))
    stack = nn.TransformerEncoder(layer, 3)
    first, second = stack.layers[0], stack.layers[1]
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert p is not q
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    states = [tuple(s) for s in stack.random_state().values()]
    assert len(set(states)) == len(states) == 12
    x = draw(4, 1, 8)
    assert (first(x).numpy() != second(x).numpy()).any()
    stack.eval()
    np.testing.assert_array_equal(first(x).numpy(), second(x).numpy())


def test_layers_of_a_transformer_begin_with_values_of_their_own():
    model = nn.Transformer(8, 2, 2, 2, 16, generator=Generator(1))
    a, b = (layer.linear1.weight.numpy() for layer in model.encoder.layers)
    assert (a != b).all()
    assert len(list(model.named_generators())) == 2 * (3 + 1) + 2 * (4 + 2)


def test_a_causal_layer_does_not_see_what_comes():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = RNG.standard_normal((1, 6, 8)).astype(np.float32)
    changed = x.copy()
    changed[:, 4] += 1
    y, z = (layer(gb.tensor(v), is_causal=True).numpy() for v in (x, changed))
    np.testing.assert_array_equal(y[:, :4], z[:, :4])
    assert (y[:, 4:] != z[:, 4:]).any(axis=-1).all()


def test_an_activation_may_be_a_function():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=lambda x: x * 0.0)
    layer.linear2.bias.copy_(np.zeros(8))
    assert layer(draw(3, 1, 8)).shape == (3, 1, 8)
    with pytest.raises(ConfigError, match="did you mean 'relu'"):
        nn.TransformerEncoderLayer(8, 2, activation="rellu")


def test_a_wrong_width_is_named():
    model = nn.Transformer(8, 2, 1, 1, 16)
    with pytest.raises(ShapeError, match=r"src \(3, 1, 6\) must have 8 features"):
        model(draw(3, 1, 6), draw(3, 1, 8))


def test_a_transformer_learns_to_reverse_a_sequence():
    gb.manual_seed(0)
    table = nn.Embedding(7, 16)
    places = nn.SinusoidalPositions(16)
    model = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
    head = nn.Linear(16, 7)
    parts = nn.ModuleList([table, model, head])
    optimizer = optim.Adam(parts.parameters(), lr=3e-3)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(150):
        source = rng.integers(1, 7, (32, 4))
        target = source[:, ::-1].copy()
        shifted = np.concatenate([np.zeros((32, 1), int), target[:, :-1]], axis=1)
        src, tgt = (places(table(gb.tensor(t))) for t in (source, shifted))
        y = head(model(src, tgt, tgt_is_causal=True))
        loss = nn.functional.cross_entropy(y.reshape(-1, 7), gb.tensor(target.reshape(-1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.item()))
    assert np.mean(losses[-10:]) < 0.35 < losses[0]
