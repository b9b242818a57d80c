"""A trace of training: what every operation computed, forwards and backwards, in the order in which
it ran.

A ``Tracer`` is an observer of the tape. It turns each operation's results into records, each with a
sample of the values, their norm, and the numbers of the records that they were computed from. Two
traces of the same run on two devices can then be laid side by side (``compare.py``), and one can be
saved on a machine with a GPU and read on one without.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.autograd import Node, Operation
from gpubackprop.backends import Array, Backend
from gpubackprop.errors import CheckpointError
from gpubackprop.training.files import write_atomic

FORMAT = "gpubackprop-trace-1"
PRODUCTS = frozenset({"linear", "matmul", "einsum"})
SUMS = frozenset({"add", "subtract"})  # whose cotangents are sums of dy, as every bias's is


@dataclass
class Record:
    """One array of a run.

    Attributes
    ----------
    kind : ``"value"`` (an operation's result), ``"cotangent"`` (what its backward rule received or
        gave), ``"gradient"`` or ``"weight"`` (of a parameter, after the step).
    path : the module that was running, or the parameter's name.
    op : the operation; for a cotangent ``d(name of the argument)`` behind it.
    shape, norm : of the whole array; the norm is the root of the sum of squares.
    length : the largest number of terms that one element sums up: what rounding grows with.
    sources : places in the step's list of the records that it was computed from.
    sample : the values, or evenly spaced ones when the tracer has a limit.
    terms_norm : of a plain sum, such as a bias's cotangent: the norm of what was summed, and so the
        norm that the sum has where signs are random. 0 for all else.
    """

    kind: str
    path: str
    op: str
    shape: tuple[int, ...]
    norm: float
    length: int
    sources: tuple[int, ...]
    sample: np.ndarray = field(repr=False)
    terms_norm: float = 0.0

    @property
    def size(self) -> int:
        """Number of elements of the whole array."""
        return math.prod(self.shape)

    @property
    def label(self) -> str:
        """Kind, module path and operation, for a reader."""
        return f"{self.kind} of {self.op} in {self.path or 'the loss'}"


class Tracer:
    """Observer that records one step at a time.

    Parameters
    ----------
    backend : the device of the run.
    names : qualified name of each module (by identity), from ``Module.named_modules``.
    limit : keep at most this many values of each array; None keeps all.
    """

    def __init__(self, backend: Backend, names: dict[int, str], limit: int | None = None) -> None:
        self.backend = backend
        self.names = names
        self.limit = limit
        self.scope = ""
        self._path: list[str] = []
        self.start()

    def start(self) -> None:
        """Begin a step with an empty list."""
        self.records: list[Record] = []
        self._made_by: dict[int, int] = {}
        self._alive: list[Any] = []  # an array that is freed could lend its identity to another
        self._of_node: dict[int, tuple[int, ...]] = {}

    def enter(self, module: Any) -> None:
        """A module begins: what runs next is its."""
        self._path.append(self.scope)
        self.scope = self.names.get(id(module), type(module).__name__)

    def leave(self, module: Any) -> None:
        """A module has ended."""
        self.scope = self._path.pop()

    def forward(
        self, op: Operation, inputs: Sequence[Any], outputs: Sequence[Array], params: dict[str, Any]
    ) -> None:
        """Record an operation's results."""
        arrays = [x.array for x in inputs if hasattr(x, "array")]
        sources = tuple(self._made_by[id(a)] for a in arrays if id(a) in self._made_by)
        for out in outputs:
            length = terms(op.name, [a.shape for a in arrays], out.shape)
            self.add("value", self.scope, op.name, out, length, sources)

    def backward(self, node: Node, dy: Any, cotangents: Sequence[Any]) -> None:
        """Record what a backward rule was given and what it gave."""
        path = node.context or ""
        given = [self.plain(g) for g in (dy if isinstance(dy, tuple) else (dy,))]
        # A cotangent that no rule made is a sum of earlier ones, which the tape added up: any of
        # them may be its source.
        earlier = tuple(i for i, r in enumerate(self.records) if r.kind == "cotangent")
        sources = tuple(
            self.add("cotangent", path, f"{node.op.name} d(out)", g, 1, self._known(g) or earlier)
            for g in given
            if g is not None
        )
        names = node.op.inputs
        shapes = [s for s in node.shapes if s] + [g.shape for g in given if g is not None]
        saved = tuple(i for s in (node.saved or ()) for i in self._known(s))
        for i, g in enumerate(cotangents):
            if g is None:
                continue
            array = self.plain(g)
            name = names[i] if i < len(names) else str(i)
            length = terms(node.op.name, shapes, array.shape)
            place = self.add(
                "cotangent", path, f"{node.op.name} d({name})", array, length, sources + saved
            )
            if length > 1 and (name == "bias" or node.op.name in SUMS):
                self.records[place].terms_norm = self.records[sources[0]].norm

    def add(
        self,
        kind: str,
        path: str,
        op: str,
        array: Array,
        length: int = 1,
        sources: tuple[int, ...] = (),
    ) -> int:
        """Append a record and return its place."""
        host = np.asarray(self.backend.to_numpy(array))
        flat = host.reshape(-1)
        wide = flat.astype(np.float64, copy=False)
        norm = float(np.sqrt(wide @ wide)) if flat.size else 0.0
        if self.limit is not None and flat.size > self.limit:
            flat = flat[np.linspace(0, flat.size - 1, self.limit).astype(np.int64)]
        place = len(self.records)
        self.records.append(Record(kind, path, op, host.shape, norm, length, sources, flat.copy()))
        self._made_by[id(array)] = place
        self._alive.append(array)
        return place

    def _known(self, array: Any) -> tuple[int, ...]:
        place = self._made_by.get(id(array))
        return () if place is None else (place,)

    @staticmethod
    def plain(x: Any) -> Any:
        """The array of a tensor; an array as it is."""
        return getattr(x, "array", x)


