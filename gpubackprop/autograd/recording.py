"""Whether operations are recorded."""

from __future__ import annotations

from contextlib import AbstractContextManager, ContextDecorator

from gpubackprop.autograd.tape import STATE


class _Recording(ContextDecorator, AbstractContextManager):
    """Sets whether operations are recorded, within a ``with`` block or a decorated function."""

    def __init__(self, recording: bool) -> None:
        self.recording = recording
        self.previous: list[bool] = []

    def _recreate_cm(self) -> _Recording:
        # A decorated function may run in several threads at once, and each call must put back its
        # own thread's state.
        return _Recording(self.recording)

    def __enter__(self) -> None:
        self.previous.append(STATE.recording)
        STATE.recording = self.recording

    def __exit__(self, *exc: object) -> None:
        STATE.recording = self.previous.pop()


def no_grad() -> _Recording:
    """Within this context (or function), operations leave no trace: less memory, and no
    gradients."""
    return _Recording(False)


def enable_grad() -> _Recording:
    """Undo an outer :func:`no_grad`."""
    return _Recording(True)
