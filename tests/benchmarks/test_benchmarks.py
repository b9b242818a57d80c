"""The benchmarks run, and say which contender is absent."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest

from benchmarks import convolution, interleave, mlp, operation_cost


def rates(out: str) -> dict[str, float]:
    """Steps per second of each contender in a printed table."""
    return {
        n: float(v) for n, v in re.findall(r"^([\w-]+) +([\d.]+) +[\d.]+ +[\d.]+ +\[", out, re.M)
    }


def test_training_steps(capsys, tmp_path):
    file = tmp_path / "result.json"
    arguments = ["--only", "nielsen", "--rounds", "1", "--seconds", "0.05", "--json", str(file)]
    assert mlp.main(arguments) == 0
    out = capsys.readouterr().out
    assert rates(out)["gb-eager"] > 100
    written = json.loads(file.read_text())
    assert written["machine"]["cores"] >= 1
    assert written["workloads"]["nielsen"]["gb-eager"]["steps_per_second"] > 100
    for name in mlp.CONTENDERS:
        assert name in rates(out) or f"{name:<26}absent: " in out
    if importlib.util.find_spec("torch") is None:
        assert "No module named 'torch'" in out


def test_cost_of_an_operation(capsys):
    assert operation_cost.main(["--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("gb-eager") == 3 and rates(out)["gb-eager"] > 1000


def test_convolutions(capsys):
    arguments = ["--only", "8x8x64-64", "--direction", "forward", "--rounds", "1"]
    assert convolution.main([*arguments, "--seconds", "0.02"]) == 0
    out = capsys.readouterr().out
    assert rates(out)["gb-numpy"] > 1
    for name in convolution.CONTENDERS:
        assert name in rates(out) or f"{name:<26}absent: " in out


def test_ratios_are_taken_round_by_round():
    result = interleave.Result("ours", 200.0, 2.0, 1.5, 2.5, {"note": 1})
    assert "2.00  [1.50 .. 2.50]  note=1" in result.row()
    assert interleave.as_json([result])["ours"]["ratio"] == pytest.approx(2.0)
