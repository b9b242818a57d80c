"""Padding: elements added around an array, from a number or from the array itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.suggest import unknown

__all__ = ["pad"]

PAD = REGISTRY["pad"]
CONCATENATE = REGISTRY["concatenate"]
BROADCAST_TO = REGISTRY["broadcast_to"]

Sides = tuple[int, int]
MIRRORS = ("reflect", "replicate")  # of the axis as it was before elements were taken


def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """Elements added before and after the last axes; a negative number takes elements away.

    Parameters
    ----------
    input : any shape.
    pad : pairs (before, after), the last axis first: ``(left, right, top, bottom)`` for the last
        two axes.
    mode : where the new elements come from.

        - ``"constant"``: they are `value`;
        - ``"reflect"``: the mirror image without the edge, ``c b | a b c | b a``; a width is below
          the length of its axis;
        - ``"replicate"``: the edge again, ``a a | a b c | c c``;
        - ``"circular"``: the other end, ``b c | a b c | a b``; a width is at most the length.
    value : for ``"constant"``; 0 by default.

    Returns
    -------
    Tensor
        Each axis longer by the sum of its pair.

    Raises
    ------
    ConfigError
        If the mode is unknown, or a value is given that the mode has no use for.
    ShapeError
        If the numbers are not pairs, or an axis is too short for them.
    """
    widths = _widths(input, pad)
    if mode != "constant" and mode not in BORDERS:
        raise ConfigError(f"pad: {unknown('mode', mode, ('constant', *BORDERS))}")
    if mode != "constant" and value:
        raise ConfigError(f"pad: value is for mode 'constant'; mode {mode!r} takes none")
    check_widths("pad", input, widths, mode)
    mirrors = mode in MIRRORS
    if not mirrors:
        input = _cut(input, widths)
    added = [(max(a, 0), max(b, 0)) for a, b in widths]
    if mode == "constant" and any(map(any, added)):
        return apply(PAD, input, pad_width=tuple(added), value=0.0 if value is None else value)
    for axis, sides in enumerate(added):
        if any(sides):
            input = _extended(input, axis, sides, mode)
    return _cut(input, widths) if mirrors else input


def _widths(input: Tensor, pad: Sequence[int]) -> list[Sides]:
    """(before, after) of each axis, in the order of the axes."""
    numbers = tuple(pad) if isinstance(pad, (tuple, list)) else (pad,)
    if any(isinstance(n, bool) or not hasattr(n, "__index__") for n in numbers):
        raise ConfigError(f"pad: pad must be integers, two for each axis, not {pad!r}")
    if len(numbers) % 2 or len(numbers) > 2 * input.ndim:
        raise ShapeError(
            f"pad: pad must be pairs (before, after), the last axis first, for at most the "
            f"{input.ndim} axes of input (shape {input.shape}), not {len(numbers)} number(s) "
            f"{numbers}"
        )
    pairs = [(int(a), int(b)) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
    return [(0, 0)] * (input.ndim - len(pairs)) + pairs[::-1]


def check_widths(name: str, input: Tensor, widths: Sequence[Sides], mode: str) -> None:
    """Refuse widths that an axis is too short for, in words of the input as the user has it.

    Raises
    ------
    ShapeError
        Naming the axis.
    """
    for axis, (n, (a, b)) in enumerate(zip(input.shape, widths, strict=True)):
        taken = min(a, 0) + min(b, 0)
        if taken + n < 0 or n + a + b < 0:
            raise ShapeError(
                f"{name}: ({a}, {b}) takes more than the {n} elements of axis {axis} of input "
                f"(shape {input.shape})"
            )
        if mode == "constant" or max(a, b) <= 0:
            continue
        _, longest, limit = BORDERS[mode]
        left = n if mode in MIRRORS else n + taken
        if not left or max(a, b) > longest(left):
            raise ShapeError(
                f"{name}: mode {mode!r} adds {limit}, but axis {axis} of input (shape "
                f"{input.shape}) has {left} elements and pad asks for {(a, b)}; pad less, or in "
                "several steps"
            )


def _cut(x: Tensor, widths: list[Sides]) -> Tensor:
    """Without what the negative widths take away."""
    if all(min(sides) >= 0 for sides in widths):
        return x
    kept = [slice(max(-a, 0), n + min(b, 0)) for n, (a, b) in zip(x.shape, widths, strict=True)]
    return x[tuple(kept)]


def _extended(x: Tensor, axis: int, sides: Sides, mode: str) -> Tensor:
    """One axis longer by parts of the array itself."""
    border, n = BORDERS[mode][0], x.shape[axis]
    parts = [x]
    for end, width in enumerate(sides):
        if width:
            part = x[(*(slice(None),) * axis, border(n, width, end))]
            if part.shape[axis] != width:  # the edge, as often as it is wanted
                shape = (*x.shape[:axis], width, *x.shape[axis + 1 :])
                part = apply(BROADCAST_TO, part, shape=shape)
            parts.insert(len(parts) if end else 0, part)
    return apply(CONCATENATE, *parts, axis=axis)


# Which elements of an axis of n make `width` new ones before it (end 0) or after it (end 1).


def _mirrored(n: int, width: int, end: int) -> slice:
    if not end:
        return slice(width, 0, -1)
    last = n - 2 - width
    return slice(n - 2, last if last >= 0 else None, -1)


def _edge(n: int, width: int, end: int) -> slice:
    return slice(n - 1, n) if end else slice(0, 1)


def _other_end(n: int, width: int, end: int) -> slice:
    return slice(0, width) if end else slice(n - width, n)


# The slice, the largest width on an axis of n elements, and that limit in words.
BORDERS: dict[str, tuple[Callable[[int, int, int], slice], Callable[[int], float], str]] = {
    "reflect": (_mirrored, lambda n: n - 1, "fewer elements than the axis has"),
    "replicate": (_edge, lambda n: float("inf"), "copies of the edge"),
    "circular": (_other_end, lambda n: n, "at most as many elements as the axis has"),
}
