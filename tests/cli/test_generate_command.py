"""``gpubackprop generate``, and what other commands do with runs of texts and pictures."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

VERSE = "the cat sat on the mat, and the rat sat on the cat.\n"
TEXT = "data={name='text', path='verse.txt', context=8, test_fraction=0.2}"
SMALL = ["train.epochs=2", "train.steps_per_epoch=80", "train.batch_size=16", "optimizer.lr=0.02"]
LAYERS = {
    "gpt": "model.layers=[{kind='gpt', layers=1, heads=2, width=16}]",
    "lstm": "model.layers=[{kind='recurrent-lm', embedding=8, hidden=32}]",
}


def train(run, here, kind="gpt", *more):
    (here / "verse.txt").write_text(VERSE * 20)
    settings = [f"--set={s}" for s in (TEXT, LAYERS[kind], *SMALL, *more)]
    outcome = run(
        "train", "shakespeare-gpt", "--device", "cpu", "--data-dir", here, "--out", kind, *settings
    )
    assert outcome.status == 0, outcome.err
    assert "824 windows of 8 to train on, 26 held out without overlap" in outcome.err
    return here / kind


@pytest.mark.parametrize("kind", LAYERS)
def test_text_comes_from_the_run_folder_alone(run, here, kind):
    folder = train(run, here, kind)
    (here / "verse.txt").unlink()
    moved = here / "elsewhere"
    shutil.move(folder, moved)
    first = run("generate", moved, "--device", "cpu", "--prompt", "the ", "--length", "40")
    assert first.status == 0, first.err
    assert first.out.startswith("the ") and len(first.out) == 45 and first.out.endswith("\n")
    assert set(first.out) <= set(VERSE)
    again = run("generate", moved, "--device", "cpu", "--prompt", "the ", "--length", "40")
    other = run(
        "generate", moved, "--device", "cpu", "--prompt", "the ", "--length", "40", "--seed", "1"
    )
    assert first.out == again.out != other.out
    # What was learnt shows: the words of the verse, not just its letters.
    assert sum(word in VERSE.split() for word in first.out.split()) >= 3


def test_json_and_the_options_of_the_draw(run, here):
    folder = train(run, here)
    found = []
    for arguments in (["--temperature", "0"], ["--top-k", "1", "--temperature", "2"]):
        outcome = run("generate", folder, "--json", "--device", "cpu", "--length", "30", *arguments)
        found.append(json.loads(outcome.out))
    assert found[0]["prompt"] == "\n" and len(found[0]["text"]) == 30
    # The likeliest character is the one among the one likeliest.
    assert found[0]["text"] == found[1]["text"]
    assert found[0]["recipe"] == "shakespeare-gpt" and found[0]["device"] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", "tXe"], "does not know: 'X'"),
        (["--temperature", "-1"], "must be a number from 0 on, not '-1'"),
        (["--temperature", "nan"], "must be a number from 0 on"),
        (["--length", "0"], "whole number from 1 on"),
        (["--length", "99999999999"], "at most 10,000,000"),
        (["--top-k", "x"], "whole number from 1 on"),
        (["--promt", "x"], "did you mean '--prompt'?"),
    ],
)
def test_wrong_use(run, here, arguments, words):
    folder = train(run, here, "lstm", "train.epochs=1", "train.steps_per_epoch=1")
    outcome = run("generate", folder, "--device", "cpu", *arguments)
    assert outcome.status == 2 and words in outcome.error


def test_runs_that_write_no_text(run, here):
    run("train", "digits-cnn", "--device", "cpu", "--epochs", "1", "--out", "digits")
    outcome = run("generate", "digits", "--device", "cpu")
    assert outcome.status == 2 and "'digits-cnn', which is no language model" in outcome.error
    outcome = run("generate", "absent", "--device", "cpu")
    assert outcome.status == 1 and "there is no run in this folder" in outcome.error
    folder = train(
        run,
        here,
        "gpt",
        "model.layers=[{kind='gpt', layers=1, heads=2, width=16}, {kind='log-softmax'}]",
        "loss.name=nll",
    )
    outcome = run("generate", folder, "--device", "cpu")
    assert outcome.status == 2 and "this one has gpt, log-softmax" in outcome.error


def test_evaluate_and_predict_on_a_run_of_a_text(run, here):
    folder = train(run, here)
    found = json.loads(run("evaluate", folder, "--device", "cpu", "--json").out)
    stored = json.loads((folder / "result.json").read_text())
    assert found["loss"] == pytest.approx(stored["test_loss"])
    assert found["accuracy"] == pytest.approx(stored["test_accuracy"])
    train_part = json.loads(run("evaluate", folder, "--part", "train", "--json").out)
    assert train_part["samples"] == -(-(int(len(VERSE) * 20 * 0.8) - 8) // 8)
    outcome = run("predict", folder, "--device", "cpu")
    assert outcome.status == 2 and "run gpubackprop generate" in outcome.error
    (here / "verse.txt").write_text(VERSE.replace("c", "k") * 20)
    outcome = run("evaluate", folder, "--device", "cpu")
    assert outcome.status == 2 and "have other characters than those" in outcome.error


def test_predict_takes_grey_pictures_without_an_axis_of_channels(run, here):
    run("train", "digits-cnn", "--device", "cpu", "--epochs", "1", "--out", "digits")
    images = np.random.default_rng(0).integers(0, 17, (3, 8, 8), dtype=np.uint8)
    found = []
    for name, array in (("grey", images), ("channels", images[..., None])):
        np.savez(here / f"{name}.npz", x=array)
        outcome = run("predict", "digits", f"{name}.npz", "--device", "cpu", "--json")
        assert outcome.status == 0, outcome.err
        found.append(json.loads(outcome.out)["predictions"])
    assert found[0] == found[1] and len(found[0]) == 3


def test_a_folder_of_pictures_from_training_to_prediction(run, here):
    image = pytest.importorskip("PIL.Image", reason="the extra 'images' (Pillow) is not installed")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (here / "mine" / name).mkdir(parents=True)
        for number in range(12):
            noise = rng.integers(0, 40, (20, 24, 3)) + level
            image.fromarray(noise.astype(np.uint8)).save(here / "mine" / name / f"{number}.png")
    outcome = run(
        "train",
        "pictures",
        "--device",
        "cpu",
        "--data-dir",
        "mine",
        "--out",
        "run",
        "--json",
        "--set",
        "data.size=16",
        "train.epochs=3",
        "train.batch_size=4",
        "schedule.warmup_epochs=0",
    )
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["test_accuracy"] == 1.0
    found = json.loads(run("evaluate", "run", "--device", "cpu", "--json").out)
    assert found["accuracy"] == 1.0 and found["samples"] == 5
    one = run("predict", "run", "mine/light/3.png", "--device", "cpu", "--json")
    assert json.loads(one.out)["predictions"][0]["name"] == "light"
    several = run("predict", "run", "mine/dark", "--device", "cpu", "--json")
    predictions = json.loads(several.out)["predictions"]
    assert len(predictions) == 12 and {p["name"] for p in predictions} == {"dark"}
    rows = run("predict", "run", "mine/dark", "--device", "cpu").out.splitlines()
    assert rows[0] == "sample,file,class,name,score dark,score light"
    assert rows[3].startswith("2,10.png,0,dark,0.")  # in the order of their names
    assert [p["file"] for p in predictions[:3]] == ["0.png", "1.png", "10.png"]
    assert json.loads(one.out)["predictions"][0]["file"] == "mine/light/3.png"
    named = ["mine/light/3.png", "mine/dark/0.png"]
    two = json.loads(run("predict", "run", *named, "--device", "cpu", "--json").out)["predictions"]
    assert [(p["file"], p["name"]) for p in two] == list(zip(named, ("light", "dark"), strict=True))
    for other in ("mine/dark", "found.npz"):
        outcome = run("predict", "run", named[0], other, "--device", "cpu")
        assert outcome.status == 2 and f"several may be named, and {other}" in outcome.error
    run("predict", "run", "mine/dark", "--device", "cpu", "--out", "found.npz")
    with np.load(here / "found.npz") as found:
        assert found["files"][2] == "10.png" and len(found["files"]) == len(found["class"])
    assert '"file"' not in run("predict", "run", "--device", "cpu", "--json").out
    outcome = run("predict", "run", "mine/dark/absent.png", "--device", "cpu")
    assert outcome.status == 1 and "cannot read picture mine/dark/absent.png" in outcome.error
