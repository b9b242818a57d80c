"""From the objects of a run to what trains them."""

from __future__ import annotations

from typing import Any

from gpubackprop.recipes.build import Job
from gpubackprop.training import EarlyStopping, Trainer


def make_trainer(job: Job, **options: Any) -> Trainer:
    """The trainer of a job, as its recipe says.

    Parameters
    ----------
    job : what ``build`` made.
    **options : further arguments of :class:`~gpubackprop.training.Trainer`.
    """
    train = job.recipe.train
    stopping = None
    if train.patience is not None or train.keep_best:
        stopping = EarlyStopping(train.patience, train.min_delta, train.monitor)
    constant = (
        job.recipe.schedule.name == "constant"
        and not (job.recipe.schedule.options["warmup_epochs"])
    )
    return Trainer(
        job.model,
        job.loss,
        job.optimizer,
        loader=job.loader,
        validation=job.validation,
        accuracy=job.data.classes is not None,
        schedule=None if constant else job.schedule,
        clip_norm=train.clip_norm,
        clip_value=train.clip_value,
        precision=train.precision or "float32",
        accumulate=train.accumulate or 1,
        stopping=stopping,
        checkpoint_steps=train.checkpoint_steps,
        **options,
    )
