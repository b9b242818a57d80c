"""Networks of recipes in JAX, layer by layer in the order of the recipe, with this project's
parameters in this project's order and shapes: those are what a step is given.

A layer is a function of the :class:`Pass`, which hands out parameters, random keys and running
means in order, of its input, and of the recipe's options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gpubackprop.bench.measure import AbsentError

Options = Mapping[str, Any]
PICTURES = ("NHWC", "OIHW", "NHWC")
"""Pictures have their channels last, kernels are (filters, channels, height, width)."""


class Pass:
    """One forward pass in training.

    Parameters
    ----------
    parameters : in the order of the layers.
    moving : means and variances of the batch normalisations, in their order; None before there are
        any.
    key : of the random numbers of dropout.

    Attributes
    ----------
    moved : `moving` after the pass.
    """

    def __init__(self, parameters: Sequence[Any], moving: Sequence[Any] | None, key: Any) -> None:
        self._parameters = iter(parameters)
        self._moving: Iterator[Any] | None = None if moving is None else iter(moving)
        self._key = key
        self.moved: list[tuple[Any, Any]] = []

    def take(self, wanted: bool = True) -> Any:
        """The next parameter; None where the layer has none."""
        if not wanted:
            return None
        found = next(self._parameters, None)
        if found is None:
            raise AbsentError("JAX's twin has more parameters than the recipe's network")
        return found

    def end(self) -> None:
        """Make sure that nothing is left over."""
        left = len(list(self._parameters))
        if left:
            raise AbsentError(f"JAX's twin leaves {left} of the parameters out")

    def key(self) -> Any:
        """A key that nobody else has."""
        self._key, mine = jax.random.split(self._key)
        return mine

    def move(self, mean: Any, variance: Any, momentum: float) -> None:
        """Let the running mean and variance follow those of a batch."""
        before = (mean, variance) if self._moving is None else next(self._moving)
        pairs = zip(before, (mean, variance), strict=True)
        self.moved.append(tuple((1 - momentum) * a + momentum * b for a, b in pairs))


def _linear(net: Pass, x: Any, o: Options) -> Any:
    weight, bias = net.take(), net.take(o["bias"])
    y = x @ weight.T
    return y if bias is None else y + bias


def _dropped(net: Pass, x: Any, p: float) -> Any:
    if not p:
        return x
    return jnp.where(jax.random.bernoulli(net.key(), 1 - p, x.shape), x / (1 - p), 0)


def _conv(net: Pass, x: Any, o: Options) -> Any:
    weight, bias = net.take(), net.take(o["bias"])
    y = _convolved(x, weight, o["stride"], o["padding"], o["groups"])
    return y if bias is None else y + bias


def _convolved(x: Any, weight: Any, stride: int, padding: str | int, groups: int = 1) -> Any:
    around = padding.upper() if isinstance(padding, str) else [(padding, padding)] * 2
    return lax.conv_general_dilated(
        x, weight, (stride,) * 2, around, dimension_numbers=PICTURES, feature_group_count=groups
    )


def _max_pool(net: Pass, x: Any, o: Options) -> Any:
    window, stride = (1, o["kernel"], o["kernel"], 1), o["stride"] or o["kernel"]
    around = [(0, 0), *[(o["padding"], o["padding"])] * 2, (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, window, (1, stride, stride, 1), around)


def _batch_norm(net: Pass, x: Any, o: Options) -> Any:
    weight, bias = net.take(), net.take()
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    mean, variance = x.mean(axes), x.var(axes)
    net.move(mean, variance * (count / (count - 1)), o["momentum"])
    return (x - mean) * (weight * lax.rsqrt(variance + o["eps"])) + bias


NORM: Options = {"eps": 1e-5, "momentum": 0.1}
"""What the normalisations of a residual block have."""


def _residual_block(net: Pass, x: Any, o: Options) -> Any:
    y = _batch_norm(net, _convolved(x, net.take(), o["stride"], 1), NORM)
    y = _batch_norm(net, _convolved(jax.nn.relu(y), net.take(), 1, 1), NORM)
    x = x[:, :: o["stride"], :: o["stride"]]
    added = y.shape[-1] - x.shape[-1]
    return jax.nn.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, added))))


def _layer_norm(net: Pass, x: Any, bias: bool) -> Any:
    weight, shift = net.take(), net.take(bias)
    x = x - x.mean(-1, keepdims=True)
    y = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight
    return y if shift is None else y + shift


def _turned(x: Any) -> Any:
    """Rotary positions of (N, T, heads, D): feature i turned with feature i + D / 2 (Su et al.
    2021, equation 34)."""
    t, width = x.shape[1], x.shape[-1]
    angles = jnp.arange(t)[:, None] * 10000.0 ** (-jnp.arange(0, width, 2) / width)
    cos, sin = (f(angles).astype(x.dtype)[:, None] for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _gpt(net: Pass, tokens: Any, o: Options) -> Any:
    bias, (n, t) = {"bias": o["bias"]}, tokens.shape
    table = net.take()
    x = table[tokens]
    if o["positions"] == "learned":
        x = x + net.take()[:t]
    for _ in range(o["layers"]):
        parts = jnp.split(_linear(net, _layer_norm(net, x, o["bias"]), bias), 3, -1)
        q, k, v = (part.reshape(n, t, o["heads"], -1) for part in parts)
        if o["positions"] == "rotary":
            q, k = _turned(q), _turned(k)
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + _linear(net, y.reshape(x.shape), bias)
        inner = _linear(net, _layer_norm(net, x, o["bias"]), bias)
        x = x + _linear(net, jax.nn.gelu(inner, approximate=False), bias)
    return _layer_norm(net, x, o["bias"]) @ table.T


def _lstm_cell(recurrent: Any, carry: Any, gates: Any) -> Any:
    h, c = carry
    i, f, g, o = jnp.split(gates + h @ recurrent, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def _recurrent(net: Pass, tokens: Any, o: Options) -> Any:
    if o["cell"] != "lstm":
        raise KeyError(f"recurrent-lm with cell = {o['cell']!r}")
    x = _dropped(net, net.take()[tokens], o["dropout"]).swapaxes(0, 1)
    for layer in range(o["layers"]):
        if layer:
            x = _dropped(net, x, o["dropout"])
        weight, recurrent, bias, second = (net.take() for _ in range(4))
        zero = jnp.zeros((x.shape[1], o["hidden"]), x.dtype)
        gates = x @ weight.T + (bias + second)
        _, x = lax.scan(partial(_lstm_cell, recurrent.T), (zero, zero), gates)
    x = _dropped(net, x.swapaxes(0, 1), o["dropout"])
    return _linear(net, x, {"bias": True})


LAYERS: dict[str, Callable[[Pass, Any, Options], Any]] = {
    "linear": _linear,
    "relu": lambda net, x, o: jax.nn.relu(x),
    "tanh": lambda net, x, o: jnp.tanh(x),
    "sigmoid": lambda net, x, o: jax.nn.sigmoid(x),
    "dropout": lambda net, x, o: _dropped(net, x, o["p"]),
    "flatten": lambda net, x, o: x.reshape(len(x), -1),
    "conv2d": _conv,
    "max-pool": _max_pool,
    "batch-norm": _batch_norm,
    "residual-block": _residual_block,
    "global-avg-pool": lambda net, x, o: x.mean((1, 2)),
    "gpt": _gpt,
    "recurrent-lm": _recurrent,
}
"""A layer of a recipe in JAX."""


def run(layers: Any, net: Pass, x: Any) -> Any:
    """The outputs of a recipe's network.

    Parameters
    ----------
    layers : the recipe's layers.
    net : what they take.
    x : inputs, channels last.

    Raises
    ------
    KeyError
        A layer has no twin here.
    """
    for layer in layers:
        x = LAYERS[layer.name](net, x, layer.options)
    return x


def cost(name: str, o: Options, outputs: Any, target: Any) -> Any:
    """The cost of a recipe."""
    if name == "quadratic":
        wanted = jax.nn.one_hot(target, outputs.shape[-1], dtype=outputs.dtype)
        return ((outputs - wanted) ** 2).sum() / (2 * len(outputs))
    chances, smoothing = jax.nn.log_softmax(outputs, -1), o.get("label_smoothing", 0.0)
    right = jnp.take_along_axis(chances, target[..., None], -1).mean()
    return -(1 - smoothing) * right - smoothing * chances.mean()


Update = Callable[[Any, Any, tuple[Any, ...], Any, Options, float], tuple[Any, tuple[Any, ...]]]


def _sgd(p: Any, g: Any, kept: Any, step: Any, o: Options, decay: float) -> Any:
    g = g + decay * p
    if not kept:
        return p - o["lr"] * g, ()
    mean = o["momentum"] * kept[0] + jnp.where(step > 1, 1 - o["dampening"], 1) * g
    return p - o["lr"] * (g + o["momentum"] * mean if o["nesterov"] else mean), (mean,)


def _adam(p: Any, g: Any, kept: Any, step: Any, o: Options, decay: float) -> Any:
    (m, v), (first, second) = kept, o["betas"]
    g = g + decay * p
    m, v = first * m + (1 - first) * g, second * v + (1 - second) * g * g
    root = jnp.sqrt(v / (1 - second**step))
    return p - o["lr"] / (1 - first**step) * m / (root + o["eps"]), (m, v)


def _adamw(p: Any, g: Any, kept: Any, step: Any, o: Options, decay: float) -> Any:
    return _adam(p * (1 - o["lr"] * decay), g, kept, step, o, 0.0)


UPDATES: dict[str, tuple[Callable[[Options], int], Update]] = {
    "sgd": (lambda o: 1 if o["momentum"] else 0, _sgd),
    "adam": (lambda o: 2, _adam),
    "adamw": (lambda o: 2, _adamw),
}
"""How many running means an optimizer keeps of a parameter, and its formula."""


def clipped(gradients: Sequence[Any], most: float | None) -> list[Any]:
    """Gradients whose norm, of all together, is at most `most`."""
    if most is None:
        return list(gradients)
    norm = jnp.sqrt(sum((g * g).sum() for g in gradients))
    return [g * jnp.minimum(1.0, most / (norm + 1e-6)) for g in gradients]


def update(
    name: str, o: Options, parameters: Sequence[Any], gradients: Any, kept: Any, step: Any
) -> tuple[list[Any], list[Any]]:
    """Parameters and the optimizer's means after a step, the first of which has number 1."""
    pairs = []
    for p, g, means in zip(parameters, gradients, kept, strict=True):
        spared = p.ndim <= 1 and o.get("decay_vectors") is False
        decay = 0.0 if spared else o["weight_decay"]
        pairs.append(UPDATES[name][1](p, g, means, step, o, decay))
    return [p for p, _ in pairs], [means for _, means in pairs]
