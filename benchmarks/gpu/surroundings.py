"""Where a run on a GPU took place: date, commit, GPU, versions, and what is missing.

    python -m benchmarks.gpu.surroundings FILE.json

Prints it for a reader, and ends with status 1 where no GPU can be used.
"""

from __future__ import annotations

import datetime
import importlib
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
LIBRARIES = (
    "numpy",
    "cupy",
    "ml_dtypes",
    "torch",
    "triton",
    "jax",
    "safetensors",
    "tqdm",
    "pytest",
    "hypothesis",
    "pytest_timeout",
    "matplotlib",
    "cudnn",
    "cuda.pathfinder",
)


def _said(*command: str) -> str | None:
    """What a command prints, or None where it fails."""
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=20, cwd=PROJECT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Version of each library, or why it cannot be imported."""
    found = {}
    for name in LIBRARIES:
        try:
            module = importlib.import_module(name)
            found[name] = str(getattr(module, "__version__", "there"))
        except Exception as error:  # noqa: BLE001 - whatever a broken library raises
            found[name] = f"missing ({type(error).__name__}: {error})"
    return found


def surroundings() -> dict[str, Any]:
    """All of it, JSON's types."""
    from gpubackprop.backends import detect

    problem = detect.gpu_problem()
    query = "name,driver_version,memory.total,clocks.max.sm"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _said("git", "rev-parse", "HEAD"),
        "changed": bool(_said("git", "status", "--porcelain", "--untracked-files=no")),
        "gpus": [str(d) for d in detect.devices()],
        "driver": _said("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"),
        "problem": None if problem is None else f"{problem.cause}; {problem.mend}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file and print what is in it."""
    given = list(sys.argv[1:] if argv is None else argv)
    found = surroundings()
    Path(given[0]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{found['date']}, commit {found['commit'] or 'not known (no git)'}", end="")
    print(" with changes" if found["changed"] else "")
    print(f"Python {found['python']}, {found['system']}")
    for line in [*found["gpus"], f"nvidia-smi: {found['driver'] or 'not there'}"]:
        print(line)
    for name, version in found["versions"].items():
        print(f"{name:<16} {version}")
    if found["problem"]:
        print(f"no usable GPU: {found['problem']}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
