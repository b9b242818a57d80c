"""tinygrad's contender: the step under TinyJit on its CPU device."""

from __future__ import annotations

import os
import shutil
from typing import Any

import numpy as np

from benchmarks.cpu.workloads import (
    BATCHES,
    WORKLOADS,
    AbsentError,
    Contender,
    State,
    batches,
    initial,
    one_hot,
)


def load(variant: str = "") -> None:
    """Import what a step needs."""
    os.environ.setdefault("DEV", "CPU")
    import tinygrad  # noqa: F401

    if not shutil.which(os.environ.get("CC", "clang")):
        raise AbsentError("tinygrad's CPU device needs clang, and there is none")


def _forward(name: str, p: list[Any], x: Any, dropout: float) -> Any:
    w = WORKLOADS[name]
    if w.kind == "mlp":
        for i in range(0, len(p), 2):
            x = x.linear(p[i].T, p[i + 1])
            if w.cost == "quadratic":
                x = x.sigmoid()
            elif i < len(p) - 2:
                x = x.relu()
        return x
    if w.kind == "cnn":
        x = x.conv2d(p[0], p[1]).relu().max_pool2d(2)
        x = x.conv2d(p[2], p[3]).relu().max_pool2d(2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        return (x.dropout(dropout) if dropout else x).linear(p[4].T, p[5])
    if w.kind == "gpt":
        return _gpt(name, p, x)
    return _lstm(p, x)


def _gpt(name: str, p: list[Any], tokens: Any) -> Any:
    o = WORKLOADS[name].options
    heads, width = o["heads"], o["width"]
    n, t = tokens.shape
    x = p[0][tokens] + p[1]
    for i in range(o["layers"]):
        norm1, in_proj, out_proj, norm2, expand, contract = p[2 + 6 * i : 8 + 6 * i]
        q, k, v = (
            a.reshape(n, t, heads, width // heads).transpose(1, 2)
            for a in ((x.layernorm() * norm1) @ in_proj.T).chunk(3, dim=-1)
        )
        y = q.scaled_dot_product_attention(k, v, is_causal=True)
        x = x + y.transpose(1, 2).reshape(n, t, width) @ out_proj.T
        hidden = (x.layernorm() * norm2) @ expand.T
        hidden = hidden * 0.5 * (1 + (hidden / 2**0.5).erf())
        x = x + hidden @ contract.T
    return (x.layernorm() * p[-1]) @ p[0].T


def _lstm(p: list[Any], tokens: Any) -> Any:
    from tinygrad import Tensor

    table, weight_ih, weight_hh, bias_ih, bias_hh, head, bias = p
    inputs = table[tokens] @ weight_ih.T + (bias_ih + bias_hh)
    h = c = Tensor.zeros(tokens.shape[0], weight_hh.shape[1])
    seen = []
    for t in range(tokens.shape[1]):
        i, f, g, o = (inputs[:, t] + h @ weight_hh.T).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        seen.append(h)
    return Tensor.stack(*seen, dim=1) @ head.T + bias


def build(name: str, variant: str, dropout: float, device: str = "cpu") -> Contender:
    """The step of a workload."""
    from tinygrad import Device, Tensor, TinyJit
    from tinygrad.nn import optim

    w = WORKLOADS[name]
    parameters = [Tensor(a) for a in initial(name)]
    optimizers: list[Any]
    if w.optimizer == "sgd":
        optimizers = [optim.SGD(parameters, lr=w.lr)]
    elif w.optimizer == "adam":
        optimizers = [optim.Adam(parameters, lr=w.lr, b1=w.betas[0], b2=w.betas[1])]
    else:
        options = {"lr": w.lr, "b1": w.betas[0], "b2": w.betas[1]}
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim == 1]
        optimizers = [
            optim.AdamW(matrices, weight_decay=w.decay, **options),
            optim.AdamW(vectors, weight_decay=0.0, **options),
        ]
    optimizer = optim.OptimizerGroup(*optimizers)

    def cost(y: Any, target: Any) -> Any:
        if w.cost == "quadratic":
            return ((y - target) ** 2).sum() / (2 * w.batch)
        return y.reshape(-1, w.classes).cross_entropy(target.reshape(-1))

    @TinyJit
    def train(x: Any, target: Any) -> Any:
        with Tensor.train():
            optimizer.zero_grad()
            loss = cost(_forward(name, parameters, x, dropout), target).backward()
            if w.clip is not None:
                norm = sum((p.grad.square().sum() for p in parameters), Tensor(0.0)).sqrt()
                for p in parameters:
                    p.grad = p.grad * (w.clip / (norm + 1e-6)).minimum(1.0)
            return loss.realize(*optimizer.schedule_step())

    data = []
    for x, t in batches(name):
        if x.dtype.kind != "f":
            x = x.astype(np.int32)
        elif w.kind == "cnn":
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        target = one_hot(t, w.classes) if w.cost == "quadratic" else t.astype(np.int32)
        data.append((Tensor(x).realize(), Tensor(target).realize()))

    def state() -> State:
        weights = [p.numpy() for p in parameters]
        if w.optimizer == "sgd":
            return State(weights, None, None)
        means: list[Any] = [{}, {}]
        for one in optimizers:
            for p, m, v in zip(one.params, one.m, one.v, strict=True):
                means[0][id(p)], means[1][id(p)] = m.numpy(), v.numpy()
        return State(weights, *([part[id(p)] for p in parameters] for part in means))

    return Contender(
        lambda i: train(*data[i % BATCHES]), state, lambda: Device[Device.DEFAULT].synchronize()
    )
