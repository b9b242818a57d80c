"""Tests for operations: those of the library and a user's own.

``check_operation(op)`` holds an operation to everything that its record promises, over its samples:
shape rule, values in other layouts and precisions, first and second derivatives, and agreement of
the devices. The checks are also there one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gpubackprop.autograd import Operation
from gpubackprop.backends import Backend, get_backend
from gpubackprop.testing.calls import samples_of
from gpubackprop.testing.checks import (
    check_forward,
    check_gradient,
    check_parity,
    check_precision,
    check_rule,
    check_second_order,
    check_shape_rule,
)
from gpubackprop.testing.closeness import CheckError, require_close, tolerance
from gpubackprop.testing.standin import StandInBackend

__all__ = [
    "CheckError",
    "Place",
    "StandInBackend",
    "backends",
    "check_forward",
    "check_gradient",
    "check_operation",
    "check_parity",
    "check_precision",
    "check_rule",
    "check_second_order",
    "check_shape_rule",
    "require_close",
    "samples_of",
    "tolerance",
]


class Place(NamedTuple):
    """Somewhere to run: its name, and its backend or the reason why there is none."""

    name: str
    backend: Backend | None
    reason: str = ""


def backends() -> list[Place]:
    """The CPU, its stand-in for a device, and the first GPU or why it cannot be used."""
    from gpubackprop.backends import detect

    places = [Place("cpu", get_backend("cpu")), Place("stand-in", _stand_in())]
    problem = detect.gpu_problem()
    if problem is None:
        return [*places, Place("cuda", get_backend("cuda"))]
    return [*places, Place("cuda", None, str(problem))]


def check_operation(op: Operation, *, devices: Sequence[str | Backend] | None = None) -> int:
    """Check an operation, which need not be registered, over its samples.

    Parameters
    ----------
    op : the operation.
    devices : names or backends whose results are compared with the CPU's; by default every usable
        one of :func:`backends`.

    Returns
    -------
    int
        The number of samples that were checked.

    Raises
    ------
    CheckError
        With the operation, the sample, and what was found in place of what.
    """
    if devices is None:
        others = [p.backend for p in backends() if p.backend is not None and p.name != "cpu"]
    else:
        others = [get_backend(d) for d in devices]
    samples = samples_of(op)
    if not samples:
        raise CheckError(f"{op.name}: samples() yields nothing, so nothing is tested")
    for sample in samples:
        check_shape_rule(op, sample)
        check_forward(op, sample)
        check_rule(op, sample)
        check_precision(op, sample, np.float32)
        check_precision(op, sample, np.float16)
        check_gradient(op, sample)
        check_second_order(op, sample)
        for backend in others:
            for dtype in (np.float64, np.float32):
                check_parity(op, sample, backend, dtype)
    return len(samples)


_shared: list[StandInBackend] = []


def _stand_in() -> StandInBackend:
    """One stand-in for all calls: tensors of two backends do not mix."""
    if not _shared:
        _shared.append(StandInBackend())
    return _shared[0]
