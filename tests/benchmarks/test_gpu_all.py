"""benchmarks/gpu_all.sh: without a GPU every part says why, in its own log, and the script ends
well."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import gpu_absent

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "benchmarks" / "gpu_all.sh"
PARTS = (
    "environment",
    "tests",
    "tests-operations",
    "tests-composites",
    "compare-digits-mlp",
    "compare-digits-cnn",
    "compare-mnist-mlp",
    "compare-mnist-nielsen",
    "compare-mnist-cnn",
    "kernels",
    "steps",
    "steps-max-autotune",
    "bench",
    "determinism",
    "bench-devices",
)

pytestmark = [
    pytest.mark.skipif(
        not shutil.which("bash") or not shutil.which("timeout"), reason="needs bash and timeout"
    ),
    pytest.mark.skipif(not gpu_absent(), reason="there is a GPU: the script would use it"),
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments, "--python", sys.executable],
        text=True,
        capture_output=True,
        timeout=120,
        env=environment,
    )


def outcomes(summary: str) -> dict[str, str]:
    found = re.findall(r"^(\S+) +(done|time limit|not started|failed \(\d+\)) +\d+ ", summary, re.M)
    return dict(found)


def test_every_part_says_why_it_could_not_run(tmp_path):
    done = run(str(tmp_path / "out"), "--budget", "90", "--scale", "0.3")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "summary.txt").read_text() == done.stdout
    assert tuple(outcomes(done.stdout)) == PARTS
    for part in PARTS:
        assert outcomes(done.stdout)[part].startswith("failed"), done.stdout
        log = (tmp_path / "out" / f"{part}.log").read_text()
        assert "no usable GPU" in log or "cannot be used" in log, log
        assert "Traceback" not in log, log
    environment = (tmp_path / "out" / "environment.txt").read_text()
    assert re.search(r"^numpy +\d", environment, re.M) and "Python 3." in environment


def test_a_budget_that_is_spent_ends_the_rest(tmp_path):
    done = run(str(tmp_path / "out"), "--budget", "0")
    assert done.returncode == 0, done.stderr
    assert set(outcomes(done.stdout).values()) == {"not started"}
    assert tuple(outcomes(done.stdout)) == PARTS


def test_wheels_are_unpacked_behind_the_machines_packages(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "__version__ = '1.0'\n")
        wheel.writestr("numpy/__init__.py", "raise ImportError('the wrong one')\n")
    out = tmp_path / "out"
    done = run(str(out), "--wheels", str(wheels), "--budget", "5", "--scale", "0.1")
    assert done.returncode == 0, done.stderr
    assert outcomes(done.stdout)["wheels"] == "done"
    script = "import carried, numpy; print(carried.__version__, numpy.__version__)"
    path = f"{PROJECT}{os.pathsep}{out / 'start'}"
    found = subprocess.run(
        [sys.executable, "-c", script],
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert found.stdout.startswith("1.0 "), found.stderr


@pytest.mark.parametrize("arguments", [(), ("--what",), ("a", "b")])
def test_wrong_arguments_print_the_usage(arguments):
    done = run(*arguments)
    assert done.returncode == 2 and "gpu_all.sh OUTDIR" in done.stderr


def test_every_limit_fits_the_budget():
    """Parts that run at once count once; a trial with everything at its limit ends within nine
    minutes, since each part gets no more than what is left."""
    text = SCRIPT.read_text()
    (budget,) = re.findall(r"^out=.* budget=(\d+)", text, re.M)
    assert int(budget) + 5 < 540  # a part that has to be killed takes up to five seconds more
    named = re.findall(r"^ *in_order ([a-z].*)$", text, re.M)
    assert [n for line in named for n in line.split()] == ["wheels", *PARTS]
