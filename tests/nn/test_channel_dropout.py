"""Dropout of whole channels."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop import nn, tensor
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError, ShapeError

KINDS = [(nn.Dropout1d, 1), (nn.Dropout2d, 2), (nn.Dropout3d, 3)]


@pytest.mark.parametrize(("kind", "axes"), KINDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_channel_passes_whole_or_not_at_all(kind, axes, channels_last):
    spatial = (4, 3, 2)[:axes]
    shape = (50, *spatial, 8) if channels_last else (50, 8, *spatial)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32) + 10
    module = kind(0.25, channels_last=channels_last, generator=Generator(3))
    given = tensor(x, requires_grad=True)
    y = module(given)
    factor = y.numpy() / x
    rows = factor if channels_last else np.moveaxis(factor, 1, -1)
    rows = rows.reshape(50, -1, 8)
    assert (rows == rows[:, :1]).all() or np.allclose(rows, rows[:, :1])
    dropped = (rows[:, 0] == 0).mean()
    assert 0.18 < dropped < 0.32
    np.testing.assert_allclose(rows[:, 0][rows[:, 0] != 0], 1 / 0.75, rtol=1e-6)
    y.sum().backward()
    np.testing.assert_allclose(given.grad.numpy(), factor, rtol=1e-5)
    assert module.eval()(given) is given


def test_its_place_in_the_sequence_is_part_of_a_checkpoint():
    x = tensor(np.ones((5, 3, 3, 4), np.float32))
    module = nn.Dropout2d(channels_last=True)
    module(x)
    state = module.random_state()
    first = module(x).numpy()
    assert not np.array_equal(first, module(x).numpy())
    module.load_random_state(state)
    np.testing.assert_array_equal(module(x).numpy(), first)


def test_errors_and_words():
    with pytest.raises(ShapeError, match=r"dropout2d: input must be \(N, C, H, W\).*\(2, 3\)"):
        nn.Dropout2d()(tensor(np.ones((2, 3))))
    with pytest.raises(ConfigError, match="probability"):
        nn.Dropout2d(2.0)
    assert repr(nn.Dropout2d(0.1, channels_last=True)) == "Dropout2d(p=0.1, channels_last=True)"
    everything = nn.Dropout2d(1.0)(tensor(np.ones((2, 3, 2, 2))))
    assert (everything.numpy() == 0).all()
