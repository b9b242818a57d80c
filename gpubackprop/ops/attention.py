"""Attention: every query takes the mean of the values, weighted by how well its key fits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.backends.attention import Options, shapes_fit
from gpubackprop.errors import ConfigError, DTypeError, ShapeError


def _scale(scale: float | None, features: int) -> float:
    """The factor of the scores: by default one that keeps their variance."""
    return 1.0 / math.sqrt(max(features, 1)) if scale is None else scale


def _attention_forward(
    K: Any,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    *,
    causal: bool = False,
    past: int = 0,
    scale: float | None = None,
    p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
    offset: int = 0,
) -> Any:
    factor = _scale(scale, q.shape[-1])
    return K.attention(q, k, v, mask, causal, past, factor, p, seed, stream, offset)


def _attention_backward(
    K: Any,
    call: Any,
    dy: Any,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    y: Any,
    lse: Any,
    *,
    scale: float | None = None,
    **rest: Any,
) -> Any:
    arrays = (dy, q, k, v, mask, y, lse)
    options = Options(scale=_scale(scale, q.shape[-1]), **rest)
    dq = dk = dv = dmask = None
    if any(call.needs[:3]):
        dq, dk, dv = K.attention_backward(*arrays, *options)
    if call.needs[3]:
        dmask = K.attention_mask_backward(*arrays, *options)
    return dq, dk, dv, dmask


def _attention_infer(
    q: Spec,
    k: Spec,
    v: Spec,
    mask: Spec | None,
    *,
    past: int = 0,
    p: float = 0.0,
    **rest: Any,
) -> Spec:
    fault = shapes_fit(q, k, v, mask)
    if fault:
        raise ShapeError(f"attention: {fault}; q is {q}, k {k}, v {v}, mask {mask}")
    if past < 0:
        raise ConfigError(f"attention: past, the keys before the first query, is {past}")
    if not 0.0 <= p <= 1.0:
        raise ConfigError(f"attention: p must be a probability between 0 and 1, not {p}")
    dtypes = [s.dtype for s in (q, k, v)]
    if mask is not None and mask.dtype != np.bool_:
        dtypes.append(mask.dtype)
    if any(d.kind in "iub" for d in dtypes):
        raise DTypeError(
            "attention: queries, keys and values must be floats, and a mask booleans (True where a "
            f"query may attend) or floats to add; q is {q}, k {k}, v {v}, mask {mask}"
        )
    return Spec((*q.shape[:3], v.shape[3]), np.result_type(*dtypes))


def _attention_samples(rng: np.random.Generator) -> Iterable[Sample]:
    def arrays(
        b: int, h: int, hkv: int, tq: int, tk: int, d: int, dv: int
    ) -> tuple[np.ndarray, ...]:
        shapes = ((b, h, tq, d), (b, hkv, tk, d), (b, hkv, tk, dv))
        return tuple(rng.standard_normal(s) for s in shapes)

    yield Sample((*arrays(2, 2, 2, 3, 4, 3, 2), None))
    yield Sample((*arrays(1, 1, 1, 1, 1, 1, 1), None), {"causal": True}, note="one of each")
    yield Sample((*arrays(1, 2, 1, 3, 3, 2, 3), None), {"causal": True}, note="shared keys")
    yield Sample((*arrays(1, 4, 2, 2, 5, 2, 2), None), {"causal": True, "past": 3, "scale": 0.7})
    seen = rng.random((2, 1, 3, 5)) < 0.6
    seen[:, :, 1] = False
    yield Sample((*arrays(2, 2, 1, 3, 5, 2, 1), seen), note="a query without keys")
    yield Sample((*arrays(2, 1, 1, 3, 4, 2, 2), seen[0, 0, 0, :4]), note="a mask of keys")
    bias = rng.standard_normal((2, 1, 3, 4))
    yield Sample((*arrays(2, 2, 2, 3, 4, 2, 2), bias), note="numbers to add")
    yield Sample(
        (*arrays(2, 2, 1, 3, 3, 2, 2), bias[0, 0, :1, :3]), {"causal": True}, note="for all queries"
    )
    place = {"p": 0.4, "seed": 7, "stream": 3, "offset": 2**40}
    yield Sample((*arrays(2, 2, 1, 3, 5, 2, 2), None), {"causal": True, **place})
    yield Sample((*arrays(1, 1, 1, 2, 2, 1, 2), bias[0, 0, :2, :2]), place)
    yield Sample((*arrays(1, 2, 2, 2, 3, 2, 2), None), {**place, "p": 1.0}, note="all dropped")
    yield Sample((*arrays(0, 2, 1, 2, 3, 2, 2), None), note="no batches")
    yield Sample((*arrays(1, 1, 1, 0, 3, 2, 2), None), note="no queries")
    yield Sample((*arrays(1, 2, 1, 2, 0, 2, 3), None), note="no keys")


ATTENTION = Operation(
    "attention",
    _attention_forward,
    _attention_backward,
    _attention_infer,
    _attention_samples,
    saves=("q", "k", "v", "mask", "out", "lse"),
    extras=("lse",),
    constant_extras=False,
    # Batches of one and longer masks would broadcast in silence.
    strict=True,
).register()


# Rotary positions.


def _rotary_forward(K: Any, x: Any, cos: Any, sin: Any, *, interleaved: bool = False) -> Any:
    return K.rotary(x, cos, sin, interleaved)


def _rotary_backward(
    K: Any, call: Any, dy: Any, x: Any, cos: Any, sin: Any, *, interleaved: bool = False
) -> Any:
    dx = dcos = dsin = None
    if call.needs[0]:
        dx = K.rotary(dy, cos, K.negative(sin), interleaved)  # turned back
    if call.needs[1] or call.needs[2]:
        half = x.shape[-1] // 2
        cuts = (slice(0, half), slice(half, None))
        if interleaved:
            cuts = (slice(0, None, 2), slice(1, None, 2))
        a, b = (K.getitem(x, (..., cut)) for cut in cuts)
        da, db = (K.getitem(dy, (..., cut)) for cut in cuts)
        dcos = K.sum_to(K.add(K.multiply(da, a), K.multiply(db, b)), call.shapes[1])
        dsin = K.sum_to(K.subtract(K.multiply(db, a), K.multiply(da, b)), call.shapes[2])
    return dx, dcos, dsin


def _rotary_infer(x: Spec, cos: Spec, sin: Spec, *, interleaved: bool = False) -> Spec:
    if not x.shape or x.shape[-1] % 2:
        raise ShapeError(f"rotary: the last axis of x ({x}) must hold pairs of features")
    lead = (*x.shape[:-1], x.shape[-1] // 2)
    for name, s in (("cos", cos), ("sin", sin)):
        over = lead[len(lead) - len(s.shape) :]
        if len(s.shape) > len(lead) or any(
            n not in (1, m) for n, m in zip(s.shape, over, strict=True)
        ):
            raise ShapeError(
                f"rotary: {name} ({s}) must broadcast to {lead}, a number for each pair of x ({x})"
            )
    return Spec(x.shape, np.result_type(x.dtype, cos.dtype, sin.dtype))


def _rotary_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for lead, t, d in (((2,), 3, 4), ((), 1, 2), ((1, 2), 2, 6), ((0,), 3, 2)):
        x = rng.standard_normal((*lead, t, d))
        angles = rng.uniform(-3, 3, (t, d // 2))
        tables = (np.cos(angles), np.sin(angles))
        yield Sample((x, *tables))
        yield Sample((x, *tables), {"interleaved": True})
    one = np.ones((1,))
    yield Sample((rng.standard_normal((3, 2)), 0.5 * one, one), note="one angle, and a stretch")


ROTARY = Operation(
    "rotary",
    _rotary_forward,
    _rotary_backward,
    _rotary_infer,
    _rotary_samples,
    saves=("x", "cos", "sin"),
    strict=True,
).register()
