"""The loop: what it learns, watches, writes and refuses."""

from __future__ import annotations

import io
import json
import math
import time
import warnings

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.data import ArrayDataset, DataLoader
from gpubackprop.errors import CheckpointError, ConfigError, DTypeError, ShapeError
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.optim.schedules import Cosine, StepDecay
from gpubackprop.training import EarlyStopping, Progress, Trainer, evaluate
from gpubackprop.training.progress import Bar, Lines, choose


def test_it_learns(make):
    trainer = make(schedule=Cosine(480))
    result = trainer.fit(60)
    assert result.history[-1]["val_accuracy"] > 0.95
    assert result.train_loss < result.history[0]["train_loss"] / 3
    assert (result.epochs, result.steps, result.samples) == (60, 480, 9000)
    assert 0 < result.train_seconds <= result.seconds
    assert result.samples_per_second == pytest.approx(9000 / result.train_seconds)


def line_trainer(optimizer=None, **options):
    """One weight: x = 2, y = 1, cost (2w - 1)**2, so dcost/dw = 4 (2w - 1)."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.copy_(np.array([[3.0]], np.float32))
    data = ArrayDataset(np.full((4, 1), 2.0, np.float32), np.full((4, 1), 1.0, np.float32))
    optimizer = optimizer or optim.SGD(model.parameters(), lr=0.01)
    return Trainer(model, F.mse_loss, optimizer, loader=DataLoader(data, 2), **options)


def weight_after(trainer, epochs=1):
    trainer.fit(epochs)
    return trainer.model.weight.item()


def test_the_update_is_gradient_descent():
    w = 3.0
    for _ in range(2):
        w -= 0.01 * 4 * (2 * w - 1)
    assert weight_after(line_trainer()) == pytest.approx(w, rel=1e-6)


def test_a_schedule_counts_steps():
    w = 3.0
    for rate in (0.01, 0.001):
        w -= rate * 4 * (2 * w - 1)
    trainer = line_trainer(schedule=StepDecay(every=1))
    assert weight_after(trainer) == pytest.approx(w, rel=1e-6)
    assert trainer.run.history[0]["lr"] == pytest.approx(0.001)


def test_the_norm_is_clipped():
    assert weight_after(line_trainer(clip_norm=1.0)) == pytest.approx(3.0 - 2 * 0.01, rel=1e-5)


def test_values_are_clipped():
    assert weight_after(line_trainer(clip_value=0.5)) == pytest.approx(3.0 - 2 * 0.005, rel=1e-5)


def test_the_training_cost_is_the_mean_over_samples():
    # Batches of 3 and 1 samples with a learning rate of 0: the mean is over samples, not batches.
    x = np.array([[1.0], [1.0], [1.0], [5.0]], np.float32)
    model = nn.Linear(1, 1, bias=False)
    model.weight.copy_(np.ones((1, 1), np.float32))
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    loader = DataLoader(ArrayDataset(x, np.zeros_like(x)), 3)
    result = Trainer(model, F.mse_loss, optimizer, loader=loader).fit(1)
    assert result.train_loss == pytest.approx((1 + 1 + 1 + 25) / 4)


def test_evaluation_is_the_mean_over_samples_and_puts_modes_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9))
    model[0].weight.copy_(np.eye(2, dtype=np.float32))
    model[0].bias.copy_(np.zeros(2, np.float32))
    model[0].eval()  # frozen by its owner
    x = np.array([[1, 0], [0, 1], [3, 0], [0, 4], [0, 2]], np.float32)
    labels = np.array([0, 1, 1, 1, 1])
    batches = DataLoader(ArrayDataset(x, labels), 2)
    backend = model[0].weight.backend
    found = evaluate(model, F.cross_entropy, batches.batches(0), backend, accuracy=True)
    expected = np.log1p(np.exp(-x.max(1) * np.where(labels == x.argmax(1), 1, -1)))
    assert found.loss == pytest.approx(expected.mean(), rel=1e-6)
    assert (found.accuracy, found.samples) == (0.8, 5)
    assert (model[0].training, model[1].training, model.training) == (False, True, True)
    one_hot = DataLoader(ArrayDataset(x, np.eye(2, dtype=np.float32)[labels]), 2)
    found = evaluate(model, F.quadratic_cost, one_hot.batches(0), backend, accuracy=True)
    assert found.accuracy == 0.8


def test_evaluation_of_nothing():
    model = nn.Linear(2, 2)
    found = evaluate(model, F.cross_entropy, [], model.weight.backend, accuracy=True)
    assert math.isnan(found.loss) and found.accuracy is None and found.samples == 0


def test_several_inputs():
    class Sum(nn.Module):
        def __init__(self):
            self.a, self.b = nn.Linear(2, 1), nn.Linear(3, 1)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((40, n)).astype(np.float32) for n in (2, 3))
    target = x[:, :1] - 2 * y[:, 1:2]
    loader = DataLoader(ArrayDataset(x, y, target), 10)
    model = Sum()
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    result = Trainer(model, F.mse_loss, optimizer, loader=loader, validation=loader).fit(60)
    assert result.history[-1]["val_loss"] < 1e-2


def test_parameters_that_are_plain_tensors(make):
    # They are no Parameters, so the tape knows nothing of the arena.
    w = gb.tensor(np.array([[3.0]], np.float32), requires_grad=True)

    class Plain(nn.Module):
        def forward(self, x):
            return x * w

    data = ArrayDataset(np.full((4, 1), 2.0, np.float32), np.full((4, 1), 1.0, np.float32))
    optimizer = optim.SGD([w], lr=0.01)
    Trainer(Plain(), F.mse_loss, optimizer, loader=DataLoader(data, 4)).fit(1)
    assert w.item() == pytest.approx(3.0 - 0.01 * 4 * 5, rel=1e-6)


def test_early_stopping_puts_the_best_weights_back(make):
    trainer = make(stopping=EarlyStopping(patience=3))
    result = trainer.fit(200)
    assert result.stopped_early
    best = min(line["val_loss"] for line in result.history)
    found = evaluate(
        trainer.model, trainer.loss, trainer.validation.batches(0), trainer.backend, accuracy=True
    )
    assert found.loss == best == trainer.stopping.best


@pytest.mark.parametrize(
    ("monitor", "values", "best", "stop"),
    [
        ("loss", [3, 2, 2, 1, 1, 1], 4, 6),
        ("accuracy", [0.5, 0.4, 0.6, None, 0.6], 3, 5),
        ("loss", [None, None], 0, 2),
    ],
)
def test_when_early_stopping_stops(monitor, values, best, stop):
    stopping = EarlyStopping(patience=2, monitor=monitor)
    for epoch, value in enumerate(values, 1):
        improved = stopping.update(epoch, {f"val_{monitor}": value})
        assert improved is (stopping.best_epoch == epoch)
        assert stopping.exhausted is (epoch == stop)
    assert stopping.best_epoch == best


def test_min_delta():
    stopping = EarlyStopping(patience=1, min_delta=0.1)
    assert stopping.update(1, {"val_loss": 1.0})
    assert not stopping.update(2, {"val_loss": 0.95}) and stopping.exhausted
    assert stopping.update(3, {"val_loss": 0.85}) and not stopping.exhausted


@pytest.mark.parametrize(
    "arguments",
    [{"monitor": "los"}, {"patience": 0}, {"min_delta": -1.0}, {"min_delta": math.nan}],
)
def test_wrong_arguments_of_early_stopping(arguments):
    with pytest.raises(ConfigError):
        EarlyStopping(**arguments)


@pytest.mark.parametrize(
    "state", [None, 3, {}, {"best": "x"}, {"best": 1, "best_epoch": 1e400, "waited": 0}]
)
def test_a_damaged_state_of_early_stopping(state):
    with pytest.raises(CheckpointError):
        EarlyStopping().load(state)


def test_a_validation_cost_that_is_not_finite_is_null(tmp_path):
    class Off(Progress):
        def end(self, figures, epochs):
            assert figures["val_loss"] is None

    bad = DataLoader(ArrayDataset(np.full((1, 1), 1e30, np.float32), np.zeros((1, 1), np.float32)))
    trainer = line_trainer(validation=bad, out=tmp_path, progress=Off())
    trainer.fit(1)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["val_loss"] is None and line["val_accuracy"] is None


def test_wrong_arguments():
    model = nn.Linear(1, 1)
    optimizer = optim.SGD(model.parameters())
    data = ArrayDataset(np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32))
    loader = DataLoader(data, 2)
    empty = DataLoader(ArrayDataset(np.zeros((0, 1)), np.zeros((0, 1))), 2)
    with pytest.raises(ConfigError, match="no batch"):
        Trainer(model, F.mse_loss, optimizer, loader=empty)
    with pytest.raises(ConfigError, match="stopping needs validation"):
        Trainer(model, F.mse_loss, optimizer, loader=loader, stopping=EarlyStopping())
    with pytest.raises(ConfigError, match="checkpoint_steps"):
        Trainer(model, F.mse_loss, optimizer, loader=loader, checkpoint_steps=0)
    for epochs in (0, -1, 1.5, True, "3"):
        with pytest.raises(ConfigError, match="epochs must be"):
            Trainer(model, F.mse_loss, optimizer, loader=loader).fit(epochs)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": lambda x: x}, "model must be of the class Module, not function"),
        ({"loss": nn.MSELoss}, "loss must be a function .*, not the class MSELoss"),
        ({"loss": "mse"}, "loss must be a function .*, not str"),
        ({"optimizer": "adam"}, "optimizer must be of the class Optimizer, not str"),
        (
            {"optimizer": optim.SGD(nn.Linear(1, 1).parameters())},
            r"none of the 2 parameters of the optimizer belongs to the model \(Linear, 2 para",
        ),
        ({"loader": ArrayDataset(np.zeros((4, 1)))}, "loader must be a DataLoader, not ArrayData"),
        ({"validation": (1, 2)}, "validation must be a DataLoader, not tuple"),
        ({"clip_norm": -1.0}, "clip_norm must be a number from 0 on, not -1.0"),
        ({"clip_value": "1"}, "clip_value must be a number from 0 on, not '1'"),
    ],
)
def test_mistaken_arguments_are_named(wrong, words):
    model = nn.Linear(1, 1)
    data = ArrayDataset(np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32))
    given = {
        "model": model,
        "loss": F.mse_loss,
        "optimizer": optim.SGD(model.parameters()),
        "loader": DataLoader(data, 2),
    }
    with pytest.raises(ConfigError, match=words):
        Trainer(**(given | wrong))


@pytest.mark.filterwarnings("ignore:.* is not compiled:RuntimeWarning")
@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda y, t: None, "gave NoneType, not a Tensor of one element"),
        (lambda y, t: F.mse_loss(y, t).item(), "gave float, not a Tensor"),
        (lambda y, t: F.mse_loss(y, t, reduction="none"), r"gave a tensor of shape \(2, 1\)"),
    ],
)
@pytest.mark.parametrize("compiled", [True, False])
def test_a_loss_that_is_none_is_named(loss, words, compiled):
    model = nn.Linear(1, 1)
    data = ArrayDataset(np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32))
    optimizer = optim.SGD(model.parameters())
    made = Trainer(model, loss, optimizer, loader=DataLoader(data, 2), compile=compiled)
    with pytest.raises((DTypeError, ShapeError), match=words):
        made.fit(1)


def test_batches_without_a_target_are_named():
    model = nn.Linear(1, 1)
    loader = DataLoader(ArrayDataset(np.zeros((4, 1), np.float32)), 2)
    made = Trainer(model, F.mse_loss, optim.SGD(model.parameters()), loader=loader)
    with pytest.raises(ConfigError, match=r"hold 1 array\(s\); they need .* the target"):
        made.fit(1)


def test_float64_inputs_of_a_float32_network_are_said_once():
    model = nn.Linear(1, 1)
    data = ArrayDataset(np.zeros((4, 1)), np.zeros((4, 1), np.float32))
    optimizer = optim.SGD(model.parameters())
    made = Trainer(model, F.mse_loss, optimizer, loader=DataLoader(data, 2))
    with pytest.warns(RuntimeWarning, match=r"float64 .* parameters are float32.*astype") as found:
        made.fit(2)
    assert len(found) == 1
    data = ArrayDataset(np.zeros((4, 1), np.float32), np.zeros((4, 1)))
    made = Trainer(model, F.mse_loss, optimizer, loader=DataLoader(data, 2))
    with pytest.warns(RuntimeWarning, match="the target of the batches is float64"):
        made.fit(1)
    wide = nn.Linear(1, 1, dtype=np.float64)
    optimizer = optim.SGD(wide.parameters())
    made = Trainer(wide, F.mse_loss, optimizer, loader=DataLoader(data, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.fit(1)


# What is shown.
class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal_and_lines_elsewhere():
    assert type(choose("test", io.StringIO())) is Lines
    assert type(choose("test", Terminal())) is Bar


def test_lines(make):
    stream = io.StringIO()
    make(progress=Lines("test", stream)).fit(2)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("epoch 1/2  train loss 0.")
    assert "test loss 0." in second and "test accuracy " in second and second.endswith(" s")


def test_the_bar_shows_the_cost_and_goes_away(make):
    stream = Terminal()
    make(progress=Bar("test", stream)).fit(2)
    shown = stream.getvalue()
    assert "epoch 2/2" in shown and "loss 0." in shown and "batch" in shown
    last = shown.rstrip("\n").splitlines()[-1].split("\r")[-1]
    assert last.startswith("epoch 2/2  train loss")


def test_the_bar_is_closed_when_the_run_fails(make):
    class Broken(Bar):
        def end(self, figures, epochs):
            raise RuntimeError("broken")

    bar = Broken("test", Terminal())
    with pytest.raises(RuntimeError):
        make(progress=bar).fit(1)
    assert bar.bar is None


def test_the_loop_costs_little(make):
    """An update in the loop takes at most 60 us more than forward, backward and update."""
    trainer = make(schedule=None, clip_norm=None, validation=None)
    batches = list(trainer.loader.batches(0))
    ready = [[gb.tensor(a) for a in batch] for batch in batches]
    model, optimizer = trainer.model, trainer.optimizer

    def bare():
        for x, y in ready:
            optimizer.zero_grad()
            trainer.loss(model(x), y).backward()
            optimizer.step()

    def loop():
        with np.errstate(all="ignore"):
            for batch in trainer.loader.batches(0):
                trainer.update(batch)

    def fastest(function):
        times = []
        for _ in range(60):
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
        return min(times) / len(ready)

    fastest(loop)
    assert min(fastest(loop) - fastest(bare) for _ in range(3)) < 60e-6
