"""The command ``gpubackprop compare``."""

from __future__ import annotations

import json

import pytest

from gpubackprop.cli import main


def run(capsys, *arguments):
    """Exit status, standard output, standard error."""
    status = main(["compare", "digits-mlp", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_two_runs_on_one_device_agree(capsys):
    status, out, err = run(capsys, "--devices", "cpu,cpu", "--steps", "2")
    assert status == 0 and err == ""
    assert "verdict: the runs agree" in out and "by layer, in step 2" in out


def test_the_last_step_is_shown_and_long_names_are_lined_up(capsys, tmp_path):
    (tmp_path / "verse.txt").write_text("the cat sat on the mat\n" * 30)
    settings = [
        "data={name='text', path='verse.txt', context=8}",
        "model.layers=[{kind='gpt', layers=1, heads=2, width=8}]",
    ]
    arguments = ["--devices", "cpu,cpu", "--steps", "22", "--data-dir", str(tmp_path)]
    assert main(["compare", "shakespeare-gpt", *arguments, "--set", *settings]) == 0
    table, layers = capsys.readouterr().out.split("by layer, in step 22:\n")
    numbers = [line.split()[0] for line in table.splitlines() if line[:5].strip().isdigit()]
    assert numbers[-2:] == ["21", "22"] and "20" not in numbers
    rows = [line for line in layers.splitlines() if line.startswith("  ")]
    assert any(line.startswith("  0.blocks.0.attention.out_proj.weight gradient") for line in rows)
    starts = {line.index("gradient" if "gradient" in line else "value") for line in rows}
    assert len(starts) == 1


def test_json_is_one_object(capsys):
    status, out, _ = run(
        capsys, "--devices", "cpu,cpu", "--steps", "2", "--dtype", "float64", "--json"
    )
    found = json.loads(out)
    assert status == 0 and found["agrees"] is True and found["dtype"] == "float64"
    assert found["first_divergence"] is None and len(found["steps"]) == 2


def test_saved_trace_stands_for_the_other_machine(capsys, tmp_path):
    trace = tmp_path / "run.trace"
    status, out, _ = run(capsys, "--devices", "cpu", "--steps", "3", "--save-trace", str(trace))
    assert status == 0 and "3 steps" in out
    status, out, _ = run(capsys, "--devices", "cpu", "--against", str(trace))
    assert status == 0 and "verdict: the runs agree" in out
    status, _, err = run(capsys, "--devices", "cpu", "--against", str(trace), "--seed", "3")
    assert status == 1 and "another run: train.seed was 0 and is now 3; compare" in err


def test_disagreement_is_the_exit_status(capsys, tmp_path, monkeypatch):
    from gpubackprop.backends.cpu.backend import NumPyBackend

    trace = tmp_path / "run.trace"
    right = NumPyBackend.relu_backward
    monkeypatch.setattr(NumPyBackend, "relu_backward", lambda *a: right(*a) * a[1].dtype.type(1.01))
    assert run(capsys, "--devices", "cpu", "--steps", "2", "--save-trace", str(trace))[0] == 0
    monkeypatch.undo()
    status, out, _ = run(capsys, "--devices", "cpu", "--against", str(trace))
    assert status == 1 and "DISAGREE" in out
    assert "first divergence: step 1: cotangent of relu d(x)" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--devices", "cpu"], "two devices"),
        (["--devices", "cpu,cpu", "--save-trace", "x"], "one device"),
        (["--devices", "cpu,gpu"], "unknown device 'gpu'"),
        (["--devices", "cpu", "--against", "missing.trace"], "missing.trace"),
        (["--devices", "cpu", "--save-trace", "no/such/folder/x"], "does not exist"),
        (["--devices", "cpu,cpu", "--steps", "0"], "whole number"),
        (["--devices", "cpu,cpu", "--dtype", "float16"], "float16"),
        (["--devices", "cpu,cpu", "--save-trace", "a", "--against", "b"], "not allowed with"),
    ],
)
def test_wrong_use_is_one_line(capsys, arguments, words):
    status, out, err = run(capsys, *arguments)
    assert status in (1, 2) and out == ""
    assert words in err and err.count("\n") == 1
