"""Every example runs as it is written and shows what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*command: str, cwd: Path | None = None) -> str:
    """Standard output of a command that must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_chain_rule_shows_the_derivatives_and_the_error_falls():
    out = run(str(EXAMPLES / "chain_rule.py"))
    forward, backward = out.index("forwards"), out.index("backwards")
    assert out.index("sigmoid", forward) < backward < out.index("sigmoid   dC/dout")
    costs = [float(c) for c in re.findall(r"cost was ([\d.]+)", out)]
    assert len(costs) == 7 and costs == sorted(costs, reverse=True) and costs[-1] < costs[0] / 100


def test_by_hand_learns_the_digits():
    out = run(str(EXAMPLES / "by_hand.py"))
    costs = [float(c) for c in re.findall(r"cost ([\d.]+)", out)]
    assert costs == sorted(costs, reverse=True)
    match = re.search(r"held-out accuracy ([\d.]+)%", out)
    assert match and float(match[1]) > 85


def test_a_custom_operation_is_checked_and_learns():
    out = run(str(EXAMPLES / "custom_operation.py"))
    assert "swish: 4 samples pass every check" in out
    assert "check_gradient (backward is the derivative of forward)" in out
    assert "wrong derivative by beta" in out and "To mend it: " in out
    costs = [float(c) for c in re.findall(r"cost ([\d.]+)", out)]
    assert costs == sorted(costs, reverse=True)
    match = re.search(r"accuracy ([\d.]+)%; the slopes went from 1 to", out)
    assert match and float(match[1]) > 97


def test_a_recipe_of_ones_own_trains(tmp_path):
    recipe = str(EXAMPLES / "spirals.toml")
    out = run("-m", "gpubackprop", "train", recipe, "--out", str(tmp_path / "run"))
    match = re.search(r"test accuracy ([\d.]+) %", out)
    assert match and float(match[1]) > 97


def test_every_example_is_tested():
    assert {p.name for p in EXAMPLES.iterdir() if p.suffix in (".py", ".toml")} == {
        "chain_rule.py",
        "by_hand.py",
        "custom_operation.py",
        "spirals.toml",
        "table.toml",  # in test_own_data.py
    }
