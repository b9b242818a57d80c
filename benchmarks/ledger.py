"""Enters a run of ``benchmarks/gpu_all.sh`` into the ledger of what has run on a GPU.

    python -m benchmarks.ledger OUTDIR [--ledger benchmarks/results/GPU-STATUS.md]

Copies the results (not the caches) to a folder beside the ledger, named by date and commit, and
writes the rows of the parts that ran anew: date, machine, commit, and the outcome as the run's own
files have it. Parts that were not started keep the row that they had. A run without a GPU is
refused.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

PROJECT = Path(__file__).resolve().parents[1]
LEDGER = PROJECT / "benchmarks" / "results" / "GPU-STATUS.md"
KEPT = (".json", ".xml", ".txt", ".tsv", ".png", ".log")
LARGEST = 2_000_000
"""Bytes of a file that is kept."""
WORDS = 80
"""Characters of a part's last words that its row shows."""


class RefusedError(Exception):
    """The folder is not a run that can be entered; the text says why."""


@dataclass(frozen=True)
class Part:
    """How a part of the script ended: ``"done"``, ``"failed (1)"`` or ``"time limit"``."""

    outcome: str
    words: str


@dataclass(frozen=True)
class Run:
    """What lies in the folder of a run.

    Attributes
    ----------
    date, machine, commit : the cells of every row.
    parts : by name, those that were started.
    tests : by part and file, how many cases passed, failed and were skipped.
    """

    date: str
    machine: str
    commit: str
    parts: dict[str, Part]
    tests: dict[str, dict[str, Counter[str]]]


def read(folder: Path) -> Run:
    """The run in a folder.

    Raises
    ------
    RefusedError
        It is not one, or had no GPU, or its commit is not known.
    """
    try:
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        lines = (folder / "parts.tsv").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RefusedError(f"{folder} is no result of gpu_all.sh: {error}") from None
    if found["problem"] or not found["gpus"]:
        raise RefusedError(f"the run had no GPU ({found['problem']}); nothing is entered")
    if not found["commit"]:
        raise RefusedError(
            "the run does not know its commit (no git); write it into environment.json"
        )
    cells = [line.split("\t") for line in lines]
    parts = {c[0]: Part(c[1], c[3] if len(c) > 3 else "") for c in cells if c[1] != "not started"}
    tests = {
        name: by_file(folder / f"{name}.xml")
        for name in parts
        if name.startswith("tests") and (folder / f"{name}.xml").is_file()
    }
    return Run(found["date"], _machine(found), found["commit"], parts, tests)


def _machine(found: dict[str, Any]) -> str:
    said = str(found["driver"] or "").splitlines()
    name, driver, *_ = [*said[0].split(", "), "", ""] if said else [found["gpus"][0], "", ""]
    words = [name, f"driver {driver}" if driver else "", f"CuPy {found['versions'].get('cupy')}"]
    return ", ".join(w for w in words if w)


def by_file(report: Path) -> dict[str, Counter[str]]:
    """How the cases of each test file ended, from pytest's report."""
    found: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if "name" not in case.attrib:  # was running when the limit came
            continue
        file = _file_of(case.get("classname", ""))
        kinds = {child.tag for child in case}
        ended = "passed"
        if kinds & {"failure", "error"}:
            ended = "failed"
        elif "skipped" in kinds:
            ended = "skipped"
        found.setdefault(file, Counter())[ended] += 1
    return found


def _file_of(name: str) -> str:
    """``tests.nn.test_arena.TestX`` is in ``tests/nn/test_arena.py``."""
    words = name.split(".")
    last = max((i for i, w in enumerate(words) if w.startswith("test_")), default=len(words) - 1)
    return "/".join(words[: last + 1]) + ".py"


def entered(text: str, run: Run, results: str, kept: Sequence[str]) -> tuple[str, int]:
    """The ledger with the rows of a run.

    Parameters
    ----------
    text : the ledger as it is.
    results : folder of the run's files, as links from the ledger have it.
    kept : names of the files there.

    Returns
    -------
    text, rows : as it shall be, and how many rows are new.
    """
    lines, count = [], 0
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        outcome = _outcome(cells, run, results, kept) if len(cells) == 7 else None
        if outcome is not None:
            cells[3:] = [run.date, run.machine, f"`{run.commit[:12]}`", outcome]
            line = "| " + " | ".join(cells) + " |"
            count += 1
        lines.append(line)
    return "\n".join(lines) + "\n", count


def _outcome(cells: list[str], run: Run, results: str, kept: Sequence[str]) -> str | None:
    """What a row says of the run; None where it did not come to that."""
    part = run.parts.get(cells[0])
    if part is None:
        return None
    if test := re.fullmatch(r"`(tests/[\w/]+\.py)`", cells[1]):
        counts = run.tests.get(cells[0], {}).get(test[1])
        if counts is None:
            return None
        said = ", ".join(f"{counts[k]} {k}" for k in ("passed", "failed", "skipped") if counts[k])
        if part.outcome == "time limit":
            said += " before the time limit"
        return f"{said}{_link(results, kept, f'{cells[0]}.log')}"
    words = part.words.replace("|", "/")[:WORDS].strip()
    said = part.outcome if part.outcome == "done" or not words else f"{part.outcome}: {words}"
    return f"{said}{_link(results, kept, f'{cells[0]}.json', f'{cells[0]}.log')}"


def _link(results: str, kept: Sequence[str], *names: str) -> str:
    """A link to the first of these files that is there."""
    name = next((n for n in names if n in kept), None)
    return "" if name is None else f", [{name}]({results}/{name})"


def keep(folder: Path, target: Path) -> list[str]:
    """Copy the results; their names."""
    target.mkdir(parents=True, exist_ok=True)
    names = []
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in KEPT and file.stat().st_size <= LARGEST:
            shutil.copyfile(file, target / file.name)
            names.append(file.name)
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Enter a run."""
    parser = argparse.ArgumentParser(
        "benchmarks.ledger", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, metavar="OUTDIR")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    options = parser.parse_args(argv)
    try:
        run = read(options.folder)
    except RefusedError as error:
        print(f"benchmarks.ledger: {error}", file=sys.stderr)
        return 1
    name = f"gpu-{run.date}-{run.commit[:7]}"
    kept = keep(options.folder, options.ledger.parent / name)
    text, count = entered(options.ledger.read_text(encoding="utf-8"), run, name, kept)
    options.ledger.write_text(text, encoding="utf-8")
    print(f"{count} rows of {options.ledger.name}, {len(kept)} files in {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
