"""benchmarks.ledger: the rows that a run of gpu_all.sh gives, from the files that it leaves."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks import ledger
from tests.benchmarks import test_gpu_status

REPORT = """<?xml version="1.0"?>
<testsuites><testsuite>
<testcase classname="tests.nn.test_arena" name="a"/>
<testcase classname="tests.nn.test_arena.TestMoves" name="b"><failure>x</failure></testcase>
<testcase classname="tests.optim.test_optimizers" name="c"><skipped message="one GPU"/></testcase>
<testcase classname="tests.optim.test_optimizers" name="d"/>
<testcase classname="tests.optim.test_optimizers" name="e"><error message="no">x</error></testcase>
<testcase time="0.1"/>
</testsuite></testsuites>
"""
PARTS = """environment\tdone\t3\tcuda.pathfinder 1.3
tests\ttime limit\t130\t= 2 failed, 2 passed =
compare-digits-mlp\tdone\t9\tthe same to 1e-6
compare-digits-cnn\tfailed (1)\t9\tlosses differ | by 3
steps\tdone\t140\tW3
memory\tnot started\t0\tno time was left
"""


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    (folder / "site").mkdir(parents=True)
    (folder / "parts.tsv").write_text(PARTS)
    (folder / "tests.xml").write_text(REPORT)
    for name in ("tests.log", "steps.json", "steps.log", "compare-digits-cnn.log"):
        (folder / name).write_text("{}")
    (folder / "other.bin").write_text("x")
    environment(folder)
    return folder


def environment(folder, **other):
    found = {
        "date": "2026-12-31",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "gpus": ["cuda:0 a card"],
        "driver": "a card, 580.1, 80000 MiB, 1980 MHz",
        "problem": None,
        "versions": {"cupy": "14.2.0"},
    }
    (folder / "environment.json").write_text(json.dumps(found | other))


@pytest.fixture
def status(tmp_path):
    file = tmp_path / "results" / "GPU-STATUS.md"
    file.parent.mkdir()
    shutil.copyfile(ledger.LEDGER, file)
    return file


def rows(file):
    found = [line.strip("|").split("|") for line in file.read_text().splitlines()]
    return {(c[0].strip(), c[1].strip()): [x.strip() for x in c[3:]] for c in found if len(c) == 7}


def test_rows_say_what_the_run_left(out, status, capsys):
    before = rows(status)
    assert ledger.main([str(out), "--ledger", str(status)]) == 0
    after = rows(status)
    assert list(after) == list(before)
    folder = "gpu-2026-12-31-0123456"
    where = ["2026-12-31", "a card, driver 580.1, CuPy 14.2.0", "`0123456789ab`"]
    expected = {
        ("tests", "`tests/nn/test_arena.py`"): (
            f"1 passed, 1 failed before the time limit, [tests.log]({folder}/tests.log)"
        ),
        ("tests", "`tests/optim/test_optimizers.py`"): (
            f"1 passed, 1 failed, 1 skipped before the time limit, [tests.log]({folder}/tests.log)"
        ),
        ("compare-digits-mlp", "`gpubackprop compare digits-mlp --devices cpu,cuda`"): "done",
        ("compare-digits-cnn", "`gpubackprop compare digits-cnn --devices cpu,cuda`"): (
            "failed (1): losses differ / by 3, "
            f"[compare-digits-cnn.log]({folder}/compare-digits-cnn.log)"
        ),
    }
    changed = {key: row for key, row in after.items() if row != before[key]}
    for key, outcome in expected.items():
        assert changed.pop(key) == [*where, outcome]
    ((part, _), row), *others = changed.items()
    assert part == "steps" and not others
    assert row == [*where, f"done, [steps.json]({folder}/steps.json)"]
    assert capsys.readouterr().out == f"5 rows of GPU-STATUS.md, 7 files in {folder}\n"
    assert not (status.parent / folder / "other.bin").exists()


def test_a_test_that_was_running_at_the_limit_is_not_counted(out):
    found = ledger.by_file(out / "tests.xml")
    assert {file: sum(n.values()) for file, n in found.items()} == {
        "tests/nn/test_arena.py": 2,
        "tests/optim/test_optimizers.py": 3,
    }


def test_the_rows_are_such_as_the_ledger_must_have(out, status, monkeypatch):
    assert ledger.main([str(out), "--ledger", str(status)]) == 0
    monkeypatch.setattr(test_gpu_status, "STATUS", status)
    for (part, command), rest in rows(status).items():
        if part != "part" and not part.startswith("---"):
            cells = [part, command, "", *rest]
            test_gpu_status.test_a_row_is_never_or_says_when_where_and_what(cells)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"problem": "no driver", "gpus": []},
            "the run had no GPU (no driver); nothing is entered",
        ),
        ({"commit": None}, "does not know its commit"),
    ],
)
def test_a_run_that_shows_nothing_is_refused(out, status, capsys, other, words):
    environment(out, **other)
    before = status.read_text()
    assert ledger.main([str(out), "--ledger", str(status)]) == 1
    assert words in capsys.readouterr().err and status.read_text() == before


def test_a_folder_of_something_else_is_refused(tmp_path, status, capsys):
    assert ledger.main([str(tmp_path), "--ledger", str(status)]) == 1
    assert "is no result of gpu_all.sh" in capsys.readouterr().err
