"""What a run says when its device, or the machine, has no memory left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from gpubackprop.autograd.shortage import named
from gpubackprop.backends import Backend, get_backend
from gpubackprop.errors import OutOfMemoryError
from gpubackprop.training.checkpoint import CheckpointFolder
from gpubackprop.training.state import RunState


@contextmanager
def told(run: RunState, folder: CheckpointFolder | None, backend: Backend) -> Iterator[None]:
    """Within the block a lack of memory is an error that says at which step, and what is left of
    the run.

    Parameters
    ----------
    run : where the run stands.
    folder : of its checkpoints; None where it keeps none.
    backend : the device that trains.
    """
    try:
        with named("training", backend):
            yield
    except OutOfMemoryError as error:
        kept = "the run keeps no checkpoint"
        if folder is not None and folder.exists():
            kept = (
                f"the checkpoint in {folder.path} is intact: --resume goes on from it, with the "
                "same settings, where there is more memory"
            )
        raise OutOfMemoryError(
            f"step {run.step + 1} (epoch {run.epoch + 1}, batch {run.batch + 1}): {error}; {kept}",
            operation=error.operation,
            device=error.device,
            nbytes=error.nbytes,
            held=error.held,
            free=error.free,
        ) from error


def for_saving() -> AbstractContextManager[None]:
    """Names a lack of the host's memory while a checkpoint is put together and written."""
    return named("saving the checkpoint", get_backend("cpu"))
