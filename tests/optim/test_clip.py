"""Clipping by the global norm and by value."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.errors import ConfigError, DeviceError, NonFiniteError
from gpubackprop.optim.clip import flat_gradients

SHAPES = [(3, 5), (5,), (), (2, 2)]


def make(skip=(), dtype=np.float64):
    rng = np.random.default_rng(4)
    ps = [nn.Parameter(rng.normal(size=s).astype(dtype)) for s in SHAPES]
    for i, p in enumerate(ps):
        if i not in skip:
            p.grad = gb.tensor(rng.normal(size=p.shape).astype(dtype))
    return ps


def gradients(ps):
    return [p.grad.numpy().copy() for p in ps if p.grad is not None]


def whole(ps):
    return np.concatenate([g.reshape(-1) for g in gradients(ps)])


@given(
    st.sets(st.integers(0, 3), max_size=3),
    st.sampled_from([1.0, 2.0, 3.0, math.inf]),
    st.sampled_from([0.0, 0.5, 1e9]),
    st.sampled_from(["optimizer", "arena", "plain"]),
)
def test_one_factor_for_all_gradients(skip, norm_type, max_norm, source):
    ps = make(skip)
    before = gradients(ps)
    expected = np.linalg.norm(whole(ps), norm_type)
    given_to = ps
    if source == "optimizer":
        given_to = optim.SGD(ps)
    elif source == "arena":
        nn.Arena(ps).gather()
    norm = optim.clip_grad_norm_(given_to, max_norm, norm_type)
    assert norm.shape == () and norm.item() == pytest.approx(expected, rel=1e-12)
    factor = min(1.0, max_norm / (expected + 1e-6))
    for g, old in zip(gradients(ps), before, strict=True):
        np.testing.assert_allclose(g, old * factor, rtol=1e-12)
    again = optim.grad_norm(ps, norm_type).item()
    assert again <= max_norm * (1 + 1e-12) or again == pytest.approx(expected)


def test_an_arena_is_one_pass_and_missing_gradients_are_left_out():
    ps = make()
    optimizer = optim.SGD(ps)
    assert [g.shape for _, g in flat_gradients(optimizer)] == [optimizer.arena.grads[0].shape]
    ps[1].grad = None
    assert [g.shape for _, g in flat_gradients(optimizer)] == [(16,), (16,)]
    assert [g.shape for _, g in flat_gradients(ps[2:])] == [(16,)]
    optimizer.zero_grad()
    assert flat_gradients(optimizer) == []
    assert optim.clip_grad_norm_(optimizer, 1.0).item() == 0.0


def test_a_single_tensor_will_do():
    p = nn.Parameter(np.array([3.0, 4.0]))
    p.grad = gb.tensor(np.array([3.0, 4.0]))
    assert optim.clip_grad_norm_(p, 1.0).item() == 5.0
    np.testing.assert_allclose(p.grad.numpy(), [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_no_nan_is_made_where_the_norm_is_not_finite(bad):
    ps = make()
    ps[1].grad.array[2] = bad
    before = gradients(ps)
    norm = optim.clip_grad_norm_(optim.SGD(ps), 1.0).item()
    assert not math.isfinite(norm)
    for g, old in zip(gradients(ps), before, strict=True):
        np.testing.assert_array_equal(g, old)
    with pytest.raises(NonFiniteError, match="clip_grad_norm_"):
        optim.clip_grad_norm_(ps, 1.0, error_if_nonfinite=True)


def test_half_precision_does_not_overflow():
    p = nn.Parameter(np.zeros(100, np.float16))
    p.grad = gb.tensor(np.full(100, 1000.0, np.float16))
    norm = optim.clip_grad_norm_([p], 1.0)
    assert norm.dtype == np.float32 and norm.item() == pytest.approx(10000.0)
    assert p.grad.dtype == np.float16
    np.testing.assert_allclose(p.grad.numpy().astype(float), 0.1, rtol=1e-3)


def test_by_value():
    ps = make(skip=[1])
    before = gradients(ps)
    optim.clip_grad_value_(optim.SGD(ps), 0.3)
    for g, old in zip(gradients(ps), before, strict=True):
        np.testing.assert_array_equal(g, np.clip(old, -0.3, 0.3))
    ps[0].grad.array[0, 0] = np.nan
    optim.clip_grad_value_(ps, 0.1)
    assert np.isnan(ps[0].grad.numpy()[0, 0]) and np.nanmax(np.abs(whole(ps))) <= 0.1


def test_wrong_arguments():
    ps = make()
    with pytest.raises(ConfigError, match="max_norm"):
        optim.clip_grad_norm_(ps, -1.0)
    with pytest.raises(ConfigError, match="max_norm"):
        optim.clip_grad_norm_(ps, math.nan)
    with pytest.raises(ConfigError, match="order of a norm"):
        optim.clip_grad_norm_(ps, 1.0, norm_type=0)
    with pytest.raises(ConfigError, match="clip_value"):
        optim.clip_grad_value_(ps, -1.0)


def test_two_devices_have_no_common_norm():
    ps = make()
    other = NumPyBackend()
    other.device = "elsewhere"
    ps[0].backend = ps[0].grad.backend = other
    with pytest.raises(DeviceError, match="elsewhere"):
        optim.clip_grad_norm_(ps, 1.0)
