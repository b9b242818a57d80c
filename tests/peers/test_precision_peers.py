"""Mixed precision against PyTorch's autocast on the CPU."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")

import gpubackprop as gb  # noqa: E402
from gpubackprop import nn, optim  # noqa: E402
from gpubackprop.nn import functional as F  # noqa: E402, N812

pytestmark = pytest.mark.peers

RNG = np.random.default_rng(7)
X = RNG.standard_normal((16, 1, 8, 8)).astype(np.float32)
Y = RNG.integers(0, 5, 16)


def layers(m):
    return [
        m.Conv2d(1, 4, 3, padding=1),
        m.BatchNorm2d(4),
        m.ReLU(),
        m.MaxPool2d(2),
        m.Flatten(),
        m.Linear(64, 32),
        m.GELU(),
        m.LayerNorm(32),
        m.Linear(32, 5),
    ]


def networks():
    torch.manual_seed(3)
    theirs = torch.nn.Sequential(*layers(torch.nn))
    ours = nn.Sequential(*layers(nn))
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    return ours, theirs


def gradients(precision):
    """Loss and gradients of both, by name."""
    ours, theirs = networks()
    half = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}.get(precision)
    with torch.autocast("cpu", dtype=half, enabled=half is not None):
        loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(X)), torch.tensor(Y))
    loss.backward()
    with gb.precision(precision):
        cost = F.cross_entropy(ours(gb.tensor(X)), gb.tensor(Y))
    cost.backward()
    mine = {name: p.grad.numpy() for name, p in ours.named_parameters()}
    other = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert mine.keys() == other.keys()
    return cost.item(), loss.item(), mine, other


def length(tensors):
    return np.sqrt(sum(float(np.square(t.astype(np.float64)).sum()) for t in tensors))


@pytest.mark.parametrize(
    ("precision", "digits"), [("bf16-mixed", 2.0**-8), ("fp16-mixed", 2.0**-11)]
)
def test_gradients_of_a_small_network(precision, digits):
    cost, loss, mine, other = gradients(precision)
    _, _, exact, theirs = gradients("float32")
    assert cost == pytest.approx(loss, rel=4 * digits)
    size = length(exact.values())
    apart = length([mine[k] - other[k] for k in mine]) / size
    own = length([mine[k] - exact[k] for k in mine]) / size
    peer = length([other[k] - theirs[k] for k in mine]) / size
    assert all(g.dtype == np.float32 for g in mine.values())
    # Both are float32's gradients but for roundings, and ours has no more of them.
    assert length([exact[k] - theirs[k] for k in exact]) / size < 1e-5
    assert digits / 16 < own < 4 * digits
    assert own <= 1.5 * peer
    assert apart < 4 * digits


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"ignore_index": 2}, {"reduction": "none"}, {"weight": True}],
    ids=["mean", "smoothed", "ignored", "rows", "weighted"],
)
def test_cross_entropy_of_half_logits(half, options):
    """PyTorch widens them to float32 and rounds their cotangent."""
    logits = torch.tensor(3 * RNG.standard_normal((12, 1003)).astype(np.float32)).to(half)
    target = torch.tensor(RNG.integers(0, 5, 12))
    weight = torch.tensor(RNG.uniform(0.5, 1.5, 1003).astype(np.float32))
    name = {torch.bfloat16: "bf16-mixed", torch.float16: "fp16-mixed"}[half]
    given = {**options, "weight": weight} if "weight" in options else options
    theirs = logits.clone().requires_grad_()
    with torch.autocast("cpu", dtype=half):
        loss = torch.nn.functional.cross_entropy(theirs, target, **given)
    loss.sum().backward()
    wide = gb.tensor(logits.float().numpy())
    ours = wide.astype(np.float16 if half is torch.float16 else "bfloat16").detach()
    ours.requires_grad = True
    given = {k: gb.tensor(v.numpy()) if k == "weight" else v for k, v in given.items()}
    with gb.precision(name):
        cost = F.cross_entropy(ours, gb.tensor(target.numpy()), **given)
    cost.sum().backward()
    assert cost.dtype == np.float32 and loss.dtype == torch.float32
    np.testing.assert_allclose(cost.numpy(), loss.detach().numpy(), rtol=2e-6)
    digits = 2.0**-7 if half is torch.bfloat16 else 2.0**-10  # one rounding, to either side
    found = ours.grad.numpy().astype(np.float64)
    np.testing.assert_allclose(found, theirs.grad.double().numpy(), rtol=digits, atol=1e-7)


def test_dtypes_of_results():
    """The same operations are in half precision. On a CPU PyTorch leaves a few more alone."""
    x, w = RNG.standard_normal((4, 6)).astype(np.float32), RNG.standard_normal((5, 6))
    w = w.astype(np.float32)
    q = RNG.standard_normal((1, 2, 3, 4)).astype(np.float32)

    def results(m, f, x, w, q, target):
        h = f.linear(x, w)
        return {
            "linear": h,
            "matmul": x @ w.T,
            "attention": f.scaled_dot_product_attention(q, q, q),
            "relu": f.relu(h),
            "gelu": f.gelu(h),
            "sum of both kinds": h + x[:, :5],
            "times a number": h * 2.0,
            "cost": f.cross_entropy(h, target),
            "mean squared error": f.mse_loss(h, x[:, :5]),
        }

    target = np.array([0, 1, 2, 3])
    with gb.precision("bf16-mixed"):
        mine = results(gb, F, *[gb.tensor(a) for a in (x, w, q, target)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tensors = [torch.tensor(a) for a in (x, w, q, target)]
        other = results(torch, torch.nn.functional, *tensors)
    kinds = {name: str(t.dtype) for name, t in mine.items()}
    assert kinds == {name: str(t.dtype).removeprefix("torch.") for name, t in other.items()}


def test_the_loss_scale_is_pytorchs():
    """GradScaler beside torch.amp.GradScaler, over steps that overflow and others."""
    settings = {"init_scale": 2.0**18, "growth_interval": 3}
    theirs = torch.amp.GradScaler("cpu", **settings)
    ours = optim.GradScaler("cpu", **settings)
    w = np.ones(3, np.float32)
    mine, other = nn.Parameter(w), torch.nn.Parameter(torch.tensor(w))
    first, second = optim.Adam([mine], lr=0.1), torch.optim.Adam([other], lr=0.1)
    for step in range(12):
        x = RNG.standard_normal(3).astype(np.float32)
        if step % 5 == 1:
            x[0] = np.inf
        first.zero_grad()
        ours.scale((mine * gb.tensor(x)).sum()).backward()
        ours.step(first)
        ours.update()
        second.zero_grad()
        theirs.scale((other * torch.tensor(x)).sum()).backward()
        theirs.step(second)
        theirs.update()
        assert ours.get_scale() == theirs.get_scale()
        np.testing.assert_allclose(mine.numpy(), other.detach().numpy(), rtol=1e-5)
    steps = first.state_dict()["state"][0]["step"], second.state_dict()["state"][0]["step"]
    assert steps[0] == int(steps[1]) == 12 - ours.skipped


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_batch_norm_of_half_pictures_beside_float32_parameters(training):
    """Dtypes as in PyTorch, values and gradients but for one rounding of each."""
    rng = np.random.default_rng(2)
    x, dy = (rng.normal(size=(6, 4, 3, 3)).astype(np.float16) for _ in range(2))
    weight, bias = (rng.normal(size=4).astype(np.float32) for _ in range(2))
    running = np.zeros(4, np.float32), np.ones(4, np.float32)
    found = []
    for m, f, tensor in (
        (gb, F, lambda a: gb.tensor(a.copy(), requires_grad=True)),
        (torch, torch.nn.functional, lambda a: torch.tensor(a, requires_grad=True)),
    ):
        leaves = [tensor(a) for a in (x, weight, bias)]
        moments = [m.tensor(a.copy()) for a in running]
        y = f.batch_norm(leaves[0], *moments, *leaves[1:], training=training)
        y.backward(m.tensor(dy))
        tensors = (y.detach(), *moments, *(t.grad for t in leaves))
        found.append([np.asarray(t.numpy()) for t in tensors])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        digits = 2.0**-10 if ours.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(ours, theirs, rtol=digits, atol=digits)


@pytest.mark.parametrize("half", [np.float16, None], ids=["float16", "bfloat16"])
def test_norms_over_features_of_half_rows_beside_float32_parameters(half):
    """Dtypes as in PyTorch, under its autocast for CPUs too (that for GPUs widens the rows first);
    values and gradients but for one rounding of each."""
    half = half or pytest.importorskip("ml_dtypes").bfloat16
    kind = torch.float16 if half is np.float16 else torch.bfloat16
    rng = np.random.default_rng(3)
    x, dy = (rng.normal(size=(6, 40)).astype(half).astype(np.float32) for _ in range(2))
    weight, bias = (rng.normal(size=40).astype(np.float32) for _ in range(2))
    ours = [gb.tensor(a, requires_grad=True) for a in (x.astype(half), weight, bias)]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    with gb.precision("fp16-mixed" if half is np.float16 else "bf16-mixed"):
        y = F.layer_norm(ours[0], 40, *ours[1:])
    y.backward(gb.tensor(dy.astype(half)))
    with torch.autocast("cpu", kind):
        z = torch.nn.functional.layer_norm(theirs[0].to(kind), (40,), *theirs[1:])
    z.backward(torch.tensor(dy).to(kind))
    assert z.dtype == kind and y.dtype == half
    digits = 2.0**-10 if half is np.float16 else 2.0**-7
    found = [y.numpy().astype(np.float32), *(t.grad.numpy().astype(np.float32) for t in ours)]
    assert [t.grad.dtype for t in ours] == [half, np.float32, np.float32]
    for got, want in zip(found, [z.detach().float(), *(t.grad for t in theirs)], strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=2 * digits, atol=2 * digits)


def test_the_residual_sum_of_a_block_is_float32_as_under_autocast():
    """Before and behind the norms, whose results are rounded for products only."""
    x = np.random.default_rng(4).normal(size=(2, 5, 8)).astype(np.float32)
    ours, theirs = nn.TransformerBlock(8, 2), torch.nn.LayerNorm(8)
    linear = torch.nn.Linear(8, 8)
    with gb.precision("bf16-mixed"):
        normal = ours.norm1(gb.tensor(x))
        assert ours(gb.tensor(x)).dtype == normal.dtype == np.float32
    with torch.autocast("cpu", torch.bfloat16):
        other = theirs(torch.tensor(x))
        assert other.dtype == torch.float32
        assert (torch.tensor(x) + linear(other)).dtype == torch.float32
    np.testing.assert_allclose(normal.numpy(), other.detach().numpy(), rtol=1e-5, atol=1e-5)
