"""benchmarks/gpu_all.sh: without a GPU every part says why, in its own log, and the script ends
well."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks import ledger
from benchmarks.gpu import __main__ as command
from tests.commands import check
from tests.conftest import gpu_absent

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "benchmarks" / "gpu_all.sh"
PARTS = (
    "environment",
    "smoke",
    "tests",
    "tests-operations",
    "tests-composites",
    "compare-digits-mlp",
    "compare-digits-cnn",
    "compare-mnist-mlp",
    "compare-mnist-nielsen",
    "compare-mnist-cnn",
    "steps",
    "kernels",
    "memory",
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
    carried = () if "--wheels" in arguments else ("--no-wheels",)
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments, *carried, "--python", sys.executable],
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
    assert done.stdout.endswith((tmp_path / "out" / "summary.txt").read_text())
    rows = [x.split("\t") for x in (tmp_path / "out" / "parts.tsv").read_text().splitlines()]
    assert tuple(row[0] for row in rows) == PARTS and {len(row) for row in rows} == {4}
    with pytest.raises(ledger.RefusedError, match="the run had no GPU"):
        ledger.read(tmp_path / "out")
    assert tuple(outcomes(done.stdout)) == PARTS
    for part in PARTS:
        assert outcomes(done.stdout)[part].startswith("failed"), done.stdout
        log = (tmp_path / "out" / f"{part}.log").read_text()
        assert "no usable GPU" in log or "cannot be used" in log, log
        assert "Traceback" not in log, log
    assert not (tmp_path / "out" / "work").exists()
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
    done = run(str(out), "--wheels", str(wheels), "--budget", "5", "--scale", "0.1", "--keep")
    assert done.returncode == 0, done.stderr
    assert outcomes(done.stdout)["wheels"] == "done"
    script = "import carried, numpy; print(carried.__version__, numpy.__version__)"
    path = f"{PROJECT}{os.pathsep}{out / 'work' / 'start'}"
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


def commands() -> list[list[str]]:
    """Every call of this project's commands in the script, without the shell's variables."""
    text = re.sub(r"\\\n *", "", SCRIPT.read_text())
    text = re.sub(r"\$\(less (\d+)\)", r"\1", text).translate({ord(c): "" for c in "\"'"})
    found = re.findall(r"\$python -m (benchmarks\.gpu|gpubackprop) ([^&\n]*)", text)
    return [[name, *(w for w in rest.split() if w[:1] != "$")] for name, rest in found]


@pytest.mark.parametrize("words", commands(), ids=lambda w: " ".join(w)[:60])
def test_every_option_of_the_script_exists(words):
    if words[0] == "benchmarks.gpu":
        words = [w for w in words[1:] if w != "--json"]
        options = command.parse(words)
        assert options.contenders and options.only
    else:
        check(words)


def test_enough_commands_are_looked_at():
    assert len(commands()) >= 8
    assert sum(words[0] == "benchmarks.gpu" for words in commands()) == 4


def test_the_tests_that_ran_before_the_limit_are_in_the_report(tmp_path):
    (tmp_path / "test_two.py").write_text(
        "import time\n"
        "def test_quick(): pass\n"
        "def test_slow(): open('begun', 'w').close(); time.sleep(60)\n"
    )
    report = tmp_path / "tests.xml"
    arguments = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu.suite", *arguments, f"--junitxml={report}", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 30
        while not (tmp_path / "begun").exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.terminate()
        process.wait(20)
    finally:
        process.kill()
    assert ledger.by_file(report)["test_two.py"]["passed"] == 1


def test_wheels_hold_all_that_the_tests_import():
    """What pytest and hypothesis ask for beside what they bring is fetched too."""
    text = (PROJECT / "benchmarks" / "gpu_wheels.sh").read_text()
    (listed,) = re.findall(r"^packages='(.*?)'$", text, re.S | re.M)
    names = {re.split(r"[<>=!]", line)[0].lower().replace("_", "-") for line in listed.split()}
    machine = {"numpy", "cupy-cuda13x", "torch"}
    for name in (
        "pytest",
        "hypothesis",
        "pytest-timeout",
        "pytest-xdist",
        "ml-dtypes",
        "safetensors",
        "tqdm",
    ):
        assert name in names
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or marker.evaluate(OTHER):
                assert requirement.name.lower().replace("_", "-") in names | machine, (name, line)


OTHER = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux"} | {
    "platform_system": "Linux",
    "os_name": "posix",
    "implementation_name": "cpython",
    "extra": "",
}
"""The machine that the wheels are for."""
