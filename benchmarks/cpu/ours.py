"""This project's contenders: the eager step, and the compiled one with and without native
kernels."""

from __future__ import annotations

from contextlib import nullcontext
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
    import gpubackprop.nn
    import gpubackprop.optim  # noqa: F401

    if variant != "eager":
        import gpubackprop.compile.api  # noqa: F401
    if variant == "compiled-fast":
        try:
            import numba  # noqa: F401
        except ImportError:
            raise AbsentError("Numba is not installed (the extra 'fast')") from None


def network(name: str, dropout: float, dtype: Any = np.float32, softmax: bool = False) -> Any:
    """The network of a workload with its first weights; `softmax` leaves out a last sigmoid, whose
    place a softmax in the cost takes."""
    from gpubackprop import nn

    w = ALL[name]
    o = w.options
    model: Any
    if w.kind == "mlp":
        shapes = [s for s in w.shapes.values() if len(s) == 2]
        act = nn.Sigmoid if w.cost == "quadratic" else nn.ReLU
        layers: list[Any] = []
        for n_out, n_in in shapes:
            layers += [nn.Linear(n_in, n_out, dtype=dtype), act()]
        model = nn.Sequential(*(layers if w.cost == "quadratic" and not softmax else layers[:-1]))
    elif w.kind == "cnn":
        model = nn.Sequential(
            nn.Conv2d(1, 32, 3, channels_last=True, dtype=dtype),
            nn.ReLU(),
            nn.MaxPool2d(2, channels_last=True),
            nn.Conv2d(32, 64, 3, channels_last=True, dtype=dtype),
            nn.ReLU(),
            nn.MaxPool2d(2, channels_last=True),
            nn.Flatten(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(1600, 10, dtype=dtype),
        )
    elif w.kind == "resnet":
        model = resnet.ours(w, dtype)
    elif w.kind == "gpt":
        model = nn.TransformerLM(
            w.classes, o["width"], o["layers"], o["heads"], w.shape[0], bias=False, dtype=dtype
        )
    else:
        model = nn.RecurrentLM(w.classes, o["embedding"], o["hidden"], dtype=dtype)
    for p, value in zip(model.parameters(), initial(name), strict=True):
        assert p.shape == value.shape, (name, p.shape, value.shape)
        p.array[...] = value
    return model


def loss_of(name: str, cost: str, model: Any, x: Any, target: Any) -> Any:
    """The cost of a batch."""
    from gpubackprop.nn import functional as F  # noqa: N812

    y = model(x)
    if cost == "quadratic":
        return F.quadratic_cost(y, target)
    if y.ndim == 3:
        y, target = y.reshape(-1, ALL[name].classes), target.reshape(-1)
    return F.cross_entropy(y, target)


def optimizer_of(name: str, model: Any) -> Any:
    """The optimizer of a workload."""
    from gpubackprop import optim

    w = ALL[name]
    if w.optimizer == "sgd":
        return optim.SGD(model.parameters(), lr=w.lr)
    if w.optimizer == "adam":
        return optim.Adam(model.parameters(), lr=w.lr, betas=w.betas)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups: list[Any] = [
        {"params": matrices, "weight_decay": w.decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return optim.AdamW(groups, lr=w.lr, betas=w.betas)


def build(name: str, variant: str, dropout: float, device: str = "cpu") -> Contender:
    """`variant`: ``eager``, ``compiled`` (plain NumPy, or the GPU's kernels) or
    ``compiled-fast``."""
    import gpubackprop as gb
    from gpubackprop import optim
    from gpubackprop.backends import get_backend

    w = ALL[name]
    gb.manual_seed(0)
    backend = get_backend(device)
    model = network(name, dropout).to(device)
    optimizer = optimizer_of(name, model)
    quadratic = w.cost == "quadratic"
    data = [
        (
            gb.tensor(x, device=device),
            gb.tensor(one_hot(t, w.classes) if quadratic else t, device=device),
        )
        for x, t in batches(name)
    ]

    def train(x: Any, target: Any) -> Any:
        optimizer.zero_grad()
        with nullcontext() if w.precision == "float32" else gb.precision(w.precision):
            loss = loss_of(name, w.cost, model, x, target)
            loss.backward()
        if w.clip is not None:
            optim.clip_grad_norm_(optimizer, w.clip)
        optimizer.step()
        return loss

    step: Any = train
    if variant != "eager":
        from gpubackprop.compile.api import compile as make

        step = make(train) if variant == "compiled-fast" else make(train, fast=False)
    parameters = list(model.parameters())

    def state() -> State:
        weights = [p.numpy() for p in parameters]
        if w.optimizer == "sgd":
            return State(weights, None, None)
        means: list[list[Any]] = [[], []]
        for p in parameters:
            section, i = optimizer.arena.places[id(p)]
            for kept, slot in zip(means, ("exp_avg", "exp_avg_sq"), strict=True):
                kept.append(backend.to_numpy(section.view(section.slots[slot], i)))
        return State(weights, *means)

    def memory() -> int | None:
        from gpubackprop.autograd.shortage import holdings

        state = backend.memory_state()
        if state.used is None or state.pooled is None:
            return None
        return state.used + state.pooled + holdings(backend).get("captured graphs", 0)

    return Contender(
        lambda i: step(*data[i % BATCHES]),
        state,
        backend.synchronize,
        measure=None if device == "cpu" else backend.clock().seconds,
        memory=memory,
    )


def reference(
    name: str, cost: str, weights: list[np.ndarray], batch: tuple[np.ndarray, np.ndarray]
) -> list[np.ndarray]:
    """Gradients in float64, not clipped, for a machine without PyTorch."""
    import gpubackprop as gb

    model = network(name, 0.0, np.float64, softmax=cost != "quadratic")
    for p, value in zip(model.parameters(), weights, strict=True):
        p.array[...] = value
    x, target = batch
    if cost == "quadratic":
        target = one_hot(target, ALL[name].classes, np.float64)
    x = x.astype(np.float64) if x.dtype.kind == "f" else x
    loss_of(name, cost, model, gb.tensor(x), gb.tensor(target)).backward()
    return [p.grad.numpy() for p in model.parameters()]
