"""Pictures: real PNG files that show the right classes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gpubackprop.errors import CheckpointError
from gpubackprop.training import plot

matplotlib = pytest.importorskip("matplotlib", reason="the plot extra is not installed")

HISTORY = [
    {"epoch": 1, "train_loss": 1.0, "val_loss": 1.2, "val_accuracy": 0.5},
    {"epoch": 2, "train_loss": 0.5, "val_loss": None, "val_accuracy": None},
    {"epoch": 3, "train_loss": 0.4, "val_loss": 0.9, "val_accuracy": 0.75},
]


def picture(path) -> np.ndarray:
    assert path.read_bytes().startswith(b"\x89PNG")
    return matplotlib.image.imread(path)


@pytest.fixture(autouse=True)
def image_reader():
    import matplotlib.image  # noqa: F401


@pytest.mark.parametrize("history", [HISTORY, HISTORY[:1], []])
def test_learning_curve(tmp_path, history):
    plot.learning_curve(history, tmp_path / "curve.png", title="digits", watched="test")
    image = picture(tmp_path / "curve.png")
    assert image.shape[:2] == (480, 840)
    assert len(np.unique(image[..., :3].reshape(-1, 3), axis=0)) > 2


def test_a_regression_has_no_accuracy(tmp_path):
    lines = [{"epoch": n, "train_loss": 1 / n, "val_loss": 1 / n} for n in range(1, 4)]
    plot.learning_curve(lines, tmp_path / "curve.png")
    picture(tmp_path / "curve.png")


def test_decision_boundary(tmp_path):
    points = np.array([[-1, 0], [1, 0], [-1, 1], [1, 1]], np.float32)
    seen = []

    def classify(grid):
        seen.append(grid)
        return np.stack([-grid[:, 0], grid[:, 0]], axis=1)

    labels = np.array([0, 1, 0, 1])
    plot.decision_boundary(classify, points, labels, tmp_path / "boundary.png", title="halves")
    image = picture(tmp_path / "boundary.png")
    (grid,) = seen
    assert grid.dtype == np.float32 and grid.shape == (plot.GRID**2, 2)
    assert grid[:, 0].min() < -1 and grid[:, 0].max() > 1
    # The left half is blue, the right half orange.
    height, width = image.shape[:2]
    left, right = (image[height // 2, x, :3] for x in (width // 3, 2 * width // 3))
    assert left[2] > left[0] and right[0] > right[2]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write"):
        plot.learning_curve(HISTORY, tmp_path / "absent" / "curve.png")


def test_drawing_touches_no_state_of_pyplot(tmp_path):
    code = (
        "import sys; from pathlib import Path; from gpubackprop.training import plot;"
        f"plot.learning_curve([], Path({str(tmp_path)!r}) / 'c.png');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