def terms(op: str, shapes: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
    """How many terms one element of a result may sum up."""
    if op in PRODUCTS:
        return max((n for s in shapes for n in s), default=1)
    size = max(int(np.prod(out, dtype=np.int64)), 1)
    return max([int(np.prod(s, dtype=np.int64)) // size for s in shapes] + [1])


@dataclass
class Trace:
    """Records of a whole run, with what is needed to run it again.

    Attributes
    ----------
    meta : recipe text, seed, dtype, device, versions.
    steps : the records of each step.
    """

    meta: dict[str, Any]
    steps: list[list[Record]]

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: the samples as tensors, everything else as JSON in its
        header."""
        from safetensors.numpy import save

        tensors, table = {}, []
        for s, records in enumerate(self.steps):
            rows = []
            for r, record in enumerate(records):
                tensors[f"{s}.{r}"] = np.ascontiguousarray(record.sample)
                row = asdict(record)
                del row["sample"]
                rows.append(row)
            table.append(rows)
        header = {"format": FORMAT, "meta": json.dumps(self.meta), "steps": json.dumps(table)}
        write_atomic(Path(path), save(tensors, metadata=header))

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace that :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            If the file is missing, damaged or something else.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise CheckpointError(f"cannot read the trace {path}: no such file")
        try:
            with safe_open(str(path), framework="numpy") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise CheckpointError(
                        f"{path} is not a trace: its format is {header.get('format')!r}, "
                        f"not {FORMAT!r}"
                    )
                meta = json.loads(header["meta"])
                steps = [
                    [
                        Record(
                            **{
                                **row,
                                "shape": tuple(row["shape"]),
                                "sources": tuple(row["sources"]),
                            },
                            sample=file.get_tensor(f"{s}.{r}"),
                        )
                        for r, row in enumerate(rows)
                    ]
                    for s, rows in enumerate(json.loads(header["steps"]))
                ]
        except OSError as error:
            raise CheckpointError(f"cannot read the trace {path}: {error}") from None
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{path} is damaged or no trace ({error}); make it again with --save-trace"
            ) from None
        return cls(meta, steps)
