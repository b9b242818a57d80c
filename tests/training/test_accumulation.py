"""Gradients of a batch in pieces: the same update with the memory of a piece."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.data import ArrayDataset, DataLoader
from gpubackprop.errors import ConfigError, NonFiniteError
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.training import Interrupted, Progress, Trainer


def network(n: int = 50, batch: int = 16, dtype: str = "float64", p: float = 0.0, **options):
    """Batches of 16 and a short one of 2."""
    gb.manual_seed(2)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Dropout(p), nn.Linear(8, 3)
    ).to(dtype=dtype)
    rng = np.random.default_rng(0)
    data = ArrayDataset(rng.standard_normal((n, 4)).astype(dtype), rng.integers(0, 3, n))
    parameters = options.pop("parameters", model.parameters())
    settings = {"loader": DataLoader(data, batch, shuffle=True, seed=1), "clip_norm": 0.5}
    loss = options.pop("loss", F.cross_entropy)
    return Trainer(model, loss, optim.Adam(parameters, lr=0.01), **(settings | options))


@pytest.mark.parametrize("pieces", [2, 3, 4, 16])
def test_the_run_is_that_of_whole_batches(pieces):
    whole, cut = network(), network(accumulate=pieces)
    expected, found = whole.fit(4), cut.fit(4)
    assert cut.run.step == whole.run.step == 16
    assert np.isclose(found.train_loss, expected.train_loss, rtol=1e-12)
    for name, value in whole.model.state_dict().items():
        np.testing.assert_allclose(
            cut.model.state_dict()[name], value, rtol=1e-9, atol=1e-12, err_msg=name
        )


def test_one_piece_has_the_same_bits():
    whole, one = network(p=0.3), network(p=0.3, accumulate=1)
    whole.fit(2), one.fit(2)
    for name, value in whole.model.state_dict().items():
        assert np.array_equal(one.model.state_dict()[name], value)


@pytest.mark.parametrize(
    ("batch", "pieces", "n", "sizes"),
    [
        (16, 4, 16, [4, 4, 4, 4]),
        (16, 4, 2, [2]),
        (16, 4, 7, [3, 4]),
        (10, 4, 10, [2, 3, 2, 3]),
        (5, 5, 5, [1] * 5),
        (16, 1, 16, [16]),
    ],
)
def test_pieces(batch, pieces, n, sizes):
    step = network(batch=batch, accumulate=pieces)._step
    found = list(step.pieces((np.arange(n), np.arange(n))))
    assert [len(piece[1]) for _, piece in found] == sizes
    assert np.isclose(sum(share for share, _ in found), 1.0)
    assert np.array_equal(np.concatenate([piece[0] for _, piece in found]), np.arange(n))


def test_parameters_that_are_plain_tensors():
    w = gb.tensor(np.ones((4, 3)), requires_grad=True)
    v = gb.tensor(np.ones((4, 3)), requires_grad=True)
    results = []
    for t, pieces in ((w, 1), (v, 5)):

        class Product(nn.Module):
            def forward(self, x, t=t):
                return x @ t

        trainer = network(parameters=[t], accumulate=pieces)
        trainer._step.model = trainer.model = Product()
        trainer.fit(2)
        results.append(t.numpy().copy())
    np.testing.assert_allclose(results[1], results[0], rtol=1e-12)


class Stop(Progress):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def batch(self, loss: float) -> None:
        import os
        import signal
        import time

        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.001)


@pytest.mark.parametrize("after", [1, 6])
def test_a_resumed_run_has_the_same_bits(tmp_path, after):
    whole = network(p=0.3, accumulate=3)
    whole.fit(3)
    with pytest.raises(Interrupted):
        network(p=0.3, accumulate=3, out=tmp_path, progress=Stop(after)).fit(3)
    again = network(p=0.3, accumulate=3, out=tmp_path)
    assert again.resume() and again.run.step == after
    again.fit(3)
    for name, value in whole.model.state_dict().items():
        assert np.array_equal(again.model.state_dict()[name], value)
    assert again.model.random_state() == whole.model.random_state()


def test_dropout_differs_between_the_pieces():
    seen = []

    class Ones(nn.Module):
        def __init__(self) -> None:
            self.first = nn.Linear(4, 3)
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            seen.append(self.drop(gb.tensor(np.ones(64))).numpy().copy())
            return self.first(x)

    trainer = network(accumulate=2, n=16, dtype="float32")
    trainer._step.model = Ones()
    trainer._step.run(next(trainer.loader.batches(0)))
    assert len(seen) == 2 and not np.array_equal(*seen)


def test_a_nan_in_a_later_piece_is_named():
    x = np.array([[1, 2], [3, 4], [1, 2], [3, -9]], np.float32)

    class Logarithm(nn.Module):
        def forward(self, x):
            return gb.log(x)

    first = nn.Linear(2, 2)
    first.weight.copy_(np.eye(2, dtype=np.float32))
    first.bias.copy_(np.zeros(2, np.float32))
    model = nn.Sequential(first, nn.Dropout(0.0), Logarithm())
    before = model.state_dict()
    trainer = Trainer(
        model,
        F.mse_loss,
        optim.SGD(model.parameters(), lr=0.1),
        loader=DataLoader(ArrayDataset(x, np.ones_like(x)), 4),
        accumulate=4,
    )
    with pytest.raises(NonFiniteError, match=r"log in layer '2' \(Logarithm\) gave 1 NaN of 2"):
        trainer.fit(1)
    assert all(np.array_equal(before[k], v) for k, v in model.state_dict().items())


def test_memory_falls():
    peaks = []
    for pieces in (1, 8):
        gb.manual_seed(0)
        model = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(8)])
        x = np.ones((1024, 32), np.float32)
        trainer = Trainer(
            model,
            F.mse_loss,
            optim.SGD(model.parameters(), lr=0.1),
            loader=DataLoader(ArrayDataset(x, x), 1024),
            accumulate=pieces,
            compile=False,  # a compiled step asks for its memory once, before
        )
        batch = next(trainer.loader.batches(0))
        trainer.update(batch)
        tracemalloc.start()
        trainer.update(batch)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] / 4, peaks


@pytest.mark.parametrize("pieces", [0, -1, 2.0, True, 17])
def test_wrong_numbers_of_pieces(pieces):
    with pytest.raises(ConfigError, match="accumulate"):
        network(accumulate=pieces)
