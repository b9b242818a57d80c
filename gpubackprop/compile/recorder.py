"""Recording one call of a function, below autograd: every kernel call it makes, in order.

The function runs as it always does, on real arrays. Each array that a kernel is given or gives is
followed by its memory, so that a view, however it was made, is known as a view of what it lies in.
Nothing is kept alive by the recording but what came from outside.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.autograd.operation import Operation
from gpubackprop.autograd.tape import STATE
from gpubackprop.backends import Array, Backend, live
from gpubackprop.backends.interception import intercepted
from gpubackprop.compile.trace import Buffer, Call, Ref
from gpubackprop.errors import CompileError
from gpubackprop.nn.parameter import Parameter

# Which positional arguments a kernel without results overwrites.
OVERWRITES = {
    "copyto": (0,),
    "sgd_update": (0, 2),
    "adagrad_update": (0, 2),
    "rmsprop_update": (0, 2, 3, 4),
    "adam_update": (0, 2, 3),
}


@dataclass
class Live:
    """Numbers that are read anew before each replay.

    Attributes
    ----------
    read, undo : see :func:`gpubackprop.backends.live.call`.
    places : where its numbers are among all live ones.
    """

    read: live.Read
    undo: Callable[[], None] | None
    places: range


@dataclass
class Recording:
    """What one call of a function did.

    Attributes
    ----------
    calls : kernel calls, in order.
    inputs : the arguments' arrays.
    live : what is read anew; `numbers` what it gave.
    constants : what must stay as it is, with its value now.
    leaves : tensors without history that operations were given, by id.
    modules : those whose forward pass ran, in order of appearance.
    alive : made buffers whose memory still exists, with a weak reference to it.
    """

    calls: list[Call] = field(default_factory=list)
    inputs: list[Ref] = field(default_factory=list)
    live: list[Live] = field(default_factory=list)
    numbers: list[float | int] = field(default_factory=list)
    constants: list[tuple[Callable[[], Any], Any]] = field(default_factory=list)
    leaves: dict[int, Tensor] = field(default_factory=dict)
    modules: dict[int, Any] = field(default_factory=dict)
    alive: dict[int, tuple[Buffer, Any]] = field(default_factory=dict)


class Recorder:
    """Follows the arrays of one device through the calls of its kernels."""

    scope: Any = None

    def __init__(self, backend: Backend, inputs: Sequence[Array]) -> None:
        self.backend = backend
        self.recording = Recording()
        self._owners: dict[int, tuple[Buffer, Any, int]] = {}  # by id: buffer, reference, address
        self._count = 0
        for array in inputs:
            owner = self.backend.owner(array)
            if id(owner) not in self._owners:
                self._enter(owner, "input")
            self.recording.inputs.append(self.ref_of(array))

    # Memory.
    def _enter(self, owner: Array, kind: Any, made_by: str = "") -> Buffer:
        keep = kind != "made"
        low, high = self.backend.extent(owner)
        buffer = Buffer(self._count, high - low, kind, owner if keep else None, made_by)
        self._count += 1
        key = id(owner)
        if keep:
            reference: Any = owner
        else:
            reference = weakref.ref(owner, lambda _: self._forget(key))
            self.recording.alive[key] = (buffer, reference)
        self._owners[key] = (buffer, reference, low)
        return buffer

    def _forget(self, key: int) -> None:
        self._owners.pop(key, None)
        self.recording.alive.pop(key, None)

    def ref_of(self, array: Array) -> Ref:
        """An array as a view of its buffer; one that was never seen came from outside."""
        owner = self.backend.owner(array)
        found = self._owners.get(id(owner))
        if found is None:
            self._enter(owner, "external")
            found = self._owners[id(owner)]
        address, strides = self.backend.layout(array)
        return Ref(found[0], address - found[2], array.shape, strides, array.dtype)

    def known(self, array: Array) -> bool:
        """Whether an array lies in memory that was made here or came in as an argument."""
        found = self._owners.get(id(self.backend.owner(array)))
        return found is not None and found[0].kind != "external"

    # Calls.
    def _described(self, value: Any) -> Any:
        """An argument as it stands in the recording."""
        if isinstance(value, self.backend.array_type):
            return self.ref_of(value)
        if isinstance(value, (tuple, list)):
            return type(value)(self._described(v) for v in value)
        return value

    def call(self, name: str, kernel: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a kernel and note what it did."""
        if name == "to_numpy":
            self._look(args[0])
        given = tuple(self._described(a) for a in args)
        named = {k: self._described(v) for k, v in kwargs.items()}
        result = kernel(*args, **kwargs)
        if name == "to_numpy":
            return result
        calls, precision = self.recording.calls, self.backend.precision
        out = named.pop("out", None)
        if result is None:
            writes = tuple(
                given[i]
                for i in OVERWRITES.get(name, ())
                if i < len(given) and given[i] is not None
            )
            calls.append(Call(name, given, named, (), writes, precision))
            return None
        if out is not None:
            calls.append(Call(name, given, named, (out,), precision=precision))
            return result
        many = isinstance(result, (tuple, list))
        # NumPy gives its scalars in the place of arrays without axes; they cannot be followed.
        results = [self._array(r) for r in result] if many else [self._array(result)]
        fresh = False
        for r in results:
            if r is not None and id(self.backend.owner(r)) not in self._owners:
                self._enter(self.backend.owner(r), "made", name)
                fresh = True
        if fresh:
            outs = tuple(self.ref_of(r) for r in results if r is not None)
            calls.append(Call(name, given, named, outs, precision=precision))
        return tuple(results) if many else results[0]

    def _array(self, value: Any) -> Any:
        return np.asarray(value) if isinstance(value, np.generic) else value

    def _look(self, array: Any) -> None:
        if isinstance(array, self.backend.array_type) and self.known(array):
            ref = self.ref_of(array)
            made = f", made by {ref.buffer.made_by}" if ref.buffer.made_by else ", of an argument"
            raise CompileError(
                f"a compiled function looked at a number that it computes ({ref.dtype} "
                f"{list(ref.shape)}{made}{users_line()}) with float(), int(), .item(), .numpy(), "
                "print, or `if` on a tensor: a replay cannot take another way because of it. Return"
                " the tensor and look at it outside, or choose with gb.where"
            )

    # Live numbers.
    def live(self, read: live.Read, undo: Callable[[], None] | None) -> live.Numbers:
        """See :class:`gpubackprop.backends.live.Recorder`."""
        recording = self.recording
        values = read()
        start = len(recording.numbers)
        recording.numbers.extend(values)
        recording.live.append(Live(read, undo, range(start, start + len(values))))
        return tuple(live.marked(v, start + i) for i, v in enumerate(values))

    def constant(self, read: Callable[[], Any]) -> None:
        """See :class:`gpubackprop.backends.live.Recorder`."""
        self.recording.constants.append((read, read()))

    # The tape's observer.
    def forward(
        self, op: Operation, inputs: Sequence[Any], outputs: Sequence[Array], params: dict[str, Any]
    ) -> None:
        """Note the leaves that an operation is given: what has, or may have, a gradient."""
        leaves = self.recording.leaves
        for x in inputs:
            if isinstance(x, Tensor) and x.node is None and id(x) not in leaves:
                lasting = x.requires_grad or isinstance(x, Parameter)
                if lasting and not self.known(x.array):
                    leaves[id(x)] = x

    def backward(self, node: Any, dy: Any, cotangents: Sequence[Any]) -> None:
        """Nothing to note: the kernels tell."""

    def enter(self, module: Any) -> None:
        """Note a module whose mode and settings the recording depends on."""
        self.recording.modules.setdefault(id(module), module)

    def leave(self, module: Any) -> None:
        """Nothing to note."""


def users_line() -> str:
    """``", line 7 of step.py"``: where the caller's own code is now; empty where there is none."""
    package = str(Path(__file__).parents[1])
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(package):
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    return f", line {frame.f_lineno} of {Path(frame.f_code.co_filename).name}"


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Within the block, what this thread does on the recorder's device is recorded."""
    observer, outer = STATE.observer, live.STATE.recorder
    with intercepted(recorder.backend, recorder.call):
        STATE.observer, live.STATE.recorder = recorder, recorder
        try:
            yield
        finally:
            STATE.observer, live.STATE.recorder = observer, outer
