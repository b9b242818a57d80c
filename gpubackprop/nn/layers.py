"""Layers: linear, dropout, embedding, layer normalisation and the ones without parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.backends import Backend, as_dtype, get_backend
from gpubackprop.backends.random import Generator, default_generator
from gpubackprop.errors import ConfigError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation
from gpubackprop.nn import init
from gpubackprop.nn.module import Module
from gpubackprop.nn.parameter import Parameter

Device = str | Backend | None


def _size(owner: str, name: str, value: int, smallest: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < smallest:
        raise ConfigError(
            f"{owner}: {name} must be an integer of at least {smallest}, not {value!r}"
        )
    return int(value)


def _empty(shape: tuple[int, ...], device: Device, dtype: Any) -> Parameter:
    backend = get_backend(device)
    return Parameter(backend.zeros(shape, as_dtype(dtype)), device=backend)


class Linear(Module):
    """y = x W^T + b.

    Parameters
    ----------
    in_features, out_features : lengths of the last axis of x and of y.
    bias : whether there is a b.
    generator : where the initial values are drawn; None for the default generator.
    device, dtype : of the parameters.

    Attributes
    ----------
    weight : (out_features, in_features) parameter.
    bias : (out_features,) parameter, or None.

    Notes
    -----
    Weight and bias begin uniform on +-1/sqrt(in_features), which is PyTorch's default.
    """

    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        self.in_features = _size("Linear", "in_features", in_features)
        self.out_features = _size("Linear", "out_features", out_features)
        self.weight = _empty((self.out_features, self.in_features), device, dtype)
        self.register_parameter(
            "bias", _empty((self.out_features,), device, dtype) if bias else None
        )
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw new initial values."""
        bound = 1.0 / math.sqrt(self.in_features)
        init.uniform_(self.weight, -bound, bound, generator=generator)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Dropout(Module):
    """In training, set each element to zero with probability p and scale the others by 1/(1-p).

    Parameters
    ----------
    p : probability in [0, 1].
    generator : the random sequence to split one from; None for the default generator. The module
        owns the new sequence, and its place in it is part of ``random_state()``.
    """

    def __init__(self, p: float = 0.5, *, generator: Generator | None = None) -> None:
        if not 0.0 <= p <= 1.0:
            raise ConfigError(f"Dropout: p must be a probability in [0, 1], not {p}")
        self.p = float(p)
        self.generator = (generator or default_generator()).split()

    def forward(self, input: Tensor) -> Tensor:
        """The input with elements dropped; the input itself in evaluation mode."""
        return F.dropout(input, self.p, self.training, generator=self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class Identity(Module):
    """The input, unchanged. Arguments are ignored, so that it can stand in for any layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """The input."""
        return input


class Flatten(Module):
    """Join axes `start_dim` to `end_dim` into one; by default all but the batch axis."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Tensor) -> Tensor:
        """The same elements with fewer axes."""
        return F.flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Lambda(Module):
    """A function of tensors as a module, for use in Sequential.

    Parameters
    ----------
    function : what ``forward`` calls.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.function(*args, **kwargs)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


class Embedding(Module):
    """A table of vectors, looked up by index.

    Parameters
    ----------
    num_embeddings : rows of the table.
    embedding_dim : length of each row.
    padding_idx : a row that begins as zeros and gets no gradient; may count from the end.
    generator, device, dtype : as for :class:`Linear`.

    Attributes
    ----------
    weight : (num_embeddings, embedding_dim) parameter, normal with deviation 1 at first.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        generator: Generator | None = None,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        self.num_embeddings = _size("Embedding", "num_embeddings", num_embeddings)
        self.embedding_dim = _size("Embedding", "embedding_dim", embedding_dim)
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ConfigError(
                    f"Embedding: padding_idx {padding_idx} is not one of {num_embeddings} rows"
                )
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        self.weight = _empty((self.num_embeddings, self.embedding_dim), device, dtype)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw new initial values."""
        init.normal_(self.weight, generator=generator)
        if self.padding_idx is not None:
            row = self.weight.array[self.padding_idx]
            self.weight.backend.copyto(row, self.weight.backend.zeros(row.shape, row.dtype))

    def forward(self, input: Tensor) -> Tensor:
        """Integers (...) to vectors (..., embedding_dim)."""
        return F.embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class _Affine(Module):
    """A layer with a weight of ones and a bias of zeros at first, either of which may be absent."""

    weight: Parameter | None
    bias: Parameter | None

    def _make_parameters(
        self, shape: tuple[int, ...], affine: bool, bias: bool, device: Device, dtype: Any
    ) -> None:
        for name, present in (("weight", affine), ("bias", affine and bias)):
            self.register_parameter(name, _empty(shape, device, dtype) if present else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to ones and the bias to zeros."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)


class LayerNorm(_Affine):
    """Bring the last axes of each sample to mean 0 and variance 1, then scale and shift.

    Parameters
    ----------
    normalized_shape : lengths of the last axes, or the length of the last one.
    eps : added to the variance.
    elementwise_affine : whether there is a weight (and a bias).
    bias : whether there is a bias beside the weight.
    device, dtype : of the parameters.

    Notes
    -----
    Ba, Kiros & Hinton, "Layer normalization" (2016).
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...] | list[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        device: Device = None,
        dtype: Any = np.float32,
    ) -> None:
        lengths = [normalized_shape] if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape = tuple(_size("LayerNorm", "normalized_shape", n) for n in lengths)
        self.eps = float(eps)
        self.elementwise_affine = bool(elementwise_affine)
        self._make_parameters(self.normalized_shape, elementwise_affine, bias, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The normalised input, of its shape."""
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps:g}, "
            f"elementwise_affine={self.elementwise_affine}"
        )
