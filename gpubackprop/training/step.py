"""The gradients of a batch, whole or in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.errors import ConfigError
from gpubackprop.nn import Module, Parameter
from gpubackprop.optim import Optimizer
from gpubackprop.training import nonfinite
from gpubackprop.training.evaluation import Batch, tensors


class Step:
    """Forward and backward pass over one batch.

    Parameters
    ----------
    model : the network.
    loss : ``loss(outputs, target)``: a single element, the mean over the samples.
    optimizer : holds the parameters and their gradients.
    accumulate : into how many pieces a full batch is cut. The gradients of the pieces, each
        weighted by its share of the samples, add up to the gradient of the whole batch, with the
        memory of one piece.
    batch_size : samples of a full batch.

    Notes
    -----
    Only what is a mean over samples is the same in pieces: batch norm takes its statistics of each
    piece, and a cost that is divided by something else than the number of samples (class weights,
    targets to ignore) is averaged over the pieces.
    """

    def __init__(
        self,
        model: Module,
        loss: Callable[[Any, Tensor], Tensor],
        optimizer: Optimizer,
        accumulate: int,
        batch_size: int,
    ) -> None:
        if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
            raise ConfigError(
                f"Trainer: accumulate must be a whole number from 1 on, not {accumulate!r}"
            )
        if accumulate > batch_size:
            raise ConfigError(
                f"Trainer: accumulate = {accumulate} cuts batches of {batch_size} samples into "
                "pieces of less than one; choose at most the batch size"
            )
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.piece = -(-batch_size // accumulate)
        self.whole = accumulate == 1
        self.backend = optimizer.arena.parameters[0].backend
        # A backward pass writes the gradients of parameters into the arena; those of plain tensors
        # have to be brought there.
        self._loose = not all(isinstance(p, Parameter) for p in optimizer.arena.parameters)

    def gradients(self, batch: Batch) -> tuple[float, bool]:
        """Put the gradient of a batch into the arena.

        Returns
        -------
        cost, finite : the mean cost, and whether it and every gradient are finite.
        """
        optimizer, kernels = self.optimizer, self.backend
        parts = [kernels.reshape(self.run(batch), (1,))]
        if self._loose:
            optimizer.arena.gather()
        # The cost and the sum of squares of each gradient buffer, read from the device at once.
        for g in optimizer.arena.grads:
            parts.append(kernels.reshape(kernels.matmul(g, g), (1,)))
        numbers = kernels.to_numpy(kernels.concatenate(parts)).tolist()
        # A sum of squares overflows long before the gradients do.
        finite = math.isfinite(sum(numbers)) or (
            math.isfinite(numbers[0]) and nonfinite.gradients_finite(optimizer)
        )
        return numbers[0], finite

    def run(self, batch: Batch) -> Any:
        """Forward and backward pass over every piece; the mean cost, an array of one element."""
        kernels, total = self.backend, None
        self.optimizer.zero_grad()
        for share, piece in self.pieces(batch):
            *inputs, target = tensors(piece, kernels)
            loss = self.loss(self.model(*inputs), target)
            if share == 1.0:
                loss.backward()
                return loss.array
            loss.backward(np.full(loss.shape, share))
            part = kernels.multiply(loss.array, share)
            total = part if total is None else kernels.add(total, part)
        return total

    def pieces(self, batch: Batch) -> Iterator[tuple[float, Batch]]:
        """(share of the samples, piece) of a batch; sizes differ by one at most."""
        n = len(batch[-1])
        count = 1 if self.whole else -(-n // self.piece)
        if count <= 1:
            yield 1.0, batch
            return
        for k in range(count):
            first, last = k * n // count, (k + 1) * n // count
            yield (last - first) / n, tuple([array[first:last] for array in batch])
