"""Where the memory of a training step goes: by operation, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gpubackprop.autograd import STATE, Node, Operation
from gpubackprop.backends import Array, Backend, get_backend
from gpubackprop.backends.memory import MemoryMeter, words

FORWARD, AGAIN, BACKWARD, REST = "forward", "again", "backward", "the rest"


@dataclass
class MemoryRow:
    """What the calls of one operation in one direction did, added up.

    Attributes
    ----------
    op : the operation.
    direction : ``"forward"``, ``"backward"``, ``"again"`` (the second run of a checkpointed
        function), or ``"the rest"``: what ran after the last operation, such as an update.
    count : calls.
    kept : bytes by which the memory in use grew over the calls; negative where more was released
        than made.
    temporary : the most bytes that one call took beside what it kept.
    peak : the most bytes in use at any time while the calls ran, above the start.
    """

    op: str
    direction: str
    count: int = 0
    kept: int = 0
    temporary: int = 0
    peak: int = 0


@dataclass
class MemoryReport:
    """Memory in use while a function ran, in bytes.

    Attributes
    ----------
    device : where.
    source : what was counted.
    start : in use when it began; on the CPU only what ``tracemalloc`` had seen.
    peak : the most in use, above `start`.
    kept : still in use when it ended, above `start`; the function's result is part of it.
    peak_at : operation and direction that ran when the peak was reached.
    rows : by operation and direction, those that kept most first.
    result : what the function returned.
    """

    device: str
    source: str
    start: int
    peak: int = 0
    kept: int = 0
    peak_at: str = ""
    rows: list[MemoryRow] = field(default_factory=list)
    result: Any = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The report without the function's result, in JSON's types."""
        found = {k: v for k, v in vars(self).items() if k not in ("rows", "result")}
        return found | {"rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        width = max([len(row.op) for row in self.rows] + [9])
        lines = [
            f"{self.device}: peak {words(self.peak)} (while {self.peak_at} ran), "
            f"{words(self.kept)} kept; {self.source}",
            "",
            f"{'operation':<{width}}  direction  calls        kept   temporary        peak",
        ]
        for row in self.rows:
            figures = "".join(f"{words(n):>12}" for n in (row.kept, row.temporary, row.peak))
            lines.append(f"{row.op:<{width}}  {row.direction:<9}  {row.count:>5}{figures}")
        return "\n".join(lines)


def memory(
    function: Callable[..., Any],
    *arguments: Any,
    device: str | Backend | None = None,
    **keywords: Any,
) -> MemoryReport:
    """Run a function, such as a training step, and report the memory that it needed.

    Parameters
    ----------
    function : called once, with `arguments` and `keywords`. Run a training step once before: the
        first one makes the optimizer's state.
    device : whose memory to count; by default that of ``GPUBACKPROP_DEVICE``, else the CPU's.

    Returns
    -------
    MemoryReport
        ``print`` it for a table; ``.as_dict()`` for JSON.

    Notes
    -----
    On the CPU ``tracemalloc`` counts, which makes Python several times slower; on a GPU a hook in
    CuPy's memory pool. An operation's share is what happened between the end of the operation
    before it and its own end, so what Python releases between two operations counts for the second.

    Examples
    --------
    >>> print(gb.inspect.memory(trainer.update, batch))  # doctest: +SKIP
    cpu: peak 1.2 MiB (while linear backward ran), 0 B kept; host memory (tracemalloc)
    """
    backend = get_backend(device)
    outer = STATE.observer
    with backend.memory_meter() as meter:
        watch = MemoryWatch(backend.device, meter)
        STATE.observer = watch
        try:
            watch.report.result = function(*arguments, **keywords)
        finally:
            STATE.observer = outer
        return watch.finish()


class MemoryWatch:
    """Observer that reads the memory in use after every operation.

    Parameters
    ----------
    device : its name, for the report.
    meter : counts; it must be running.
    """

    def __init__(self, device: str, meter: MemoryMeter) -> None:
        self.meter = meter
        self.rows: dict[tuple[str, str], MemoryRow] = {}
        self.last, _ = meter.read()
        self.report = MemoryReport(device, meter.source, self.last)

    def forward(
        self, op: Operation, inputs: Sequence[Any], outputs: Sequence[Array], params: dict[str, Any]
    ) -> None:
        """Book what an operation took."""
        self._book(op.name, AGAIN if STATE.recomputing else FORWARD)

    def backward(self, node: Node, dy: Any, cotangents: Sequence[Any]) -> None:
        """Book what an operation's rule took."""
        self._book(node.op.name, BACKWARD)

    def enter(self, module: Any) -> None:
        """Modules do not matter here."""

    def leave(self, module: Any) -> None:
        """Modules do not matter here."""

    def finish(self) -> MemoryReport:
        """Book what ran after the last operation, and give the report."""
        self._book("", REST)
        self.rows[("", REST)].op = "-"
        report = self.report
        report.kept = self.last - report.start
        report.rows = sorted(self.rows.values(), key=lambda row: (-row.kept, -row.temporary))
        return report

    def _book(self, op: str, direction: str) -> None:
        now, most = self.meter.read()
        row = self.rows.get((op, direction))
        if row is None:
            row = self.rows[(op, direction)] = MemoryRow(op, direction)
        row.count += 1
        row.kept += now - self.last
        row.temporary = max(row.temporary, most - max(now, self.last))
        row.peak = max(row.peak, most - self.report.start)
        if most - self.report.start > self.report.peak or not self.report.peak_at:
            self.report.peak = most - self.report.start
            self.report.peak_at = f"{op} {direction}".strip()
        # What the booking itself allocated is nobody's.
        self.last, _ = self.meter.read()
