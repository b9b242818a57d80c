"""Training the same recipe on two devices, or on one against a saved trace."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from typing import Any

from gpubackprop.autograd import STATE
from gpubackprop.backends import Backend
from gpubackprop.data import DataSplit
from gpubackprop.errors import CheckpointError
from gpubackprop.inspect.compare import Comparer, Comparison, StepReport
from gpubackprop.inspect.trace import Record, Trace, Tracer
from gpubackprop.recipes import Recipe, build, make_trainer
from gpubackprop.training.state import differences

TRACE_LIMIT = 4096
"""Values of each array that a saved trace keeps: evenly spaced ones, and the norm of all."""

Progress = Callable[[StepReport], None]
Step = tuple[list[Record], float]


class TracedRun:
    """A recipe's run on one device, step by step, with everything that it computes recorded.

    Parameters
    ----------
    recipe : what to train; its seed and dtype settle the run.
    device : a device name or a backend.
    data : the recipe's data.
    limit : how many values of each array to keep; None keeps all.
    """

    def __init__(
        self, recipe: Recipe, device: str | Backend, data: DataSplit, limit: int | None = None
    ) -> None:
        self.job = build(recipe, device=device, data=data)
        self.backend = next(self.job.model.parameters()).backend
        names = {id(m): name for name, m in self.job.model.named_modules()}
        self.tracer = Tracer(self.backend, names, limit)

    def steps(self, count: int) -> Iterator[Step]:
        """Train `count` steps; after each, its records and its loss."""
        job, tracer = self.job, self.tracer
        trainer = make_trainer(job, compile=False)
        job.model.train()
        for _, batch in zip(range(count), self._batches(), strict=False):
            tracer.start()
            STATE.observer, previous = tracer, STATE.observer
            try:
                loss = trainer.update(batch)
            finally:
                STATE.observer = previous
            for name, p in job.model.named_parameters():
                if p.grad is not None:
                    tracer.add("gradient", name, "gradient", p.grad.array)
            for name, p in job.model.named_parameters():
                tracer.add("weight", name, "weight", p.array)
            yield tracer.records, loss

    def _batches(self) -> Iterator[tuple[Any, ...]]:
        epoch = 0
        while True:
            yield from self.job.loader.batches(epoch)
            epoch += 1


def record(recipe: Recipe, device: str | Backend, data: DataSplit, steps: int) -> Trace:
    """Train and keep a trace to save."""
    run = TracedRun(recipe, device, data, TRACE_LIMIT)
    found, losses = [], []
    for records, loss in run.steps(steps):
        found.append(records)
        losses.append(loss)
    meta = {
        "recipe": recipe.as_dict(),
        "device": run.backend.device,
        "losses": losses,
        "versions": _versions(run.backend),
    }
    return Trace(meta, found)


def compare_devices(
    recipe: Recipe,
    devices: tuple[str | Backend, str | Backend],
    data: DataSplit,
    steps: int,
    progress: Progress | None = None,
) -> Comparison:
    """Train on two devices in step and compare everything that they compute."""
    left, right = (TracedRun(recipe, device, data).steps(steps) for device in devices)
    comparer = Comparer(recipe.train.dtype)
    for (a, loss_a), (b, loss_b) in zip(left, right, strict=True):
        report = comparer.step(a, b, (loss_a, loss_b))
        if progress is not None:
            progress(report)
    return comparer.result()


def compare_with_trace(
    recipe: Recipe,
    device: str | Backend,
    data: DataSplit,
    trace: Trace,
    steps: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Train on a device and compare with a trace of the same run elsewhere.

    Raises
    ------
    CheckpointError
        If the trace is of another recipe, seed or dtype, or has fewer steps.
    """
    wanted, found = recipe.as_dict(), trace.meta.get("recipe")
    found = found if isinstance(found, dict) else {}
    about = {k: v for k, v in wanted.items() if k != "summary"}
    different = differences({k: found.get(k) for k in about}, about)
    if different:
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise CheckpointError(
            f"the trace is of another run: {different[0]}{more}; compare with the recipe, seed, "
            "dtype and settings that it was saved with"
        )
    steps = len(trace.steps) if steps is None else steps
    losses = trace.meta.get("losses", [])
    if not 0 < steps <= min(len(trace.steps), len(losses)):
        raise CheckpointError(f"the trace has {len(trace.steps)} steps, {steps} were asked for")
    run = TracedRun(recipe, device, data, TRACE_LIMIT)
    comparer = Comparer(recipe.train.dtype)
    for (records, loss), saved, saved_loss in zip(
        run.steps(steps), trace.steps, losses, strict=False
    ):
        report = comparer.step(records, saved, (loss, saved_loss))
        if progress is not None:
            progress(report)
    return comparer.result()


def _versions(backend: Backend) -> dict[str, str]:
    """What computed a trace, for its reader."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("gpubackprop", "numpy", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
