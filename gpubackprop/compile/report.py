"""The report of a compiled function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpubackprop.autograd import Tensor
from gpubackprop.compile.plan import size_of

if TYPE_CHECKING:
    from gpubackprop.compile.compiled import Compiled, Entry


def describe(compiled: Compiled, calls: bool = False) -> str:
    """What was compiled and why, in lines."""
    lines = [
        f"compiled {compiled.name}: {len(compiled.entries)} recording(s) kept of at most "
        f"{compiled.entries.most}"
    ]
    if compiled.eager is not None:
        lines.append(f"  runs as it is: {compiled.eager}")
    from gpubackprop.compile.compiled import native_trouble

    if compiled.fast is False:
        lines.append("  native kernels: off (fast=False)")
    else:
        trouble = native_trouble()
        lines.append(f"  native kernels: {'on' if trouble is None else 'absent: ' + trouble}")
    for entry in compiled.entries:
        lines += _entry(entry, calls)
    if compiled.entries.events:
        lines.append("  what happened:")
        lines += [f"    {event}" for event in compiled.entries.events]
    return "\n".join(lines)


def _entry(entry: Entry, calls: bool) -> list[str]:
    shapes = ", ".join(f"{k[1]} {list(k[0])}" for k in entry.key.arrays) or "no arrays"
    lines = [f"  {shapes} on {entry.key.backend.device}:"]
    replay = entry.replay
    if replay is None:
        lines.append(f"    recorded {entry.recordings} time(s), not compiled yet")
        return lines
    r = replay.report
    plan = r.plan
    lines.append(
        f"    {r.recorded} kernel calls recorded, {r.planned} after leaving out what nobody reads, "
        "constants and copies"
    )
    if r.native or r.programs:
        lines.append(
            f"    {r.native} run natively in {r.programs} program(s) on {r.parts} thread(s), "
            f"{r.fused} of the recorded calls in fused loops"
        )
    if r.plain:
        listed = ", ".join(f"{k} {n}" if n > 1 else k for k, n in r.plain.most_common())
        lines.append(f"    {sum(r.plain.values())} run in the backend's own kernels: {listed}")
    if plan is not None:
        lines.append(f"    memory: {plan.describe()}")
        if r.again:
            lines.append(
                f"    {r.again} value(s) computed twice; without that, {size_of(r.kept)} at once"
            )
    if replay.launch is not None:
        lines.append(f"    {replay.launch.describe()}")
    numbers = len(replay.numbers)
    lines.append(
        f"    {numbers} number(s) read anew at each step; {len(replay.outcome.recording.leaves)} "
        f"leaves, {len(replay.outcome.recording.modules)} modules looked at"
    )
    lines.append(
        f"    built in {r.seconds:.3f} s, {r.compiled} kernel(s) compiled; {entry.checked}; "
        f"{entry.calls} replay(s)"
    )
    if calls:
        lines += [f"      {c.kernel}({_brief(c.args)}) -> {_brief(c.outs)}" for c in replay.calls]
    return lines


def _brief(tree: Any) -> str:
    if isinstance(tree, (tuple, list)):
        return ", ".join(_brief(v) for v in tree)
    return repr(tree) if not isinstance(tree, Tensor) else str(tree.shape)
