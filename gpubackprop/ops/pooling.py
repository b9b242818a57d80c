"""Pooling: the largest or the mean element of each window of an image, channels last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.backends import Shape
from gpubackprop.backends.images import pooled_sizes
from gpubackprop.errors import DTypeError, ShapeError
from gpubackprop.ops.define import result_dtype


def pooled_shape(
    name: str,
    x: Spec,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    ceil: bool,
) -> Shape:
    """Shape of the result of pooling `x`.

    Raises
    ------
    ShapeError, DTypeError
        In words: a number is out of range, the axes are not as many, or no window fits.
    """
    n = len(kernel)
    if x.dtype.kind not in "fiuV":
        raise DTypeError(f"{name}: x ({x}) must be numbers; cast it with .astype(...)")
    if len(x.shape) != n + 2:
        raise ShapeError(
            f"{name}: x ({x}) must have {n} spatial ax{'is' if n == 1 else 'es'} between batch and "
            "channels, as many as there are kernel sizes"
        )
    smallest = {"kernel": 1, "stride": 1, "padding": 0, "dilation": 1}
    for (what, least), sizes in zip(
        smallest.items(), (kernel, stride, padding, dilation), strict=True
    ):
        if len(sizes) != n or min(sizes, default=least) < least:
            raise ShapeError(
                f"{name}: {what} must be {n} number(s) of at least {least}, one for each spatial "
                f"axis of x ({x}), not {tuple(sizes)}"
            )
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    for span, p in zip(spans, padding, strict=True):
        if 2 * p > span:
            raise ShapeError(
                f"{name}: padding {tuple(padding)} is more than half of the window, whose sizes "
                f"are {tuple(spans)}; pad the input beforehand (F.pad) if that is meant"
            )
    out = pooled_sizes(x.shape[1:-1], kernel, stride, padding, dilation, ceil)
    if min(out, default=1) < 1 or 0 in x.shape[1:-1]:
        raise ShapeError(
            f"{name}: windows of sizes {tuple(spans)} do not fit in the spatial axes of x ({x}) "
            f"with padding {tuple(padding)}; pad it, or pool less"
        )
    return (x.shape[0], *out, x.shape[-1])


def _max_pool_forward(
    K: Any,
    x: Any,
    *,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    ceil: bool = False,
) -> Any:
    return K.max_pool(x, kernel, stride, padding, dilation, ceil)


def _max_pool_backward(
    K: Any,
    call: Any,
    dy: Any,
    winner: Any,
    *,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    ceil: bool = False,
) -> Any:
    # A window's result is one of its elements: the derivative is 1 by that one and 0 by the others.
    spatial = call.shapes[0][1:-1]
    return (K.max_pool_backward(dy, winner, spatial, kernel, stride, padding, dilation),)


def _max_pool_infer(
    x: Spec,
    *,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    ceil: bool = False,
) -> Spec:
    return Spec(pooled_shape("max_pool", x, kernel, stride, padding, dilation, ceil), x.dtype)


def _apart(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Numbers of which no two are near each other, so that a small step changes no maximum."""
    numbers = 0.125 * (rng.permutation(int(np.prod(shape))) - np.prod(shape) // 2)
    return np.asarray(numbers, np.float64).reshape(shape)


# Shape of x, kernel, stride, padding, dilation, ceil.
MAX_CASES: tuple[tuple[Shape, Shape, Shape, Shape, Shape, bool, str], ...] = (
    ((2, 7, 3), (3,), (2,), (1,), (1,), False, "one axis, overlapping"),
    ((1, 6, 2), (2,), (1,), (1,), (2,), True, "dilation"),
    ((1, 1, 1), (1,), (1,), (0,), (1,), False, "one element"),
    ((2, 4, 6, 3), (2, 2), (2, 2), (0, 0), (1, 1), False, "halves"),
    ((1, 5, 7, 2), (2, 2), (2, 2), (0, 0), (1, 1), False, "a remainder"),
    ((1, 5, 4, 2), (3, 2), (2, 3), (1, 1), (1, 1), True, "a last window over the end"),
    ((1, 5, 6, 1), (3, 2), (1, 2), (1, 0), (2, 3), False, "all options"),
    ((0, 4, 4, 1), (2, 2), (2, 2), (0, 0), (1, 1), False, "empty"),
    ((1, 3, 4, 3, 1), (2, 3, 2), (1, 2, 1), (1, 1, 0), (1, 1, 1), True, "three axes"),
)


def _max_pool_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, kernel, stride, padding, dilation, ceil, note in MAX_CASES:
        params = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        yield Sample((_apart(rng, shape),), {**params, "ceil": ceil}, note=note)
    params = dict.fromkeys(("kernel", "stride"), (2, 2))
    params |= {"padding": (1, 1), "dilation": (1, 1)}
    x = _apart(rng, (2, 3, 5, 4)).transpose(0, 2, 3, 1)
    yield Sample((x,), params, note="channels first in memory")
    equal = np.array([-1.0, 1.0, 1.0, 0.0, 0.0, -1.0]).repeat(4).reshape(1, 4, 6, 1)
    yield Sample((equal,), params, differentiable=False, note="equal elements")


MAX_POOL = Operation(
    "max_pool",
    _max_pool_forward,
    _max_pool_backward,
    _max_pool_infer,
    _max_pool_samples,
    saves=("winner",),
    extras=("winner",),
    strict=True,
).register()


# The mean.


def _avg_pool_forward(
    K: Any,
    x: Any,
    *,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    ceil: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    return K.avg_pool(x, kernel, stride, padding, ceil, count_include_pad, divisor_override)


def _avg_pool_backward(K: Any, call: Any, dy: Any, **params: Any) -> Any:
    return (K.avg_pool_backward(dy, spatial=tuple(call.shapes[0][1:-1]), **params),)


def _avg_pool_infer(
    x: Spec,
    *,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    ceil: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    name: str = "avg_pool",
) -> Spec:
    shape = pooled_shape(name, x, kernel, stride, padding, (1,) * len(kernel), ceil)
    if divisor_override == 0:
        raise ShapeError(f"{name}: divisor_override must not be 0")
    return Spec(shape, result_dtype("divide", [x, 1]))


# Shape of x, kernel, stride, padding and the options that are not the default.
AVG_CASES: tuple[tuple[Shape, Shape, Shape, Shape, dict[str, Any], str], ...] = (
    ((2, 7, 3), (3,), (2,), (1,), {}, "one axis, overlapping"),
    ((1, 1, 1), (1,), (1,), (0,), {}, "one element"),
    ((2, 4, 6, 3), (2, 2), (2, 2), (0, 0), {}, "halves"),
    ((1, 5, 7, 2), (2, 3), (2, 3), (0, 0), {}, "a remainder"),
    ((1, 4, 3, 2), (4, 3), (1, 1), (0, 0), {}, "everything"),
    ((1, 5, 4, 2), (3, 2), (2, 3), (1, 1), {"ceil": True}, "a last window over the end"),
    ((1, 5, 4, 1), (3, 2), (2, 1), (1, 1), {"count_include_pad": False}, "without the padding"),
    ((1, 4, 4, 1), (3, 3), (3, 2), (1, 0), {"divisor_override": 5}, "a divisor of one's own"),
    ((0, 4, 4, 1), (2, 2), (2, 2), (0, 0), {}, "empty"),
    (
        (1, 4, 3, 4, 1),
        (3, 2, 3),
        (2, 1, 2),
        (1, 1, 1),
        {"ceil": True, "count_include_pad": False},
        "three axes",
    ),
)


def _avg_params(kernel: Shape, stride: Shape, padding: Shape, options: dict[str, Any]) -> Any:
    return {"kernel": kernel, "stride": stride, "padding": padding, **options}


def _avg_pool_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, kernel, stride, padding, options, note in AVG_CASES:
        params = _avg_params(kernel, stride, padding, options)
        yield Sample((rng.standard_normal(shape),), params, note=note)
    x = rng.standard_normal((2, 3, 5, 4)).transpose(0, 2, 3, 1)
    params = _avg_params((2, 2), (2, 2), (1, 1), {})
    yield Sample((x,), params, note="channels first in memory")


AVG_POOL = Operation(
    "avg_pool",
    _avg_pool_forward,
    _avg_pool_backward,
    _avg_pool_infer,
    _avg_pool_samples,
    strict=True,
).register()


def _avg_pool_backward_forward(
    K: Any,
    dy: Any,
    *,
    spatial: Shape,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    ceil: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    return K.avg_pool_backward(
        dy, spatial, kernel, stride, padding, ceil, count_include_pad, divisor_override
    )


def _avg_pool_backward_backward(
    K: Any, call: Any, dy: Any, *, spatial: Shape, **params: Any
) -> Any:
    return (K.avg_pool(dy, **params),)


def _avg_pool_backward_infer(dy: Spec, *, spatial: Shape, **params: Any) -> Spec:
    name = "avg_pool_backward"
    if len(dy.shape) != len(spatial) + 2:
        raise ShapeError(
            f"{name}: dy ({dy}) must have {len(spatial)} spatial axes between batch and channels"
        )
    x = Spec((dy.shape[0], *spatial, dy.shape[-1]), dy.dtype)
    pooled = _avg_pool_infer(x, **params, name=name)
    if pooled.shape != dy.shape:
        raise ShapeError(
            f"{name}: dy ({dy}) must have the shape {pooled.shape} that pooling an image of "
            f"{tuple(spatial)} gives"
        )
    return Spec(x.shape, pooled.dtype)


def _avg_pool_backward_samples(rng: np.random.Generator) -> Iterable[Sample]:
    for shape, kernel, stride, padding, options, note in AVG_CASES:
        params = _avg_params(kernel, stride, padding, options)
        pooled = _avg_pool_infer(Spec(shape, np.dtype("f8")), **params)
        dy = rng.standard_normal(pooled.shape)
        yield Sample((dy,), {"spatial": shape[1:-1], **params}, note=note)


AVG_POOL_BACKWARD = Operation(
    "avg_pool_backward",
    _avg_pool_backward_forward,
    _avg_pool_backward_backward,
    _avg_pool_backward_infer,
    _avg_pool_backward_samples,
    strict=True,
).register()
