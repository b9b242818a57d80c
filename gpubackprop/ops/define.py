"""Building blocks of operations: shape rules, sample inputs, and the row of the elementwise
table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec
from gpubackprop.backends import Axis, Shape, get_backend
from gpubackprop.backends.composites import normalize_axes
from gpubackprop.errors import DTypeError, ShapeError

Rule = Callable[..., Any]

ODD_SHAPES: tuple[Shape, ...] = ((3, 5), (1,), (), (0, 3), (7, 1, 2))
"""Shapes that find mistakes: odd, one, no axes, empty, an inner one."""
BROADCAST_SHAPES: tuple[tuple[Shape, Shape], ...] = (
    ((3, 5), (3, 5)),
    ((3, 5), (5,)),
    ((3, 1), (1, 5)),
    ((), (2, 3)),
    ((1,), (1,)),
    ((0, 3), (3,)),
    ((4, 1, 2), (3, 1)),
)


def broadcast_shapes(name: str, specs: Iterable[Any]) -> Shape:
    """The common shape of specs (numbers and None count as no axes)."""
    shapes = [s.shape for s in specs if isinstance(s, Spec)]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = " and ".join(str(list(s)) for s in shapes)
        raise ShapeError(
            f"{name}: shapes {listed} do not broadcast; sizes of an axis must be equal or 1"
        ) from None


def result_dtype(kernel: str, specs: Iterable[Any]) -> np.dtype:
    """The dtype that an elementwise kernel gives: asked of the reference backend, on one
    element."""
    arguments = [np.ones((1,), s.dtype) if isinstance(s, Spec) else s for s in specs]
    try:
        with np.errstate(all="ignore"):
            return np.dtype(getattr(get_backend("cpu"), kernel)(*arguments).dtype)
    except TypeError:
        raise DTypeError(f"{kernel}: not defined for {', '.join(str(s) for s in specs)}") from None


def check_axis(name: str, axis: Axis, spec: Spec) -> tuple[int, ...]:
    """`axis` as non-negative axes of `spec`."""
    try:
        axes = normalize_axes(axis, len(spec.shape))
    except ValueError as error:
        raise ShapeError(f"{name}: {error} (x is {spec})") from None
    if len(set(axes)) != len(axes):
        raise ShapeError(f"{name}: axis {axis} names an axis twice (x is {spec})")
    return axes


def reduced_shape(shape: Shape, axes: tuple[int, ...], keepdims: bool) -> Shape:
    """`shape` with `axes` removed, or kept at size one."""
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def same_spec(x: Spec, **params: Any) -> Spec:
    """The shape rule of an operation whose result is like its input."""
    return x


def draw(
    rng: np.random.Generator, shape: Shape, low: float, high: float, avoid: tuple[float, ...] = ()
) -> np.ndarray:
    """Values between `low` and `high`, moved away from points where a derivative jumps."""
    x = np.asarray(rng.uniform(low, high, shape))
    for point in avoid:
        x = np.where(np.abs(x - point) < 0.05, x + 0.1 * np.where(x < point, -1.0, 1.0), x)
    return x


def elementwise(
    kernel: str,
    *derivatives: Rule | None,
    low: float = -2.0,
    high: float = 2.0,
    avoid: tuple[float, ...] = (),
    ranges: tuple[tuple[float, float], ...] | None = None,
) -> Operation:
    """Register a row of the elementwise table.

    Parameters
    ----------
    kernel : kernel and operation name, of one or two arguments.
    derivatives : one rule per argument, ``lambda K, dy, <names>: ...``, where the names say what is
        kept from the forward pass: ``x`` (or ``x1``, ``x2``) an argument, ``out`` the result. None
        where there is no derivative.
    low, high, avoid : range of the samples and points to keep away from.
    ranges : a range of its own for each argument.
    """
    wanted = [tuple(inspect.signature(d).parameters)[2:] if d else () for d in derivatives]
    saves = tuple(dict.fromkeys(name for names in wanted for name in names))
    places = [[saves.index(name) for name in names] for names in wanted]
    arity = 2 if kernel in BINARY else 1
    limits = ranges or ((low, high),) * arity

    if arity == 1:

        def forward(K: Any, x: Any) -> Any:  # noqa: N803
            return getattr(K, kernel)(x)

        def backward(K: Any, call: Any, dy: Any, *saved: Any) -> Any:  # noqa: N803
            return (derivatives[0](K, dy, *saved),)  # type: ignore[misc]

        def samples(rng: np.random.Generator) -> Iterable[Sample]:
            for shape in ODD_SHAPES:
                yield Sample((draw(rng, shape, *limits[0], avoid),))
    else:

        def forward(K: Any, x1: Any, x2: Any) -> Any:  # type: ignore[misc]  # noqa: N803
            return getattr(K, kernel)(x1, x2)

        def backward(K: Any, call: Any, dy: Any, *saved: Any) -> Any:  # noqa: N803
            return [
                None if edge is None or rule is None else rule(K, dy, *[saved[i] for i in at])
                for edge, rule, at in zip(call.edges, derivatives, places, strict=True)
            ]

        def samples(rng: np.random.Generator) -> Iterable[Sample]:
            for s1, s2 in BROADCAST_SHAPES:
                x1, x2 = draw(rng, s1, *limits[0], avoid), draw(rng, s2, *limits[1], avoid)
                if avoid is TIES:
                    x1 = np.where(np.abs(x1 - x2) < 0.05, x1 + 0.1, x1)
                    if x1.shape != s1:
                        continue
                yield Sample((x1, x2))
            yield Sample((draw(rng, (3, 5), *limits[0], avoid), 1.5), note="a Python number")
            yield Sample((0.75, draw(rng, (3, 5), *limits[1], avoid)), note="a Python number")

    def infer(*specs: Any) -> Spec:
        return Spec(broadcast_shapes(kernel, specs), result_dtype(kernel, specs))

    return Operation(
        kernel,
        forward,
        backward if any(derivatives) else None,
        infer,
        samples,
        saves=saves,
        broadcasts=arity == 2,
    ).register()


TIES: tuple[float, ...] = (float("inf"),)
"""Value of `avoid` for a rule that jumps where its two arguments are equal."""

BINARY = frozenset(
    "add subtract multiply divide power maximum minimum arctan2 equal not_equal less less_equal "
    "greater greater_equal logical_and logical_or".split()
)
