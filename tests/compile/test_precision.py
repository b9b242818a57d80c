"""Mixed precision in compiled steps, on every device that there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import optim
from gpubackprop.nn import functional as F
from tests.compile.support.steps import small_network
from tests.places import PLACES

pytest.importorskip("ml_dtypes")

MIXED = ["bf16-mixed", "fp16-mixed"]
# How far costs may be apart that were computed in another order, and rounded to these digits.
DIGITS = {"float32": 1e-3, "tf32": 1e-2, "bf16-mixed": 3e-2, "fp16-mixed": 1e-2}


def train(kind: str, precision: str, device: Any, compiled: bool, steps: int = 12) -> Any:
    net, x, y = small_network(kind)
    net.to(device)
    optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scaler = optim.GradScaler(device, init_scale=2.0**24, growth_interval=4)

    def step(x, y):
        optimizer.zero_grad()
        with gb.precision(precision):
            output = net(x)
            loss = F.cross_entropy(output.reshape((-1, output.shape[-1])), y.reshape((-1,)))
            scaler.scale(loss).backward()
        scaler.step(optimizer, max_norm=1.0)
        scaler.update()
        return loss

    run = gb.compile(step) if compiled else step
    inputs = gb.tensor(x, device=device), gb.tensor(y, device=device)
    costs, scales = [], []
    for _ in range(steps):
        costs.append(run(*inputs).item())
        scales.append((scaler.get_scale(), scaler.skipped))
    if compiled:
        assert sum(e.calls for e in run.entries) >= 7, run.explain()
    return costs, scales, net


@pytest.mark.parametrize("kind", ["pictures", "text"])
@pytest.mark.parametrize("precision", MIXED)
@pytest.mark.parametrize("place", PLACES)
def test_a_compiled_step_is_that_of_the_function(place: Any, kind: str, precision: str) -> None:
    if place.backend is None:
        pytest.skip(place.reason)
    expected, scales, _ = train(kind, precision, place.backend, False)
    costs, others, net = train(kind, precision, place.backend, True)
    np.testing.assert_allclose(costs, expected, rtol=DIGITS[precision])
    assert others == scales
    assert all(p.dtype == np.float32 for p in net.parameters())
    if precision == "fp16-mixed":
        assert 0 < scales[-1][1] < len(costs)  # steps that were skipped, and others
    else:
        assert scales[-1][1] == 0


@pytest.mark.parametrize("kind", ["pictures", "text"])
@pytest.mark.parametrize("precision", ["tf32", *MIXED])
@pytest.mark.parametrize("place", PLACES[1:])
@pytest.mark.filterwarnings("ignore:precision 'tf32' means float32")
def test_devices_agree(place: Any, kind: str, precision: str) -> None:
    if place.backend is None:
        pytest.skip(place.reason)
    expected, scales, _ = train(kind, precision, "cpu", False)
    costs, others, _ = train(kind, precision, place.backend, False)
    np.testing.assert_allclose(costs, expected, rtol=DIGITS[precision])
    assert others == scales


def test_each_precision_has_a_recording_of_its_own() -> None:
    x = gb.tensor(np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32))
    product = gb.compile(lambda x: x @ x.T)
    for _ in range(4):
        for precision, dtype in (("float32", np.float32), ("fp16-mixed", np.float16)):
            with gb.precision(precision):
                assert product(x).dtype == dtype
        with gb.precision("float32"):  # the same as none
            assert product(x).dtype == np.float32
    assert len(product.entries) == 2
    assert all(e.calls > 0 for e in product.entries)
    assert "the precision is 'fp16-mixed' where it was 'float32'" in product.explain()


@pytest.mark.gpu
def test_tf32_rounds_products_of_a_gpu() -> None:
    """TensorFloat-32 keeps 10 bits of each operand: 1 + 2**-12 becomes 1."""
    x = np.full((64, 64), 1.0 + 2.0**-12, np.float32)
    a = gb.tensor(x, device="cuda")
    exact = (a @ a).numpy()
    with gb.precision("tf32"):
        rounded = (a @ a).numpy()
    np.testing.assert_allclose(exact, x.astype(np.float64) @ x, rtol=1e-6)
    np.testing.assert_allclose(rounded, 64.0, rtol=1e-4)
    np.testing.assert_array_equal((a @ a).numpy(), exact)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", MIXED)
def test_values_of_half_precision_on_a_gpu_are_those_of_the_cpu(precision: str) -> None:
    """The rounded copy of the parameters has the same bits: both round to the nearest even."""
    found = []
    for device in ("cpu", "cuda"):
        net, x, _ = small_network("pictures")
        net.to(device)
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        with gb.precision(precision):
            net(gb.tensor(x, device=device))
        (section,) = optimizer.arena.sections
        (copy,) = section._rounded.values()
        found.append(copy.buffer.numpy().astype(np.float32))
    np.testing.assert_array_equal(*found)
