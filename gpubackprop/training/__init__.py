"""The trainer, checkpoints, evaluation and pictures."""

from gpubackprop.training.checkpoint import Checkpoint, CheckpointFolder
from gpubackprop.training.evaluation import Figures, evaluate, outputs_of
from gpubackprop.training.interrupt import Interrupted
from gpubackprop.training.progress import Bar, Lines, Progress
from gpubackprop.training.result import FitResult
from gpubackprop.training.state import RunState
from gpubackprop.training.stopping import EarlyStopping
from gpubackprop.training.trainer import Trainer

__all__ = [
    "Bar",
    "Checkpoint",
    "CheckpointFolder",
    "EarlyStopping",
    "Figures",
    "FitResult",
    "Interrupted",
    "Lines",
    "Progress",
    "RunState",
    "Trainer",
    "evaluate",
    "outputs_of",
]
