"""Golden figures of the recipes for pictures and texts: short runs always, whole runs on real data
with ``-m slow``."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> None:
    """Skips what nobody asked for: minutes of training."""
    if "slow" not in (request.config.getoption("markexpr") or ""):
        pytest.skip("minutes of training; run with -m slow")


def train(run, name, *arguments):
    outcome = run("train", name, "--device", "cpu", "--json", "--out", name, *arguments)
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


def test_small_digits_with_convolutions(run):
    found = train(run, "digits-cnn")
    assert found["steps"] == 450 and found["test_accuracy"] >= 0.97


@pytest.mark.data
@pytest.mark.parametrize("name", ["shakespeare-gpt", "shakespeare-lstm"])
def test_a_few_steps_on_shakespeare(run, data_root, name):
    # After as many steps a text of 65 characters costs much less than ln 65 = 4.17.
    short = ["--set", "train.epochs=1", "train.steps_per_epoch=30", "schedule.warmup_epochs=0.1"]
    found = train(run, name, "--data-dir", data_root, *short)
    assert found["steps"] == 30 and found["test_loss"] < 3.5
    written = run("generate", name, "--device", "cpu", "--prompt", "ROMEO:", "--length", "20")
    assert written.status == 0 and len(written.out) == 27


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("whole")
def test_the_convolutional_network_on_mnist(run, mnist_folder):
    found = train(run, "mnist-cnn", "--data-dir", mnist_folder)
    assert found["epochs"] == 5 and found["test_accuracy"] >= 0.989


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("whole")
def test_the_small_gpt_on_shakespeare(run, data_root):
    found = train(run, "shakespeare-gpt", "--data-dir", data_root)
    # Measured: 1.787.
    assert found["steps"] == 2000 and found["test_loss"] <= 1.82


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("whole")
def test_the_lstm_on_shakespeare(run, data_root):
    found = train(run, "shakespeare-lstm", "--data-dir", data_root)
    assert found["steps"] == 4000 and found["test_loss"] <= 1.80
