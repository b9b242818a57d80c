"""Functions of networks under PyTorch's names, with its argument names and meanings: activations,
layers without state, costs.

``dim`` is an axis here, as it is there; array functions under NumPy's names are at the top level of
the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.backends.random import Generator, default_generator
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn.adaptive_pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    global_avg_pool,
    global_max_pool,
)
from gpubackprop.nn.arguments import as_operand, check_inside
from gpubackprop.nn.attention_functions import rotary, scaled_dot_product_attention
from gpubackprop.nn.channel_dropout import dropout1d, dropout2d, dropout3d
from gpubackprop.nn.class_losses import accuracy, cross_entropy, nll_loss
from gpubackprop.nn.convolution import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from gpubackprop.nn.losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    quadratic_cost,
    smooth_l1_loss,
)
from gpubackprop.nn.norm_functions import batch_norm, group_norm, instance_norm, rms_norm
from gpubackprop.nn.padding import pad
from gpubackprop.nn.pooling import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from gpubackprop.nn.resize import interpolate, pixel_shuffle, pixel_unshuffle

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
LAYER_NORM = REGISTRY["layer_norm"]
DROPOUT = REGISTRY["dropout"]
TAKE = REGISTRY["take"]
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


def embedding(input: Any, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of a table, by number.

    Parameters
    ----------
    input : integers in [0, rows), any shape.
    weight : (rows, features).
    padding_idx : this row gets no gradient; a negative number counts from the end.

    Returns
    -------
    Tensor
        (*input.shape, features).

    Raises
    ------
    DTypeError, ShapeError
        If the input is not integer, the table has not two axes, or (on the CPU, where looking costs
        nothing) a number is out of range: the error names it.
    """
    input = as_operand("embedding", "input", input, weight)
    if input.dtype.kind not in "iu":
        raise DTypeError(
            f"embedding: input must be integers, row numbers of weight, not {input.dtype}"
        )
    if weight.ndim != 2:
        raise ShapeError(f"embedding: weight must have shape (rows, features), not {weight.shape}")
    rows = weight.shape[0]
    check_inside("embedding", "input", input, 0, rows - 1, f"a row of weight, in [0, {rows})")
    result = apply(TAKE, weight, input, axis=0)
    if padding_idx is None:
        return result
    if not -rows <= padding_idx < rows:
        raise ConfigError(
            f"embedding: padding_idx {padding_idx} is no row of weight, which has {rows}"
        )
    padding = (input == padding_idx % rows).reshape(*input.shape, 1)
    return apply(WHERE, padding, result.detach(), result)


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, with mean and variance over the last axes
    (Ba et al. 2016).

    Parameters
    ----------
    input : (..., *normalized_shape).
    normalized_shape : lengths of the axes to normalise over.
    weight, bias : of shape `normalized_shape`, or None.
    eps : added to the variance, which is the biased one (divided by n).

    Raises
    ------
    ShapeError
        If the last axes of the input are not `normalized_shape`.
    """
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or input.shape[-len(shape) :] != shape:
        raise ShapeError(
            f"layer_norm: the last axes of input (shape {input.shape}) must be normalized_shape "
            f"{shape}"
        )
    return apply(LAYER_NORM, input, weight, bias, axes=len(shape), eps=eps)


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Class indices as rows of zeros with a single 1.

    Parameters
    ----------
    tensor : integers in [0, num_classes), any shape.
    num_classes : -1 takes the largest index plus one, which waits for a device.

    Returns
    -------
    Tensor
        int64, (*tensor.shape, num_classes). An index out of range is an error on the CPU and a row
        of zeros on a device.
    """
    if tensor.dtype.kind not in "iu":
        raise DTypeError(f"one_hot: class indices must be integers, not {tensor.dtype}")
    if num_classes == -1:
        if not tensor.size:
            raise ShapeError(
                "one_hot: an empty tensor does not tell the number of classes; pass num_classes"
            )
        num_classes = int(tensor.max().item()) + 1
    if num_classes < 1:
        raise ConfigError(
            f"one_hot: num_classes must be positive, or -1 for the largest index, not {num_classes}"
        )
    check_inside("one_hot", "tensor", tensor, 0, num_classes - 1, f"a class in [0, {num_classes})")
    kernels = tensor.backend
    column = kernels.reshape(kernels.astype(tensor.array, np.int64), (*tensor.shape, 1))
    hit = kernels.equal(column, kernels.arange(0, num_classes, 1, np.int64))
    return Tensor(kernels.astype(hit, np.int64), kernels)
