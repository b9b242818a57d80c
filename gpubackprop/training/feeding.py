"""Batches on their way to the device: the next is made and copied while it works on this one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gpubackprop.autograd import Tensor
from gpubackprop.backends import Backend
from gpubackprop.backends.launching import Staging
from gpubackprop.training.evaluation import Batch, tensors


class Feed:
    """The batches of an epoch, and the tensors of the one that is being trained on.

    Where nothing has to be copied, a batch is made when it is asked for. Otherwise the one after it
    is made, and its copy begun, when :meth:`look_ahead` is called: the moment for it is when the
    device has been given its work. An error in making a batch is raised when its turn comes.

    Parameters
    ----------
    batches : tuples of host arrays.
    backend : the device.
    staging : copies beside its work; None where nothing has to be copied.

    Notes
    -----
    The tensors of a batch hold until the next batch is asked for; their memory is used again.
    """

    def __init__(self, batches: Iterable[Batch], backend: Backend, staging: Staging | None) -> None:
        self._source = iter(batches)
        self._backend, self._staging = backend, staging
        if staging is not None:
            staging.clear()  # a loop that was left early may have looked ahead
        self._next: Batch | None = None
        self._now: tuple[Batch, list[Tensor]] | None = None
        self._error: Exception | None = None
        self._ended = False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._staging is None:
            return next(self._source)
        self.look_ahead()
        if self._error is not None:
            raise self._error
        if self._next is None:
            raise StopIteration
        batch, self._next = self._next, None
        found = [Tensor(a, self._backend) for a in self._staging.take()]
        self._now = batch, found
        return batch

    def look_ahead(self) -> None:
        """Make the next batch, if it is to be copied, and begin to copy it."""
        if self._staging is None or self._next is not None or self._ended:
            return
        try:
            batch = next(self._source)
            self._staging.put(batch)
        except StopIteration:
            self._ended = True
        except Exception as error:
            self._error, self._ended = error, True
        else:
            self._next = batch

    def tensors(self, batch: Batch) -> list[Tensor]:
        """A batch on the device: the one that was given last is there already."""
        if self._now is not None and self._now[0] is batch:
            return self._now[1]
        return tensors(batch, self._backend)
