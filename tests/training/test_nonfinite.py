"""A NaN or an infinity stops the run before the update, with the operation that made it first."""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.data import ArrayDataset, DataLoader
from gpubackprop.errors import NonFiniteError
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.training import Trainer
from gpubackprop.training.checkpoint import CheckpointFolder


class Logarithm(nn.Module):
    """Minus infinity at 0, NaN below."""

    def forward(self, x):
        return gb.log(x)


class Root(nn.Module):
    """Finite at 0, where its derivative is not."""

    def forward(self, x):
        return gb.sqrt(gb.abs(x))


def trainer(layer, x, target=None, lr=0.1, batch=2, **options):
    """Four samples of two numbers through a linear layer that changes nothing, then `layer`."""
    first = nn.Linear(2, 2)
    first.weight.copy_(np.eye(2, dtype=np.float32))
    first.bias.copy_(np.zeros(2, np.float32))
    model = nn.Sequential(first, nn.Dropout(0.0), layer)
    x = np.asarray(x, np.float32)
    target = np.ones_like(x) if target is None else np.asarray(target, np.float32)
    loader = DataLoader(ArrayDataset(x, target), batch)
    optimizer = optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, F.mse_loss, optimizer, loader=loader, **options)


GOOD = [[1, 2], [3, 4], [1, 2], [3, 4]]
BAD_AT_THE_END = [[1, 2], [3, 4], [1, 2], [3, -9]]


def test_forward():
    with pytest.raises(NonFiniteError) as caught:
        trainer(Logarithm(), BAD_AT_THE_END).fit(1)
    text = str(caught.value)
    assert text.startswith(
        "step 2 (epoch 1, batch 2): log in layer '2' (Logarithm) gave 1 NaN of 4"
    )
    assert "in the forward pass" in text and "\n" not in text


def test_backward():
    with pytest.raises(NonFiniteError) as caught:
        trainer(Root(), [[1, 2], [3, 4], [1, 2], [3, 0]], lr=0.0).fit(1)
    text = str(caught.value)
    assert text.startswith("step 2 (epoch 1, batch 2): the derivative of sqrt in layer '2' (Root)")
    assert "1 infinite of 4 values in the backward pass" in text


def test_in_the_cost():
    def cost(y, target):
        return gb.mean(gb.log(y - 10.0) * target)

    made = trainer(nn.Identity(), GOOD)
    made.loss = cost
    with pytest.raises(NonFiniteError, match=r"log in the cost gave 4 NaN of 4 values from values"):
        made.fit(1)


def test_in_a_module_within_a_module():
    made = trainer(nn.Sequential(nn.Identity(), Logarithm()), BAD_AT_THE_END)
    with pytest.raises(NonFiniteError, match=r"log in layer '2\.1' \(Logarithm\)"):
        made.fit(1)


