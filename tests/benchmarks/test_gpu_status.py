"""The ledger of what ran on a GPU has a row for everything that wants one."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest

from tests.commands import check

PROJECT = Path(__file__).resolve().parents[2]
STATUS = PROJECT / "benchmarks" / "results" / "GPU-STATUS.md"
SCRIPT = (PROJECT / "benchmarks" / "gpu_all.sh").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in STATUS.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| part ", "| --- "))
]
# The marker itself, or the devices of another file whose last has it.
WANTS_A_GPU = re.compile(
    r"pytest\.mark\.gpu\b|from tests\.(places|backends\.test_cuda_training) import PLACES"
)


def files_with_gpu_tests() -> set[str]:
    found = set()
    for path in (PROJECT / "tests").rglob("test_*.py"):
        if path != Path(__file__) and WANTS_A_GPU.search(path.read_text(encoding="utf-8")):
            found.add(path.relative_to(PROJECT).as_posix())
    return found


def listed() -> set[str]:
    return {file for row in ROWS for file in re.findall(r"`(tests/[\w/]+\.py)`", row[1])}


def test_every_file_with_gpu_tests_has_a_row():
    assert len(files_with_gpu_tests()) > 10
    assert files_with_gpu_tests() == listed()


def test_every_part_of_the_script_has_a_row():
    parts = {
        n for line in re.findall(r"^ *in_order ([a-z].*)$", SCRIPT, re.M) for n in line.split()
    }
    assert parts - {"wheels", "environment"} == {row[0] for row in ROWS} - {""}


def test_every_benchmark_for_a_gpu_has_a_row():
    commands = " ".join(row[1] for row in ROWS)
    for package in sorted((PROJECT / "benchmarks").iterdir()):
        sources = [package] if package.suffix == ".py" else sorted(package.glob("__main__.py"))
        for source in sources:
            if re.search(r'"cuda(:\d+)?"', source.read_text(encoding="utf-8")):
                assert f"benchmarks.{package.stem}" in commands, package


@pytest.mark.parametrize("row", ROWS, ids=[row[1] for row in ROWS])
def test_a_row_is_never_or_says_when_where_and_what(row):
    assert len(row) == 7
    when, where, commit, outcome = row[3:]
    if when == "never":
        assert not (where or commit or outcome)
        return
    assert datetime.date.fromisoformat(when) and where and outcome
    assert re.fullmatch(r"`?[0-9a-f]{7,40}`?", commit)
    for target in re.findall(r"\]\(([^)]+)\)", outcome):
        assert (STATUS.parent / target).exists(), target


@pytest.mark.parametrize("row", ROWS, ids=[row[1] for row in ROWS])
def test_commands_exist(row):
    (command,) = re.findall(r"^`([^`]+)`", row[1])
    if command.startswith("gpubackprop "):
        check(command.split())
    elif command == "python -m benchmarks.gpu.smoke":
        assert (PROJECT / "benchmarks" / "gpu" / "smoke.py").is_file()
    elif command.startswith("python -m benchmarks.gpu"):
        from benchmarks.gpu.__main__ import parse

        parse(command.split()[3:])
    else:
        assert (PROJECT / command).is_file()
