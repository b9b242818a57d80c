"""Functions and costs of ``nn.functional`` beside PyTorch's: values and gradients, every option."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.nn import functional as F

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make peers installs it")

pytestmark = pytest.mark.peers

REDUCTIONS = ("mean", "sum", "none")
SHAPES = ((3, 5), (1,), (), (1, 1), (7, 1, 2), (0, 3))
TOLERANCE = {"float64": 1e-10, "float32": 3e-5}


class Case(NamedTuple):
    """A call of the function of this name in both libraries.

    Attributes
    ----------
    name : of the function.
    values : positional arguments and the tensors among the options; floats are differentiated
        unless their name is in `constant`.
    options : plain keyword arguments.
    constant : names of arguments that PyTorch gives no gradient.
    """

    name: str
    values: dict[str, Any]
    options: dict[str, Any] = {}
    constant: tuple[str, ...] = ()

    def __str__(self) -> str:
        shapes = ",".join("x".join(map(str, v.shape)) or "scalar" for v in self.values.values())
        options = ",".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.name}-{shapes}-{options}"


def numbers(name: str, *shape: int) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{name}{shape}".encode()))


def activations() -> Iterator[Case]:
    options: dict[str, list[dict[str, Any]]] = {
        "relu": [{}],
        "leaky_relu": [{}, {"negative_slope": 0.3}, {"negative_slope": -0.5}],
        "elu": [{}, {"alpha": 0.4}],
        "gelu": [{}, {"approximate": "none"}, {"approximate": "tanh"}],
        "silu": [{}],
        "softplus": [{}, {"beta": 2.5}, {"beta": 0.5, "threshold": 1.0}, {"threshold": 0.25}],
        "sigmoid": [{}],
        "logsigmoid": [{}],
        "tanh": [{}],
        "hardtanh": [{}, {"min_val": -0.5, "max_val": 2.0}],
    }
    for name, choices in options.items():
        for chosen, shape in itertools.product(choices, SHAPES):
            yield Case(name, {"input": 3 * numbers(name).standard_normal(shape)}, chosen)
        large = np.array([-700.0, -40.0, -15.0, 15.0, 40.0, 700.0])
        yield Case(name, {"input": large}, choices[0])
    for name in ("softmax", "log_softmax"):
        for shape, dim in (((3, 5), 1), ((3, 5), 0), ((2, 3, 4), -2), ((1,), 0), ((0, 3), 1)):
            x = 3 * numbers(name, *shape).standard_normal(shape)
            yield Case(name, {"input": x}, {"dim": dim})
            yield Case(name, {"input": x + 1000.0}, {"dim": dim})


def layers() -> Iterator[Case]:
    rng = numbers("layers")
    for lead in ((3,), (1,), (), (2, 3), (0,)):
        x, w, b = (rng.standard_normal(s) for s in ((*lead, 5), (4, 5), (4,)))
        yield Case("linear", {"input": x, "weight": w, "bias": b})
        yield Case("linear", {"input": x, "weight": w})
    for shape in ((3,), (2, 3), (1,), (0,)):
        ids, table = rng.integers(0, 7, shape), rng.standard_normal((7, 3))
        for padding in (None, 2, -1):
            yield Case("embedding", {"input": ids, "weight": table}, {"padding_idx": padding})
    for shape, n in (((3, 5), 1), ((2, 3, 4), 2), ((7,), 1), ((2, 3, 4), 1)):
        x, normalized = rng.standard_normal(shape), shape[-n:]
        w, b = rng.uniform(0.5, 1.5, normalized), rng.standard_normal(normalized)
        for extra in ({}, {"weight": w}, {"bias": b}, {"weight": w, "bias": b}):
            options = {"normalized_shape": normalized, "eps": 1e-3}
            yield Case("layer_norm", {"input": x, **extra}, options)


def elementwise_losses() -> Iterator[Case]:
    for shape, reduction in itertools.product(SHAPES, REDUCTIONS):
        rng = numbers("losses", *shape)
        x, t = 3 * rng.standard_normal(shape), 3 * rng.standard_normal(shape)
        pair = {"input": x, "target": t}
        for name in ("mse_loss", "l1_loss"):
            yield Case(name, pair, {"reduction": reduction})
        for value in (1.0, 0.3):
            yield Case("huber_loss", pair, {"reduction": reduction, "delta": value})
        for value in (1.0, 0.3, 0.0):
            yield Case("smooth_l1_loss", pair, {"reduction": reduction, "beta": value})
        p, q = rng.uniform(0.02, 0.98, shape), rng.uniform(0.0, 1.0, shape)
        for log_target in (False, True):
            target = np.log(q + 0.01) if log_target else q + 0.01
            options = {"reduction": reduction, "log_target": log_target}
            yield Case("kl_div", {"input": np.log(p), "target": target}, options)
        yield from binary(shape, p, q, x, reduction)
    for shape in ((3, 5), (1, 1), (2, 3, 4)):
        p, q = numbers("kl", *shape).uniform(0.02, 1.0, (2, *shape))
        yield Case("kl_div", {"input": np.log(p), "target": q}, {"reduction": "batchmean"})


def binary(
    shape: tuple[int, ...], p: np.ndarray, q: np.ndarray, x: np.ndarray, reduction: str
) -> Iterator[Case]:
    rng = numbers("weights", *shape)
    weights = [{}, {"weight": rng.uniform(0.5, 2.0, shape)}]
    if len(shape) == 2:
        weights.append({"weight": rng.uniform(0.5, 2.0, shape[1:])})
    options = {"reduction": reduction}
    fixed = ("weight", "pos_weight")
    for weight in weights:
        yield Case("binary_cross_entropy", {"input": p, "target": q, **weight}, options, fixed)
        for positive in ({}, {"pos_weight": rng.uniform(0.5, 3.0, shape[-1:])}):
            values = {"input": x, "target": q, **weight, **positive}
            yield Case("binary_cross_entropy_with_logits", values, options, fixed)


CLASS_SHAPES = ((5, 3), (1, 1), (7, 10), (4,), (1,), (2, 3, 4), (2, 5, 3, 2), (1, 4, 1))


def class_losses() -> Iterator[Case]:
    for shape, reduction, weighted in itertools.product(CLASS_SHAPES, REDUCTIONS, (False, True)):
        rng = numbers("classes", *shape)
        x = 3 * rng.standard_normal(shape)
        axis = min(1, len(shape) - 1)
        classes = shape[axis]
        places = shape[:axis] + shape[axis + 1 :]
        weight = {"weight": rng.uniform(0.2, 2.0, classes)} if weighted else {}
        labels = np.asarray(rng.integers(0, classes, places))
        with_ignored = np.where(rng.uniform(size=places) < 0.3, -100, labels)
        fixed = ("weight",)
        logp = x - np.log(np.exp(x).sum(axis, keepdims=True))
        for target, options in (
            (labels, {}),
            (with_ignored, {}),
            (labels, {"ignore_index": 0}),
        ):
            options = {"reduction": reduction, **options}
            yield Case("nll_loss", {"input": logp, "target": target, **weight}, options, fixed)
            for smoothing in (0.0, 0.2, 1.0):
                values = {"input": x, "target": target, **weight}
                chosen = {**options, "label_smoothing": smoothing}
                yield Case("cross_entropy", values, chosen, fixed)
        share = rng.uniform(0.0, 1.0, shape)
        share /= share.sum(axis, keepdims=True)
        for smoothing in (0.0, 0.2):
            values = {"input": x, "target": share, **weight}
            chosen = {"reduction": reduction, "label_smoothing": smoothing}
            yield Case("cross_entropy", values, chosen, fixed)


CASES = [*activations(), *layers(), *elementwise_losses(), *class_losses()]


def varied(case: Case, name: str) -> bool:
    return case.values[name].dtype.kind == "f" and name not in case.constant


def with_this_library(case: Case, dtype: str) -> tuple[np.ndarray, dict[str, np.ndarray], Any]:
    placed = {
        n: gb.tensor(v.astype(dtype) if v.dtype.kind == "f" else v, requires_grad=varied(case, n))
        for n, v in case.values.items()
    }
    result = getattr(F, case.name)(**placed, **case.options)
    cotangent = np.cos(np.arange(result.size)).reshape(result.shape).astype(dtype)
    result.backward(cotangent)
    grads = {n: t.grad.numpy() for n, t in placed.items() if t.requires_grad}
    return result.numpy(), grads, cotangent


def with_torch(case: Case, dtype: str, cotangent: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    placed = {}
    for n, v in case.values.items():
        placed[n] = torch.tensor(v, dtype=getattr(torch, dtype) if v.dtype.kind == "f" else None)
        placed[n].requires_grad_(varied(case, n))
    options = {k: v for k, v in case.options.items() if v is not None}
    result = getattr(torch.nn.functional, case.name)(**placed, **options)
    result.backward(torch.from_numpy(np.asarray(cotangent)))
    return result.detach().numpy(), {
        n: t.grad.numpy() for n, t in placed.items() if t.requires_grad
    }


def close(found: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    assert found.shape == expected.shape, what
    assert found.dtype == expected.dtype, what
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
    np.testing.assert_allclose(
        found, expected, rtol=tolerance, atol=tolerance * scale, err_msg=what
    )


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=map(str, CASES))
def test_values_and_gradients(case: Case, dtype: str) -> None:
    value, grads, cotangent = with_this_library(case, dtype)
    expected, expected_grads = with_torch(case, dtype, cotangent)
    tolerance = TOLERANCE[dtype]
    if case.name == "softplus" and case.options.get("threshold", 20.0) == 20.0:
        tolerance = max(tolerance, 3e-9)  # PyTorch's line beyond the threshold
    close(value, expected, tolerance, "value")
    assert grads.keys() == expected_grads.keys()
    for name, g in grads.items():
        close(g, expected_grads[name], tolerance, f"gradient by {name}")


@pytest.mark.parametrize("shape", [(3, 5), (7,)])
@pytest.mark.parametrize("classes", [-1, 9])
def test_one_hot(shape: tuple[int, ...], classes: int) -> None:
    labels = np.random.default_rng(1).integers(0, 9, shape)
    found = F.one_hot(gb.tensor(labels), classes).numpy()
    expected = torch.nn.functional.one_hot(torch.from_numpy(labels), classes).numpy()
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_mean_of_nothing_is_nan(name: str) -> None:
    x, labels = np.zeros((2, 3)), np.array([-100, -100])
    found = getattr(F, name)(gb.tensor(x), gb.tensor(labels)).item()
    expected = getattr(torch.nn.functional, name)(torch.from_numpy(x), torch.from_numpy(labels))
    assert np.isnan(found) and np.isnan(expected.item())


def test_saturated_probabilities() -> None:
    """Probabilities of exactly 0 and 1: finite losses and PyTorch's slopes."""
    p, t = np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0])
    ours = gb.tensor(p, requires_grad=True)
    theirs = torch.tensor(p, requires_grad=True)
    with np.errstate(divide="ignore"):
        loss = F.binary_cross_entropy(ours, gb.tensor(t), reduction="none")
    expected = torch.nn.functional.binary_cross_entropy(
        theirs, torch.from_numpy(t), reduction="none"
    )
    np.testing.assert_array_equal(loss.numpy(), expected.detach().numpy())
    loss.backward(np.ones(4))
    expected.backward(torch.ones(4, dtype=torch.float64))
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy())


def test_logits_of_minus_infinity() -> None:
    """A class that is masked out takes no part in the loss."""
    x = np.array([[0.5, -np.inf, 1.0], [-np.inf, 0.25, -0.5]])
    labels = np.array([2, 1])
    ours, theirs = gb.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    loss = F.cross_entropy(ours, gb.tensor(labels))
    expected = torch.nn.functional.cross_entropy(theirs, torch.from_numpy(labels))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    expected.backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-12)
