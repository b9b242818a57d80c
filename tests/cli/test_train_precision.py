"""``gpubackprop train --precision``."""

from __future__ import annotations

import json
import sys

import pytest

from gpubackprop.autograd import precision as module
from gpubackprop.training.checkpoint import CheckpointFolder

pytest.importorskip("ml_dtypes")
QUICK = ("two-moons", "--device", "cpu", "--epochs", "2", "--json", "--out", "out")


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp16-mixed"])
def test_from_training_to_evaluation(run, here, precision):
    outcome = run("train", *QUICK, "--precision", precision)
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["precision"] == precision
    meta = CheckpointFolder(here / "out").read().meta
    assert meta["precision"]["name"] == precision
    assert meta["config"]["recipe"]["train"]["precision"] == precision
    lines = [json.loads(x) for x in (here / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [("loss_scale" in line) for line in lines] == [precision == "fp16-mixed"] * 2
    assert f'precision = "{precision}"' in (here / "out" / "recipe.toml").read_text()
    # What looks at the finished network computes in float32: the figures are the same.
    evaluated = json.loads(run("evaluate", "out", "--device", "cpu", "--json").out)
    assert evaluated["loss"] == pytest.approx(found["test_loss"], rel=1e-6)


def test_resumed(run, here):
    assert run("train", *QUICK, "--precision", "fp16-mixed").status == 0
    longer = [*QUICK[:3], "--epochs", "3", *QUICK[5:], "--resume"]
    outcome = run("train", *longer)  # the precision is the run's
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["precision"] == "fp16-mixed"
    outcome = run("train", *longer, "--precision", "bf16-mixed")
    assert outcome.status != 0
    assert "train.precision was 'fp16-mixed' and is now 'bf16-mixed'" in outcome.error


def test_float32_is_what_it_is_without(run, here):
    assert run("train", *QUICK).status == 0
    outcome = run("train", *QUICK, "--resume", "--precision", "float32")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["precision"] == "float32"
    assert "precision" not in (here / "out" / "recipe.toml").read_text()


def test_tf32_on_a_cpu_is_said_in_one_line(run, monkeypatch):
    monkeypatch.setattr(module, "_TOLD", set())
    outcome = run("train", *QUICK, "--precision", "tf32")
    assert outcome.status == 0
    assert outcome.err.count("precision 'tf32' means float32 on cpu") == 1
    assert "Warning" not in outcome.err


def test_errors(run):
    outcome = run("train", *QUICK, "--precision", "bf16")
    assert "'bf16'; allowed: float32, tf32, bf16-mixed, fp16-mixed" in outcome.error
    outcome = run("train", *QUICK, "--precision", "bf16-mixed", "--set", "train.dtype=float64")
    assert "precision = 'bf16-mixed' keeps the parameters in float32, but dtype is" in outcome.error


def test_what_is_not_installed_is_said_before_anything_is_read_or_made(run, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    outcome = run("train", "mnist-mlp", "--data-dir", "nowhere", "--precision", "bf16-mixed")
    assert outcome.status == 2
    assert "pip install 'gpubackprop[bf16]'" in outcome.error
    assert not (here / "runs").exists()
