"""Cross-entropy of half logits: read as they are, computed with in float32."""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.backends import get_backend
from gpubackprop.backends.interception import intercepted
from gpubackprop.backends.precision import half_dtype
from gpubackprop.nn import functional as F  # noqa: N812

pytest.importorskip("ml_dtypes")

PRECISIONS = ("bf16-mixed", "fp16-mixed")
ROWS, CLASSES = 40, 77
RNG = np.random.default_rng(11)
TARGET = RNG.integers(0, CLASSES, ROWS)
TARGET[3] = -100
WEIGHT = RNG.uniform(0.5, 1.5, CLASSES).astype(np.float32)
OPTIONS = [
    {},
    {"reduction": "sum"},
    {"weight": WEIGHT},
    {"label_smoothing": 0.1},
    {"weight": WEIGHT, "label_smoothing": 0.2},
]


def logits(name: str) -> gb.Tensor:
    x = (4 * RNG.standard_normal((ROWS, CLASSES))).astype(half_dtype(name))
    return gb.tensor(x, requires_grad=True)


def given(options):
    return {k: gb.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "half alone"])
@pytest.mark.parametrize("options", OPTIONS)
def test_cost_and_gradient_are_those_of_widened_logits(name, mixed, options):
    x, target = logits(name), gb.tensor(TARGET)
    with gb.precision(name if mixed else "float32"):
        loss = F.cross_entropy(x, target, **given(options))
    loss.backward()
    wide = gb.tensor(x.numpy().astype(np.float32), requires_grad=True)
    expected = F.cross_entropy(wide, target, **given(options))
    expected.backward()
    assert loss.dtype == np.float32 and loss.item() == expected.item()
    assert x.grad.dtype == x.dtype
    np.testing.assert_array_equal(x.grad.numpy(), wide.grad.numpy().astype(x.dtype))


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_step_makes_nothing_of_their_size_that_is_wider(name):
    x, target, backend, found = logits(name), gb.tensor(TARGET), get_backend("cpu"), []

    def call(kernel_name, kernel, args, kwargs):
        result = kernel(*args, **kwargs)
        for a in result if isinstance(result, tuple) else (result,):
            if getattr(a, "size", 0) >= ROWS * CLASSES:
                found.append((kernel_name, a.dtype.name))
        return result

    with intercepted(backend, call):
        with gb.precision(name):
            loss = F.cross_entropy(x, target)
        loss.backward()
    assert found[0] == ("softmax_cross_entropy_backward", x.dtype.name)
    assert {dtype for _, dtype in found} == {x.dtype.name}  # the leaf has a copy of its own


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_nothing_of_their_size_is_kept_beside_them(dtype):
    x = gb.tensor(RNG.standard_normal((ROWS, CLASSES)).astype(dtype), requires_grad=True)
    loss = F.cross_entropy(x, gb.tensor(TARGET))
    large = [a for a in loss.node.saved if getattr(a, "size", 0) >= ROWS * CLASSES]
    assert len(large) == 1 and large[0] is x.array


@pytest.mark.parametrize("name", PRECISIONS)
def test_weights_of_half_precision_add_up_in_float32(name):
    """The mean divides by their sum, which bfloat16 would hold to 1 in 256."""
    x, target = logits(name), gb.tensor(np.abs(TARGET) % CLASSES)
    weight = gb.tensor(WEIGHT.astype(x.dtype), requires_grad=True)
    with gb.precision(name):
        loss = F.cross_entropy(x, target, weight)
    loss.backward()
    wide = gb.tensor(weight.numpy().astype(np.float32), requires_grad=True)
    expected = F.cross_entropy(gb.tensor(x.numpy().astype(np.float32)), target, wide)
    expected.backward()
    assert loss.item() == expected.item() and weight.grad.dtype == x.dtype
    np.testing.assert_array_equal(weight.grad.numpy(), wide.grad.numpy().astype(x.dtype))


def test_a_second_derivative_of_half_logits():
    x = logits("fp16-mixed")
    wide = gb.tensor(x.numpy().astype(np.float64), requires_grad=True)
    v = RNG.standard_normal((ROWS, CLASSES))

    def curved(t):
        loss = F.cross_entropy(t, gb.tensor(TARGET), reduction="sum")
        (slope,) = gb.grad(loss, t, create_graph=True)
        return gb.grad((slope * gb.tensor(v.astype(t.dtype))).sum(), t)[0].numpy()

    np.testing.assert_allclose(curved(x), curved(wide), rtol=0.02, atol=2e-3)
