"""What can be left out of a recorded step, or done once for all steps.

Each pass takes a list of calls and gives another that does the same. They look at memory only
through refs, so they hold for every device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from gpubackprop.backends import Backend, live
from gpubackprop.backends.primitives import c_strides
from gpubackprop.compile.trace import Buffer, Call, Ref, replaced

FOLDED = 1 << 22
"""A constant result is kept, instead of being computed at each step, up to this many bytes."""

IMPURE = frozenset({"copyto", "to_numpy"})


def mapped(calls: Iterable[Call], change: Callable[[Ref], Ref]) -> list[Call]:
    """The calls with each ref changed."""
    return [
        replace(
            c,
            args=replaced(c.args, change),
            kwargs=replaced(c.kwargs, change),
            outs=replaced(c.outs, change),
            writes=replaced(c.writes, change),
        )
        for c in calls
    ]


def touched(call: Call) -> list[Ref]:
    """Every ref that a call writes."""
    return [*call.outs, *call.writes]


def dead(calls: Sequence[Call], results: Iterable[Ref]) -> list[Call]:
    """Without the calls whose results nobody reads: an input gradient that nobody asked for, a mean
    of what is not returned."""
    needed = {r.buffer for r in results}
    kept = []
    for call in reversed(calls):
        if any(r.buffer.kind == "external" or r.buffer in needed for r in touched(call)):
            needed.update(r.buffer for r in call.reads)
            # What is filled in part, or changed in place, is needed from before too.
            needed.update(r.buffer for r in touched(call))
            kept.append(call)
    return kept[::-1]


def folded(calls: Sequence[Call], backend: Backend) -> list[Call]:
    """Results of constants alone are computed once, here.

    Notes
    -----
    A constant is a buffer that one call makes from constants and no other call changes. Random
    bits with fixed places are constants too; those of a generator are live numbers.
    """
    writers: Counter[Buffer] = Counter()
    for call in calls:
        for buffer in {r.buffer for r in touched(call)}:
            writers[buffer] += 1
    constants: dict[Buffer, Buffer] = {}

    def change(ref: Ref) -> Ref:
        now = constants.get(ref.buffer)
        return ref if now is None else replace(ref, buffer=now)

    def steady(call: Call) -> bool:
        if call.writes or call.kernel in IMPURE or not call.outs or has_live(call):
            return False
        if any(r.buffer not in constants for r in call.reads):
            return False
        return all(
            r.buffer.kind == "made" and writers[r.buffer] == 1 and r.buffer.nbytes <= FOLDED
            for r in call.outs
        )

    kept = []
    for call in calls:
        if not steady(call):
            kept.append(call)
            continue
        arguments = [replaced(a, lambda r: _view(backend, change(r))) for a in call.args]
        named = {
            k: replaced(a, lambda r: _view(backend, change(r))) for k, a in call.kwargs.items()
        }
        result = getattr(backend, call.kernel)(*arguments, **named)
        values = result if isinstance(result, (tuple, list)) else [result]
        for ref, value in zip(call.outs, [v for v in values if v is not None], strict=True):
            array = backend.asarray(value)
            holder = backend.owner(backend.empty((ref.buffer.nbytes,), "uint8"))
            made = Buffer(ref.buffer.number, ref.buffer.nbytes, "external", holder, call.kernel)
            backend.copyto(_view(backend, replace(ref, buffer=made)), array)
            constants[ref.buffer] = made
    return mapped(kept, change)


def has_live(call: Call) -> bool:
    """Whether a call is given a number that is read anew at each replay."""

    def look(tree: Any) -> bool:
        if isinstance(tree, (tuple, list)):
            return any(map(look, tree))
        if isinstance(tree, dict):
            return any(map(look, tree.values()))
        return isinstance(tree, (live.LiveFloat, live.LiveInt))

    return look((call.args, call.kwargs))


def _view(backend: Backend, ref: Ref) -> Any:
    return backend.view_at(ref.buffer.array, ref.offset, ref.shape, ref.strides, ref.dtype)


def simplified(calls: Sequence[Call]) -> list[Call]:
    """Kernels that do less where an argument is special: a first power is the number itself, a row
    of ones times a matrix is a sum."""
    ones = {c.outs[0].buffer for c in calls if c.kernel == "ones" and len(c.outs[0].shape) == 1}
    same: dict[Buffer, Ref] = {}
    kept = []
    for call in calls:
        source = call.args[0] if call.args else None
        if (
            call.kernel == "matmul"
            and isinstance(source, Ref)
            and source.buffer in ones
            and len(source.shape) == 1
            and len(call.args[1].shape) == 2
        ):
            call = Call("sum", (call.args[1],), {"axis": 0}, call.outs)
        elif (
            call.kernel == "power"
            and isinstance(source, Ref)
            and type(call.args[1]) in (int, float)
            and call.args[1] in (1, 2)
            and source.dtype.kind == "f"
            and source.dtype == call.outs[0].dtype
        ):
            out = call.outs[0]
            if call.args[1] == 2:
                call = replace(call, kernel="square", args=(source,))
            elif out.whole and source.whole and source.buffer.kind == "made":
                same[out.buffer] = source
                continue
        kept.append(call)
    # In place changes of either side would be seen through the other.
    changed = Counter(b for c in kept for b in {r.buffer for r in touched(c)})
    if any(changed[out] or changed[source.buffer] > 1 for out, source in same.items()):
        return list(calls)

    def change(ref: Ref) -> Ref:
        while ref.buffer in same:
            ref = replace(ref, buffer=same[ref.buffer].buffer)
        return ref

    return mapped(kept, change)


def placed(calls: Sequence[Call]) -> list[Call]:
    """What is computed only to be copied to its place is computed there: gradients are written
    straight into the parameters' arena.

    Notes
    -----
    ``copyto(target, made)`` can go where `made` is a whole buffer, `target` has its layout, and
    nobody reads or writes the target's elements from the first writing of `made` to the copy, nor
    changes either side while the other is still used after it.
    """
    calls = list(calls)
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for i, call in enumerate(calls):
        for r in touched(call):
            first.setdefault(r.buffer, i)
        for r in [*call.reads, *touched(call)]:
            last[r.buffer] = i
    moved: dict[Buffer, Ref] = {}
    gone = set()
    outside = [[r for r in [*c.reads, *touched(c)] if r.buffer.kind == "external"] for c in calls]
    for i, call in enumerate(calls):
        if call.kernel != "copyto" or not isinstance(call.args[1], Ref):
            continue
        target, source = call.args[0], call.args[1]
        if (
            source.buffer.kind != "made"
            or source.buffer in moved
            or target.buffer.kind != "external"
            or not source.whole
            or not target.contiguous
            or (target.shape, target.dtype) != (source.shape, source.dtype)
            or source.buffer not in first
        ):
            continue
        start, end = first[source.buffer], last[source.buffer]
        before = any(r.overlaps(target) for c in outside[start:i] for r in c)
        after = any(
            r.overlaps(target) for j in range(i + 1, end + 1) for r in touched(calls[j])
        ) or any(
            r.buffer is source.buffer for j in range(i + 1, end + 1) for r in touched(calls[j])
        )
        if before or after:
            continue
        moved[source.buffer] = target
        gone.add(i)

    def change(ref: Ref) -> Ref:
        target = moved.get(ref.buffer)
        if target is None:
            return ref
        return replace(ref, buffer=target.buffer, offset=ref.offset + target.offset)

    return mapped((c for i, c in enumerate(calls) if i not in gone), change)


def copies(calls: Sequence[Call]) -> list[Call]:
    """Copies that other kernels are a name for: a reshape of what does not lie in order."""
    found = []
    for call in calls:
        out = call.outs[0] if call.outs else None
        if call.kernel == "reshape" and out is not None and isinstance(call.args[0], Ref):
            source = call.args[0]
            if out.contiguous:
                as_source = replace(
                    out, shape=source.shape, strides=c_strides(source.shape, out.dtype.itemsize)
                )
                call = Call("copy", (source,), {}, (as_source,))
        found.append(call)
    return found