def test_the_first_operation_is_named_not_a_later_one():
    class Chain(nn.Module):
        def forward(self, x):
            return gb.exp(gb.log(x) * 2.0) + 1.0

    with pytest.raises(NonFiniteError, match=r": log in layer"):
        trainer(Chain(), BAD_AT_THE_END).fit(1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_in_the_data(value):
    x = np.array(GOOD, np.float32)
    x[3, 1] = value
    with pytest.raises(NonFiniteError, match="step 2 .*: input 0 of the batch holds 1 ") as caught:
        trainer(nn.Identity(), x).fit(1)
    assert "the first at [1, 1]" in str(caught.value)
    assert str(caught.value).endswith("mend or leave out such samples")
    with pytest.raises(NonFiniteError, match="the targets of the batch hold 1 "):
        trainer(nn.Identity(), GOOD, target=x).fit(1)


def test_in_a_weight():
    made = trainer(nn.Identity(), GOOD)
    made.model[0].bias.array[0] = np.nan
    with pytest.raises(NonFiniteError, match=r"step 1 .*the parameter '0\.bias' holds 1 NaN of 2"):
        made.fit(1)


def test_derivatives_that_meet():
    # Each derivative is finite, and their sum is not: 2e38 + 2e38 in float32.
    def cost(y, target):
        z = y * 1.0
        return gb.sum(z * 2e38 + z * 2e38)

    made = trainer(nn.Identity(), np.zeros((2, 2)))
    made.loss = cost
    with pytest.raises(NonFiniteError, match="derivatives that meet at the result of multiply"):
        made.fit(1)


def test_a_gradient_that_adds_up_to_infinity():
    x = np.full((2, 2), 1e38, np.float32)

    def cost(y, target):
        return gb.sum((y - y.detach()) * 3.0)  # 0, with a derivative of 3

    made = trainer(nn.Identity(), x)
    made.loss = cost
    with pytest.raises(
        NonFiniteError, match=r"the derivative of linear in layer '0'.* weight gave"
    ):
        made.fit(1)


def test_large_gradients_that_are_finite_are_no_error():
    # Their sum of squares overflows float32.
    def cost(y, target):
        return gb.sum(y * 1e25)

    made = trainer(nn.Identity(), GOOD, lr=1e-25)
    made.loss = cost
    before = made.model[0].weight.numpy().copy()
    made.fit(1)
    assert np.isfinite(made.model[0].weight.numpy()).all()
    assert (made.model[0].weight.numpy() != before).all()


def test_the_weights_and_the_checkpoint_are_those_of_before(tmp_path):
    good = trainer(Logarithm(), BAD_AT_THE_END[:2])
    good.fit(1)
    bad = trainer(Logarithm(), BAD_AT_THE_END, out=tmp_path, checkpoint_steps=1)
    with pytest.raises(NonFiniteError):
        bad.fit(1)
    expected = good.model.state_dict()
    assert all(np.array_equal(v, expected[k]) for k, v in bad.model.state_dict().items())
    saved = CheckpointFolder(tmp_path).read()
    assert saved.meta["progress"]["step"] == 1
    for name, value in expected.items():
        assert np.array_equal(saved.tensors[f"model/{name}"], value)
    assert bad.optimizer.state_dict()["state"][0]["step"] == 1
    # The run can be resumed, and fails at the same step with the same words.
    again = trainer(Logarithm(), BAD_AT_THE_END, out=tmp_path, checkpoint_steps=1)
    assert again.resume()
    with pytest.raises(NonFiniteError, match=r"step 2 .*log in layer '2'"):
        again.fit(1)


def test_an_update_that_overflows_is_not_saved(tmp_path):
    made = trainer(nn.Identity(), GOOD, lr=1e38, batch=4, out=tmp_path)
    made.loss = lambda y, target: gb.sum(y * 1e10)
    with pytest.raises(NonFiniteError, match=r"step 1: the update made the parameter '0\.weight'"):
        made.fit(1)
    assert CheckpointFolder(tmp_path).read().meta["progress"]["step"] == 0


def test_dropout_draws_the_same_in_the_search():
    """The mask of the failing step is drawn again: with another mask nothing would be found."""
    rng = np.random.default_rng(0)
    x = rng.random((64, 50)).astype(np.float32) + 1.0
    model = nn.Sequential(nn.Dropout(0.5, generator=gb.backends.random.Generator(1)), Spot())
    probe = nn.Parameter(np.ones(1, np.float32))
    model[1].scale = probe
    loader = DataLoader(ArrayDataset(x, np.zeros((64, 1), np.float32)), 1)
    made = Trainer(model, lambda y, t: gb.mean(y), optim.SGD([probe], lr=0.0), loader=loader)
    with pytest.raises(NonFiniteError, match=r"log in layer '1' \(Spot\) gave 1 infinite"):
        made.fit(5)
    assert made.run.step > 0  # by then the mask is not the first one
    assert (
        model.random_state()
        != nn.Sequential(nn.Dropout(0.5, generator=gb.backends.random.Generator(1))).random_state()
    )


class Spot(nn.Module):
    """The logarithm of the first four of the dropped-out inputs added up: infinite if all are 0."""

    def forward(self, x):
        return gb.log(gb.sum(x[:, :4], axis=1)) * self.scale
