"""Pictures of a run, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.training.files import write_atomic

MISSING = "matplotlib is not installed (pip install 'gpubackprop[plot]')"
GRID = 300
"""Points along each side of the picture of a decision boundary."""


def available() -> bool:
    """Whether pictures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def learning_curve(
    history: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    title: str = "",
    watched: str = "validation",
) -> None:
    """Draw cost and accuracy over the epochs as a PNG.

    Parameters
    ----------
    history : the figures of each epoch, as in ``metrics.jsonl``.
    path : the file.
    title : what stands above.
    watched : what the validation figures are of.

    Raises
    ------
    CheckpointError
        The file cannot be written.
    """
    figure = _figure((7.0, 4.0))
    epochs = [line["epoch"] for line in history]
    left = figure.add_subplot()
    (train,) = left.plot(epochs, _column(history, "train_loss"), color="C0", marker=".")
    (watch,) = left.plot(epochs, _column(history, "val_loss"), color="C1", marker=".")
    left.set_xlabel("epoch")
    left.set_ylabel("cost")
    left.set_ylim(bottom=0)
    left.set_title(title)
    shown = [(train, "training cost"), (watch, f"{watched} cost")]
    accuracy = _column(history, "val_accuracy")
    if np.isfinite(accuracy).any():
        right = left.twinx()
        (drawn,) = right.plot(epochs, 100 * accuracy, color="C2", marker=".")
        right.set_ylabel("accuracy in %")
        shown.append((drawn, f"{watched} accuracy"))
    left.legend([line for line, _ in shown], [label for _, label in shown], loc="center right")
    left.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, path)


def decision_boundary(
    classify: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
    points: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    path: Path,
    *,
    title: str = "",
) -> None:
    """Draw which class a network gives to each point of the plane, and the samples, as a PNG.

    Parameters
    ----------
    classify : class scores, shape (n, classes), of points, shape (n, 2).
    points : samples, shape (m, 2).
    labels : their class numbers, shape (m,).
    path : the file.
    title : what stands above.

    Raises
    ------
    CheckpointError
        The file cannot be written.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.1 * (high - low) + 1e-6
    axes = [np.linspace(a, b, GRID) for a, b in zip(low - margin, high + margin, strict=True)]
    grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2).astype(points.dtype)
    scores = classify(grid)
    winner = scores.argmax(axis=1).reshape(GRID, GRID)
    classes = scores.shape[1]
    figure = _figure((6.0, 5.0))
    plot = figure.add_subplot()
    levels = np.arange(classes + 1) - 0.5
    colours = [f"C{k % 10}" for k in range(classes)]
    plot.contourf(*axes, winner, levels=levels, colors=colours, alpha=0.25)
    plot.contour(*axes, winner, levels=levels[1:-1], colors="black", linewidths=1.0)
    for k, colour in enumerate(colours):
        chosen = points[labels == k]
        plot.scatter(chosen[:, 0], chosen[:, 1], s=8, color=colour, label=f"class {k}")
    plot.set_aspect("equal")
    plot.set_title(title)
    plot.legend(loc="upper right")
    _save(figure, path)


def _figure(size: tuple[float, float]) -> Any:
    # Not pyplot: no window system, no state that is shared with the caller's figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(path, buffer.getvalue())


def _column(history: Sequence[Mapping[str, Any]], key: str) -> np.ndarray[Any, Any]:
    return np.array([np.nan if line.get(key) is None else line[key] for line in history], float)
