"""PyTorch, eager, with its fused optimizer and channels last: the fastest that it offers without
compiling."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - the field's abbreviation

from gpubackprop.backends.timing import HostClock
from gpubackprop.bench import kernels
from gpubackprop.bench.kernels import Sizes, elements
from gpubackprop.bench.measure import AbsentError
from gpubackprop.bench.networks import Made
from gpubackprop.bench.peers import Twin, require_shapes, torch_networks
from gpubackprop.recipes.build import plan_model

Call = Callable[[], Any]


class EventClock:
    """PyTorch's CUDA events on the current stream."""

    source = "CUDA events"

    def seconds(self, call: Call, calls: int = 1) -> float:
        """See :class:`~gpubackprop.backends.timing.Clock`."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            call()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3


def make(device: str) -> TorchPeer:
    """PyTorch on a device."""
    if device != "cpu" and not torch.cuda.is_available():
        raise AbsentError(f"PyTorch {torch.__version__} cannot use {device}")
    return TorchPeer(device)


class TorchPeer:
    """See :class:`~gpubackprop.bench.peers.Peer`."""

    title = "PyTorch, eager, with its fused optimizer,"

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        if self.on_gpu:
            torch.cuda.set_device(self.device)
        self.version = torch.__version__
        self.clock = EventClock() if self.on_gpu else HostClock()

    def release(self) -> None:
        """See :class:`~gpubackprop.bench.peers.Peer`."""
        if self.on_gpu:
            torch.cuda.empty_cache()

    def peak(self, run: Call) -> int | None:
        """See :class:`~gpubackprop.bench.peers.Peer`."""
        if not self.on_gpu:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def most(self) -> tuple[int | None, int | None]:
        """See :class:`~gpubackprop.bench.peers.Peer`; :meth:`peak` begins anew."""
        if not self.on_gpu:
            return None, None
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()

    def work(self, case: str, sizes: Sizes) -> Call:
        """See :class:`~gpubackprop.bench.peers.Peer`."""
        return CASES[case](self, sizes)

    def random(self, *shape: int, dtype: Any = torch.float32) -> Any:
        """Numbers from -1 to 1 on the device."""
        return (torch.rand(shape, device=self.device) * 2 - 1).to(dtype)

    def twin(self, made: Made, weights: Sequence[np.ndarray]) -> Twin:
        """See :class:`~gpubackprop.bench.peers.Peer`."""
        recipe = made.recipe
        shapes = plan_model(recipe, made.shape, made.classes).shapes
        model: Any  # PyTorch's types are not at hand where it is not installed
        try:
            model = torch_networks.network(recipe.layers, shapes, made.classes)
        except KeyError as error:
            raise AbsentError(f"there is no twin of the layer {error} in PyTorch") from None
        parameters = list(model.parameters())
        require_shapes("PyTorch", [tuple(p.shape) for p in parameters], weights)
        with torch.no_grad():
            for p, value in zip(parameters, weights, strict=True):
                p.copy_(torch.from_numpy(value))
        model = model.to(self.device)
        pictures = len(made.shape) == 3
        if pictures:
            model = model.to(memory_format=torch.channels_last)
        chosen = recipe.optimizer
        optimizer = torch_networks.optimizer(
            chosen.name, chosen.options, model.parameters(), fused=True
        )
        ready = []
        for x, target in made.batches:
            inputs = torch.from_numpy(x)
            ready.append(
                (inputs.permute(0, 3, 1, 2) if pictures else inputs, torch.from_numpy(target))
            )
        turns = itertools.cycle(ready)
        loss_of, clip = recipe.loss, recipe.train.clip_norm

        def backward(batch: Any) -> Any:
            x, target = (part.to(self.device) for part in batch)
            optimizer.zero_grad()
            loss = torch_networks.cost(loss_of.name, loss_of.options, model(x), target)
            loss.backward()
            return loss

        def step() -> float:
            loss = backward(next(turns))
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            return float(loss.detach())

        def gradients() -> list[np.ndarray]:
            _in_float32(lambda: backward(ready[0]))
            return [p.grad.cpu().numpy() for p in model.parameters()]

        return Twin(lambda: _in_float32(step), gradients)


def _copy(peer: TorchPeer, sizes: Sizes) -> Call:
    x = peer.random(elements(sizes, 8))
    y = torch.empty_like(x)
    return lambda: y.copy_(x)


def _update(peer: TorchPeer, sizes: Sizes) -> Call:
    p = torch.nn.Parameter(peer.random(elements(sizes, 28)))
    p.grad = peer.random(p.numel())
    return torch.optim.Adam([p], lr=1e-3, fused=True).step


def _rows(peer: TorchPeer, sizes: Sizes, bytes_each: int, columns: int) -> Any:
    return peer.random(elements(sizes, bytes_each, columns) // columns, columns)


def _layer_norm(peer: TorchPeer, sizes: Sizes) -> Call:
    n = kernels.COLUMNS
    x, w, b = _rows(peer, sizes, 8, n), peer.random(n), peer.random(n)
    return lambda: torch.ops.aten.native_layer_norm(x, [n], w, b, 1e-5)


def _layer_norm_backward(peer: TorchPeer, sizes: Sizes) -> Call:
    n = kernels.COLUMNS
    x, w, b = _rows(peer, sizes, 12, n), peer.random(n), peer.random(n)
    dy = peer.random(*x.shape)
    _, mean, rstd = torch.ops.aten.native_layer_norm(x, [n], w, b, 1e-5)
    wanted = [True, True, False]
    return lambda: torch.ops.aten.native_layer_norm_backward(
        dy, x, [n], mean, rstd, w, None, wanted
    )


def _logits(peer: TorchPeer, sizes: Sizes) -> tuple[Any, Any]:
    x = _rows(peer, sizes, 8, kernels.CLASSES)
    return x, torch.randint(0, kernels.CLASSES, (len(x),), device=peer.device)


def _cross_entropy(peer: TorchPeer, sizes: Sizes) -> Call:
    x, target = _logits(peer, sizes)
    return lambda: F.cross_entropy(x, target, reduction="none")


def _cross_entropy_backward(peer: TorchPeer, sizes: Sizes) -> Call:
    x, target = _logits(peer, sizes)
    x.requires_grad_()
    loss = F.cross_entropy(x, target)
    return lambda: torch.autograd.grad(loss, x, retain_graph=True)


def _gelu(peer: TorchPeer, sizes: Sizes) -> Call:
    x = peer.random(elements(sizes, 8))
    return lambda: F.gelu(x)


def _gelu_backward(peer: TorchPeer, sizes: Sizes) -> Call:
    x, dy = (peer.random(elements(sizes, 12)) for _ in range(2))
    return lambda: torch.ops.aten.gelu_backward(dy, x)


def _gemm(dtype: Any = torch.float32, precision: str = "highest") -> Callable[..., Call]:
    def made(peer: TorchPeer, sizes: Sizes) -> Call:
        if not peer.on_gpu and precision != "highest":
            raise AbsentError("a CPU has no TF32 units")
        x, y = (peer.random(sizes.gemm, sizes.gemm, dtype=dtype) for _ in range(2))
        out = torch.empty_like(x)

        def call() -> None:
            torch.set_float32_matmul_precision(precision)
            try:
                torch.mm(x, y, out=out)
            finally:
                torch.set_float32_matmul_precision("highest")

        return call

    return made


def _image(peer: TorchPeer, sizes: Sizes) -> tuple[Any, Any]:
    n, c, k = kernels.IMAGE, kernels.CHANNELS, kernels.KERNEL
    last: Any = {"memory_format": torch.channels_last}
    return peer.random(sizes.images, c, n, n).to(**last), peer.random(c, c, k, k).to(**last)


def _conv(peer: TorchPeer, sizes: Sizes) -> Call:
    x, w = _image(peer, sizes)
    return lambda: _in_float32(lambda: F.conv2d(x, w, padding=1))


def _conv_gradient(wanted: list[bool]) -> Callable[..., Call]:
    def made(peer: TorchPeer, sizes: Sizes) -> Call:
        x, w = _image(peer, sizes)
        dy = _image(peer, sizes)[0]
        sizes_of = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        backward = torch.ops.aten.convolution_backward
        return lambda: _in_float32(lambda: backward(dy, x, w, None, *sizes_of, wanted))

    return made


def _in_float32(call: Call) -> Any:
    """PyTorch's convolutions round to TF32 unless they are told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return call()
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _heads(peer: TorchPeer, sizes: Sizes) -> list[Any]:
    shape = (sizes.sequences, kernels.HEADS, kernels.LENGTH, kernels.WIDTH)
    return [peer.random(*shape) for _ in range(4)]


def _attention(peer: TorchPeer, sizes: Sizes) -> Call:
    q, k, v, _ = _heads(peer, sizes)
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _attention_backward(peer: TorchPeer, sizes: Sizes) -> Call:
    q, k, v, dy = _heads(peer, sizes)
    for x in (q, k, v):
        x.requires_grad_()
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)


CASES: dict[str, Callable[[TorchPeer, Sizes], Call]] = {
    "copy": _copy,
    "update": _update,
    "layer-norm": _layer_norm,
    "layer-norm-backward": _layer_norm_backward,
    "softmax-cross-entropy": _cross_entropy,
    "softmax-cross-entropy-backward": _cross_entropy_backward,
    "gelu": _gelu,
    "gelu-backward": _gelu_backward,
    "gemm-float32": _gemm(),
    "gemm-tf32": _gemm(precision="high"),
    "gemm-bf16": _gemm(torch.bfloat16),
    "conv": _conv,
    "conv-input": _conv_gradient([True, False, False]),
    "conv-weight": _conv_gradient([False, True, False]),
    "attention": _attention,
    "attention-backward": _attention_backward,
}
"""Each kernel of the table as PyTorch has it."""
