"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.backends import live
from gpubackprop.data import DataLoader
from gpubackprop.errors import CheckpointError, ConfigError, NonFiniteError
from gpubackprop.nn import Module
from gpubackprop.optim import GradScaler, Optimizer, Scheduler
from gpubackprop.optim.schedules import Schedule
from gpubackprop.training import arguments, nonfinite, room
from gpubackprop.training.ahead import Updates
from gpubackprop.training.checkpoint import CheckpointFolder
from gpubackprop.training.evaluation import Batch, evaluate
from gpubackprop.training.files import append, write_atomic
from gpubackprop.training.interrupt import Guard, Interrupted
from gpubackprop.training.numerics import Numerics
from gpubackprop.training.progress import Progress
from gpubackprop.training.result import FitResult
from gpubackprop.training.state import RunState, differences, pack, unpack
from gpubackprop.training.step import Step
from gpubackprop.training.stopping import EarlyStopping

METRICS = "metrics.jsonl"


class Trainer:
    """Trains a network: epochs of updates, each followed by a look at the validation samples.

    Parameters
    ----------
    model : the network, on the device to train on.
    loss : ``loss(outputs, target)``: a single element, the mean over the batch.
    optimizer : over the network's parameters.
    loader : batches; the last array of a batch is the target, the others are the network's inputs.
    validation : batches to watch after each epoch.
    accuracy : whether the targets are classes, so that accuracy can be counted.
    schedule : factor of the learning rate as a function of the step.
    clip_norm, clip_value : bounds of the gradients' global norm and of each element.
    precision : ``"float32"``, ``"tf32"``, ``"bf16-mixed"`` or ``"fp16-mixed"``: see
        :func:`gpubackprop.precision`. Training and the looks at the validation samples run in it.
    scaler : the scale of the loss under ``"fp16-mixed"``; by default a new one, with PyTorch's
        settings.
    accumulate : cut each batch into so many pieces, one after the other, whose gradients add up to
        that of the batch: the memory of a piece, the update of the whole. See :class:`Step`.
    stopping : watches the validation figures and keeps the best weights.
    progress : shows what goes on; nothing by default.
    out : folder of checkpoints and ``metrics.jsonl``; None keeps nothing.
    checkpoint_steps : also write a checkpoint after every so many updates, not only after epochs.
    compile : replay compiled steps (see :func:`gpubackprop.compile`); a network that cannot be
        compiled is trained as it is, with a warning that says why.
    config : JSON values that must be the same when the run is resumed.
    info : further JSON values to keep.
    attached : further arrays to keep with the weights.

    Raises
    ------
    ConfigError
        The arguments do not go together.

    Examples
    --------
    >>> trainer = Trainer(model, F.cross_entropy, optimizer, loader=loader)  # doctest: +SKIP
    >>> trainer.fit(epochs=3).train_loss  # doctest: +SKIP
    0.217

    Notes
    -----
    A resumed run has the same bits as one that was never interrupted, on the same device with the
    same libraries and number of threads; the figures called seconds differ.
    """

    def __init__(
        self,
        model: Module,
        loss: Callable[[Any, Tensor], Tensor],
        optimizer: Optimizer,
        *,
        loader: DataLoader,
        validation: DataLoader | None = None,
        accuracy: bool = False,
        schedule: Schedule | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        precision: str = "float32",
        scaler: GradScaler | None = None,
        accumulate: int = 1,
        stopping: EarlyStopping | None = None,
        progress: Progress | None = None,
        out: str | Path | None = None,
        checkpoint_steps: int | None = None,
        compile: bool = True,
        config: Mapping[str, Any] | None = None,
        info: Mapping[str, Any] | None = None,
        attached: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> None:
        arguments.check(
            *(model, loss, optimizer),
            {"loader": loader, "validation": validation},
            {"clip_norm": clip_norm, "clip_value": clip_value},
        )
        if not len(loader):
            raise ConfigError("Trainer: the loader has no batch to train on")
        if stopping is not None and validation is None:
            raise ConfigError("Trainer: stopping needs validation batches to watch")
        if checkpoint_steps is not None and checkpoint_steps < 1:
            raise ConfigError(
                f"Trainer: checkpoint_steps must be at least 1, not {checkpoint_steps}"
            )
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.loader, self.validation, self.accuracy = loader, validation, accuracy
        self.scheduler = None if schedule is None else Scheduler(optimizer, schedule)
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.stopping = stopping
        self.progress = progress or Progress()
        self.folder = None if out is None else CheckpointFolder(Path(out))
        self.checkpoint_steps = checkpoint_steps
        self.config, self.info, self.attached = config or {}, info or {}, attached or {}
        self.numerics = Numerics(precision, optimizer, scaler)
        self._step = Step(
            model, self._cost, optimizer, accumulate, loader.batch_size, self.numerics
        )
        if compile:
            self._step.compile()
        self.backend = self._step.backend
        self.run = RunState()
        self._best: dict[str, np.ndarray[Any, Any]] | None = None
        self._latest: dict[str, np.ndarray[Any, Any]] | None = None
        self._resumed = self._looked = False
        self._guard = Guard()
        self._updates = Updates(self._step, self.run, self.scheduler)
        self._mark = 0.0

    # Checkpoints.
    def resume(self) -> bool:
        """Continue the run in the folder.

        Returns
        -------
        bool
            False where the folder holds no run yet.

        Raises
        ------
        CheckpointError
            The checkpoint is damaged or does not fit; the error names the file or the setting.
        """
        if self.folder is None or not self.folder.exists():
            return False
        with self.folder.lock():
            checkpoint = self.folder.read()
        changed = differences(checkpoint.meta.get("config"), dict(self.config))
        if changed:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise CheckpointError(
                f"the run in {self.folder.path} cannot be resumed with other settings: "
                f"{changed[0]}{more}"
            )
        try:
            self._best = unpack(
                checkpoint, self.run, self.model, self.optimizer, self.stopping, self.numerics
            )
        except CheckpointError as error:
            raise CheckpointError(f"{self.folder.manifest}: {error}") from None
        if self.run.batch > len(self.loader):
            raise CheckpointError(
                f"{self.folder.manifest}: it stands at batch {self.run.batch} of an epoch of "
                f"{len(self.loader)}"
            )
        self._updates.look_at_model()
        self._resumed = True
        return True

    def save(self) -> None:
        """Write a checkpoint.

        Raises
        ------
        NonFiniteError
            A weight is not finite; the checkpoint before it stays.
        CheckpointError
            The system refused; the checkpoint before it is intact.
        """
        if self.folder is None:
            return
        if not nonfinite.values_finite(self.optimizer):
            words = next(
                (n for n, p in self.model.named_parameters() if not np.isfinite(p.numpy()).all()),
                "",
            )
            raise NonFiniteError(
                f"step {self.run.step}: the update made the parameter {words!r} infinite or NaN; "
                "the checkpoint before it stays; a smaller learning rate may help"
            )
        self._tick()
        with room.for_saving():
            self.folder.write(
                pack(
                    *(self.run, self.model, self.optimizer, self.stopping, self.numerics),
                    *(self._best, self.attached, self.config, self.info),
                )
            )

    # The loop.
    def fit(self, epochs: int) -> FitResult:
        """Train until `epochs` epochs are complete, counted from the beginning of the run.

        Parameters
        ----------
        epochs : where to end. A run that is there already only reports.

        Returns
        -------
        FitResult
            The outcome. With `stopping` the best weights are in the model.

        Raises
        ------
        NonFiniteError
            The cost or a gradient was not finite: names the operation that made it. The weights are
            those of before that step.
        Interrupted
            SIGINT or SIGTERM came; a checkpoint was written first.
        OutOfMemoryError
            Names what asked for memory, what holds it and what to try; the last checkpoint is
            intact.
        CheckpointError
            The folder holds a run already that was not resumed, or cannot be written.
        """
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ConfigError(
                f"Trainer.fit: epochs must be a whole number from 1 on, not {epochs!r}"
            )
        with ExitStack() as stack:
            stack.callback(self.progress.close)
            self._mark = time.perf_counter()
            if self.folder is not None:
                stack.enter_context(self.folder.lock())
                self._open(self.folder)
            if self._latest is not None:  # an earlier fit left the best weights in the model
                self.model.load_state_dict(self._latest)
                self._latest = None
            self.model.train()
            self._guard = stack.enter_context(Guard())
            stack.enter_context(room.told(self.run, self.folder, self.backend))
            while self.run.epoch < epochs and not self.run.stopped:
                self._epoch(epochs)
        if self._best is not None:
            self._latest = self.model.state_dict()
            self.model.load_state_dict(self._best)
        self._tick()
        return FitResult.of(self.run)

    def _open(self, folder: CheckpointFolder) -> None:
        """Begin to write to the folder: nothing that is there is lost."""
        if not self._resumed:
            if folder.exists():
                raise CheckpointError(
                    f"{folder.path} holds a run already; resume it or choose another folder"
                )
            self.save()
            self._resumed = True
        # The manifest's history is what counts: a line that was written after it is not repeated.
        lines = "".join(_json_line(figures) for figures in self.run.history)
        write_atomic(folder.path / METRICS, lines.encode())

    def _epoch(self, epochs: int) -> None:
        run, steps, every = self.run, len(self.loader), self.checkpoint_steps
        self.progress.begin(run.epoch + 1, epochs, steps, run.batch)
        updates = self._updates
        # What is not finite is looked for, and named.
        with np.errstate(all="ignore"), updates.all_heard(self._book):
            for batch in self._step.feed(self.loader.batches(run.epoch, run.batch)):
                if not self._looked:
                    arguments.look_at(batch, self.optimizer)
                    self._looked = True
                updates.ask(batch, self.clip_value, self.clip_norm)
                self._hear(updates.ahead)
                due = every is not None and (run.step + len(updates)) % every == 0
                if due or self._guard.signum:
                    self._hear()
                    self._tick(training=True)
                    self._poll()
                    self.save()
            self._hear()
        self._tick(training=True)
        figures = self._figures()
        if self.stopping is not None:
            if self.stopping.update(run.epoch + 1, figures):
                self._best = self.model.state_dict()
            run.stopped = self.stopping.exhausted
        self._tick()
        figures["seconds"] = round(run.epoch_seconds, 6)
        run.history.append(figures)
        run.epoch += 1
        run.batch = run.epoch_samples = 0
        run.epoch_loss = run.epoch_seconds = 0.0
        if self.folder is not None:
            self.save()
            append(self.folder.path / METRICS, _json_line(figures).encode())
        self.progress.end(figures, epochs)
        if self._guard.signum and run.epoch < epochs and not run.stopped:
            raise Interrupted(self._guard.signum, self._path, run.step)

    def _hear(self, most: int = 0) -> None:
        """Book the steps that are done; wait until no more than `most` are under way."""
        for value, samples in self._updates.heard(most):
            self._book(value, samples)

    def _book(self, value: float, samples: int) -> None:
        """Count a step of so many samples with this cost."""
        run = self.run
        run.batch += 1
        run.samples += samples
        if math.isfinite(value):  # a step that was skipped may have had no cost
            run.epoch_samples += samples
            run.epoch_loss += value * samples
        self.progress.batch(value)

    def update(self, batch: Batch) -> float:
        """One step: forward, backward, update. Returns the cost, for which it waits.

        Raises
        ------
        NonFiniteError
            See :meth:`fit`.
        """
        self._updates.ask(batch, self.clip_value, self.clip_norm)
        ((value, _),) = self._updates.heard()
        return value

    def _cost(self, outputs: Any, target: Tensor) -> Tensor:
        """The loss that is set now: it may be exchanged between two epochs."""
        live.constant(lambda: self.loss)
        return arguments.cost_of(self.loss(outputs, target))

    def _figures(self) -> dict[str, Any]:
        """The figures of the epoch that has just been trained."""
        run = self.run
        rates = [group["lr"] for group in self.optimizer.param_groups]
        figures: dict[str, Any] = {
            "epoch": run.epoch + 1,
            "step": run.step,
            "lr": rates[0] if len(set(rates)) == 1 else rates,
            "train_loss": run.epoch_loss / run.epoch_samples if run.epoch_samples else None,
            "val_loss": None,
            "val_accuracy": None,
            **self.numerics.figures(),
        }
        if self.validation is not None:
            given = (self.model, self.loss, self.validation.batches(0), self.backend)
            with self.numerics.within:
                found = evaluate(*given, accuracy=self.accuracy, poll=self._poll)
            figures["val_loss"] = found.loss if math.isfinite(found.loss) else None
            figures["val_accuracy"] = found.accuracy
        return figures

    def _poll(self) -> None:
        if self._guard.signum:
            self._interrupt()

    def _interrupt(self) -> None:
        """Save where the run stands (all batches of an epoch may be done) and end it."""
        self.save()
        raise Interrupted(self._guard.signum, self._path, self.run.step)

    @property
    def _path(self) -> Path | None:
        return None if self.folder is None else self.folder.path

    def _tick(self, training: bool = False) -> None:
        """Book the time since the last call."""
        now = time.perf_counter()
        passed, self._mark = now - self._mark, now
        self.run.seconds += passed
        self.run.epoch_seconds += passed
        if training:
            self.run.train_seconds += passed


def _json_line(figures: Mapping[str, Any]) -> str:
    return json.dumps(figures, allow_nan=False) + "\n"
