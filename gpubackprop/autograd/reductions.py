"""Methods of a tensor that reduce it along axes.

`axis` and `keepdims` are NumPy's; PyTorch's `dim` and `keepdim` mean the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gpubackprop.autograd.operation import REGISTRY
from gpubackprop.autograd.tape import apply
from gpubackprop.backends import Array, Axis
from gpubackprop.errors import ConfigError

if TYPE_CHECKING:
    from gpubackprop.autograd.tensor import Tensor


class Extremes(NamedTuple):
    """Largest or smallest elements along an axis, and where the first of each is."""

    values: Tensor
    indices: Tensor


class Reductions:
    """Sums, extremes and the like."""

    __slots__ = ()

    array: Array

    def sum(
        self, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False
    ) -> Tensor:
        """Sum over axes."""
        return _reduced("sum", self, axis, keepdims, dim, keepdim)

    def prod(
        self, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False
    ) -> Tensor:
        """Product over axes."""
        return _reduced("prod", self, axis, keepdims, dim, keepdim)

    def mean(
        self, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False
    ) -> Tensor:
        """Arithmetic mean over axes."""
        return _reduced("mean", self, axis, keepdims, dim, keepdim)

    def var(self, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
        """Variance over axes, divided by n - ddof."""
        return apply(REGISTRY["var"], self, axis=axis, keepdims=keepdims, ddof=ddof)

    def std(self, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
        """Standard deviation over axes: the square root of :meth:`var`."""
        return apply(REGISTRY["sqrt"], self.var(axis, keepdims, ddof))

    def max(
        self,
        axis: Axis = None,
        keepdims: bool = False,
        *,
        dim: int | None = None,
        keepdim: bool = False,
    ) -> Any:
        """Largest element over axes. With `dim` in place of `axis`, as in PyTorch, a pair:
        ``values, indices`` along that axis."""
        return _extreme("max", self, axis, keepdims, dim, keepdim)

    def min(
        self,
        axis: Axis = None,
        keepdims: bool = False,
        *,
        dim: int | None = None,
        keepdim: bool = False,
    ) -> Any:
        """Smallest element over axes. With `dim` in place of `axis`, as in PyTorch, a pair:
        ``values, indices`` along that axis."""
        return _extreme("min", self, axis, keepdims, dim, keepdim)

    def argmax(
        self,
        axis: int | None = None,
        keepdims: bool = False,
        *,
        dim: int | None = None,
        keepdim: bool = False,
    ) -> Tensor:
        """Index of the first largest element."""
        return _reduced("argmax", self, axis, keepdims, dim, keepdim)

    def argmin(
        self,
        axis: int | None = None,
        keepdims: bool = False,
        *,
        dim: int | None = None,
        keepdim: bool = False,
    ) -> Tensor:
        """Index of the first smallest element."""
        return _reduced("argmin", self, axis, keepdims, dim, keepdim)

    def any(
        self, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False
    ) -> Tensor:
        """Whether some element is true."""
        return _reduced("any", self, axis, keepdims, dim, keepdim)

    def all(
        self, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False
    ) -> Tensor:
        """Whether every element is true."""
        return _reduced("all", self, axis, keepdims, dim, keepdim)

    def softmax(self, axis: int = -1, *, dim: int | None = None) -> Tensor:
        """exp(x) / sum(exp(x)) along an axis."""
        return apply(REGISTRY["softmax"], self, axis=axis if dim is None else dim)

    def log_softmax(self, axis: int = -1, *, dim: int | None = None) -> Tensor:
        """The logarithm of :meth:`softmax`."""
        return apply(REGISTRY["log_softmax"], self, axis=axis if dim is None else dim)

    def logsumexp(
        self, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False
    ) -> Tensor:
        """log(sum(exp(x))) over axes, without overflow."""
        return _reduced("logsumexp", self, axis, keepdims, dim, keepdim)

    def cumsum(self, axis: int | None = None) -> Tensor:
        """Running sum along an axis, or over the flattened tensor."""
        if axis is None:
            flat = apply(REGISTRY["reshape"], self, shape=(self.array.size,))
            return apply(REGISTRY["cumsum"], flat, axis=0)
        return apply(REGISTRY["cumsum"], self, axis=axis)


def _reduced(name: str, x: Any, axis: Any, keepdims: bool, dim: Any, keepdim: bool) -> Any:
    """A reduction, by NumPy's names of its options or by PyTorch's."""
    axis = axis if dim is None else _dim(name, axis, dim)
    return apply(REGISTRY[name], x, axis=axis, keepdims=keepdims or keepdim)


def _extreme(name: str, x: Any, axis: Axis, keepdims: bool, dim: int | None, keepdim: bool) -> Any:
    """``max`` or ``min`` as NumPy has it with `axis`, and as PyTorch has it with `dim`."""
    if dim is None:
        return apply(REGISTRY[name], x, axis=axis, keepdims=keepdims)
    options = (axis, keepdims, dim, keepdim)
    where = _reduced(f"arg{name}", x, *options)
    return Extremes(_reduced(name, x, *options), where)


def _dim(name: str, axis: Any, dim: Any) -> Any:
    """PyTorch's `dim`, where NumPy's `axis` was not given too."""
    if axis is not None:
        raise ConfigError(f"{name}: axis={axis} and dim={dim} name the same thing; give one")
    return dim
