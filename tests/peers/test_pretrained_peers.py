"""Weights from PyTorch and back to it, through safetensors files, with a step of training on each
side in between."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

import gpubackprop as gb  # noqa: E402
from gpubackprop import interop, nn, optim  # noqa: E402
from gpubackprop.nn import functional as F  # noqa: E402, N812

pytestmark = pytest.mark.peers

RNG = np.random.default_rng(5)
TOKENS = RNG.integers(0, 11, (6, 4))
PICTURES = RNG.standard_normal((6, 3, 8, 8))
SERIES = RNG.standard_normal((6, 5, 8))
LABELS = RNG.integers(0, 3, 6)


def mlp(m):
    return m.Sequential(
        m.Embedding(11, 8),
        m.Flatten(),
        m.Linear(32, 16),
        m.GELU(),
        m.LayerNorm(16),
        m.Linear(16, 3),
    )


def convnet(m):
    return m.Sequential(
        m.Conv2d(3, 6, 3, padding=1, bias=False),
        m.BatchNorm2d(6),
        m.ReLU(),
        m.MaxPool2d(2),
        m.Conv2d(6, 4, 3, stride=2, groups=2),
        m.GroupNorm(2, 4),
        m.Flatten(),
        m.Linear(4, 3),
    )


def last(m, body):
    """The last place of a sequence, through a linear layer, after a body that may return more."""

    class Last(m.Module):
        def __init__(self):
            super().__init__()
            self.body = body(m)
            self.head = m.Linear(8, 3)

        def forward(self, x):
            y = self.body(x)
            return self.head((y[0] if isinstance(y, tuple) else y)[:, -1])

    return Last()


def lstm(m):
    return last(m, lambda m: m.LSTM(8, 8, num_layers=2, batch_first=True))


def gru(m):
    return last(m, lambda m: m.GRU(8, 4, batch_first=True, bidirectional=True))


def attention(m):
    class Self(m.Module):
        def __init__(self):
            super().__init__()
            self.attention = m.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)

    return last(m, lambda m: Self())


def encoder(m):
    return last(
        m,
        lambda m: m.TransformerEncoderLayer(
            8, 2, dim_feedforward=16, dropout=0.0, activation="gelu", batch_first=True
        ),
    )


NETWORKS = {
    "MLP": (mlp, TOKENS),
    "convnet": (convnet, PICTURES),
    "LSTM": (lstm, SERIES),
    "GRU": (gru, SERIES),
    "MultiheadAttention": (attention, SERIES),
    "TransformerEncoderLayer": (encoder, SERIES),
}
OPTIMIZERS = {
    "SGD": lambda o, p: o.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda o, p: o.Adam(p, lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("make", "x"), NETWORKS.values(), ids=NETWORKS)
def test_trained_here_and_there(tmp_path, make, x, optimizer):
    torch.manual_seed(0)
    theirs = make(torch.nn).double()
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    ours = make(nn).to(dtype=np.float64)
    interop.load_safetensors(ours, tmp_path / "theirs.safetensors")

    our_optimizer = OPTIMIZERS[optimizer](optim, ours.parameters())
    their_optimizer = OPTIMIZERS[optimizer](torch.optim, theirs.parameters())
    a, b = gb.tensor(x), torch.tensor(x)
    for _ in range(3):
        our_optimizer.zero_grad()
        their_optimizer.zero_grad()
        our_cost = F.cross_entropy(ours(a), gb.tensor(LABELS))
        their_cost = torch.nn.functional.cross_entropy(theirs(b), torch.tensor(LABELS))
        assert np.isclose(our_cost.item(), their_cost.item(), rtol=1e-10)
        our_cost.backward()
        their_cost.backward()
        our_optimizer.step()
        their_optimizer.step()
    compare(ours.state_dict(), theirs.state_dict())

    # Back: what was trained here gives there what it gives here.
    interop.save_safetensors(ours, tmp_path / "ours.safetensors")
    state = load_file(tmp_path / "ours.safetensors")
    assert state.keys() == theirs.state_dict().keys()
    again = make(torch.nn).double()
    again.load_state_dict(state)
    with gb.no_grad(), torch.no_grad():
        expected = again.eval()(b).numpy()
        np.testing.assert_allclose(ours.eval()(a).numpy(), expected, rtol=1e-9, atol=1e-11)


def compare(ours, theirs):
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value.numpy(), rtol=1e-8, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_files_of_pytorch(tmp_path, dtype):
    theirs = mlp(torch.nn)
    narrow = {k: v.to(getattr(torch, dtype)) for k, v in theirs.state_dict().items()}
    save_file(narrow, tmp_path / "m.safetensors")
    ours = mlp(nn)
    interop.load_safetensors(ours, tmp_path / "m.safetensors")
    for name, value in ours.state_dict().items():
        assert np.array_equal(value, narrow[name].float().numpy()), name


def test_pickles_are_refused_with_the_way_out(tmp_path):
    torch.save(mlp(torch.nn).state_dict(), tmp_path / "m.pt")
    with pytest.raises(gb.interop.tensor_file.CheckpointError, match="is a pickle, as torch.save"):
        interop.load_safetensors(mlp(nn), tmp_path / "m.pt")


def test_tied_weights_of_pytorch(tmp_path):
    """``save_model`` keeps one of the names of a tied weight."""
    from safetensors.torch import save_model

    class Tied:
        def __init__(self):
            super().__init__()
            self.read, self.write = self.m.Embedding(7, 4), self.m.Linear(4, 7, bias=False)
            self.write.weight = self.read.weight

        def forward(self, x):
            return self.write(self.read(x))

    theirs = type("Theirs", (Tied, torch.nn.Module), {"m": torch.nn})()
    ours = type("Ours", (Tied, nn.Module), {"m": nn})()
    save_model(theirs, str(tmp_path / "m.safetensors"))
    interop.load_safetensors(ours, tmp_path / "m.safetensors")
    tokens = TOKENS % 7
    expected = theirs(torch.tensor(tokens)).detach().numpy()
    np.testing.assert_allclose(ours(gb.tensor(tokens)).numpy(), expected, rtol=1e-5, atol=1e-6)
