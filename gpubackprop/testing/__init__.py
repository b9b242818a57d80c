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
from gpubackprop.testing.report import Failures
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
        With every check that failed: a sample, what was found in place of what, what mends it.
    """
    if devices is None:
        others = [p.backend for p in backends() if p.backend is not None and p.name != "cpu"]
    else:
        others = [get_backend(d) for d in devices]
    failures = Failures(op)
    samples = samples_of(op)
    if not samples:
        raise CheckError(f"{op.name}: samples() yields nothing, so nothing is tested")
    for sample in samples:
        failures.run(check_shape_rule, sample)
        failures.run(check_forward, sample)
        failures.run(check_rule, sample)
        failures.run(check_precision, sample, np.float32)
        failures.run(check_precision, sample, np.float16)
        failures.run(check_gradient, sample)
        failures.run(check_second_order, sample)
        for backend in others:
            for dtype in (np.float64, np.float32):
                failures.run(check_parity, sample, backend, dtype)
    failures.raise_any(len(samples))
    return len(samples)


_shared: list[StandInBackend] = []


def _stand_in() -> StandInBackend:
    """One stand-in for all calls: tensors of two backends do not mix."""
    if not _shared:
        _shared.append(StandInBackend())
    return _shared[0]
