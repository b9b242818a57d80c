"""Padding as modules: borders of zeros, of a number, mirrored, repeated or taken from the other
end."""

from __future__ import annotations

from collections.abc import Sequence

from gpubackprop.autograd import Tensor
from gpubackprop.errors import ConfigError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation
from gpubackprop.nn.functions.layout import inward, outward
from gpubackprop.nn.functions.padding import check_widths
from gpubackprop.nn.module import Module


class _Pad(Module):
    """Base of the layers that pad images of `axes` spatial axes.

    Parameters
    ----------
    padding : a width for all sides, or (before, after) of each axis, the last axis first:
        (left, right, top, bottom). A negative width takes elements away.
    channels_last : whether input and result are (N, *spatial, C) instead of (N, C, *spatial). The
        batch axis may be absent.
    """

    axes: int
    mode: str
    value: float | None = None

    def __init__(self, padding: int | Sequence[int], *, channels_last: bool = False) -> None:
        name, count = type(self).__name__, 2 * self.axes
        widths = tuple(padding) if isinstance(padding, Sequence) else (padding,) * count
        if len(widths) != count or any(not hasattr(w, "__index__") for w in widths):
            raise ConfigError(
                f"{name}: padding must be an integer or {count} of them, (before, after) of each "
                f"spatial axis, the last axis first, not {padding!r}"
            )
        self.padding = tuple(int(w) for w in widths)
        self.channels_last = bool(channels_last)

    def forward(self, input: Tensor) -> Tensor:
        """The input with a border."""
        name, last = type(self).__name__, int(self.channels_last)
        x = inward(name, input, self.axes, self.channels_last)
        sides = list(zip(self.padding[::2], self.padding[1::2], strict=True))[::-1]
        front = input.ndim - self.axes - last
        check_widths(name, input, [(0, 0)] * front + sides + [(0, 0)] * last, self.mode)
        y = F.pad(x, (0, 0, *self.padding), self.mode, self.value)
        return outward(y, input, self.channels_last)

    def extra_repr(self) -> str:
        value = "" if self.value is None else f", value={self.value:g}"
        return f"{self.padding}{value}{', channels_last=True' if self.channels_last else ''}"


class ConstantPad1d(_Pad):
    """A border of `value` around (N, C, L) or (C, L); see :class:`ConstantPad2d`."""

    axes, mode = 1, "constant"

    def __init__(
        self, padding: int | Sequence[int], value: float, *, channels_last: bool = False
    ) -> None:
        super().__init__(padding, channels_last=channels_last)
        self.value = float(value)


class ConstantPad2d(ConstantPad1d):
    """A border of `value` around (N, C, H, W) or (C, H, W).

    Parameters
    ----------
    padding : a width for all sides, or (left, right, top, bottom). A negative width takes elements
        away.
    value : of the new elements.
    channels_last : whether input and result are (N, H, W, C), or (H, W, C).
    """

    axes = 2


class ConstantPad3d(ConstantPad1d):
    """A border of `value` around (N, C, D, H, W) or (C, D, H, W); see :class:`ConstantPad2d`."""

    axes = 3


class ZeroPad1d(_Pad):
    """A border of zeros around (N, C, L) or (C, L); arguments as for :class:`ConstantPad1d`."""

    axes, mode = 1, "constant"


class ZeroPad2d(ZeroPad1d):
    """A border of zeros around (N, C, H, W) or (C, H, W); see :class:`ZeroPad1d`."""

    axes = 2


class ZeroPad3d(ZeroPad1d):
    """A border of zeros around (N, C, D, H, W) or (C, D, H, W); see :class:`ZeroPad1d`."""

    axes = 3


class ReflectionPad1d(_Pad):
    """A mirrored border that leaves out the edge, ``c b | a b c | b a``, around (N, C, L) or (C,
    L); arguments as for :class:`ConstantPad1d`."""

    axes, mode = 1, "reflect"


class ReflectionPad2d(ReflectionPad1d):
    """A mirrored border that leaves out the edge, ``c b | a b c | b a``, around (N, C, H, W) or
    (C, H, W); see :class:`ReflectionPad1d`."""

    axes = 2


class ReflectionPad3d(ReflectionPad1d):
    """A mirrored border that leaves out the edge, ``c b | a b c | b a``, around (N, C, D, H, W)
    or (C, D, H, W); see :class:`ReflectionPad1d`."""

    axes = 3


class ReplicationPad1d(_Pad):
    """A border of copies of the edge, ``a a | a b c | c c``, around (N, C, L) or (C, L);
    arguments as for :class:`ConstantPad1d`."""

    axes, mode = 1, "replicate"


class ReplicationPad2d(ReplicationPad1d):
    """A border of copies of the edge, ``a a | a b c | c c``, around (N, C, H, W) or (C, H, W);
    see :class:`ReplicationPad1d`."""

    axes = 2


class ReplicationPad3d(ReplicationPad1d):
    """A border of copies of the edge, ``a a | a b c | c c``, around (N, C, D, H, W) or (C, D, H,
    W); see :class:`ReplicationPad1d`."""

    axes = 3


class CircularPad1d(_Pad):
    """A border from the other end, ``b c | a b c | a b``, around (N, C, L) or (C, L); arguments
    as for :class:`ConstantPad1d`."""

    axes, mode = 1, "circular"


class CircularPad2d(CircularPad1d):
    """A border from the other end, ``b c | a b c | a b``, around (N, C, H, W) or (C, H, W); see
    :class:`CircularPad1d`."""

    axes = 2


class CircularPad3d(CircularPad1d):
    """A border from the other end, ``b c | a b c | a b``, around (N, C, D, H, W) or (C, D, H, W);
    see :class:`CircularPad1d`."""

    axes = 3
