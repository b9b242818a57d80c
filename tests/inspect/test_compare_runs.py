"""Comparing two runs: rounding passes, a wrong kernel is named, and a trace of one run stands for
it elsewhere."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.errors import CheckpointError
from gpubackprop.inspect import Trace, compare_devices, compare_with_trace, record
from gpubackprop.inspect.compare import distance, table, ulp_distance
from gpubackprop.recipes import load, load_data


class OtherOrder(NumPyBackend):
    """Stands in for another device: sums products in another order, and may have one wrong
    kernel."""

    def __init__(self, broken: str = "", factor: float = 1.0) -> None:
        super().__init__()
        self.device = "cpu:other"
        if broken:
            right = getattr(self, broken)
            setattr(
                self,
                broken,
                lambda *a, **k: (right(*a, **k) * np.float64(factor)).astype(a[0].dtype),
            )

    def linear(self, x, weight, bias=None):
        half = x.shape[-1] // 2
        y = np.matmul(x[..., half:], weight.T[half:]) + np.matmul(x[..., :half], weight.T[:half])
        return y if bias is None else y + bias

    def matmul(self, x1, x2, out=None):
        if x1.ndim < 2 or x2.ndim < 2:
            return super().matmul(x1, x2, out)
        third = x1.shape[-1] // 3
        return np.matmul(x1[..., third:], x2[..., third:, :]) + np.matmul(
            x1[..., :third], x2[..., :third, :]
        )


@pytest.fixture(scope="module")
def recipe():
    return load("digits-mlp")


@pytest.fixture(scope="module")
def data(recipe):
    return load_data(recipe)


def test_rounding_agrees(recipe, data):
    result = compare_devices(recipe, ("cpu", OtherOrder()), data, 10)
    assert result.agrees and result.divergence is None
    assert 0 < result.weights_relative < result.weights_allowed < 1e-4
    assert len(result.steps) == 10
    assert {"value", "cotangent"} <= {k for kinds in result.steps[0].layers.values() for k in kinds}


def test_same_device_is_identical(recipe, data):
    result = compare_devices(recipe, ("cpu", "cpu"), data, 3)
    assert result.weights_relative == 0.0
    assert all(
        s.worst(kind).ulps == 0
        for s in result.steps
        for kind in ("value", "cotangent", "gradient", "weight")
    )


@pytest.mark.parametrize(
    ("kernel", "label"),
    [
        ("relu", "value of relu"),
        ("relu_backward", "cotangent of relu d(x)"),
        ("sum", "value of softmax_cross_entropy"),
    ],
)
def test_wrong_kernel_is_named(recipe, data, kernel, label):
    result = compare_devices(recipe, ("cpu", OtherOrder(kernel, 1.0 + 1e-4)), data, 3)
    assert not result.agrees
    assert result.divergence is not None
    assert result.divergence.step == 1
    assert result.divergence.label.startswith(label)
    assert "explain" in str(result.divergence)


def test_float64_is_held_to_float64(recipe, data):
    recipe = load("digits-mlp", ["train.dtype='float64'"])
    data = load_data(recipe)
    assert compare_devices(recipe, ("cpu", OtherOrder()), data, 5).weights_relative < 1e-14
    assert not compare_devices(recipe, ("cpu", OtherOrder("relu", 1.0 + 1e-9)), data, 1).agrees


def test_trace_round_trip(recipe, data, tmp_path):
    path = tmp_path / "run.trace"
    record(recipe, OtherOrder(), data, 4).save(path)
    trace = Trace.load(path)
    assert trace.meta["device"] == "cpu:other" and len(trace.steps) == 4
    assert compare_with_trace(recipe, "cpu", data, trace).agrees
    record(recipe, OtherOrder("relu_backward", 1.001), data, 2).save(path)
    result = compare_with_trace(recipe, "cpu", data, Trace.load(path))
    assert not result.agrees and "relu d(x)" in result.divergence.label
    json.dumps(result.as_dict())
    assert "loss" in table(result.steps)


def test_trace_of_another_run_is_refused(recipe, data, tmp_path):
    trace = record(recipe, "cpu", data, 2)
    other = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=5))
    with pytest.raises(CheckpointError, match="another run: train.seed was 0 and is now 5; "):
        compare_with_trace(other, "cpu", data, trace)
    # Another version may describe the recipe in other words.
    reworded = dataclasses.replace(recipe, summary="in other words")
    assert compare_with_trace(reworded, "cpu", data, trace).agrees
    with pytest.raises(CheckpointError, match="2 steps"):
        compare_with_trace(recipe, "cpu", data, trace, steps=9)


def test_damaged_trace_gives_one_clear_error(recipe, data, tmp_path):
    path = tmp_path / "run.trace"
    with pytest.raises(CheckpointError, match=r"run\.trace: no such file$"):
        Trace.load(path)
    record(recipe, "cpu", data, 1).save(path)
    whole = path.read_bytes()
    for cut in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"run\.trace is damaged or no trace .*--save"):
            Trace.load(path)
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="is not a trace"):
        Trace.load(path)
    with pytest.raises(CheckpointError, match="cannot write"):
        record(recipe, "cpu", data, 1).save(tmp_path / "missing" / "run.trace")


def test_distances():
    one = np.float32(1.0)
    assert ulp_distance(np.array([one]), np.array([np.nextafter(one, np.float32(2))])) == 1
    assert ulp_distance(np.array([-1e-45], np.float32), np.array([1e-45], np.float32)) == 2
    assert ulp_distance(np.array([-1e300]), np.array([1e300])) > 2**62
    a = np.linspace(1, 2, 10_000, dtype=np.float32)
    b = a.copy()
    b[1234] = np.nextafter(np.nextafter(b[1234], np.float32(9)), np.float32(9))
    assert distance(a, b).ulps == 2
    assert distance(np.array([3.0, 4.0]), np.array([3.0, 4.5])).relative == pytest.approx(
        0.5 / np.hypot(3, 4.5)
    )
    assert distance(np.array([np.nan, 1.0]), np.array([np.nan, 1.0])).relative == 0.0
    assert distance(np.array([np.nan]), np.array([1.0])).relative == np.inf
    assert distance(np.array([np.inf, 1.0]), np.array([np.inf, 1.0])).relative == 0.0
    assert distance(np.array([1, 2]), np.array([1, 3])).relative == np.inf
