"""Kernels of ``images.py`` on NumPy arrays, faster than by their definition.

A window is a box, so its maximum and its sum can be taken one axis after the other. And an axis is
gone through by place in the window instead of by window: the elements at one place of all windows
are a slice with a step, and NumPy combines whole slices at once. No copy of the windows is made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.composites import HALVES
from gpubackprop.backends.cpu.shared import result
from gpubackprop.backends.cpu.threads import in_parts, threads
from gpubackprop.backends.images import lowest, pooled_sizes, winner_dtype
from gpubackprop.backends.primitives import Array, Shape

# Images are pooled in runs of this many bytes, so that what one pass writes is still in the cache
# when the next one reads it.
RUN = 1 << 19
# Fewer bytes than this are not worth another thread (about 50 us to start its work).
SHARE = 1 << 20
# Beyond this many places in a window that shares no element with another one, each window's winner
# is found by its number instead of by a comparison at each place.
MANY_PLACES = 16
WORDS = {np.dtype(f"f{n}"): np.dtype(f"i{n}") for n in (2, 4, 8)}


class Axis(tuple[int, int, int, int, int, int]):
    """An axis of an image: its length, number of windows, kernel, stride, padding, dilation."""

    def all_whole(self) -> bool:
        """Whether every window has all its elements."""
        n, out, kernel, stride, padding, dilation = self
        return not padding and (out - 1) * stride + dilation * (kernel - 1) < n

    def places(self) -> Iterator[tuple[slice, slice]]:
        """For each place in the window, the windows that have an element there, and these
        elements."""
        n, out, kernel, stride, padding, dilation = self
        for k in range(kernel):
            shift = k * dilation - padding
            low = min(max(-(shift // stride), 0), out)
            high = max(min((n - 1 - shift) // stride + 1, out), low)
            begin = low * stride + shift
            end = begin + (high - low - 1) * stride + 1 if high > low else begin
            yield slice(low, high), slice(begin, end, stride)


def axes_of(
    spatial: Shape, out: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape
) -> list[Axis]:
    """The spatial axes of an image."""
    return [Axis(a) for a in zip(spatial, out, kernel, stride, padding, dilation, strict=True)]


def in_runs(work: Callable[[slice], None], x: np.ndarray) -> None:
    """Do the work for every run of the images x, several at the same time."""
    length = max(RUN * len(x) // max(x.nbytes, 1), 1)

    def share(start: int, stop: int) -> None:
        for i in range(start, stop, length):
            work(slice(i, min(i + length, stop)))

    in_parts(share, len(x), min(threads(), 1 + x.nbytes // SHARE))


def of(axis: int, part: slice) -> tuple[slice, ...]:
    """The key of a part of one axis."""
    return (*(slice(None),) * axis, part)


class NumPyImage(ArrayBackend):
    """Overrides of the kernels of ``images.py``."""

    def max_pool(
        self,
        x: Array,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        dilation: Shape,
        ceil: bool = False,
    ) -> tuple[Array, Array]:
        out = pooled_sizes(x.shape[1:-1], kernel, stride, padding, dilation, ceil)
        axes = axes_of(x.shape[1:-1], out, kernel, stride, padding, dilation)
        shape = (len(x), *out, x.shape[-1])
        y = image_result(x, shape)
        winner = image_result(x, shape, winner_dtype(kernel))
        if not y.size:
            return y, winner

        def pool(part: slice) -> None:
            top, place, inner = x[part], None, 1
            # The last axis first: among equal elements that leaves the first one in C order.
            for i, axis in reversed(list(enumerate(axes, start=1))):
                top, place = _max_along(top, place, i, axis, inner, winner.dtype)
                inner *= kernel[i - 1]
            y[part], winner[part] = top, place

        in_runs(pool, x)
        if y.dtype.kind in "fV" and np.isnan(y.max()):  # a comparison does not find a NaN's place
            return super().max_pool(x, kernel, stride, padding, dilation, ceil)
        return y, winner

    def max_pool_backward(
        self,
        dy: Array,
        winner: Array,
        spatial: Shape,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        dilation: Shape,
    ) -> Array:
        if dy.dtype not in WORDS:
            return super().max_pool_backward(dy, winner, spatial, kernel, stride, padding, dilation)
        axes = axes_of(spatial, dy.shape[1:-1], kernel, stride, padding, dilation)
        alone = all(s > d * (k - 1) for _, _, k, s, _, d in axes)
        if alone and max(dilation) == 1 and math.prod(kernel) > MANY_PLACES:
            dx = np.zeros_like(dy, shape=(len(dy), *spatial, dy.shape[-1]))
            dx[_winners(winner, axes)] = dy
            return dx
        dx, word = _image(dy, axes), WORDS[dy.dtype]

        def give(part: slice) -> None:
            bits, won, target = dy[part].view(word), winner[part], dx[part]
            for number, place in enumerate(itertools.product(*[a.places() for a in axes])):
                windows = (slice(None), *(w for w, _ in place))
                elements = target[(slice(None), *(e for _, e in place))]
                # All bits of the cotangent where the element has won, none where not: a product
                # with 0 would make NaN out of infinity.
                mask = np.equal(won[windows], number).view(np.int8)
                mask = np.negative(mask, out=mask).astype(word)
                if alone:
                    np.bitwise_and(bits[windows], mask, out=elements.view(word))
                else:
                    np.bitwise_and(bits[windows], mask, out=mask)
                    np.add(elements, mask.view(dy.dtype), out=elements)

        in_runs(give, dx)
        return dx

    def avg_pool(
        self,
        x: Array,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        ceil: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Array:
        options = (kernel, stride, padding, count_include_pad, divisor_override)
        if x.dtype.kind not in "fV":
            return super().avg_pool(x, kernel, stride, padding, ceil, *options[3:])
        ones = (1,) * len(kernel)
        out = pooled_sizes(x.shape[1:-1], kernel, stride, padding, ones, ceil)
        axes = axes_of(x.shape[1:-1], out, kernel, stride, padding, ones)
        divisors = self._divisors(x.shape[1:-1], out, *options, wide(x.dtype))
        y = np.empty_like(x, shape=(len(x), *out, x.shape[-1]))

        def pool(part: slice) -> None:
            total = x[part].astype(wide(x.dtype), copy=False)
            for i, axis in reversed(list(enumerate(axes, start=1))):
                total = _sum_along(total, i, axis)
            np.divide(total, divisors, out=y[part], casting="same_kind")

        in_runs(pool, x)
        return y

    def avg_pool_backward(
        self,
        dy: Array,
        spatial: Shape,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        ceil: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Array:
        options = (kernel, stride, padding, count_include_pad, divisor_override)
        if dy.dtype.kind not in "fV":
            return super().avg_pool_backward(
                dy, spatial, kernel, stride, padding, ceil, *options[3:]
            )
        out, ones = dy.shape[1:-1], (1,) * len(kernel)
        axes = axes_of(spatial, out, kernel, stride, padding, ones)
        divisors = self._divisors(spatial, out, *options, wide(dy.dtype))
        dx = np.empty_like(dy, shape=(len(dy), *spatial, dy.shape[-1]))

        def give(part: slice) -> None:
            share = np.divide(dy[part], divisors, dtype=wide(dy.dtype))
            for i, axis in enumerate(axes[:-1], start=1):
                share = _spread_along(share, i, axis, None)
            if share.dtype == dx.dtype:
                _spread_along(share, len(axes), axes[-1], dx[part])
            else:
                dx[part] = _spread_along(share, len(axes), axes[-1], None)

        in_runs(give, dx)
        return dx


def wide(dtype: np.dtype) -> np.dtype:
    """The dtype to add up elements of `dtype` in."""
    return np.dtype(np.float32) if dtype.char in HALVES else dtype


def _image(dy: np.ndarray, axes: list[Axis]) -> np.ndarray:
    """Memory for the gradient of an image: zeros, unless every element will be assigned."""
    shape = (len(dy), *(a[0] for a in axes), dy.shape[-1])
    covered = all(p == 0 and d == 1 and k == s and o * k == n for n, o, k, s, p, d in axes)
    dx = image_result(dy, shape)
    if not covered:
        dx[...] = 0
    return dx


def image_result(x: np.ndarray, shape: Shape, dtype: np.dtype | None = None) -> np.ndarray:
    """Memory for a result of this shape, its axes in memory ordered like those of `x`."""
    dtype = x.dtype if dtype is None else np.dtype(dtype)
    if x.flags.c_contiguous:
        return result(shape, dtype)
    return np.empty_like(x, dtype, shape=shape)


def _winners(winner: np.ndarray, axes: list[Axis]) -> tuple[np.ndarray, ...]:
    """The key of the elements that have won, in an image (N, *spatial, C)."""
    key, place = [np.arange(winner.shape[-1])], winner.astype(np.int64)
    for i, (_, out, kernel, stride, padding, _) in reversed(list(enumerate(axes, start=1))):
        place, k = np.divmod(place, kernel)
        first = np.arange(out) * stride - padding
        key.append(k + first.reshape(-1, *(1,) * (winner.ndim - i - 1)))
    key.append(np.arange(len(winner)).reshape(-1, *(1,) * (winner.ndim - 1)))
    return tuple(key[::-1])


def _max_along(
    x: np.ndarray, places: np.ndarray | None, i: int, axis: Axis, inner: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """The largest elements in the windows along axis `i`, and their places.

    Parameters
    ----------
    x : images that were pooled along the axes behind it.
    places : where in their windows over those axes the elements of x were; None if there are none.
    inner : number of places in those windows.
    dtype : of the places.
    """
    out = axis[1]
    shape = (*x.shape[:i], out, *x.shape[i + 1 :])
    top: np.ndarray | None = None
    place: np.ndarray | int = 0
    fresh = False  # whether the memory of the largest elements is our own
    # From the last place to the first, which so wins over its equals.
    for k, (windows, elements) in reversed(list(enumerate(axis.places()))):
        rival = x[of(i, elements)]
        number = k if places is None else places[of(i, elements)]
        if places is not None and k:
            number = number + dtype.type(k * inner)
        everywhere = windows == slice(0, out)
        if top is None and everywhere:
            top, place = rival, number
            continue
        if top is None:
            top, fresh = np.full_like(x, lowest(x.dtype), shape=shape), True
            place = np.zeros_like(top, dtype)
        elif not fresh and not everywhere:
            top, fresh = top.copy("K"), True
        best = top[of(i, windows)]
        beaten = np.less(rival, best)
        if fresh:
            np.maximum(rival, best, out=best)
        else:
            top, fresh = np.maximum(rival, best), True
        if isinstance(place, int) and everywhere:
            place = _chosen(beaten, place, k, dtype)
        else:
            if isinstance(place, int):
                place = np.full_like(top, place, dtype)
            _keep(place[of(i, windows)], beaten, number)
    assert top is not None
    if isinstance(place, int):
        place = np.full_like(top, place, dtype)
    return top, place


def _chosen(first: np.ndarray, one: int, other: int, dtype: np.dtype) -> np.ndarray:
    """The number `one` where `first` holds, else the smaller number `other`."""
    chosen = first.view(np.uint8).astype(dtype, copy=False)
    if one - other != 1:
        np.multiply(chosen, dtype.type(one - other), out=chosen)
    return np.add(chosen, dtype.type(other), out=chosen) if other else chosen


def _keep(held: np.ndarray, keep: np.ndarray, other: np.ndarray | int) -> None:
    """Write `other` over `held` where `keep` does not hold, by bits: several times faster than a
    masked copy."""
    mask = np.negative(keep.view(np.int8)).astype(held.dtype, copy=False)
    np.bitwise_xor(held, other, out=held)
    np.bitwise_and(held, mask, out=held)
    np.bitwise_xor(held, other, out=held)


def _sum_along(x: np.ndarray, i: int, axis: Axis) -> np.ndarray:
    """The sums of the windows along axis `i`."""
    n, out, kernel, stride, _, _ = axis
    if axis.all_whole() and (out == 1 or stride == kernel and kernel > 8):
        parts = x[of(i, slice(0, out * kernel))]
        return parts.reshape(*x.shape[:i], out, kernel, *x.shape[i + 1 :]).sum(axis=i + 1)
    if axis.all_whole():
        first, *rest = [x[of(i, elements)] for _, elements in axis.places()]
        total = np.add(first, rest.pop(0)) if rest else first
        for term in rest:
            np.add(total, term, out=total)
        return total
    total = np.zeros_like(x, shape=(*x.shape[:i], out, *x.shape[i + 1 :]))
    for windows, elements in axis.places():
        part = total[of(i, windows)]
        np.add(part, x[of(i, elements)], out=part)
    return total


def _spread_along(dy: np.ndarray, i: int, axis: Axis, into: np.ndarray | None) -> np.ndarray:
    """The transpose of ``_sum_along``, written to `into` if that is given."""
    n, out, kernel, stride, padding, _ = axis
    dx = into
    if dx is None:
        dx = np.empty_like(dy, shape=(*dy.shape[:i], n, *dy.shape[i + 1 :]))
    if stride >= kernel:
        if padding or stride > kernel or out * kernel != n:
            dx[...] = 0
        for windows, elements in axis.places():
            dx[of(i, elements)] = dy[of(i, windows)]
        return dx
    dx[...] = 0
    for windows, elements in axis.places():
        part = dx[of(i, elements)]
        np.add(part, dy[of(i, windows)], out=part)
    return dx
