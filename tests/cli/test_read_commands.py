"""evaluate, predict, recipes and devices: what is said about runs and machines."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gpubackprop import recipes
from gpubackprop.backends import detect
from gpubackprop.backends.cuda.choices import Choice, Choices
from gpubackprop.cli import main
from gpubackprop.data import load_digits, two_moons
from gpubackprop.training.checkpoint import CheckpointFolder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of digits-mlp and one of two-moons."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("digits-mlp", "two-moons"):
        assert main(["train", name, "--epochs", "8", "--out", str(folder / name), "--json"]) == 0
    return folder


def result(folder) -> dict:
    return json.loads((folder / "result.json").read_text())


# evaluate
def test_evaluate_repeats_what_train_found(run, trained):
    for name in ("digits-mlp", "two-moons"):
        found = json.loads(run("evaluate", trained / name, "--json").out)
        assert list(found) == [
            "run", "recipe", "device", "backend", "part", "samples", "loss", "accuracy",
        ]  # fmt: skip
        expected = result(trained / name)
        assert found["loss"] == expected["test_loss"]
        assert found["accuracy"] == expected["test_accuracy"]
    assert found["samples"] == 500


def test_evaluate_the_training_part(run, trained):
    outcome = run("evaluate", trained / "digits-mlp" / "checkpoint.json", "--part", "train")
    assert outcome.status == 0
    assert outcome.out.startswith("1,438 samples of the train part; loss 0.")
    assert run("evaluate", trained / "digits-mlp", "--batch-size", "7").status == 0


def test_data_that_are_elsewhere_are_asked_for(run, here, monkeypatch):
    points, labels = two_moons(60, seed=2)
    np.savez(here / "p.npz", x=points, y=labels)
    data = ["data.name=npz", "data.path=p.npz"]
    done = run(
        "train", "two-moons", "--epochs", "1", "--data-dir", ".", "--out", "a", "--set", *data
    )
    assert done.status == 0, done.err
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    for command in ("evaluate", "predict"):
        outcome = run(command, here / "a")
        assert outcome.status == 1 and "cannot read NPZ file p.npz: no such file" in outcome.error
        assert "--data-dir names the folder of the data of" in outcome.error
        assert run(command, here / "a", "--data-dir", here).status == 0
        assert "--data-dir names" not in run(command, here / "a", "--data-dir", "absent").error


# predict
def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_predict_the_held_out_part(run, trained):
    outcome = run("predict", trained / "digits-mlp")
    head, *body = rows(outcome.out)
    assert head == ["sample", "class", "name", *[f"score {k}" for k in range(10)]]
    assert len(body) == 359
    labels = recipes.load_data(recipes.load("digits-mlp")).test.array("target")
    hits = np.mean([int(row[1]) == label for row, label in zip(body, labels, strict=True)])
    assert hits == pytest.approx(result(trained / "digits-mlp")["test_accuracy"])
    scores = np.array([[float(v) for v in row[3:]] for row in body])
    assert scores.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert [int(row[1]) for row in body] == scores.argmax(axis=1).tolist()


def test_the_formats_agree(run, trained, here):
    table = rows(run("predict", trained / "digits-mlp").out)[1:]
    found = json.loads(run("predict", trained / "digits-mlp", "--json").out)
    assert [p["class"] for p in found["predictions"]] == [int(row[1]) for row in table]
    assert [p["scores"] for p in found["predictions"]] == [
        [float(v) for v in row[3:]] for row in table
    ]
    for name in ("p.csv", "p.json", "p.npz"):
        outcome = run("predict", trained / "digits-mlp", "--out", name)
        assert outcome.out == "" and f"359 predictions are in {name}" in outcome.err
    assert rows((here / "p.csv").read_text())[1:] == table
    assert json.loads((here / "p.json").read_text()) == found
    with np.load(here / "p.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"scores", "class", "names"}
        assert arrays["class"].tolist() == [int(row[1]) for row in table]
        assert arrays["scores"].dtype == np.float32


def test_predict_files_of_raw_samples(run, trained, here):
    """Raw pixels, as they were before the scaling of the training."""
    images, labels = load_digits()
    images, labels = images[:200], labels[:200]
    flat = images.reshape(200, -1)
    np.savez(here / "a.npz", x=images)
    np.savez(here / "b.npz", pixels=flat, other=labels)
    np.savetxt(here / "c.csv", flat, fmt="%d", delimiter=",")
    np.savetxt(here / "d.tsv", flat, fmt="%d", delimiter="\t")
    header = ",".join([f"p{k}" for k in range(64)] + ["digit"])
    np.savetxt(
        here / "e.csv", np.c_[flat, labels], fmt="%d", delimiter=",", header=header, comments=""
    )
    (here / "c.csv.gz").write_bytes(gzip.compress((here / "c.csv").read_bytes()))
    idx = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (200, 8, 8))
    (here / "images-idx3-ubyte").write_bytes(idx + images.astype(np.uint8).tobytes())
    said = []
    for arguments in (
        ["a.npz"], ["b.npz", "--array", "pixels"], ["c.csv"], ["d.tsv"], ["c.csv.gz"],
        ["e.csv", "--target", "digit"], ["e.csv", "--target", "-1"], ["images-idx3-ubyte"],
    ):  # fmt: skip
        outcome = run("predict", trained / "digits-mlp", *arguments)
        assert outcome.status == 0, outcome.err
        table = np.array([[row[1], *row[3:]] for row in rows(outcome.out)[1:]], float)
        said.append(table)
        # Pixels as bytes and as double precision numbers are scaled with other roundings.
        assert table == pytest.approx(said[0], abs=1e-5)
        assert np.mean(table[:, 0] == labels) > 0.95


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("absent.csv", [], "no such file"),
        ("a.dat", [], "the ending tells the format"),
        ("a.png", [], "which are no square pictures"),
        ("wide.csv", [], "3 columns, but the network"),
        ("wider.csv", [], "samples of shape [4] (float64), but the network"),
        ("nan.npz", [], "not a finite number"),
        ("two.npz", [], "give --array; it holds p, q"),
        ("two.npz", ["--array", "r"], "unknown array 'r'"),
        ("text.npz", [], "takes numbers of shape [2]"),
        ("none.npz", [], "there is no sample"),
        ("broken.npz", [], "broken.npz"),
        ("target.csv", ["--target", "z"], "unknown target column 'z'"),
    ],
)
def test_samples_that_do_not_fit(run, trained, here, name, arguments, words):
    (here / "wide.csv").write_text("1,2,3\n4,5,6\n")
    (here / "wider.csv").write_text("1,2,3,4\n4,5,6,7\n")
    (here / "target.csv").write_text("x,y,c\n4,5,6\n")
    np.savez(here / "nan.npz", x=np.array([[1.0, np.nan]]))
    np.savez(here / "two.npz", p=np.zeros((1, 2)), q=np.zeros((1, 2)))
    np.savez(here / "text.npz", x=np.array([["a", "b"]]))
    np.savez(here / "none.npz", x=np.zeros((0, 2)))
    (here / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    for name_of_none in ("a.png", "a.dat"):
        (here / name_of_none).write_bytes(b"\x89PNG")
    outcome = run("predict", trained / "two-moons", name, *arguments)
    assert outcome.status in (1, 2) and words in outcome.error
    assert outcome.out == ""


def test_predict_a_point(run, trained, here):
    points, labels = two_moons(100, noise=0.05, seed=9)
    np.savez(here / "p.npz", x=points)
    found = json.loads(run("predict", trained / "two-moons", "p.npz", "--json").out)
    assert np.mean([p["class"] for p in found["predictions"]] == labels) > 0.9


def hostile(change):
    """A change of the manifest of a run whose checksum is made right again."""

    def apply(folder):
        checkpoint = folder.read()
        for key in ("format", "version", "serial"):
            del checkpoint.meta[key]
        change(checkpoint)
        folder.write(checkpoint)

    return apply


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.meta.pop("info"),
        lambda c: c.meta.update(info=3),
        lambda c: c.meta["info"].update(recipe=None),
        lambda c: c.meta["info"].update(input_shape=[10**9, 10**9]),
        lambda c: c.meta["info"].update(input_shape=[-1]),
        lambda c: c.meta["info"].update(input_shape="x"),
        lambda c: c.meta["info"].update(input_shape=3),
        lambda c: c.meta["info"].update(input_shape=[10**18]),
        lambda c: c.meta["info"].update(classes=10**9),
        lambda c: c.meta["info"].update(class_names=["a"]),
        lambda c: c.meta["info"]["recipe"]["model"]["layers"][0].update(units=10**6),
        lambda c: c.meta["info"]["recipe"]["model"]["layers"][0].update(units=10**12),
        lambda c: c.meta["info"]["recipe"]["model"]["layers"][0].update(kind="os.system"),
        lambda c: c.meta.pop("progress"),
        lambda c: c.tensors.pop("attached/scale"),
        lambda c: c.tensors.update({"attached/scale": np.zeros(7)}),
        lambda c: c.tensors.pop("model/0.weight"),
        lambda c: c.tensors.update({"model/0.weight": np.zeros((2, 2), np.float32)}),
    ],
)
def test_hostile_runs(run, here, change):
    assert run("train", "two-moons", "--epochs", "1", "--out", "a").status == 0
    hostile(change)(CheckpointFolder(here / "a"))
    for command in ("predict", "evaluate"):
        outcome = run(command, "a")
        assert outcome.status == 1
        assert "checkpoint.json" in outcome.error


# recipes
def test_recipes_are_listed_and_shown(run, here):
    outcome = run("recipes")
    names = [line.split()[0] for line in outcome.out.splitlines()]
    assert names == recipes.names()
    found = json.loads(run("recipes", "--json").out)["recipes"]
    assert [r["name"] for r in found] == names and all(r["summary"] for r in found)
    (here / "copy.toml").write_text(run("recipes", "mnist-nielsen").out)
    assert recipes.load("copy.toml").as_dict() == recipes.load("mnist-nielsen").as_dict()
    shown = json.loads(run("recipes", "mnist-nielsen", "--json").out)
    assert shown["optimizer"]["lr"] == 3.0 and shown["train"]["batch_size"] == 10
    assert [layer.get("units") for layer in shown["model"]["layers"]] == [30, None, 10, None]


# devices
GPU = detect.DeviceInfo(0, "Test GPU", 8 << 30, (9, 0))


def test_devices_without_a_gpu(run, monkeypatch):
    problem = detect.Problem("no-driver", "no NVIDIA driver was found", "install the driver")
    monkeypatch.setattr(detect, "gpu_problem", lambda: problem)
    monkeypatch.setattr(detect, "devices", lambda: [])
    monkeypatch.delenv("GPUBACKPROP_DEVICE", raising=False)
    lines = run("devices").out.splitlines()
    assert lines[0].startswith("found    cpu ")
    assert lines[1] == "no GPU   no NVIDIA driver was found"
    assert lines[2] == "to mend  install the driver"
    assert lines[3].startswith("chosen   cpu (numpy): auto: no usable GPU")
    found = json.loads(run("devices", "--json").out)
    assert found["chosen"] == "cpu" and found["backend"] == "numpy"
    assert found["problem"] == {
        "code": "no-driver", "cause": "no NVIDIA driver was found", "mend": "install the driver",
    }  # fmt: skip
    assert [d["device"] for d in found["devices"]] == ["cpu"]
    outcome = run("devices", "--device", "cuda")
    assert outcome.status == 1
    assert "no NVIDIA driver was found; install the driver" in outcome.error
    monkeypatch.setenv("GPUBACKPROP_DEVICE", "cpu")
    assert "chosen   cpu (numpy): from GPUBACKPROP_DEVICE" in run("devices").out


def test_devices_shows_the_choices_of_kernels(run, monkeypatch, tmp_path):
    monkeypatch.setenv("GPUBACKPROP_CACHE", str(tmp_path))
    assert "choices  none: no table in" in run("devices", "--choices").out
    assert json.loads(run("devices", "--choices", "--json").out)["choices"] == []
    table = Choices("Test GPU", {"cudnn": "9.28.1"})
    table.keep("conv float16", Choice("cudnn", {"plain": 2e-4, "cudnn": 1e-4}, "measured"))
    table.keep("attention", Choice("plain", {}, "cuDNN: no engine"))
    times = {"joined": 3e-5, "parts": 4e-5}
    Choices("Test GPU", {"cublaslt": "1"}).keep("relu", Choice("joined", times, "measured"))
    lines = run("devices", "--choices").out.splitlines()
    at = lines.index("choices  Test GPU (cudnn 9.28.1)")
    assert lines[at + 1 : at + 4] == [
        f"         {table.path}",
        "  plain  cuDNN: no engine: attention",
        "  cudnn  plain 200.0 us, cudnn 100.0 us: conv float16",
    ]
    assert "choices  Test GPU (cublaslt 1)" in lines
    assert "  joined joined 30.0 us, parts 40.0 us: relu" in lines
    found = json.loads(run("devices", "--choices", "--json").out)["choices"]
    assert len(found) == 2
    (shown,) = [table for table in found if "cudnn" in table["versions"]]
    assert shown["device"] == "Test GPU" and shown["choices"][1]["use"] == "cudnn"
    assert "choices" not in run("devices").out


def test_devices_says_whether_cudnn_is_there(run, monkeypatch):
    monkeypatch.setattr(detect, "gpu_problem", lambda: None)
    monkeypatch.setattr(detect, "devices", lambda: [GPU])
    problem = detect.Problem("no-cudnn", "cuDNN's front end is not installed", "pip install it")
    monkeypatch.setattr(detect, "cudnn_problem", lambda: problem)
    lines = run("devices", "--device", "cpu").out.splitlines()
    assert lines[2:4] == [
        "cuDNN    not in use: cuDNN's front end is not installed",
        "to mend  pip install it",
    ]
    found = json.loads(run("devices", "--device", "cpu", "--json").out)["cudnn"]
    assert found["version"] is None and found["mend"] == "pip install it"
    monkeypatch.setattr(detect, "cudnn_problem", lambda: None)
    monkeypatch.setitem(sys.modules, "cudnn", SimpleNamespace(backend_version=lambda: 92801))
    assert "cuDNN    9.28.1 runs what" in run("devices", "--device", "cpu").out


@pytest.mark.gpu
def test_devices_with_a_gpu(run):
    found = json.loads(run("devices", "--json").out)
    assert found["chosen"] == "cuda:0" and found["problem"] is None
    assert "cuda:0" in [d["device"] for d in found["devices"]]
    assert "found    cuda:0" in run("devices").out
