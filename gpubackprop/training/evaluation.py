"""Running a network over samples without learning: cost, accuracy, outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.autograd import Tensor, no_grad
from gpubackprop.backends import Backend
from gpubackprop.data.text import IGNORED
from gpubackprop.nn import Module

Loss = Callable[[Any, Tensor], Tensor]
Batch = tuple[np.ndarray[Any, Any], ...]


class Figures(NamedTuple):
    """Figures of one pass over samples.

    Attributes
    ----------
    loss : the mean cost of a sample, or of a place where a target is a sequence of classes; NaN
        where there were none.
    accuracy : the share of samples (or places) whose largest output is the right one; None where
        the targets are no classes.
    samples : how many there were.
    """

    loss: float
    accuracy: float | None
    samples: int


def tensors(batch: Batch, backend: Backend) -> list[Tensor]:
    """The arrays of a batch on a device."""
    return [Tensor(backend.asarray(array), backend) for array in batch]


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Evaluation mode and no tape within the block; each module's own mode is put back after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with no_grad(), np.errstate(all="ignore"):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def correct(outputs: Tensor, target: Tensor) -> int:
    """How many rows of `outputs` have their largest entry where the target has it.

    Parameters
    ----------
    outputs : (n, classes), or (n, places, classes).
    target : class numbers (n,) or (n, places); or (n, classes), with the largest entry at the
        class.
    """
    kernels = outputs.backend
    found = kernels.argmax(outputs.array, axis=-1)
    wanted = target.array
    if wanted.ndim == outputs.ndim:
        wanted = kernels.argmax(wanted, axis=-1)
    hits = kernels.sum(kernels.astype(kernels.equal(found, wanted), np.int64))
    return int(kernels.to_numpy(hits))


def counted(target: np.ndarray[Any, Any]) -> int:
    """How many numbers of a batch's target its cost is the mean of: the samples, or for sequences
    of classes the places that are not ignored."""
    if target.ndim < 2 or target.dtype.kind not in "iu":
        return len(target)
    return int(np.count_nonzero(target != IGNORED))


def evaluate(
    model: Module,
    loss: Loss,
    batches: Iterable[Batch],
    backend: Backend,
    *,
    accuracy: bool = False,
    poll: Callable[[], None] | None = None,
) -> Figures:
    """Mean cost and accuracy of a network in evaluation mode.

    Parameters
    ----------
    model : the network; its mode is put back afterwards.
    loss : ``loss(outputs, target)``, averaged over the batch.
    batches : tuples of arrays; the last is the target.
    backend : the device of the network.
    accuracy : whether the targets are classes.
    poll : called after each batch; may raise to end the pass.
    """
    total, samples, weight, hits = 0.0, 0, 0, 0
    with evaluating(model):
        for batch in batches:
            *inputs, target = tensors(batch, backend)
            outputs = model(*inputs)
            n = counted(batch[-1])
            total += loss(outputs, target).item() * n
            if accuracy:
                hits += correct(outputs, target)
            weight += n
            samples += len(batch[-1])
            if poll is not None:
                poll()
    share = hits / weight if accuracy and weight else None
    return Figures(total / weight if weight else float("nan"), share, samples)


def outputs_of(model: Module, batches: Iterable[Batch], backend: Backend) -> np.ndarray[Any, Any]:
    """The network's outputs for all samples, in evaluation mode, as one host array."""
    with evaluating(model):
        parts = [np.array(model(*tensors(batch, backend)).numpy()) for batch in batches]
    return np.concatenate(parts)
