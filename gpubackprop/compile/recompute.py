"""Values that are computed twice, so that they need not be kept from the one time to the other.

A step needs most memory where its forward pass ends: every result that some derivative reads is
still there. One that is cheap to compute from others that are kept anyway (an activation, a
normalised row) can be dropped until then and computed again. Chen, Xu, Zhang and Guestrin,
"Training deep nets with sublinear memory cost" (2016), call it rematerialisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpubackprop.compile.passes import has_live, mapped, touched
from gpubackprop.compile.plan import Life, lifetimes, peak_of
from gpubackprop.compile.trace import Buffer, Call, Ref

LEAST = 4096
"""Bytes of a value that is worth a call."""

WORTH = 4
"""What share of a value's bytes must be saved at least, to compute it again."""

CHEAP = frozenset(
    {
        *("add", "subtract", "multiply", "divide", "negative", "absolute", "square", "sqrt"),
        *("maximum", "minimum", "exp", "tanh", "sigmoid", "relu", "gelu", "silu", "elu"),
        *("leaky_relu", "softplus", "where", "astype", "copy", "take", "dropout"),
        *("greater", "greater_equal", "less", "less_equal", "equal", "not_equal"),
        *("layer_norm", "rms_norm", "softmax", "log_softmax"),
    }
)
"""Kernels that read each number a few times at most."""


def recomputed(
    calls: Sequence[Call], results: Sequence[Ref], inputs: Sequence[Ref]
) -> tuple[list[Call], int]:
    """The calls with some made twice, as long as that lowers the most memory in use at once.

    Returns
    -------
    list of Call
    int
        How many values are computed again.
    """
    calls = list(calls)
    kept = {r.buffer for r in results}
    lives = lifetimes(calls, results, inputs)
    most, fullest = peak_of(lives)
    tried: set[Buffer] = set()
    count = 0
    while True:
        found = _largest(calls, lives, fullest, kept | tried)
        if found is None:
            return calls, count
        buffer, made, again = found
        tried.add(buffer)
        changed = _twice(calls, buffer, made, again)
        lives_now = lifetimes(changed, results, inputs)
        most_now, fullest_now = peak_of(lives_now)
        if most - most_now >= buffer.nbytes // WORTH:
            calls, lives, most, fullest = changed, lives_now, most_now, fullest_now
            count += 1


def _largest(
    calls: Sequence[Call], lives: dict[Buffer, Life], fullest: int, without: set[Buffer]
) -> tuple[Buffer, int, int] | None:
    """The largest value that is only kept at call `fullest`, not used there: its buffer, the call
    that makes it, and the one that reads it next."""
    held = [
        b
        for b, life in lives.items()
        if b.kind == "made" and life.start < fullest < life.end and b.nbytes >= LEAST
    ]
    for buffer in sorted(held, key=lambda b: (-b.nbytes, b.number)):
        if buffer in without:
            continue
        uses = [i for i, c in enumerate(calls) if any(r.buffer is buffer for r in c.reads)]
        writers = [i for i, c in enumerate(calls) if any(r.buffer is buffer for r in touched(c))]
        again = next((i for i in uses if i > fullest), None)
        if len(writers) != 1 or again is None or fullest in uses:
            continue
        if _repeatable(calls, lives, buffer, writers[0], again):
            return buffer, writers[0], again
    return None


def _repeatable(
    calls: Sequence[Call], lives: dict[Buffer, Life], buffer: Buffer, made: int, again: int
) -> bool:
    """Whether a call gives the same result once more, from what is there anyway."""
    call = calls[made]
    if call.kernel not in CHEAP or call.writes or has_live(call) or not call.outs:
        return False
    if call.outs[0].buffer is not buffer or not call.outs[0].whole:
        return False
    sources = call.reads
    if any(r.buffer.kind != "external" and lives[r.buffer].end < again for r in sources):
        return False
    return not any(
        w.overlaps(r) for c in calls[made + 1 : again] for w in touched(c) for r in sources
    )


def _twice(calls: Sequence[Call], buffer: Buffer, made: int, again: int) -> list[Call]:
    """The calls with that at `made` also before that at `again`, which reads the second result."""
    fresh = {r.buffer: replace(r.buffer) for r in calls[made].outs}

    def second(ref: Ref) -> Ref:
        return replace(ref, buffer=fresh[ref.buffer]) if ref.buffer in fresh else ref

    def moved(ref: Ref) -> Ref:
        return replace(ref, buffer=fresh[buffer]) if ref.buffer is buffer else ref

    repeated = replace(calls[made], outs=tuple(map(second, calls[made].outs)))
    return [*calls[:again], repeated, *mapped(calls[again:], moved)]
