"""The state of a run: what it is to a checkpoint, and back.

Everything that the next step depends on is here or in the objects that it is loaded into: weights,
optimizer slots and step counts, the place in the epoch, the random sequences of the modules,
running sums, early stopping and its best weights. The order of the batches and the learning rate
are pure functions of the epoch and the step, so they need no state of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from gpubackprop.errors import CheckpointError
from gpubackprop.nn import Module
from gpubackprop.optim import Optimizer
from gpubackprop.training.checkpoint import Checkpoint
from gpubackprop.training.numerics import Numerics
from gpubackprop.training.stopping import EarlyStopping

Arrays = dict[str, np.ndarray[Any, Any]]

MODEL, BEST, OPTIMIZER, ATTACHED = "model/", "best/", "optimizer/", "attached/"


@dataclass
class RunState:
    """Where a run stands.

    Attributes
    ----------
    epoch : complete epochs.
    batch : batches done in the epoch after those.
    step : updates done in all.
    samples : training samples seen in all.
    epoch_samples, epoch_loss : samples of this epoch that had a cost, and the sum of their costs.
    epoch_seconds : time spent in this epoch.
    seconds : time spent in all, validation and checkpoints included.
    train_seconds : time spent on updates alone.
    stopped : whether early stopping ended the run.
    history : the line of ``metrics.jsonl`` of each complete epoch.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    samples: int = 0
    epoch_samples: int = 0
    epoch_loss: float = 0.0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    train_seconds: float = 0.0
    stopped: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)

    def load(self, progress: Any, history: Any) -> None:
        """Take over what a checkpoint says.

        Raises
        ------
        CheckpointError
            A value is missing or of a wrong type.
        """
        damaged = CheckpointError("the checkpoint's progress is damaged")
        if not isinstance(progress, dict) or not isinstance(history, list):
            raise damaged
        if not all(isinstance(line, dict) for line in history):
            raise damaged
        for entry in fields(self):
            if entry.name == "history":
                continue
            value: Any = progress.get(entry.name)
            wanted: Any = type(entry.default)
            if type(value) is not wanted and not (wanted is float and type(value) is int):
                raise damaged
            if wanted is not bool and not (entry.name == "epoch_loss" or value >= 0):
                raise damaged
            setattr(self, entry.name, wanted(value))
        self.history = history


def pack(
    run: RunState,
    model: Module,
    optimizer: Optimizer,
    stopping: EarlyStopping | None,
    numerics: Numerics,
    best: Mapping[str, np.ndarray[Any, Any]] | None,
    attached: Mapping[str, np.ndarray[Any, Any]],
    config: Mapping[str, Any],
    info: Mapping[str, Any],
) -> Checkpoint:
    """A checkpoint of a run.

    Parameters
    ----------
    run, model, optimizer, stopping, numerics, best : its state.
    attached : further arrays to keep with the weights.
    config : what must be the same when the run is resumed.
    info : what is kept for a reader.
    """
    tensors: Arrays = {MODEL + k: v for k, v in model.state_dict().items()}
    tensors |= {BEST + k: v for k, v in (best or {}).items()}
    tensors |= {ATTACHED + k: np.asarray(v) for k, v in attached.items()}
    state = optimizer.state_dict()
    plain: dict[str, Any] = {}
    for number, entry in state["state"].items():
        plain[str(number)] = {}
        for name, value in entry.items():
            if isinstance(value, np.ndarray):
                tensors[f"{OPTIMIZER}{number}/{name}"] = value
            else:
                plain[str(number)][name] = value
    progress = asdict(run)
    history = progress.pop("history")
    meta = {
        "config": dict(config),
        "info": dict(info),
        "progress": progress,
        "history": history,
        "optimizer": {**state, "state": plain},
        "random": model.random_state(),
        "stopping": None if stopping is None else stopping.state(),
        "precision": numerics.state(),
    }
    return Checkpoint(meta, tensors)


def unpack(
    checkpoint: Checkpoint,
    run: RunState,
    model: Module,
    optimizer: Optimizer,
    stopping: EarlyStopping | None,
    numerics: Numerics,
) -> Arrays | None:
    """Put a run where a checkpoint stands; the opposite of :func:`pack`.

    Returns
    -------
    dict or None
        The best weights, where early stopping keeps them.

    Raises
    ------
    CheckpointError
        The checkpoint does not fit the model, the optimizer or the settings.
    """
    meta = checkpoint.meta
    groups = group_tensors(checkpoint)
    saved = meta.get("optimizer")
    if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict):
        raise CheckpointError("the checkpoint's optimizer state is damaged")
    state = {k: dict(v) if isinstance(v, dict) else v for k, v in saved["state"].items()}
    for path, array in groups[OPTIMIZER].items():
        number, _, name = path.partition("/")
        entry = state.get(number)
        if not isinstance(entry, dict):
            raise CheckpointError(
                f"the checkpoint holds {path!r} of an optimizer entry that is missing"
            )
        entry[name] = array
    if (stopping is None) != (meta.get("stopping") is None):
        raise CheckpointError("the checkpoint was made with other settings of early stopping")
    numerics.load(meta.get("precision"))
    run.load(meta.get("progress"), meta.get("history"))
    model.load_state_dict(groups[MODEL])
    optimizer.load_state_dict({**saved, "state": state})
    random = meta.get("random")
    if not isinstance(random, dict):
        raise CheckpointError("the checkpoint's random state is damaged")
    model.load_random_state(random)
    if stopping is None:
        return None
    stopping.load(meta["stopping"])
    return groups[BEST] or None


def group_tensors(checkpoint: Checkpoint) -> dict[str, Arrays]:
    """A checkpoint's tensors by use: ``MODEL``, ``BEST``, ``OPTIMIZER``, ``ATTACHED``."""
    groups: dict[str, Arrays] = {MODEL: {}, BEST: {}, OPTIMIZER: {}, ATTACHED: {}}
    for name, array in checkpoint.tensors.items():
        head, slash, rest = name.partition("/")
        if head + slash not in groups:
            raise CheckpointError(f"the checkpoint holds a tensor {name[:60]!r} of unknown use")
        groups[head + slash][rest] = array
    return groups


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The first keys, dotted, at which two nested tables differ, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in [*old, *[k for k in new if k not in old]]:
            inner = f"{path}.{key}" if path else str(key)
            found += differences(old.get(key), new.get(key), inner)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        found = []
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            found += differences(a, b, f"{path}.{number}")
        return found
    return [] if old == new else [f"{path} was {_word(old)} and is now {_word(new)}"]


def _word(value: Any) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
