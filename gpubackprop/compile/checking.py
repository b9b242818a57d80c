"""The first replay is compared with the function itself.

The replay runs first, on the state as it is; what it changed is noted and put back; then the
function runs, and has done this call's step whatever comes of the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.backends import Array, Backend
from gpubackprop.backends.composites import HALVES
from gpubackprop.compile.passes import touched
from gpubackprop.compile.trace import Buffer
from gpubackprop.compile.tree import take_out
from gpubackprop.errors import CompileError

if TYPE_CHECKING:
    from gpubackprop.compile.replay import Replay

WHOLE = 1 << 26
"""Up to this many bytes of state the update is compared too. Beyond, the comparison ends with the
gradients, so that no second copy of a large model's state is needed."""

# How far apart two results may be, as a share of the length of both taken as vectors: sums were
# taken in another order.
TOLERANCE = {"e": 3e-2, "E": 5e-2, "f": 1e-3, "d": 1e-8}
# Where terms cancel (the derivative by a bias in front of a normalisation is 0), what is left is
# the rounding of the terms: this share of the tolerance, of the longest result, is let pass.
OF_LONGEST = 0.01
# The change of a parameter: where an update divides by a gradient's size, rounding is made larger.
OF_CHANGE = 0.1


@dataclass
class Region:
    """Outside memory that a step writes.

    Attributes
    ----------
    now : the memory.
    before, after : as it was, and as the replay left it.
    parameter : whether an update writes it through its first argument.
    """

    now: Array
    before: Array
    after: Array
    parameter: bool


def check_replay(replay: Replay, eager: Callable[[], Any], arrays: Sequence[Array]) -> Any:
    """Run a replay and the function from the same state and compare what they give and change.

    Returns
    -------
    What the function returned.

    Raises
    ------
    CompileError
        They differ by more than rounding.
    """
    backend = replay.backend
    regions, least = _regions(replay), _rounding(replay)
    try:
        with np.errstate(all="ignore"):
            replay.try_out(arrays)
        results = replay.results()
        for r in regions:
            r.after = backend.copy(r.now)
    finally:
        for r in regions:
            backend.copyto(r.now, r.before)
    for r in regions:
        if not r.parameter:
            r.before = None
    value = eager()
    found: list[Any] = []
    take_out(value, found, [])
    compared: list[tuple[str, float, float, np.dtype]] = []
    for i, (mine, theirs) in enumerate(zip(results, found, strict=True)):
        if isinstance(mine, Tensor):
            where = f"result {i} of shape {theirs.shape}"
            compared.append((where, *_gap(backend, mine.array, theirs.array), theirs.array.dtype))
    for r in regions:
        now = r.now
        where = f"outside memory {now.dtype} {list(now.shape)}"
        gap, size = _gap(backend, r.after, now)
        if r.parameter:
            change, _ = _gap(backend, r.before, now)
            if gap > max(OF_CHANGE, 5 * least) * change + 1e-6 * size:
                raise _apart(where, gap, size)
        else:
            compared.append((where, gap, size, now.dtype))
    longest = max((size for _, _, size, dtype in compared if dtype.kind in "fV"), default=0.0)
    for where, gap, size, dtype in compared:
        allowed = max(TOLERANCE.get(dtype.char, 1e-3), least)
        if gap > allowed * max(size, OF_LONGEST * longest) + 1e-30:
            raise _apart(where, gap, size)
    return value


def _regions(replay: Replay) -> list[Region]:
    """What the part of a step that is compared writes outside."""
    written: dict[Buffer, bool] = {}
    for call in replay.compared():
        for r in [*call.outs, *call.writes]:
            if r.buffer.kind == "external":
                update = call.kernel.endswith("_update") and r is call.writes[0]
                written[r.buffer] = written.get(r.buffer, False) or update
    backend = replay.backend
    regions = []
    for buffer, parameter in written.items():
        now = _whole(backend, buffer.array)
        regions.append(Region(now, backend.copy(now), None, parameter))
    return regions


def _whole(backend: Backend, owner: Any) -> Array:
    """All of what owns some memory, as an array of the backend."""
    first = sum(max(0, (1 - n) * s) for n, s in zip(owner.shape, owner.strides, strict=True))
    return backend.view_at(owner, first, owner.shape, owner.strides, owner.dtype)


def _gap(backend: Backend, a: Array, b: Array) -> tuple[float, float]:
    """Length of the difference of two arrays, and of the second, as vectors; infinite where one is
    NaN and the other is not."""
    x, y = backend.to_numpy(a), backend.to_numpy(b)
    if x.dtype.kind not in "fV":
        return (0.0, 1.0) if np.array_equal(x, y) else (math.inf, 1.0)
    total = size = 0.0
    x, y = x.reshape(-1), y.reshape(-1)
    for start in range(0, x.size, 1 << 20):  # in pieces: no second copy of a large array
        u = x[start : start + (1 << 20)].astype(np.float64)
        v = y[start : start + (1 << 20)].astype(np.float64)
        odd = ~(np.isfinite(u) & np.isfinite(v))
        if odd.any():
            if not np.array_equal(u[odd], v[odd], equal_nan=True):
                return math.inf, 1.0
            u, v = u[~odd], v[~odd]
        total += float(np.dot(u - v, u - v))
        size += float(np.dot(v, v))
    return math.sqrt(total), math.sqrt(size)


def _rounding(replay: Replay) -> float:
    """How far results may be apart because values on their way are of half precision, where the
    last bit of what is rounded may turn; 0 where none are."""
    kinds = {r.dtype.char for call in replay.compared() for r in touched(call)}
    return max((TOLERANCE[kind] for kind in kinds & set(HALVES)), default=0.0)


def _apart(what: str, gap: float, size: float) -> CompileError:
    return CompileError(
        f"the compiled step and the function differ in {what}: by {gap:.3g}, where its length "
        f"is {size:.3g}. If the function reads something that changes between two calls, pass "
        "it as an argument; where it is a sum of terms that cancel, the difference is rounding: "
        "compile(..., check=False); otherwise this is a defect: compile(..., fast=False) may help, "
        "and the report of explain(calls=True) is what a bug report needs"
    )
