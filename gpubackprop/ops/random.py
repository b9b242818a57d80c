"""Operations that draw random numbers: pure functions of (seed, stream, offset)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.errors import ConfigError
from gpubackprop.ops.define import ODD_SHAPES, result_dtype


def _dropout_forward(K: Any, x: Any, *, p: float, seed: int, stream: int, offset: int) -> Any:
    return K.dropout(x, p, seed, stream, offset)


def _dropout_backward(
    K: Any, call: Any, dy: Any, keep: Any, *, p: float, seed: int, stream: int, offset: int
) -> Any:
    # The mask is a constant: the same elements pass, scaled alike.
    return (K.dropout_backward(dy, keep, p),)


def _dropout_infer(x: Spec, *, p: float, seed: int, stream: int, offset: int) -> Spec:
    if not 0.0 <= p <= 1.0:
        raise ConfigError(f"dropout: p must be a probability between 0 and 1, not {p}")
    return Spec(x.shape, result_dtype("multiply", [x, 1.0]))


def _dropout_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for i, shape in enumerate(ODD_SHAPES):
        place = {"seed": 7 + i, "stream": i, "offset": 3 * i}
        yield Sample((rng.standard_normal(shape),), {"p": (0.5, 0.1, 0.9, 0.25, 0.3)[i], **place})
    for p in (0.0, 1.0):
        params = {"p": p, "seed": 2**63 + 5, "stream": 2**31, "offset": 2**40}
        yield Sample((rng.standard_normal((3, 5)),), params, note="nothing or everything dropped")


DROPOUT = Operation(
    "dropout",
    _dropout_forward,
    _dropout_backward,
    _dropout_infer,
    _dropout_samples,
    saves=("keep",),
    extras=("keep",),
).register()
