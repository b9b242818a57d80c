"""Golden figures on real MNIST: the textbook network and the larger one.

The first epochs run by default where the data are present; the whole runs with ``-m slow``.
"""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.data


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> None:
    """Skips what nobody asked for: minutes of training."""
    if "slow" not in (request.config.getoption("markexpr") or ""):
        pytest.skip("minutes of training; run with -m slow")


def train(run, folder, name, *arguments):
    outcome = run("train", name, "--device", "cpu", "--data-dir", folder, "--json", *arguments)
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


def test_the_first_epoch_of_the_textbook_network(run, mnist_folder):
    # 6,000 steps from seed 0. Another BLAS rounds otherwise, which moves the figures a little.
    found = train(run, mnist_folder, "mnist-nielsen", "--epochs", "1")
    assert found["steps"] == 6000
    assert found["test_accuracy"] == pytest.approx(0.9145, abs=0.006)
    assert found["train_loss"] == pytest.approx(0.1270, abs=0.002)
    assert found["test_loss"] == pytest.approx(0.0688, abs=0.003)


def test_an_epoch_of_the_larger_network(run, mnist_folder):
    found = train(run, mnist_folder.parent, "mnist-mlp", "--epochs", "1")
    assert found["steps"] == 469
    assert found["test_accuracy"] > 0.945


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("whole")
def test_the_textbook_network_reaches_what_the_book_reports(run, mnist_folder):
    found = train(run, mnist_folder, "mnist-nielsen")
    assert found["epochs"] == 30 and found["test_accuracy"] >= 0.95


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("whole")
def test_the_larger_network_in_ten_epochs(run, mnist_folder):
    found = train(run, mnist_folder, "mnist-mlp", "--epochs", "10")
    assert found["test_accuracy"] >= 0.982
