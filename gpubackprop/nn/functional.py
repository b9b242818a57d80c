"""Functions of networks under PyTorch's names, with its argument names and meanings: activations,
layers without state, costs.

``dim`` is an axis here, as it is there; array functions under NumPy's names are at the top level of
the package.
"""

from __future__ import annotations

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.backends.random import Generator, default_generator
from gpubackprop.errors import ConfigError
from gpubackprop.nn.channel_dropout import dropout1d, dropout2d, dropout3d
from gpubackprop.nn.functions.adaptive_pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    global_avg_pool,
    global_max_pool,
)
from gpubackprop.nn.functions.attention import rotary, scaled_dot_product_attention
from gpubackprop.nn.functions.class_losses import accuracy, cross_entropy, nll_loss
from gpubackprop.nn.functions.convolution import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from gpubackprop.nn.functions.lookup import embedding, one_hot
from gpubackprop.nn.functions.losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    quadratic_cost,
    smooth_l1_loss,
)
from gpubackprop.nn.functions.norms import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from gpubackprop.nn.functions.padding import pad
from gpubackprop.nn.functions.pooling import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from gpubackprop.nn.functions.resize import interpolate, pixel_shuffle, pixel_unshuffle

__all__ = [
    "accuracy",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cross_entropy",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "elu",
    "embedding",
    "flatten",
    "gelu",
    "global_avg_pool",
    "global_max_pool",
    "group_norm",
    "hardtanh",
    "huber_loss",
    "instance_norm",
    "interpolate",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "logsigmoid",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "pad",
    "pixel_shuffle",
    "pixel_unshuffle",
    "quadratic_cost",
    "relu",
    "rms_norm",
    "rotary",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "tanh",
]

RELU = REGISTRY["relu"]
LEAKY_RELU = REGISTRY["leaky_relu"]
ELU = REGISTRY["elu"]
GELU = REGISTRY["gelu"]
GELU_TANH = REGISTRY["gelu_tanh"]
SILU = REGISTRY["silu"]
SOFTPLUS = REGISTRY["softplus"]
SIGMOID = REGISTRY["sigmoid"]
TANH = REGISTRY["tanh"]
SOFTMAX = REGISTRY["softmax"]
LOG_SOFTMAX = REGISTRY["log_softmax"]
LINEAR = REGISTRY["linear"]
DROPOUT = REGISTRY["dropout"]
WHERE = REGISTRY["where"]
CLIP = REGISTRY["clip"]

# Beyond this threshold, softplus and its linear continuation differ by less than exp(-20) = 2.1e-9.
SOFTPLUS_EXACT = 20.0


# Activations.


def relu(input: Tensor) -> Tensor:
    """max(x, 0) for each element; the slope at 0 is 0."""
    return apply(RELU, input)


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x for x > 0, else negative_slope * x."""
    return apply(LEAKY_RELU, input, negative_slope=negative_slope)


def elu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """x for x > 0, else alpha * (exp(x) - 1) (Clevert et al. 2015)."""
    return apply(ELU, input, alpha=alpha)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x * Phi(x) with the normal distribution function Phi (Hendrycks & Gimpel 2016).

    Parameters
    ----------
    input : any shape.
    approximate : ``"none"``, or ``"tanh"`` for x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x**3))).

    Raises
    ------
    ConfigError
        If `approximate` is neither.
    """
    if approximate == "none":
        return apply(GELU, input)
    if approximate == "tanh":
        return apply(GELU_TANH, input)
    raise ConfigError(f"gelu: approximate must be 'none' or 'tanh', not {approximate!r}")


def silu(input: Tensor) -> Tensor:
    """x * sigmoid(x) (Elfwing et al. 2017), also known as swish."""
    return apply(SILU, input)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta.

    Parameters
    ----------
    input : any shape.
    beta : sharpness; not 0.
    threshold : where beta * x is larger, the function is x itself.

    Notes
    -----
    The formula in use does not overflow. From a threshold of 20 on it therefore holds for every x:
    there the line differs from it by less than 2.1e-9 / beta. A smaller threshold changes the
    function, and is applied.
    """
    if beta == 0:
        raise ConfigError("softplus: beta must not be 0")
    scaled = input if beta == 1.0 else input * beta
    result = apply(SOFTPLUS, scaled)
    if beta != 1.0:
        result = result / beta
    if threshold < SOFTPLUS_EXACT:
        result = apply(WHERE, scaled.detach() > threshold, input, result)
    return result


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) for each element."""
    return apply(SIGMOID, input)


def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)) = -softplus(-x), without a loss of digits for large negative x."""
    return -apply(SOFTPLUS, -input)


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent of each element."""
    return apply(TANH, input)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """x held between two bounds; the slope on a bound is 1."""
    if not min_val < max_val:
        raise ConfigError(f"hardtanh: min_val ({min_val}) must be smaller than max_val ({max_val})")
    return apply(CLIP, input, low=min_val, high=max_val)


def softmax(input: Tensor, dim: int) -> Tensor:
    """exp(x) / sum(exp(x)) along the axis `dim`: positive numbers whose sum is 1."""
    return apply(SOFTMAX, input, axis=dim)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    """log(softmax(x)) along the axis `dim`, computed as x - logsumexp(x)."""
    return apply(LOG_SOFTMAX, input, axis=dim)


# Layers without a state of their own.


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias``.

    Parameters
    ----------
    input : (..., in).
    weight : (out, in).
    bias : (out,), or None.

    Returns
    -------
    Tensor
        (..., out).
    """
    return apply(LINEAR, input, weight, bias)


def dropout(
    input: Tensor, p: float = 0.5, training: bool = True, *, generator: Generator | None = None
) -> Tensor:
    """In training, set each element to 0 with probability `p` and divide the others by 1 - p
    (Srivastava et al. 2014).

    Parameters
    ----------
    input : any shape.
    p : between 0 and 1.
    training : False gives the input back as it is.
    generator : where the random numbers come from; it moves on by one word per element. None takes
        the default generator, which ``manual_seed`` sets. The same generator state drops the same
        elements on every device.

    Raises
    ------
    ConfigError
        If `p` is no probability.
    """
    if not 0.0 <= p <= 1.0:
        raise ConfigError(f"dropout: p must be a probability between 0 and 1, not {p}")
    if not training or p == 0.0:
        return input
    seed, stream, offset = (generator or default_generator()).take(input.size)
    return apply(DROPOUT, input, p=p, seed=seed, stream=stream, offset=offset)


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes `start_dim` to `end_dim` joined into one."""
    return input.flatten(start_dim, end_dim)
