"""PyTorch's contenders: as it comes, with its fused optimizer and channels last, and compiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
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
    """Import what a step needs, and take every core."""
    import os

    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))


def network(name: str, dropout: float, last: bool, softmax: bool = False) -> Any:
    """The network of a workload; `last` keeps pictures with their channels last, `softmax` leaves
    out a last sigmoid, whose place a softmax in the cost takes."""
    from torch import nn

    from benchmarks.twins import torch_twins

    w = ALL[name]
    o = w.options
    if w.kind == "mlp":
        act = nn.Sigmoid if w.cost == "quadratic" else nn.ReLU
        layers: list[Any] = []
        for n_out, n_in in (s for s in w.shapes.values() if len(s) == 2):
            layers += [nn.Linear(n_in, n_out), act()]
        return nn.Sequential(*(layers if w.cost == "quadratic" and not softmax else layers[:-1]))
    if w.kind == "cnn":
        model: Any = nn.Sequential(
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            torch_twins.Flatten() if last else nn.Flatten(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(1600, 10),
        )
        if last:
            import torch

            model = model.to(memory_format=torch.channels_last)
        return model
    if w.kind == "resnet":
        return resnet.in_torch(w, last)
    if w.kind == "gpt":
        options = {**o, "bias": False, "positions": "learned"}
        return torch_twins.GPT(w.shape[0], options, w.classes)
    options = {**o, "cell": "lstm", "layers": 1, "dropout": 0.0}
    return torch_twins.RecurrentLM(options, w.classes)


def _pixels_first(weight: np.ndarray) -> np.ndarray:
    """Columns of the layer behind pictures as PyTorch's flatten has them, channels first."""
    return weight.reshape(10, 5, 5, 64).transpose(0, 3, 1, 2).reshape(10, 1600)


def _pixels_last(weight: np.ndarray) -> np.ndarray:
    return weight.reshape(10, 64, 5, 5).transpose(0, 2, 3, 1).reshape(10, 1600)


def _assign(name: str, model: Any, last: bool, values: list[np.ndarray]) -> None:
    import torch

    w = ALL[name]
    with torch.no_grad():
        for p, key, value in zip(model.parameters(), w.shapes, values, strict=True):
            if w.kind == "cnn" and key == "weight" and not last:
                value = _pixels_first(value)
            p.copy_(torch.from_numpy(np.ascontiguousarray(value)))


def optimizer_of(name: str, model: Any, fused: bool | None) -> Any:
    """The optimizer of a workload."""
    import torch

    w = ALL[name]
    if w.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=w.lr, fused=fused)
    if w.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=w.lr, betas=w.betas, fused=fused)
    parameters = list(model.parameters())
    groups: Any = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": w.decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=w.lr, betas=w.betas, fused=fused)


def loss_of(name: str, cost: str, model: Any, x: Any, target: Any) -> Any:
    """The cost of a batch."""
    from torch.nn import functional as F  # noqa: N812

    y = model(x)
    if cost == "quadratic":
        return ((y - target) ** 2).sum() / (2 * len(y))
    return F.cross_entropy(y.reshape(-1, ALL[name].classes), target.reshape(-1))


def tensors(name: str, cost: str, batch: tuple[np.ndarray, np.ndarray], last: bool) -> Any:
    """A batch as PyTorch has it."""
    import torch

    w = ALL[name]
    x, target = batch
    found = torch.from_numpy(x)
    if w.kind in ("cnn", "resnet"):
        found = found.permute(0, 3, 1, 2)
        found = found.contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )
    if cost == "quadratic":
        return found, torch.from_numpy(one_hot(target, w.classes, x.dtype.type))
    return found, torch.from_numpy(target)


def build(name: str, variant: str, dropout: float, device: str = "cpu") -> Contender:
    """`variant`: ``eager``, ``best``, ``compile`` or ``max-autotune``."""
    import torch

    if (
        variant == "compile"
        and device == "cpu"
        and not (shutil.which("g++") or shutil.which("clang++"))
    ):
        raise AbsentError("torch.compile needs a C++ compiler (g++), and there is none")
    w = ALL[name]
    torch.manual_seed(0)
    half = w.precision == "bf16-mixed"
    # What the benchmark's title promises to all; the network of W4 has them last where it is tuned.
    last = w.kind == "resnet" or (variant != "eager" and w.kind == "cnn")
    torch.set_float32_matmul_precision("highest" if w.precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = w.precision != "float32"
    if device != "cpu":
        if not torch.cuda.is_available():
            raise AbsentError(f"PyTorch {torch.__version__} cannot use {device}")
        torch.cuda.set_device(device)
    model = network(name, dropout, last).to(device)
    _assign(name, model, last, initial(name))
    optimizer = optimizer_of(name, model, True if variant != "eager" else None)
    data = [
        [part.to(device) for part in tensors(name, w.cost, batch, last)] for batch in batches(name)
    ]
    parameters = list(model.parameters())
    kind = torch.device(device).type

    def forward(x: Any, target: Any) -> Any:
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            return loss_of(name, w.cost, model, x, target)

    loss_from: Any = forward
    if variant in ("compile", "max-autotune"):
        loss_from = torch.compile(forward, mode=None if variant == "compile" else variant)

    def step(i: int) -> Any:
        optimizer.zero_grad()
        loss = loss_from(*data[i % BATCHES])
        loss.backward()
        if w.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, w.clip)
        optimizer.step()
        return loss

    def out(values: list[Any]) -> list[np.ndarray]:
        made = [v.detach().cpu().numpy() for v in values]
        if w.kind == "cnn" and not last:
            place = list(w.shapes).index("weight")
            made[place] = _pixels_last(made[place])
        return made

    def state() -> State:
        if w.optimizer == "sgd":
            return State(out(parameters), None, None)
        kept = [optimizer.state[p] for p in parameters]
        return State(
            out(parameters),
            out([k["exp_avg"] for k in kept]),
            out([k["exp_avg_sq"] for k in kept]),
        )

    if device == "cpu":
        return Contender(step, state)
    return Contender(
        step, state, torch.cuda.synchronize, measure=_events, memory=torch.cuda.max_memory_reserved
    )


def _events(call: Callable[[], object], calls: int) -> float:
    """Seconds of calls by CUDA events."""
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3


def reference(
    name: str, cost: str, weights: list[np.ndarray], batch: tuple[np.ndarray, np.ndarray]
) -> list[np.ndarray]:
    """Gradients in float64, not clipped."""
    model = network(name, 0.0, last=True, softmax=cost != "quadratic").double()
    _assign(name, model, True, weights)
    x, target = batch
    x = x.astype(np.float64) if x.dtype.kind == "f" else x
    loss_of(name, cost, model, *tensors(name, cost, (x, target), True)).backward()
    return [p.grad.numpy() for p in model.parameters()]
