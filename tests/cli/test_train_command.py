"""``gpubackprop train``: from one command to a trained network in a folder."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import time

import numpy as np
import pytest

from gpubackprop import recipes
from gpubackprop.training import files

KEYS = [
    "recipe",
    "precision",
    "device",
    "backend",
    "seed",
    "epochs",
    "steps",
    "seconds",
    "samples_per_second",
    "train_loss",
    "test_loss",
    "test_accuracy",
    "out",
]
QUICK = ("two-moons", "--device", "cpu", "--epochs", "2")


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_default_recipe_learns_the_digits(run, here):
    outcome = run("train", "digits-mlp", "--json")
    assert outcome.status == 0
    found = json.loads(outcome.out)
    assert list(found) == KEYS
    assert outcome.out.count("\n") == 1
    assert found["test_accuracy"] >= 0.97
    assert found["train_loss"] < 0.6 and found["test_loss"] < 0.7
    assert (found["recipe"], found["device"], found["backend"]) == ("digits-mlp", "cpu", "numpy")
    assert (found["seed"], found["epochs"], found["steps"]) == (0, 30, 30 * 45)
    assert 0 < found["seconds"] < 60 and found["samples_per_second"] > 1000
    folder = here / found["out"]
    assert folder == here / "runs" / "digits-mlp"
    assert json.loads((folder / "result.json").read_text()) == found
    lines = metrics(folder)
    assert [line["epoch"] for line in lines] == list(range(1, 31))
    assert lines[-1]["val_accuracy"] == found["test_accuracy"]
    assert lines[-1]["train_loss"] == found["train_loss"]
    assert recipes.load(folder / "recipe.toml").train.epochs == 30


def test_two_moons_ends_with_both_pictures(run, here):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    found = json.loads(run("train", "two-moons", "--json").out)
    assert found["test_accuracy"] >= 0.96
    for name in ("curve.png", "boundary.png"):
        assert (here / found["out"] / name).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_one_line_says_so(run, here, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = run("train", *QUICK)
    assert outcome.status == 0
    (line,) = [s for s in outcome.err.splitlines() if "learning curve" in s]
    assert "pip install 'gpubackprop[plot]'" in line
    assert not list(here.rglob("*.png"))


def test_what_is_said(run):
    outcome = run("train", *QUICK, "--seed", "5")
    assert outcome.status == 0
    (summary,) = outcome.out.splitlines()
    assert "2 epochs, 60 steps" in summary and "test accuracy" in summary
    assert summary.endswith("runs/two-moons")
    assert "two-moons on cpu" in outcome.err and "1,500 to train on" in outcome.err
    assert outcome.err.count("epoch ") == 2


def test_auto_says_what_it_chose_and_why(run, monkeypatch):
    from gpubackprop.backends import detect

    problem = detect.Problem("no-driver", "there is no driver", "install one")
    monkeypatch.setattr(detect, "gpu_problem", lambda: problem)
    outcome = run("train", "two-moons", "--epochs", "1")
    assert "on cpu (auto: no usable GPU (there is no driver))" in outcome.err
    asked = run("train", "two-moons", "--device", "cuda", "--epochs", "1")
    assert asked.status == 1
    assert "there is no driver; install one" in asked.error


def test_standard_output_is_one_object_in_a_process_of_its_own(start):
    process = start("train", *QUICK, "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert list(json.loads(out)) == KEYS
    assert "epoch 2/2" in err


def test_set_seed_and_epochs(run, here):
    outcome = run(
        "train", "--set", "train.batch_size=100", "optimizer.lr=0.5", "two-moons", "--json",
        "--seed", "9", "--epochs", "1", "--out", "mine", "--set", "schedule.name=constant",
    )  # fmt: skip
    found = json.loads(outcome.out)
    assert (found["seed"], found["epochs"], found["steps"], found["out"]) == (9, 1, 15, "mine")
    saved = recipes.load(here / "mine" / "recipe.toml")
    assert saved.optimizer.options["lr"] == 0.5 and saved.schedule.name == "constant"
    assert metrics(here / "mine")[0]["lr"] == 0.5


def test_a_file_as_recipe(run, here):
    (here / "mine.toml").write_text(recipes.text("two-moons").replace("epochs = 40", "epochs = 1"))
    assert json.loads(run("train", "mine.toml", "--json").out)["recipe"] == "mine"
    assert (here / "runs" / "mine" / "checkpoint.json").exists()


def test_a_validation_part_is_what_is_watched(run, here):
    outcome = run(
        "train", *QUICK, "--json", "--set", "train.validation=0.2", "train.patience=1",
        "train.min_delta=100.0", "train.epochs=9",
    )  # fmt: skip
    found = json.loads(outcome.out)
    assert "validation accuracy" in outcome.err and "test accuracy" not in outcome.err
    assert found["epochs"] == 2
    # The best weights, those of epoch 1, are what is evaluated on the test part.
    again = json.loads(run("evaluate", found["out"], "--json").out)
    assert again["loss"] == found["test_loss"]


def test_a_regression_has_no_accuracy(run, here):
    rows = "\n".join(f"{k},{2 * k + 1}" for k in range(50))
    (here / "line.csv").write_text("x,y\n" + rows + "\n")
    (here / "line.toml").write_text(
        """
        [data]
        name = "csv"
        path = "line.csv"
        task = "regression"
        scale = "standard"
        [[model.layers]]
        kind = "linear"
        units = 1
        [loss]
        name = "mse"
        [optimizer]
        name = "adam"
        lr = 5.0
        [train]
        epochs = 40
        batch_size = 8
        """
    )
    found = json.loads(run("train", "line.toml", "--json", "--out", "line").out)
    assert found["test_accuracy"] is None and found["test_loss"] < 1.0
    rows = run("predict", "line", "--format", "csv").out.splitlines()
    assert rows[0] == "sample,output 0" and len(rows) == 11
    # The table that it was trained on: the target is in the way, and can be left out.
    outcome = run("predict", "line", "line.csv")
    assert outcome.status == 2
    assert "line.csv has 2 columns, but the network in line takes 1 numbers" in outcome.error
    assert outcome.error.endswith("to leave the target out: --target -1")
    for column in ("-1", "y"):
        rows = run("predict", "line", "line.csv", "--target", column).out.splitlines()
        assert len(rows) == 51
    outcome = run("predict", "line", "line.csv", "--target", "x")
    assert outcome.status == 2
    assert outcome.error.startswith("line.csv has the column 'y' where the network in line takes")
    assert outcome.error.endswith("'x'; it takes x, in this order")


def test_tiny_and_huge_losses_can_be_told_apart(run, here):
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    for name, size in (("tiny", 1e-4), ("huge", 1e8)):
        np.savez(here / f"{name}.npz", x=x, y=x.sum(axis=1) * size)
        settings = [
            "model.layers=[{kind='linear', units=1, init='zeros', bias=false}]",
            f"data={{name='npz', path='{name}.npz', task='regression'}}",
            "loss.name=mse",
            "optimizer={name='sgd', lr=0}",
        ]
        outcome = run("train", *QUICK, "--out", name, "--set", *settings)
        assert outcome.status == 0, outcome.err
        power = r"\d\.\d{3}e" + ("-0" if name == "tiny" else r"\+1")
        for text in (outcome.err, outcome.out, run("evaluate", name).out):
            assert re.search(f"loss {power}", text), text


# Folders.
def test_new_runs_get_new_folders(run, here):
    outs = [json.loads(run("train", *QUICK, "--json").out)["out"] for _ in range(3)]
    assert outs == ["runs/two-moons", "runs/two-moons-2", "runs/two-moons-3"]


def test_a_run_is_not_overwritten(run, here):
    assert run("train", *QUICK, "--out", "mine").status == 0
    before = {p: p.read_bytes() for p in (here / "mine").iterdir()}
    outcome = run("train", *QUICK, "--out", "mine")
    assert outcome.status == 2
    assert "--out mine: it holds a run already; add --resume" in outcome.error
    assert {p: p.read_bytes() for p in (here / "mine").iterdir()} == before


def test_other_files_are_left_alone(run, here):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("years of work")
    for more in ((), ("--resume",)):
        outcome = run("train", *QUICK, "--out", "mine", *more)
        assert outcome.status == 2 and "thesis.txt" in outcome.error
    assert os.listdir(here / "mine") == ["thesis.txt"]
    (here / "file").write_text("")
    assert "there is a file of this name" in run("train", *QUICK, "--out", "file").error


def test_resuming_where_there_is_nothing(run, here):
    outcome = run("train", *QUICK, "--out", "mine", "--resume")
    assert outcome.status == 0 and "nothing to resume in mine: the run begins anew" in outcome.err
    outcome = run("train", "digits-mlp", "--resume")
    assert outcome.status == 2 and "there is no run of 'digits-mlp'" in outcome.error


def test_a_folder_that_cannot_be_made(run, here):
    (here / "file").write_text("")
    outcome = run("train", *QUICK, "--out", "file/run")
    assert outcome.status in (1, 2) and "file/run" in outcome.error


# Resuming.
def test_a_longer_run_goes_on_from_a_shorter_one(run, here):
    constant = ("--set", "schedule.name=constant", "train.seed=3")
    run("train", "two-moons", *constant, "--epochs", "4", "--out", "whole")
    run("train", "two-moons", *constant, "--epochs", "2", "--out", "part")
    # What was set is remembered.
    outcome = run("train", "two-moons", "--out", "part", "--resume", "--epochs", "4", "--json")
    assert outcome.status == 0 and json.loads(outcome.out)["seed"] == 3
    assert "resumed after step 60 (2 complete epochs)" in outcome.err
    assert tensors(here / "part") == tensors(here / "whole")


def tensors(folder) -> bytes:
    manifest = json.loads((folder / "checkpoint.json").read_text())
    return (folder / manifest["tensors"]["file"]).read_bytes()


def test_a_schedule_that_is_stretched_is_said(run):
    run("train", *QUICK, "--out", "a")
    outcome = run("train", "two-moons", "--out", "a", "--resume", "--epochs", "3")
    assert outcome.status == 0
    assert "the schedule 'cosine' is laid out for 3 epochs from here on" in outcome.err


def test_the_newest_run_is_resumed_without_a_folder(run):
    run("train", *QUICK)
    run("train", *QUICK)
    outcome = run("train", *QUICK, "--resume", "--json")
    assert json.loads(outcome.out)["out"] == "runs/two-moons-2"
    assert "resuming the newest run of two-moons: runs/two-moons-2" in outcome.err
    assert json.loads(outcome.out)["epochs"] == 2  # it was complete: it only reports


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seed", "4"), "recipe.train.seed was 0 and is now 4"),
        (("--set", "optimizer.lr=0.5"), "recipe.optimizer.lr was 0.01 and is now 0.5"),
        (("--set", "data.noise=0.2"), "recipe.data.noise was 0.15 and is now 0.2"),
    ],
)
def test_settings_cannot_change_on_the_way(run, arguments, words):
    run("train", *QUICK, "--out", "a")
    outcome = run("train", "two-moons", "--out", "a", "--resume", *arguments)
    assert outcome.status == 1 and words in outcome.error


def test_another_recipe_cannot_take_over_a_run(run):
    run("train", *QUICK, "--out", "a")
    outcome = run("train", "digits-mlp", "--out", "a", "--resume")
    assert outcome.status == 2
    assert "it holds a run of the recipe 'two-moons', not 'digits-mlp'" in outcome.error


def test_data_that_changed_are_noticed(run, here):
    (here / "d.csv").write_text("".join(f"{k},{k % 7},{k % 2}\n" for k in range(40)))
    (here / "r.toml").write_text(
        '[data]\nname="csv"\npath="d.csv"\n[[model.layers]]\nkind="linear"\nunits=2\n'
        '[loss]\nname="cross-entropy"\n[optimizer]\nname="sgd"\n[train]\nepochs=1\n'
    )
    assert run("train", "r.toml", "--out", "a").status == 0
    (here / "d.csv").write_text("".join(f"{k},{k % 5},{k % 2}\n" for k in range(40)))
    outcome = run("train", "r.toml", "--out", "a", "--resume", "--epochs", "2")
    assert outcome.status == 1 and "data.train was" in outcome.error


def test_a_damaged_run_is_named_with_the_way_back(run, here):
    run("train", *QUICK, "--out", "a")
    manifest = json.loads((here / "a" / "checkpoint.json").read_text())
    path = here / "a" / manifest["tensors"]["file"]
    path.write_bytes(path.read_bytes()[:-8])
    outcome = run("train", "two-moons", "--out", "a", "--resume", "--epochs", "3")
    assert outcome.status == 1
    assert manifest["tensors"]["file"] in outcome.error
    assert "mv a/checkpoint.previous.json a/checkpoint.json" in outcome.error
    os.replace(here / "a" / "checkpoint.previous.json", here / "a" / "checkpoint.json")
    assert run("train", "two-moons", "--out", "a", "--resume", "--epochs", "3").status == 0


def test_two_runs_in_one_folder(run, start, here):
    first = start("train", "two-moons", "--epochs", "100000", "--out", "a")
    try:
        wait_for(here / "a" / "checkpoint.json", first)
        outcome = run("train", "two-moons", "--out", "a", "--resume")
        assert outcome.status == 1 and "another run is writing to a" in outcome.error
    finally:
        first.kill()
        first.communicate()


def test_a_full_disk(run, here, monkeypatch):
    plain, left = files.os.replace, [7]

    def replace(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", replace)
        outcome = run("train", "two-moons", "--out", "a", "--epochs", "9")
    assert outcome.status == 1
    assert "no space left on the device" in outcome.error and "is intact" in outcome.error
    resumed = run("train", "two-moons", "--out", "a", "--resume")
    assert resumed.status == 0 and "resumed after step" in resumed.err


def test_a_run_that_diverges(run, here):
    outcome = run("train", "two-moons", "--set", "optimizer.lr=1e6", "optimizer.name=sgd",
                  "optimizer.betas=[0,0]", "--out", "a")  # fmt: skip
    assert outcome.status == 2 and "'betas'" in outcome.error
    (here / "r.toml").write_text(
        '[data]\nname="two-moons"\n[[model.layers]]\nkind="linear"\nunits=2\n'
        '[loss]\nname="quadratic"\n[optimizer]\nname="sgd"\nlr=100.0\n'
    )
    outcome = run("train", "r.toml", "--out", "a", "--json")
    assert outcome.status == 1 and outcome.out == ""
    assert "mse_loss in the cost gave 1 infinite of 1 values" in outcome.error
    assert "in the forward pass" in outcome.error
    assert json.loads((here / "a" / "checkpoint.json").read_text())["progress"]["step"] == 0


# Interrupted and killed, in processes of their own.
def wait_for(path, process: subprocess.Popen, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_saves_and_says_how_to_go_on(run, start, here, number, status):
    process = start("train", "two-moons", "--epochs", "100000", "--out", "a b", "--json")
    wait_for(here / "a b" / "metrics.jsonl", process)
    time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert out == "" and "Traceback" not in err
    line = err.splitlines()[-1]
    assert line.startswith("gpubackprop: error: interrupted after step ")
    assert line.endswith("to go on: gpubackprop train two-moons --out 'a b' --resume")
    step = int(line.split("after step ")[1].split(";")[0])
    saved = json.loads((here / "a b" / "checkpoint.json").read_text())["progress"]
    assert saved["step"] == step > 0


def test_killed_at_any_moment_it_goes_on_to_the_same_bits(run, start, here):
    """kill -9 again and again, at moments that nobody chose, until a run gets through."""
    arguments = (
        "train", "digits-mlp", "--device", "cpu", "--epochs", "12", "--set",
        "train.checkpoint_steps=7", "train.validation=0.2", "train.keep_best=true",
        "model.layers.1={kind='dropout', p=0.3}",
    )  # fmt: skip
    assert run(*arguments, "--out", "whole").status == 0
    steps = set()
    for delay in (0.0, 0.004, 0.011, 0.03, 0.07, 0.15):
        process = start(*arguments, "--out", "broken", "--resume")
        before = read_step(here / "broken")
        while process.poll() is None and read_step(here / "broken") == before:
            time.sleep(0.001)
        time.sleep(delay)
        assert process.poll() is None, process.communicate()  # or it was too fast to be killed
        process.kill()
        process.communicate()
        steps.add(read_step(here / "broken"))
    assert len(steps) >= 4
    process = start(*arguments, "--out", "broken", "--resume")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert tensors(here / "broken") == tensors(here / "whole")
    left, right = (
        [{k: v for k, v in line.items() if k != "seconds"} for line in metrics(here / name)]
        for name in ("broken", "whole")
    )
    assert left == right and len(left) == 12


def test_batches_in_pieces(run, here):
    settings = ("--device", "cpu", "--epochs", "2", "--json")
    whole = json.loads(run("train", "two-moons", *settings, "--out", "whole").out)
    cut = json.loads(run("train", "two-moons", *settings, "--out", "cut", "--accumulate", "4").out)
    assert cut["steps"] == whole["steps"]
    assert abs(cut["train_loss"] - whole["train_loss"]) < 1e-5
    assert "accumulate = 4" in (here / "cut" / "recipe.toml").read_text()
    assert "accumulate" not in (here / "whole" / "recipe.toml").read_text()
    assert run("train", "two-moons", *settings, "--out", "cut", "--resume").status == 0
    refused = run("train", "two-moons", "--out", "cut", "--resume", "--accumulate", "2")
    assert refused.status == 1 and "accumulate" in refused.err


def read_step(folder) -> int:
    try:
        return json.loads((folder / "checkpoint.json").read_text())["progress"]["step"]
    except FileNotFoundError:
        return -1


@pytest.mark.gpu
def test_on_a_gpu_a_resumed_run_has_the_same_bits(run, here):
    settings = ("--device", "cuda", "--set", "schedule.name=constant")
    found = json.loads(run("train", "digits-mlp", *settings, "--epochs", "6", "--out", "whole",
                           "--json").out)  # fmt: skip
    assert found["device"] == "cuda:0" and found["test_accuracy"] >= 0.95
    run("train", "digits-mlp", *settings, "--epochs", "2", "--out", "part")
    again = run(
        "train", "digits-mlp", "--device", "cuda", "--epochs", "6", "--out", "part", "--resume"
    )
    assert again.status == 0
    assert tensors(here / "part") == tensors(here / "whole")
