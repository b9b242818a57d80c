"""Layers of normalisation beside PyTorch's: values, gradients, running averages, evaluation."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make peers installs it")

import gpubackprop as gb  # noqa: E402
from gpubackprop import nn, testing  # noqa: E402
from gpubackprop.nn import functional as F  # noqa: E402, N812

pytestmark = pytest.mark.peers

LAYERS = {
    "BatchNorm1d": (lambda m, **o: m.BatchNorm1d(4, **o), (6, 4)),
    "BatchNorm1d of sequences": (lambda m, **o: m.BatchNorm1d(4, momentum=0.3, **o), (6, 4, 5)),
    "BatchNorm2d": (lambda m, **o: m.BatchNorm2d(4, **o), (3, 4, 5, 2)),
    "BatchNorm2d, mean of all": (lambda m, **o: m.BatchNorm2d(4, momentum=None, **o), (3, 4, 5, 2)),
    "BatchNorm2d, not affine": (lambda m, **o: m.BatchNorm2d(4, affine=False, **o), (3, 4, 5, 2)),
    "BatchNorm2d, no bias": (lambda m, **o: m.BatchNorm2d(4, bias=False, **o), (3, 4, 5, 2)),
    "BatchNorm2d, untracked": (
        lambda m, **o: m.BatchNorm2d(4, 1e-3, track_running_stats=False, **o),
        (3, 4, 5, 2),
    ),
    "BatchNorm3d": (lambda m, **o: m.BatchNorm3d(4, **o), (2, 4, 3, 1, 2)),
    "GroupNorm": (lambda m, **o: m.GroupNorm(2, 4, **o), (3, 4, 5, 2)),
    "GroupNorm of one group": (lambda m, **o: m.GroupNorm(1, 4, **o), (3, 4)),
    "GroupNorm, not affine": (lambda m, **o: m.GroupNorm(4, 4, affine=False, **o), (3, 4, 5)),
    "InstanceNorm1d": (lambda m, **o: m.InstanceNorm1d(4, **o), (3, 4, 5)),
    "InstanceNorm1d of one": (lambda m, **o: m.InstanceNorm1d(4, affine=True, **o), (4, 5)),
    "InstanceNorm2d": (
        lambda m, **o: m.InstanceNorm2d(4, affine=True, track_running_stats=True, **o),
        (3, 4, 5, 2),
    ),
    "InstanceNorm3d": (
        lambda m, **o: m.InstanceNorm3d(4, track_running_stats=True, **o),
        (3, 4, 5, 2, 2),
    ),
    "RMSNorm": (lambda m: m.RMSNorm(5), (3, 4, 5)),
    "RMSNorm of two axes": (lambda m: m.RMSNorm((4, 5), eps=0.1), (3, 4, 5)),
    "RMSNorm, no weight": (lambda m: m.RMSNorm(5, elementwise_affine=False), (3, 4, 5)),
}


def pair(make, dtype, channels_last=False):
    """Our layer and PyTorch's, with the same parameters, away from ones and zeros."""
    ours = make(nn, **({"channels_last": True} if channels_last else {})).to(dtype=dtype)
    theirs = make(torch.nn).to(getattr(torch, dtype))
    state = theirs.state_dict()
    rng = np.random.default_rng(0)
    for value in state.values():
        if value.dtype.is_floating_point:
            value += torch.tensor(rng.uniform(0.1, 0.5, tuple(value.shape)))
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict(state)
    return ours, theirs


def compare(found, expected, dtype, size):
    """In double precision nearly exactly; else as far as sums of `size` terms are apart."""
    if dtype == "float64":
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    else:
        bound = 4 * testing.tolerance(np.float32, size)
        np.testing.assert_allclose(found, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_layer(make, shape, dtype, channels_last):
    if channels_last and "channels_last" not in vars(make(nn)):
        pytest.skip("the layer has no channels")
    ours, theirs = pair(make, dtype, channels_last)
    rng = np.random.default_rng(1)
    single = isinstance(ours, nn.InstanceNorm1d) and len(shape) == 2

    def place(a):
        return np.moveaxis(a, 0 if single else 1, -1) if channels_last else a

    for training in (True, True, True, False):
        ours.train(training)
        theirs.train(training)
        x, slope = ((rng.normal(size=shape) + 1).astype(dtype) for _ in range(2))
        a = gb.tensor(place(x), requires_grad=True)
        b = torch.tensor(x, requires_grad=True)
        y, z = ours(a), theirs(b)
        compare(y.numpy(), place(z.detach().numpy()), dtype, x.size)
        ours.zero_grad()
        theirs.zero_grad()
        y.backward(place(slope))
        z.backward(torch.tensor(slope))
        compare(a.grad.numpy(), place(b.grad.numpy()), dtype, x.size)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            compare(p.grad.numpy(), q.grad.numpy(), dtype, x.size)
        for name, value in theirs.state_dict().items():
            compare(ours.state_dict()[name], value.numpy(), dtype, x.size)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})


def test_second_derivatives_of_batch_norm():
    make, shape = LAYERS["BatchNorm2d"]
    ours, theirs = pair(make, "float64")
    rng = np.random.default_rng(2)
    x, slope = rng.normal(size=shape), rng.normal(size=shape)
    a, b = gb.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    (g,) = gb.grad((ours(a) ** 2 * slope).sum(), [a], create_graph=True)
    (h,) = torch.autograd.grad((theirs(b) ** 2 * torch.tensor(slope)).sum(), [b], create_graph=True)
    (g * g).sum().backward()
    (h * h).sum().backward()
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-8, atol=1e-8)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        if q.grad is not None:
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-8, atol=1e-8)


def test_a_mean_that_is_large_beside_the_spread():
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(32, 8, 8, 16)) + 1000).astype(np.float32)
    for data in (x, np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 1)), 1, -1)):
        y = F.batch_norm(gb.tensor(data), None, None, training=True, channels_last=True).numpy()
        z = torch.nn.functional.batch_norm(
            torch.tensor(x, dtype=torch.float64).movedim(-1, 1), None, None, training=True
        )
        np.testing.assert_allclose(y, z.movedim(1, -1).numpy(), atol=4e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: m.layer_norm(x, (5,)),
        lambda m, x: m.rms_norm(x, (5,)),
        lambda m, x: m.group_norm(x, 2),
        lambda m, x: m.batch_norm(x, None, None, training=True),
        lambda m, x: m.instance_norm(x),
    ],
    ids=["layer", "rms", "group", "batch", "instance"],
)
def test_half_precision_of_any_scale(call, scale):
    """Squares of half precision overflow from 256 on, and vanish below 3e-4."""
    rng = np.random.default_rng(0)
    x, dy = ((rng.standard_normal((4, 6, 5)) * s).astype("float16") for s in (scale, 1.0))
    a, b = gb.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = call(F, a), call(torch.nn.functional, b)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y.numpy(), z.detach().numpy(), rtol=4e-3, atol=4e-3)
    (y * gb.tensor(dy)).sum().backward()
    z.backward(torch.tensor(dy))
    want = b.grad.numpy().astype("float64")
    error = np.abs(a.grad.numpy() - want).max()
    assert error <= 1e-2 * np.abs(want).max()
