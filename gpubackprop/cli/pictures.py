"""The pictures at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.cli import folders
from gpubackprop.cli.parser import note
from gpubackprop.data import DATASETS
from gpubackprop.recipes import Job
from gpubackprop.training import FitResult, outputs_of, plot

BATCH = 4096
"""Points of the plane that are classified at a time."""


def draw(job: Job, result: FitResult, out: Path, watched: str) -> None:
    """Draw the learning curve, and the decision boundary of a classifier of points in the plane."""
    if not plot.available():
        note(f"no learning curve was drawn: {plot.MISSING}")
        return
    name = job.recipe.name
    plot.learning_curve(result.history, out / folders.CURVE, title=name, watched=watched)
    plane = job.data.input_shape == (2,) and not DATASETS[job.recipe.data.name].tokens
    if job.data.classes is None or not plane:
        return
    points, labels = job.data.test.array("input"), job.data.test.array("target")
    if labels.ndim > 1:
        labels = labels.argmax(axis=1)

    def scores(grid: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        starts = range(0, len(grid), BATCH)
        batches = ((grid[start : start + BATCH],) for start in starts)
        return outputs_of(job.model, batches, job.optimizer.arena.parameters[0].backend)

    plot.decision_boundary(scores, points, labels, out / folders.BOUNDARY, title=name)
