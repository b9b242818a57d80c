"""Ending a run on Ctrl-C or a request to terminate, without losing it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run ended early because the system asked for it.

    Attributes
    ----------
    signum : the signal.
    folder : where the run was saved; None where it has no folder.
    step : updates done.
    """

    def __init__(self, signum: int, folder: Path | None, step: int) -> None:
        self.signum = signum
        self.folder = folder
        self.step = step
        saved = f"saved in {folder}" if folder else "not saved: the run has no output folder"
        super().__init__(f"interrupted after step {step}; {saved}")


class Guard:
    """In a ``with`` block the first signal is noted instead of acted on; a second acts as usual.

    Only the main thread receives signals, so in other threads nothing changes. A signal that was
    ignored before (``nohup``) stays ignored.

    Attributes
    ----------
    signum : the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Guard:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN and before is not None:
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signum = number
        self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()
