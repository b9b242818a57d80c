"""Layer 4: optimizers over the arena, schedules of the learning rate, gradient clipping."""

from gpubackprop.optim import schedules
from gpubackprop.optim.algorithms import SGD, Adagrad, Adam, AdamW, RMSprop
from gpubackprop.optim.clip import clip_grad_norm_, clip_grad_value_, grad_norm
from gpubackprop.optim.optimizer import Optimizer
from gpubackprop.optim.scaler import GradScaler
from gpubackprop.optim.scheduler import Scheduler

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "GradScaler",
    "Optimizer",
    "RMSprop",
    "Scheduler",
    "clip_grad_norm_",
    "clip_grad_value_",
    "grad_norm",
    "schedules",
]
