"""Comparing runs whose gradients are zero but for rounding: no alarm, and no less power."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.inspect import Trace, compare_devices, compare_with_trace, record
from gpubackprop.recipes import load, load_data
from tests.inspect.test_compare_runs import OtherOrder

LAYERS = (
    "model.layers=[{kind='conv2d',filters=4,kernel=3,padding='same'},{kind='batch-norm'},"
    "{kind='relu'},{kind='flatten'},{kind='linear',units=10}]"
)


@pytest.fixture(scope="module")
def recipe():
    return load("digits-cnn", [LAYERS])


@pytest.fixture(scope="module")
def data(recipe):
    return load_data(recipe)


class Late(OtherOrder):
    """Has a wrong kernel from its call of that number on."""

    def __init__(self, broken: str, call: int) -> None:
        super().__init__()
        right, self.calls = getattr(self, broken), 0

        def kernel(*arguments):
            self.calls += 1
            factor = 1.0 + 1e-4 * (self.calls >= call)
            return (right(*arguments) * np.float64(factor)).astype(arguments[0].dtype)

        setattr(self, broken, kernel)


def test_a_bias_that_batch_norm_takes_away_is_no_divergence(recipe, data):
    result = compare_devices(recipe, ("cpu", OtherOrder()), data, 10)
    assert result.agrees and result.divergence is None
    last = result.steps[-1].layers
    # Adam has moved the bias by its noise, and the convolution's result with it ...
    assert last["0"]["value"].relative > 1e-3
    # ... but not what batch normalisation makes of that.
    assert last["2"]["value"].relative < 1e-5 and result.weights_relative < 1e-5


@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize(
    ("kernel", "label"),
    [("relu", "value of relu in 2"), ("relu_backward", "cotangent of relu d(x) in 2")],
)
def test_a_wrong_kernel_beside_noise_is_named(recipe, data, kernel, label, call):
    result = compare_devices(recipe, ("cpu", Late(kernel, call)), data, 5)
    assert not result.agrees and result.divergence is not None
    assert (result.divergence.step, result.divergence.label) == (call, label)


def test_a_wrong_sum_of_a_bias_is_named(data):
    """Where the sum is no noise: without the batch normalisation behind it."""
    plain = load("digits-cnn", [LAYERS.replace("{kind='batch-norm'},", "")])
    wrong = OtherOrder()
    right = wrong.matmul

    def matmul(*factors, out=None):
        y = right(*factors, out)
        ones = any((x == 1.0).all() for x in factors)  # a sum as a product with ones
        return y * np.float32(1.0 + 1e-4) if ones else y

    wrong.matmul = matmul
    result = compare_devices(plain, ("cpu", wrong), data, 2)
    assert not result.agrees and "conv d(bias) in 0" in result.divergence.label


def test_noise_in_a_trace(recipe, data, tmp_path):
    path = tmp_path / "run.trace"
    record(recipe, OtherOrder(), data, 4).save(path)
    trace = Trace.load(path)
    assert any(r.terms_norm > 0 for r in trace.steps[0])
    assert compare_with_trace(recipe, "cpu", data, trace).agrees


def test_the_bias_of_attentions_keys(tmp_path):
    """It moves all scores of a query alike, so that its derivative is zero."""
    words = np.random.default_rng(0).choice(["deep ", "nets ", "learn ", "slowly\n"], 400)
    (tmp_path / "words.txt").write_text("".join(words))
    changes = [
        f"data={{name='text',path='{tmp_path / 'words.txt'}',context=16}}",
        "model.layers=[{kind='gpt',layers=1,heads=2,width=16,bias=true,positions='learned'}]",
        "train.steps_per_epoch=20",
    ]
    recipe = load("shakespeare-gpt", changes)
    data = load_data(recipe)
    result = compare_devices(recipe, ("cpu", OtherOrder()), data, 6)
    assert result.agrees, (result.divergence, result.weights_relative)
