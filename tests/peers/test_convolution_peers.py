"""Convolutions beside PyTorch's: every option, in one, two and three dimensions."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make peers installs it")

import gpubackprop as gb  # noqa: E402
from gpubackprop import nn  # noqa: E402
from gpubackprop.testing import tolerance  # noqa: E402

pytestmark = pytest.mark.peers

RNG = np.random.default_rng(23)


def draw(*shape):
    return RNG.normal(size=shape)


LINE, IMAGE, VOLUME = (3, 4, 9), (3, 4, 7, 8), (2, 4, 5, 6, 4)
MODULES = {
    "Conv1d": (lambda m: m.Conv1d(4, 5, 3), LINE),
    "Conv1d, every option": (lambda m: m.Conv1d(4, 6, 2, 3, 2, 2, 2, False), LINE),
    "Conv1d same": (lambda m: m.Conv1d(4, 3, 4, padding="same", dilation=3), LINE),
    "Conv2d": (lambda m: m.Conv2d(4, 5, 3), IMAGE),
    "Conv2d without bias": (lambda m: m.Conv2d(4, 5, 3, padding=1, bias=False), IMAGE),
    "Conv2d uneven": (lambda m: m.Conv2d(4, 5, (3, 2), (2, 1), (0, 1), (1, 3)), IMAGE),
    "Conv2d same, even kernel": (lambda m: m.Conv2d(4, 5, (2, 4), padding="same"), IMAGE),
    "Conv2d valid": (lambda m: m.Conv2d(4, 5, 3, padding="valid"), IMAGE),
    "Conv2d 1x1": (lambda m: m.Conv2d(4, 5, 1), IMAGE),
    "Conv2d 1x1 with stride": (lambda m: m.Conv2d(4, 5, 1, stride=2), IMAGE),
    "Conv2d groups": (lambda m: m.Conv2d(4, 6, 3, padding=1, groups=2), IMAGE),
    "Conv2d depthwise": (lambda m: m.Conv2d(4, 4, 3, padding=1, groups=4), IMAGE),
    "Conv2d depthwise, stride": (lambda m: m.Conv2d(4, 8, 3, 2, 1, groups=4), IMAGE),
    "Conv2d wide padding": (lambda m: m.Conv2d(4, 2, 2, padding=(3, 2)), IMAGE),
    "Conv2d one image": (lambda m: m.Conv2d(4, 5, 3), (1, 4, 7, 8)),
    "Conv2d 33 images": (lambda m: m.Conv2d(4, 5, 3, padding=1), (33, 4, 7, 8)),
    "Conv2d no image": (lambda m: m.Conv2d(4, 5, 3), (0, 4, 7, 8)),
    "Conv2d no batch axis": (lambda m: m.Conv2d(4, 5, 3), (4, 7, 8)),
    "Conv2d one channel": (lambda m: m.Conv2d(1, 5, 3), (3, 1, 9, 17)),
    "Conv3d": (lambda m: m.Conv3d(4, 3, (2, 3, 2), padding=1), VOLUME),
    "Conv3d, every option": (lambda m: m.Conv3d(4, 6, 2, (1, 2, 1), 1, (1, 2, 1), 2), VOLUME),
    "ConvTranspose1d": (lambda m: m.ConvTranspose1d(4, 5, 3), LINE),
    "ConvTranspose1d, all": (lambda m: m.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, False, 2), LINE),
    "ConvTranspose2d": (lambda m: m.ConvTranspose2d(4, 5, 3), IMAGE),
    "ConvTranspose2d stride": (lambda m: m.ConvTranspose2d(4, 5, (4, 3), 2, 1), IMAGE),
    "ConvTranspose2d, all": (lambda m: m.ConvTranspose2d(4, 6, 3, (2, 3), 1, (1, 2), 2), IMAGE),
    "ConvTranspose2d depthwise": (lambda m: m.ConvTranspose2d(4, 4, 3, 2, groups=4), IMAGE),
    "ConvTranspose2d dilated": (
        lambda m: m.ConvTranspose2d(4, 3, 3, 1, 2, 1, dilation=2),
        IMAGE,
    ),
    "ConvTranspose2d much output padding": (
        lambda m: m.ConvTranspose2d(4, 3, 2, 2, 0, (4, 3), dilation=5),
        IMAGE,
    ),
    "ConvTranspose2d no batch axis": (lambda m: m.ConvTranspose2d(4, 5, 3), (4, 7, 8)),
    "ConvTranspose2d no image": (lambda m: m.ConvTranspose2d(4, 5, 3, 2), (0, 4, 7, 8)),
    "ConvTranspose3d": (lambda m: m.ConvTranspose3d(4, 3, 2, 2, 1, 1), VOLUME),
}


def agree(ours, theirs, dtype, terms):
    relative = 1e-10 if dtype == "float64" else tolerance(dtype, terms)
    scale = max(float(np.abs(theirs).max(initial=0.0)), 1.0)
    np.testing.assert_allclose(ours, theirs, rtol=relative, atol=relative * scale)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("make", "shape"), MODULES.values(), ids=MODULES)
def test_layers(make, shape, dtype):
    ours = make(nn).to(dtype=np.dtype(dtype))
    theirs = make(torch.nn).to(getattr(torch, dtype))
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict(state)
    x = draw(*shape).astype(dtype)
    a, b = gb.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(a), theirs(b)
    assert y.shape == tuple(z.shape)
    agree(y.numpy(), z.detach().numpy(), dtype, theirs.weight[0].numel())
    weights = draw(*y.shape).astype(dtype)
    (y * weights).sum().backward()
    (z * torch.tensor(weights)).sum().backward()
    agree(a.grad.numpy(), b.grad.numpy(), dtype, theirs.weight[:, 0].numel())
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        agree(p.grad.numpy(), q.grad.numpy(), dtype, weights.size)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})


MODES = ("reflect", "replicate", "circular")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("n", "kernel", "padding"), [(1, 3, 2), (2, (3, 2), (1, 2)), (2, (4, 2), "same"), (3, 3, 1)]
)
def test_padding_modes(n, kernel, padding, mode, channels_last):
    shape = (2, 4, 5, 6, 5)[: n + 2]
    name = f"Conv{n}d"
    theirs = getattr(torch.nn, name)(4, 3, kernel, padding=padding, padding_mode=mode).double()
    made = getattr(nn, name)(
        4, 3, kernel, padding=padding, padding_mode=mode, channels_last=channels_last
    )
    ours = made.to(dtype=np.float64)
    ours.load_state_dict(theirs.state_dict())
    x = draw(*shape)
    moved = np.moveaxis(x, 1, -1) if channels_last else x
    a, b = gb.tensor(moved, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(a), theirs(b)
    last = (lambda v: np.moveaxis(v, -1, 1)) if channels_last else (lambda v: v)
    agree(last(y.numpy()), z.detach().numpy(), "float64", 1)
    (y * y).sum().backward()
    (z * z).sum().backward()
    agree(last(a.grad.numpy()), b.grad.numpy(), "float64", 1)
    agree(ours.weight.grad.numpy(), theirs.weight.grad.numpy(), "float64", 1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_functions(n):
    shape, kernel = (2, 4, 5, 6, 5)[: n + 2], (3, 2, 2)[:n]
    x, w, b = draw(*shape), draw(6, 2, *kernel), draw(6)
    name, options = f"conv{n}d", {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    y = getattr(nn.functional, name)(*map(gb.tensor, (x, w, b)), **options)
    z = getattr(torch.nn.functional, name)(*map(torch.tensor, (x, w, b)), **options)
    agree(y.numpy(), z.numpy(), "float64", 1)
    w, b = draw(4, 3, *kernel), draw(6)
    name, options = f"conv_transpose{n}d", {**options, "output_padding": 1}
    y = getattr(nn.functional, name)(*map(gb.tensor, (x, w, b)), **options)
    z = getattr(torch.nn.functional, name)(*map(torch.tensor, (x, w, b)), **options)
    agree(y.numpy(), z.numpy(), "float64", 1)


def test_initial_values_have_pytorchs_range():
    torch.manual_seed(0)  # the largest of 32 biases says little about their range
    gb.manual_seed(0)
    for name in ("Conv2d", "ConvTranspose2d"):
        theirs = getattr(torch.nn, name)(64, 512, 3, groups=2)
        ours = getattr(nn, name)(64, 512, 3, groups=2)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            bound = float(np.abs(q.detach().numpy()).max())
            assert np.abs(p.numpy()).max() == pytest.approx(bound, rel=0.15)
