"""Whatever goes wrong is one line on standard error, and an exit status."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gpubackprop import __version__
from gpubackprop.cli import COMMANDS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'? allowed: train, evaluate"),
        (["--device"], "unknown command '--device'"),
        (["train"], "name a recipe: cifar-resnet, digits-cnn, digits-mlp, mnist-cnn, mnist-mlp,"),
        (["train", "mnist-mpl"], "unknown recipe 'mnist-mpl'; did you mean 'mnist-mlp'?"),
        (["train", "digits-mlp", "--epoch", "3"], "option '--epoch'; did you mean '--epochs'?"),
        (["train", "digits-mlp", "--sed=3"], "unknown option '--sed'; did you mean '--seed'?"),
        (["train", "digits-mlp", "more"], "unexpected argument 'more'"),
        (["train", "digits-mlp", "--epochs"], "--epochs: expected one argument"),
        (["train", "digits-mlp", "--epochs", "0"], "--epochs: must be a whole number from 1 on"),
        (["train", "digits-mlp", "--epochs", "2.5"], "not '2.5'"),
        (["train", "digits-mlp", "--epochs", "9" * 5000], "must be a whole number"),
        (["train", "digits-mlp", "--epochs", "٣"], "must be a whole number"),
        (["train", "digits-mlp", "--seed", "-1"], "--seed: "),
        (["train", "digits-mlp", "--seed", str(1 << 64)], "from 0 to 2**64 - 1"),
        (["train", "digits-mlp", "--device", "gpu"], "allowed: 'auto', 'cpu', 'cuda', 'cuda:N'"),
        (["train", "digits-mlp", "--set", "train.epochs"], "table.key=VALUE"),
        (["train", "digits-mlp", "--set", "trian.epochs=3"], "did you mean 'train'?"),
        (["evaluate"], "RUN"),
        (["evaluate", "x", "--part", "tset"], "--part"),
        (["predict", "x", "--format", "xml"], "--format"),
        (["predict", "x", "--format", "npz"], "--format npz needs --out FILE"),
        (["predict", "x", "--out", "x.txt"], "unknown format of --out 'txt'"),
        (["predict", "x", "--out", "no/x.csv"], "its folder does not exist"),
        (["predict", "x", "--json", "--format", "csv"], "do not go together"),
        (["recipes", "nope"], "unknown recipe 'nope'"),
        (["devices", "--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_wrong_use(run, arguments, words):
    outcome = run(*arguments)
    assert outcome.status == 2
    assert words in outcome.error
    assert outcome.out == "" and len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_no_run(run, here, command):
    (here / "empty").mkdir()
    for given in ("absent", "empty", "absent/checkpoint.json"):
        outcome = run(command, given)
        assert outcome.status == 1 and "there is no run in this folder" in outcome.error


def test_mnist_without_data_says_both_ways_to_get_it(run, here, monkeypatch):
    from gpubackprop.data import download

    def unreachable(*args, **kwargs):
        raise OSError("the network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("urllib.request.OpenerDirector.open", unreachable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.setattr(download, "find_pooch", lambda: None, raising=False)
    outcome = run("train", "mnist-mlp")
    assert outcome.status == 1
    assert "--data-dir" in outcome.error or "folder" in outcome.error
    assert "download" in outcome.error
    outcome = run("train", "mnist-mlp", "--data-dir", here)
    assert outcome.status == 1 and str(here) in outcome.error


def test_help_and_version(run):
    outcome = run("--help")
    assert outcome.status == 0
    assert all(f"  {name} " in outcome.out for name in COMMANDS)
    assert run().status == 2
    assert run("--version").out == f"gpubackprop {__version__}\n"
    for name in COMMANDS:
        outcome = run(name, "--help")
        assert outcome.status == 0 and f"usage: gpubackprop {name}" in outcome.out


def test_the_issue_names_these_options(run):
    said = run("train", "--help").out
    for option in ("--device", "--epochs", "--seed", "--data-dir", "--out", "--resume", "--set"):
        assert option in said
    assert "--json" in said and "RECIPE" in said and "KEY=VALUE" in said


def test_an_error_of_the_program_says_so(run, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("gpubackprop.recipes.names", broken)
    outcome = run("recipes")
    assert outcome.status == 1
    assert outcome.error.startswith("ZeroDivisionError: division by zero (an error of the program")
    outcome = run("recipes", "--traceback")
    assert outcome.status == 1 and "Traceback" in outcome.err and "in broken" in outcome.err


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (MemoryError(), 1, "not enough memory"),
        (MemoryError("unable to allocate 7 TiB"), 1, "not enough memory: unable to allocate 7 TiB"),
        (PermissionError(13, "Permission denied", "x"), 1, "Permission denied: 'x'"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_other_errors(run, monkeypatch, error, status, words):
    def broken(*args):
        raise error

    monkeypatch.setattr("gpubackprop.recipes.names", broken)
    outcome = run("recipes")
    assert outcome.status == status and words in outcome.error


def test_a_reader_that_goes_away(start):
    process = start("recipes", "digits-mlp")
    process.stdout.close()
    assert process.wait(timeout=60) in (0, 1)
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_standard_output_that_is_full():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from gpubackprop.cli import main; raise SystemExit(main())",
             "recipes"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_only_the_module_of_the_command_is_imported():
    code = (
        "import sys; from gpubackprop.cli import main; main(['--help']);"
        "print([m for m in sys.modules if m.startswith('gpubackprop.cli.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "['gpubackprop.cli.parser']"
