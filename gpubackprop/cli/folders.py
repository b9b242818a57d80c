"""Which folder a run writes to."""

from __future__ import annotations

import re
from pathlib import Path

from gpubackprop.cli.parser import note
from gpubackprop.data.reading import os_reason
from gpubackprop.errors import ConfigError
from gpubackprop.training.checkpoint import CheckpointFolder
from gpubackprop.training.trainer import METRICS

RUNS = Path("runs")
"""Where runs go that are given no folder."""

RECIPE, RESULT, CURVE, BOUNDARY = "recipe.toml", "result.json", "curve.png", "boundary.png"
WRITTEN = frozenset({METRICS, RECIPE, RESULT, CURVE, BOUNDARY})
"""What a run writes beside its checkpoints."""


def choose(out: str | None, recipe: str, resume: bool) -> tuple[Path | None, bool]:
    """The folder of a run, and whether it holds one to resume; None where :func:`fresh` makes one.

    Parameters
    ----------
    out : the folder that was asked for; None for one below ``runs`` with the recipe's name: a new
        one, or with `resume` the newest.
    recipe : the recipe's name.
    resume : whether a run that is there should go on.

    Raises
    ------
    ConfigError
        The folder is in use, and what is in it would be lost or mixed up.
    """
    if out is None:
        if not resume:
            return None, False
        newest = _newest(recipe)
        if newest is None:
            raise ConfigError(f"--resume: there is no run of {recipe!r} below {RUNS}; give --out")
        note(f"resuming the newest run of {recipe}: {newest}")
        path = newest
    else:
        path = Path(out)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out {path}: there is a file of this name; choose another folder")
    folder = CheckpointFolder(path)
    if folder.exists():
        if resume:
            return path, True
        raise ConfigError(
            f"--out {path}: it holds a run already; add --resume to go on with it, or choose "
            "another folder"
        )
    foreign = [name for name in folder.foreign() if name not in WRITTEN]
    if foreign:
        raise ConfigError(
            f"--out {path}: it holds other files ({foreign[0]}) and no run; choose another folder"
        )
    if resume:
        note(f"nothing to resume in {path}: the run begins anew")
    return path, False


def make(path: Path) -> None:
    """Make the folder of a run, and those above it, where they are missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path}: {os_reason(error)}") from None


def fresh(recipe: str) -> Path:
    """Make a new folder below ``runs`` with the recipe's name, numbered where there are others."""
    number = 1
    while True:
        path = RUNS / (recipe if number == 1 else f"{recipe}-{number}")
        try:
            RUNS.mkdir(exist_ok=True)
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ConfigError(f"cannot make the folder {path}: {os_reason(error)}") from None


def _newest(recipe: str) -> Path | None:
    pattern = re.compile(rf"{re.escape(recipe)}(?:-(\d{{1,9}}))?")
    found = [
        (int(match.group(1) or 1), path)
        for path in (RUNS.iterdir() if RUNS.is_dir() else ())
        if (match := pattern.fullmatch(path.name)) and CheckpointFolder(path).exists()
    ]
    return max(found)[1] if found else None
