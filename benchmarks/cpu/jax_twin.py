"""JAX's contender: the whole step in one compiled function that reuses its arguments' memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks import resnet
from benchmarks.cpu.workloads import (
    ALL,
    BATCHES,
    AbsentError,
    Contender,
    State,
    batches,
    initial,
    one_hot,
)


def load(variant: str = "") -> None:
    """Import what a step needs."""
    import jax
    import jax.numpy  # noqa: F401

    if not variant:
        jax.config.update("jax_platforms", "cpu")


def _mlp(name: str, p: list[Any], x: Any, key: Any, dropout: float) -> Any:
    import jax

    sigmoid = ALL[name].cost == "quadratic"
    for i in range(0, len(p), 2):
        x = x @ p[i].T + p[i + 1]
        if sigmoid:
            x = jax.nn.sigmoid(x)
        elif i < len(p) - 2:
            x = jax.nn.relu(x)
    return x


def _cnn(name: str, p: list[Any], x: Any, key: Any, dropout: float) -> Any:
    import jax
    from jax import lax

    for weight, bias in ((p[0], p[1]), (p[2], p[3])):
        kernel = weight.transpose(2, 3, 1, 0)
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + bias)
        x = lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = x.reshape(len(x), -1)
    if dropout:
        keep = jax.random.bernoulli(key, 1 - dropout, x.shape)
        x = jax.numpy.where(keep, x / (1 - dropout), 0.0)
    return x @ p[4].T + p[5]


def _norm(x: Any, weight: Any) -> Any:
    kind, x = x.dtype, x.astype("float32")
    x = x - x.mean(-1, keepdims=True)
    y = x / jax_numpy().sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight
    return y.astype(kind)


def jax_numpy() -> Any:
    """jax.numpy, which this file imports only when it is used."""
    import jax.numpy as jnp

    return jnp


def _gpt(name: str, p: list[Any], tokens: Any, key: Any, dropout: float) -> Any:
    import jax

    jnp = jax_numpy()
    o = ALL[name].options
    heads, width = o["heads"], o["width"]
    n, t = tokens.shape
    x = p[0][tokens] + p[1][:t]
    causal = jnp.tril(jnp.ones((t, t), bool))
    for i in range(o["layers"]):
        norm1, in_proj, out_proj, norm2, expand, contract = p[2 + 6 * i : 8 + 6 * i]
        q, k, v = (
            a.reshape(n, t, heads, width // heads)
            for a in jnp.split(_norm(x, norm1) @ in_proj.T, 3, -1)
        )
        if x.dtype == jnp.bfloat16:  # cuDNN's, where there is a GPU
            y = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(n, t, width)
        else:
            scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(width // heads)
            shares = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), -1)
            y = jnp.einsum("nhqk,nkhd->nqhd", shares, v).reshape(n, t, width)
        x = x + y @ out_proj.T
        hidden = jax.nn.gelu(_norm(x, norm2) @ expand.T, approximate=False)
        x = x + hidden @ contract.T
    return _norm(x, p[-1]) @ p[0].T


def _lstm(name: str, p: list[Any], tokens: Any, key: Any, dropout: float) -> Any:
    import jax

    jnp = jax_numpy()
    table, weight_ih, weight_hh, bias_ih, bias_hh, head, bias = p
    inputs = (table[tokens] @ weight_ih.T + (bias_ih + bias_hh)).swapaxes(0, 1)
    recurrent = weight_hh.T

    def cell(carry: Any, x: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(x + h @ recurrent, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((len(tokens), weight_hh.shape[1]), table.dtype)
    _, y = jax.lax.scan(cell, (zero, zero), inputs)
    return y.swapaxes(0, 1) @ head.T + bias


NETWORKS = {"mlp": _mlp, "cnn": _cnn, "gpt": _gpt, "lstm": _lstm, "resnet": resnet.in_jax}
PRODUCTS = {"float32": "float32", "tf32": "tensorfloat32", "bf16-mixed": "bfloat16"}
"""What JAX calls the precision of products."""


def _cost(cost: str, y: Any, target: Any) -> Any:
    import jax

    jnp = jax_numpy()
    if cost == "quadratic":
        return ((y - target) ** 2).sum() / (2 * len(y))
    chances = jax.nn.log_softmax(y, -1)
    return -jnp.take_along_axis(chances, target[..., None], -1).mean()


def build(name: str, variant: str, dropout: float, device: str = "cpu") -> Contender:
    """The step of a workload; `variant` is ``gpu`` for one."""
    import jax

    kind, _, index = device.partition(":")
    try:
        found = jax.devices("cpu" if kind == "cpu" else "gpu")[int(index or 0)]
    except RuntimeError as error:
        words = " ".join(str(error).split())[:120]
        raise AbsentError(f"JAX {jax.__version__} cannot use {device}: {words}") from None
    jax.config.update("jax_default_device", found)

    jnp = jax_numpy()
    w = ALL[name]
    jax.config.update("jax_default_matmul_precision", PRODUCTS[w.precision])
    network, half = NETWORKS[w.kind], w.precision == "bf16-mixed"
    beta1, beta2 = w.betas

    def loss_of(p: list[Any], x: Any, target: Any, key: Any) -> Any:
        if half:
            p = [a.astype(jnp.bfloat16) if a.ndim > 1 else a for a in p]
            x = x.astype(jnp.bfloat16) if x.dtype.kind == "f" else x
        return _cost(w.cost, network(name, p, x, key, dropout).astype(jnp.float32), target)

    def train(state: Any, x: Any, target: Any) -> Any:
        p, m, v, t, key = state
        key, drawn = jax.random.split(key) if dropout else (key, key)
        loss, g = jax.value_and_grad(loss_of)(p, x, target, drawn)
        if w.clip is not None:
            norm = jnp.sqrt(sum((a * a).sum() for a in g))
            g = [a * jnp.minimum(1.0, w.clip / (norm + 1e-6)) for a in g]
        t = t + 1
        if w.optimizer == "sgd":
            return ([a - w.lr * b for a, b in zip(p, g, strict=True)], m, v, t, key), loss
        m = [beta1 * a + (1 - beta1) * b for a, b in zip(m, g, strict=True)]
        v = [beta2 * a + (1 - beta2) * b * b for a, b in zip(v, g, strict=True)]
        small, root = w.lr / (1 - beta1**t), jnp.sqrt(1 - beta2**t)
        p = [
            (a * (1 - w.lr * w.decay) if a.ndim > 1 else a)
            - small * b / (jnp.sqrt(c) / root + 1e-8)
            for a, b, c in zip(p, m, v, strict=True)
        ]
        return (p, m, v, t, key), loss

    jitted = jax.jit(train, donate_argnums=0)
    weights = [jnp.array(a) for a in initial(name)]
    zeros: Any = [[], []]
    if w.optimizer != "sgd":
        zeros = [[jnp.zeros_like(a) for a in weights] for _ in range(2)]
    current: Any = (weights, *zeros, jnp.zeros((), jnp.float32), jax.random.PRNGKey(0))
    data = [
        (
            jnp.array(x if x.dtype.kind == "f" else x.astype(np.int32)),
            jnp.array(one_hot(t, w.classes) if w.cost == "quadratic" else t.astype(np.int32)),
        )
        for x, t in batches(name)
    ]

    def step(i: int) -> Any:
        nonlocal current
        current, loss = jitted(current, *data[i % BATCHES])
        return loss

    def state() -> State:
        kept = [[np.asarray(a) for a in part] for part in current[:3]]
        return State(kept[0], *((kept[1], kept[2]) if kept[1] else (None, None)))

    def memory() -> int | None:
        stats = found.memory_stats() or {}
        return stats.get("peak_bytes_in_use")

    return Contender(step, state, lambda: jax.block_until_ready(current), memory=memory)
