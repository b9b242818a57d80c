"""Sequences of image kernels that one native kernel does without keeping what lies between:
convolution, relu and pooling, and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from gpubackprop.compile.passes import touched
from gpubackprop.compile.trace import Buffer, Call, Ref


class Uses:
    """Who makes and who reads each buffer of a list of calls."""

    def __init__(self, calls: Sequence[Call], results: Iterable[Ref]) -> None:
        self.calls = calls
        self.writers: dict[Buffer, list[int]] = {}
        self.readers: dict[Buffer, list[int]] = {}
        self.kept = {r.buffer for r in results}
        for i, call in enumerate(calls):
            for r in touched(call):
                self.writers.setdefault(r.buffer, []).append(i)
            for r in call.reads:
                found = self.readers.setdefault(r.buffer, [])
                if not found or found[-1] != i:
                    found.append(i)

    def made_by(self, ref: object, kernel: str) -> int | None:
        """The call of a kernel that makes all of a ref's buffer, if no other writes it."""
        if not isinstance(ref, Ref) or ref.buffer.kind != "made":
            return None
        writers = self.writers.get(ref.buffer, [])
        if len(writers) != 1 or self.calls[writers[0]].kernel != kernel:
            return None
        return writers[0]

    def only_read_by(self, ref: Ref, readers: set[int]) -> bool:
        """Whether nobody else reads a made buffer."""
        return (
            ref.buffer.kind == "made"
            and ref.buffer not in self.kept
            and set(self.readers.get(ref.buffer, [])) <= readers
        )

    def quiet(self, ref: Ref, first: int, last: int) -> bool:
        """Whether no call strictly between two touches the elements of a ref."""
        between = self.calls[first + 1 : last]
        return not any(r.overlaps(ref) for c in between for r in [*c.reads, *touched(c)])

    def unchanged(self, refs: Iterable[Ref], first: int, last: int) -> bool:
        """Whether no call strictly between two writes to the elements of refs."""
        between = [r for c in self.calls[first + 1 : last] for r in touched(c)]
        return not any(r.overlaps(x) for x in refs for r in between)


def same_memory(a: Ref, b: Ref) -> bool:
    """Whether two dense refs are the same elements in the order of memory."""
    return a.buffer is b.buffer and a.offset == b.offset and a.size == b.size


def images_fused(calls: Sequence[Call], results: Sequence[Ref]) -> list[Call]:
    """Convolution + relu (+ max pooling) forwards, pooling + relu (+ convolution's weight) back."""
    calls = list(calls)
    uses = Uses(calls, results)
    gone: set[int] = set()
    changed: dict[int, Call] = {}
    for i, call in enumerate(calls):
        if call.kernel == "relu":
            _forwards(i, calls, uses, gone, changed)
    kept = [changed.get(i, c) for i, c in enumerate(calls) if i not in gone]
    return kept


def _forwards(
    i: int, calls: list[Call], uses: Uses, gone: set[int], changed: dict[int, Call]
) -> None:
    relu = calls[i]
    source, out = relu.args[0], relu.outs[0]
    conv = uses.made_by(source, "conv")
    if conv is None or not uses.only_read_by(source, {i}) or out.strides != source.strides:
        return
    whole = calls[conv].outs[0]
    if not whole.contiguous or whole.size != source.size or out.buffer.kind != "made":
        return
    if len(uses.writers[out.buffer]) != 1:
        return
    rectified = replace(whole, buffer=out.buffer, offset=out.offset)
    changed[conv] = replace(calls[conv], kernel="conv_relu", outs=(rectified,))
    gone.add(i)
    pool = next(
        (k for k in uses.readers.get(out.buffer, []) if calls[k].kernel == "max_pool"), None
    )
    if pool is None or not same_memory(calls[pool].args[0], rectified):
        return
    back = next((k for k in uses.readers[out.buffer] if calls[k].kernel == "relu_backward"), None)
    allowed = {pool} if back is None else {pool, back}
    if not uses.only_read_by(rectified, allowed):
        return
    if calls[pool].outs[1].dtype.itemsize != 1:
        return
    if back is not None and not _backwards(back, pool, rectified, calls, uses, gone, changed):
        return
    pooling = calls[pool]
    first = changed[conv]
    changed[conv] = Call("conv_relu_pool", (*_all(first), *_all(pooling)[1:]), {}, pooling.outs)
    gone.add(pool)


def _all(call: Call) -> tuple[object, ...]:
    """The arguments of a call of an image kernel, which is made by position."""
    return (*call.args, *call.kwargs.values())


def _backwards(
    back: int,
    pool: int,
    rectified: Ref,
    calls: list[Call],
    uses: Uses,
    gone: set[int],
    changed: dict[int, Call],
) -> bool:
    """Replace pooling's and relu's way back; False where that cannot be."""
    slope, y = calls[back].args
    unpool = uses.made_by(slope, "max_pool_backward")
    if unpool is None or not same_memory(y, rectified) or not uses.only_read_by(slope, {back}):
        return False
    dz = calls[back].outs[0]
    dy, winner, *windows = _all(calls[unpool])
    if not isinstance(winner, Ref) or not same_memory(winner, calls[pool].outs[1]):
        return False
    if dz.buffer.kind != "made" or len(uses.writers[dz.buffer]) != 1:
        return False
    whole = replace(calls[unpool].outs[0], buffer=dz.buffer, offset=dz.offset)
    pooled = calls[pool].outs[0]
    readers = uses.readers.get(dz.buffer, [])
    channels = whole.shape[-1]
    total = next((k for k in readers if sums_rows(calls[k], whole, channels)), None)
    sums: tuple[Ref, ...] = ()
    if total is not None and uses.quiet(calls[total].outs[0], back, total):
        sums = (calls[total].outs[0],)
        gone.add(total)
    gone.add(unpool)
    weights = [k for k in readers if calls[k].kernel == "conv_weight"]
    if sums and total is not None and len(weights) == 1 and set(readers) == {*weights, total}:
        k = weights[0]
        x, given, *options = _all(calls[k])
        if isinstance(given, Ref) and same_memory(given, whole):
            changed[k] = Call(
                "pool_relu_conv_weight",
                (x, dy, winner, pooled, *windows, *options),
                {},
                (*calls[k].outs, *sums),
            )
            gone.add(back)
            return True
    changed[back] = Call("pool_relu_backward", (dy, winner, pooled, *windows), {}, (whole, *sums))
    return True


def sums_rows(call: Call, whole: Ref, channels: int) -> bool:
    """Whether a call is the sum of an image over all axes but the channels."""
    if call.kernel != "sum" or not isinstance(call.args[0], Ref):
        return False
    x = call.args[0]
    axis = call.kwargs.get("axis", call.args[1] if len(call.args) > 1 else None)
    return (
        same_memory(x, whole)
        and x.contiguous
        and len(x.shape) == 2
        and x.shape[1] == channels
        and axis in (0, (0,))
        and call.outs[0].contiguous
    )
