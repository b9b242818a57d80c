"""The gradients of a batch, whole or in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from gpubackprop.autograd import Tensor
from gpubackprop.backends.launching import Arriving
from gpubackprop.errors import ConfigError
from gpubackprop.nn import Module, Parameter
from gpubackprop.optim import Optimizer
from gpubackprop.training.evaluation import Batch, tensors
from gpubackprop.training.feeding import Feed
from gpubackprop.training.numerics import Numerics


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
    numerics : the precision.

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
        numerics: Numerics,
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
        self.numerics = numerics
        self.piece = -(-batch_size // accumulate)
        self.whole = accumulate == 1
        self.backend = optimizer.arena.parameters[0].backend
        # A backward pass writes the gradients of parameters into the arena; those of plain tensors
        # have to be brought there.
        self._loose = not all(isinstance(p, Parameter) for p in optimizer.arena.parameters)
        self._numbers: Callable[..., Tensor] = self._looked_at
        self._change: Callable[..., None] = self._changed
        self._staging = self.backend.staging()
        self._feed = Feed((), self.backend, None)

    def feed(self, batches: Iterable[Batch]) -> Feed:
        """The batches, each copied to the device while the step before it runs."""
        self._feed = Feed(batches, self.backend, self._staging)
        return self._feed

    def compile(self) -> None:
        """Replay compiled steps from now on, where the network allows it. Every step is a replay,
        the first of a resumed run too, so that a resumed run has the bits of one that went on."""
        from gpubackprop.compile import api

        self._numbers = api.compile(self._looked_at, strict=False, rehearse=self._rehearse)
        self._change = api.compile(
            self._changed, strict=False, device=self.backend, rehearse=self.numerics.snapshot
        )

    def _rehearse(self) -> Callable[[], None]:
        """Keep what a pass over a batch changes: buffers such as running averages, and places in
        random sequences."""
        buffers = [(b, b.backend.copy(b.array)) for b in self.model.buffers()]
        places = [(g, g.state()) for g in self.model.generators()]
        held = None if self.numerics.held is None else self.backend.copy(self.numerics.held)

        def restore() -> None:
            for b, copy in buffers:
                b.backend.copyto(b.array, copy)
            if held is not None:
                self.backend.copyto(self.numerics.held, held)
            for g, place in places:
                g.restore(place)

        return restore

    def gradients(self, batch: Batch) -> Arriving:
        """Put the gradient of a batch into the arena; the result goes to :meth:`verdict`."""
        with self.numerics.within:
            looked_at = self._numbers(*self._feed.tensors(batch))
        return self.backend.fetch(looked_at.array)

    def look_ahead(self) -> None:
        """Prepare the next batch of the feed: for when the device has been given its work."""
        self._feed.look_ahead()

    def verdict(self, arriving: Arriving) -> tuple[float, bool]:
        """What came of a batch; waits for it.

        Returns
        -------
        cost, finite : the mean cost, and whether it and every gradient are finite (or the step is
            one that is skipped).
        """
        cost, *seen = arriving().tolist()
        return cost, self.numerics.finite(cost, seen)

    def _looked_at(self, *batch: Tensor) -> Tensor:
        """The cost of a batch and what tells whether its gradients are finite, so that they are
        read from the device at once."""
        kernels = self.backend
        cost = kernels.reshape(self.run(batch), (1,))
        if self._loose:
            self.optimizer.arena.gather()
        return Tensor(kernels.concatenate([cost, *self.numerics.look(cost)]), kernels)

    def update(self, clip_value: float | None, clip_norm: float | None) -> None:
        """Clip the gradients and update the parameters."""
        self._change(clip_value, clip_norm)

    def _changed(self, clip_value: float | None, clip_norm: float | None) -> None:
        self.numerics.update(clip_value, clip_norm)

    def run(self, batch: Batch | Sequence[Tensor]) -> Any:
        """Forward and backward pass over every piece; the mean cost, an array of one element."""
        kernels, total = self.backend, None
        self.optimizer.zero_grad()
        with self.numerics.within:
            for share, piece in self.pieces(batch):
                *inputs, target = piece
                loss = self.loss(self.model(*inputs), target)
                part = self.numerics.backward(loss, share)
                total = part if total is None else kernels.add(total, part)
        return total

    def pieces(self, batch: Batch | Sequence[Tensor]) -> Iterator[tuple[float, list[Tensor]]]:
        """(share of the samples, piece) of a batch; sizes differ by one at most."""
        n = len(batch[-1])
        whole = [x if isinstance(x, Tensor) else tensors((x,), self.backend)[0] for x in batch]
        count = 1 if self.whole else -(-n // self.piece)
        if count <= 1:
            yield 1.0, whole
            return
        for k in range(count):
            first, last = k * n // count, (k + 1) * n // count
            yield (
                (last - first) / n,
                [
                    Tensor(self.backend.getitem(x.array, slice(first, last)), x.backend)
                    for x in whole
                ],
            )
