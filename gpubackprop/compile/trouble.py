"""What a native kernel can only report as a number, in the words of the kernel that defines it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpubackprop.autograd.operation import IndexRangeError

if TYPE_CHECKING:
    from gpubackprop.compile.replay import Replay


def explained(replay: Replay, error: IndexError) -> IndexRangeError:
    """The error for an index or a label that is out of range, which names the call and the value.

    Notes
    -----
    The calls that read integers run once more, as the backend defines them: nothing was written
    over what they read, since the step ended there.
    """
    backend = replay.backend
    for call in replay.calls:
        integers = [r for r in call.reads if r.dtype.kind in "iu" and r.size]
        kernel = getattr(backend, call.kernel, None)
        if not integers or call.writes or kernel is None:
            continue
        args, kwargs, _ = replay.arguments(call)
        try:
            kernel(*args, **kwargs)
        except IndexError as exact:
            given = ", ".join(f"{r.dtype}{list(r.shape)}" for r in call.reads)
            return IndexRangeError(
                f"{call.kernel}: {exact} (arguments {given} on {backend.device}, in a compiled "
                "step; its update has not run)"
            )
    return IndexRangeError(f"a compiled step: {error}")
