"""The fast paths of the NumPy backend compute what the definitions say, also where sizes choose
another path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpubackprop.backends import get_backend
from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.base import Backend
from gpubackprop.backends.cpu import logits
from gpubackprop.backends.cpu.backend import MASK_FROM
from gpubackprop.backends.cpu.fused import all_classes
from gpubackprop.backends.cpu.logits import MANY_ROWS, NARROW

K = get_backend("cpu")
FLOATS = (np.float64, np.float32)
RNG = np.random.default_rng(23)


def defined(kernel: str, *args: Any, **options: Any) -> Any:
    """What the definition in the contract computes."""
    return getattr(Backend, kernel)(K, *args, **options)


def values(*shape: int, dtype: Any = np.float64) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def close(found: Any, expected: Any) -> None:
    for a, b in zip(
        found if isinstance(found, tuple) else (found,),
        expected if isinstance(expected, tuple) else (expected,),
        strict=True,
    ):
        assert a.dtype == b.dtype and a.shape == b.shape
        eps = float(np.finfo(a.dtype).eps)
        np.testing.assert_allclose(a, b, rtol=64 * eps, atol=64 * eps)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("size", [MASK_FROM - 1, MASK_FROM, MASK_FROM + 3])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_choosing_between_an_array_and_zero(dtype: Any, size: int, zero: float) -> None:
    x, condition = values(size, dtype=dtype), RNG.uniform(size=size) < 0.5
    x[:6] = [np.nan, np.inf, -np.inf, np.nan, np.inf, -0.0]
    condition[:6] = [True, True, True, False, False, True]
    for found, expected in (
        (K.where(condition, x, zero), np.where(condition, x, zero)),
        (K.where(condition, zero, x), np.where(condition, zero, x)),
    ):
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("make", ["fortran", "steps", "repeated"])
def test_choosing_in_other_layouts(make: str) -> None:
    x, condition = values(64, 64), RNG.uniform(size=(64, 64)) < 0.5
    x = {
        "fortran": np.asfortranarray(x),
        "steps": np.repeat(x, 2, axis=1)[:, ::-2],
        "repeated": np.broadcast_to(x[:1], (64, 64)),
    }[make]
    before = x.copy()
    np.testing.assert_array_equal(K.where(condition, x, 0.0), np.where(condition, x, 0.0))
    np.testing.assert_array_equal(K.where(condition.T, 0.0, x), np.where(condition.T, 0.0, x))
    np.testing.assert_array_equal(x, before)


def test_choosing_with_a_condition_of_another_shape_or_dtype() -> None:
    x = values(64, 64)
    row = RNG.uniform(size=64) < 0.5
    np.testing.assert_array_equal(K.where(row, x, 0.0), np.where(row, x, 0.0))
    whole = RNG.integers(0, 3, (64, 64))
    np.testing.assert_array_equal(K.where(whole, x, 0.0), np.where(whole, x, 0.0))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [MANY_ROWS - 1, MANY_ROWS, 3 * MANY_ROWS])
@pytest.mark.parametrize("columns", [1, 10, NARROW, NARROW + 1])
def test_rows_of_classes(dtype: Any, rows: int, columns: int) -> None:
    x, dy = values(rows, columns, dtype=dtype), values(rows, dtype=dtype)
    x[0, 0] = -np.inf if columns > 1 else 0.0
    target = RNG.integers(0, columns, rows)
    target[0] = columns - 1
    close(K.log_softmax(x), defined("log_softmax", x))
    close(K.log_softmax(x, 1), defined("log_softmax", x, 1))
    for labels, ignore in (
        (target, -100),
        (target, columns - 1),
        (np.where(dy > 0, target, -5), -5),
    ):
        found = K.softmax_cross_entropy(x, labels, None, ignore)
        close(found, defined("softmax_cross_entropy", x, labels, None, ignore))
        given = (dy, x, *found[1:], labels, None, ignore)
        close(
            K.softmax_cross_entropy_backward(*given),
            defined("softmax_cross_entropy_backward", *given),
        )


def test_columns_of_classes_in_other_layouts() -> None:
    x, dy = np.asfortranarray(values(9, 5)), np.broadcast_to(np.float64(0.25), (9,))
    target = RNG.integers(0, 5, 18).astype(np.int32)[::2]
    found = K.softmax_cross_entropy(x, target)
    close(found, defined("softmax_cross_entropy", x, target))
    given = (dy, x, *found[1:], target)
    close(
        K.softmax_cross_entropy_backward(*given),
        defined("softmax_cross_entropy_backward", *given),
    )


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64])
def test_all_classes(dtype: Any) -> None:
    assert all_classes(np.array([0, 3, 6], dtype), 7)
    assert not all_classes(np.array([0, 7], dtype), 7)
    assert all_classes(np.zeros(0, dtype), 7)
    if np.dtype(dtype).kind == "i":
        assert not all_classes(np.array([0, -1], dtype), 7)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "axes"), [((64, 33), 1), ((3, 4, 5), 2), ((6,), 1), ((0, 3), 1)])
@pytest.mark.parametrize("scaled", [False, True])
def test_layer_norm(dtype: Any, shape: tuple[int, ...], axes: int, scaled: bool) -> None:
    x, dy = values(*shape, dtype=dtype) + dtype(3), values(*shape, dtype=dtype)
    normalized = shape[len(shape) - axes :]
    weight = values(*normalized, dtype=dtype) if scaled else None
    bias = values(*normalized, dtype=dtype) if scaled else None
    y, mean, rstd = K.layer_norm(x, weight, bias, axes, 1e-5)
    close((y, mean, rstd), defined("layer_norm", x, weight, bias, axes, 1e-5))
    found = K.layer_norm_backward(dy, x, weight, mean, rstd, axes)
    close(found, defined("layer_norm_backward", dy, x, weight, mean, rstd, axes))
    assert not any(np.may_share_memory(a, b) for a in found for b in (dy, x, mean, rstd))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions_are_numpys(dtype: Any, axis: Any, keepdims: bool) -> None:
    x = values(7, 5, dtype=dtype)
    for name in ("max", "min"):
        expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
        np.testing.assert_array_equal(getattr(K, name)(x, axis, keepdims), expected)
    expected = ArrayBackend.sum(K, x, axis, keepdims)
    found = K.sum(x, axis, keepdims)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert K.sum(x > 0).dtype == np.int64


def test_products_are_numpys() -> None:
    for s1, s2 in (
        ((3, 4), (4, 5)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((2, 3, 4), (4, 5)),
        ((0, 3), (3, 2)),
    ):
        a, b = values(*s1), values(*s2)
        np.testing.assert_allclose(K.matmul(a, b), np.matmul(a, b), rtol=1e-14)
    a, b = values(3, 4), values(4, 5)
    out = np.empty((3, 5))
    assert K.matmul(a, b, out=out) is out
    np.testing.assert_allclose(out, a @ b, rtol=1e-14)


def test_linear_does_not_write_to_its_bias_or_lose_its_dtype() -> None:
    x, weight, bias = values(3, 4, dtype=np.float32), values(2, 4, dtype=np.float32), values(2)
    assert K.linear(x, weight, bias).dtype == np.float64
    np.testing.assert_allclose(K.linear(x, weight, bias), x @ weight.T + bias, rtol=1e-6)


def test_gelu_of_floats_is_the_exact_one_rounded():
    x = np.concatenate([np.linspace(-12, 12, 60001), [0.0, -0.0, 29.0, -29.0]]).astype(np.float32)
    backend, dy = get_backend("cpu"), np.ones_like(x)
    wide = x.astype(np.float64)
    near = np.abs(x) < 3
    exact = Backend.gelu(backend, wide)[near]
    assert (np.abs(backend.gelu(x)[near] - exact) <= 2e-6 * np.abs(exact)).all()
    for found, expected in (
        (backend.gelu(x), Backend.gelu(backend, wide)),
        (backend.gelu_backward(dy, x), Backend.gelu_backward(backend, dy, wide)),
    ):
        assert found.dtype == np.float32
        error = np.abs(found - expected)
        assert (error <= 3e-7 * np.maximum(1.0, np.abs(expected))).all()


def test_gelu_leaves_the_fast_path_where_it_must():
    backend = get_backend("cpu")
    x = np.array([np.nan, np.inf, 1.0, 1e30, -1e30, -40.0], np.float32)
    np.testing.assert_allclose(backend.gelu(x), Backend.gelu(backend, x), rtol=1e-6)
    blocks = np.full(80000, 0.5, np.float32)
    blocks[12345] = np.inf  # one block takes the definition, the others do not
    y = backend.gelu(blocks)
    assert np.isinf(y[12345]) and np.abs(np.delete(y, 12345) - 0.34573123).max() < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_many_logits_in_blocks(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    """The same bits in blocks by several threads; half logits are as their float32 values."""
    x, dy = values(300, 70, dtype=dtype), values(300, dtype=np.float32)
    target = RNG.integers(0, 70, 300)
    target[7] = -100

    def found() -> list[bytes]:
        loss, *spread = K.softmax_cross_entropy(x, target)
        dx = K.softmax_cross_entropy_backward(dy, x, *spread, target)
        assert loss.dtype == np.float32 and dx.dtype == dtype
        return [a.tobytes() for a in (loss, *spread, dx)]

    at_once = found()
    wide, up = x.astype(np.float64), dy.astype(np.float64)
    expected = defined("softmax_cross_entropy", wide, target)
    slope = defined("softmax_cross_entropy_backward", up, wide, *expected[1:], target)
    loss, *spread = K.softmax_cross_entropy(x, target)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5, atol=1e-5)
    dx = K.softmax_cross_entropy_backward(dy, x, *spread, target)
    np.testing.assert_allclose(dx, slope, rtol=1e-5 if dtype == np.float32 else 2e-3, atol=1e-6)
    monkeypatch.setattr(logits, "BLOCK", 70 * 11)
    monkeypatch.setattr(logits, "SHARE", 70 * 13)
    assert found() == at_once
