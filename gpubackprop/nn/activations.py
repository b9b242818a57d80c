"""Activation functions as modules, one per function of ``nn.functional``."""

from __future__ import annotations

from gpubackprop.autograd import Tensor
from gpubackprop.errors import ConfigError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation
from gpubackprop.nn.module import Module
from gpubackprop.suggest import unknown


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, input: Tensor) -> Tensor:
        """The activation of each element."""
        return F.relu(input)


class LeakyReLU(Module):
    """x where it is positive, else `negative_slope` times x."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = float(negative_slope)

    def forward(self, input: Tensor) -> Tensor:
        """The activation of each element."""
        return F.leaky_relu(input, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope:g}"


class ELU(Module):
    """x where it is positive, else alpha * (exp(x) - 1) (Clevert et al. 2016)."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = float(alpha)

    def forward(self, input: Tensor) -> Tensor:
        """The activation of each element."""
        return F.elu(input, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"


class GELU(Module):
    """x times the normal distribution function of x (Hendrycks & Gimpel 2016).

    Parameters
    ----------
    approximate : ``"none"`` for the exact function (erf), ``"tanh"`` for the approximation.
    """

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ConfigError(f"GELU: {unknown('approximate', approximate, ['none', 'tanh'])}")
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        """The activation of each element."""
        return F.gelu(input, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class SiLU(Module):
    """x * sigmoid(x), also called swish."""

    def forward(self, input: Tensor) -> Tensor:
        """The activation of each element."""
        return F.silu(input)


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, input: Tensor) -> Tensor:
        """The activation of each element."""
        return F.sigmoid(input)


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, input: Tensor) -> Tensor:
        """The activation of each element."""
        return F.tanh(input)


class Softplus(Module):
    """log(1 + exp(beta * x)) / beta; x itself where beta * x exceeds `threshold`."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        if not beta > 0:
            raise ConfigError(f"Softplus: beta must be positive, not {beta}")
        self.beta, self.threshold = float(beta), float(threshold)

    def forward(self, input: Tensor) -> Tensor:
        """The activation of each element."""
        return F.softplus(input, self.beta, self.threshold)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, threshold={self.threshold:g}"


class _AlongAxis(Module):
    def __init__(self, dim: int = -1) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise ConfigError(f"{type(self).__name__}: dim must be an integer, not {dim!r}")
        self.dim = dim

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Softmax(_AlongAxis):
    """exp(x) / sum(exp(x)) along the axis `dim`, by default the last."""

    def forward(self, input: Tensor) -> Tensor:
        """Positive numbers of the input's shape that sum to 1 along the axis."""
        return F.softmax(input, self.dim)


class LogSoftmax(_AlongAxis):
    """log(softmax(x)) along the axis `dim`, by default the last, without overflow."""

    def forward(self, input: Tensor) -> Tensor:
        """The logarithms, of the input's shape."""
        return F.log_softmax(input, self.dim)
