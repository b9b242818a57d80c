"""What a run shows while it goes: a bar on a terminal, a line per epoch elsewhere, or nothing."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

INTERVAL = 0.1
"""Seconds between two updates of the bar: the loop itself pays only for a look at the clock."""


class Progress:
    """Shows nothing; base of the others.

    Attributes
    ----------
    watched : what the validation figures are of: ``"validation"`` or ``"test"``.
    """

    def __init__(self, watched: str = "validation") -> None:
        self.watched = watched

    def begin(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """An epoch begins (counted from 1), with `done` of its `batches` behind it."""

    def batch(self, loss: float) -> None:
        """A batch is done."""

    def end(self, figures: Mapping[str, Any], epochs: int) -> None:
        """An epoch is over: a line of ``metrics.jsonl``."""

    def close(self) -> None:
        """The run is over, or was cut off."""


class Lines(Progress):
    """One line for each epoch.

    Parameters
    ----------
    watched : see :class:`Progress`.
    stream : where to write.
    """

    def __init__(self, watched: str = "validation", stream: TextIO | None = None) -> None:
        super().__init__(watched)
        self.stream = stream or sys.stderr

    def end(self, figures: Mapping[str, Any], epochs: int) -> None:
        print(line(figures, epochs, self.watched), file=self.stream, flush=True)


class Bar(Lines):
    """A bar for the batches of each epoch, and the line of :class:`Lines` when it is over."""

    def __init__(self, watched: str = "validation", stream: TextIO | None = None) -> None:
        super().__init__(watched, stream)
        self.bar: Any = None
        self.waiting = 0
        self.next = 0.0

    def begin(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        from tqdm import tqdm

        self.close()
        self.bar = tqdm(
            total=batches,
            initial=done,
            desc=f"epoch {epoch}/{epochs}",
            unit="batch",
            leave=False,
            file=self.stream,
            dynamic_ncols=True,
            mininterval=INTERVAL,
        )
        self.waiting, self.next = 0, 0.0

    def batch(self, loss: float) -> None:
        self.waiting += 1
        now = time.perf_counter()
        if now >= self.next and self.bar is not None:
            self.next = now + INTERVAL
            self.bar.set_postfix_str(f"loss {short(loss)}", refresh=False)
            self.bar.update(self.waiting)
            self.waiting = 0

    def end(self, figures: Mapping[str, Any], epochs: int) -> None:
        self.close()
        super().end(figures, epochs)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def choose(watched: str, stream: TextIO | None = None) -> Progress:
    """A bar where `stream` (standard error) is a terminal, else lines."""
    stream = stream or sys.stderr
    return Bar(watched, stream) if stream.isatty() else Lines(watched, stream)


def short(loss: float) -> str:
    """A loss with four decimals; a tiny or a huge one with four digits and a power of ten.

    Examples
    --------
    >>> short(0.5), short(0.0000123456), short(2.18688e32)
    ('0.5000', '1.235e-05', '2.187e+32')
    """
    plain = 1e-3 <= abs(loss) < 1e6 or loss == 0 or not math.isfinite(loss)
    return f"{loss:.4f}" if plain else f"{loss:.3e}"


def line(figures: Mapping[str, Any], epochs: int, watched: str) -> str:
    """The figures of an epoch in one line."""
    width = len(str(epochs))
    parts = [
        f"epoch {figures['epoch']:>{width}}/{epochs}",
        f"train loss {short(figures['train_loss'])}" if figures["train_loss"] is not None else "-",
    ]
    if figures.get("val_loss") is not None:
        parts.append(f"{watched} loss {short(figures['val_loss'])}")
    if figures.get("val_accuracy") is not None:
        parts.append(f"{watched} accuracy {100 * figures['val_accuracy']:.2f} %")
    return "  ".join([*parts, f"{figures['seconds']:.2f} s"])
