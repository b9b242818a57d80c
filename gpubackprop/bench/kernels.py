"""Single kernels to time: what each does, how many bytes it has to move, how much arithmetic it
needs.

Bytes are the fewest that any implementation moves: each argument read once, each result written
once. Operations are multiply-adds counted as two; a causal attention's masked half is not counted.
Backward passes of a product count both of its products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpubackprop.backends import Array, Backend
from gpubackprop.bench.measure import AbsentError, Candidate, best

COLUMNS = 1024
"""Features of a row that layer norm normalises."""
CLASSES = 8192
"""Classes of the cross-entropy."""
IMAGE, CHANNELS, KERNEL = 32, 64, 3
HEADS, LENGTH, WIDTH = 12, 1024, 64
SLOWEST = 2.0
"""Seconds that a call may take; what would take longer is left out, with the reason."""

PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True)
class Sizes:
    """How large the arrays are.

    Attributes
    ----------
    nbytes : bytes that a kernel limited by memory has to move.
    gemm : rows and columns of the square matrices.
    images : of a batch of the convolution, (images, 32, 32, 64), 3 x 3 kernels to 64 channels.
    sequences : of a batch of the attention, 12 heads, 1,024 places, 64 features.
    """

    nbytes: int
    gemm: int
    images: int
    sequences: int

    @classmethod
    def fitting(cls, bytes_per_s: float, flops_per_s: float, seconds: float = 0.01) -> Sizes:
        """Sizes for which a call takes about so long, powers of two."""
        flops = flops_per_s * seconds
        return cls(
            _power(bytes_per_s * seconds / 2, 1 << 24, 1 << 30),
            _power((flops / 2) ** (1 / 3), 1024, 8192),
            _power(flops / (2 * CHANNELS * CHANNELS * KERNEL**2 * IMAGE**2), 4, 256),
            _power(flops / (2 * HEADS * LENGTH**2 * WIDTH), 1, 16),
        )

    def with_bytes(self, nbytes: int) -> Sizes:
        """The same with another amount of memory to move."""
        return Sizes(nbytes, self.gemm, self.images, self.sequences)


def _power(x: float, least: int, most: int) -> int:
    return min(max(1 << max(0, round(math.log2(max(x, 1.0)))), least), most)


@dataclass(frozen=True)
class Work:
    """A call that is ready, and what it is worth.

    Attributes
    ----------
    call : runs the kernel.
    nbytes, flops : per call; 0 where it is not limited by that.
    """

    call: Callable[[], Any]
    nbytes: int = 0
    flops: int = 0


@dataclass(frozen=True)
class Case:
    """A row of the table of kernels.

    Attributes
    ----------
    title : in words.
    make : the call for a backend and sizes.
    ceiling : the case whose rate is the most that this one could reach.
    worth : bytes and operations of a call, as functions of the sizes.
    """

    title: str
    make: Callable[[Backend, Sizes], Callable[[], Any]]
    ceiling: str
    worth: Callable[[Sizes], tuple[int, int]]

    def work(self, backend: Backend, sizes: Sizes) -> Work:
        """The call for a backend.

        Raises
        ------
        AbsentError
            The device cannot do it.
        """
        return Work(self.make(backend, sizes), *self.worth(sizes))


def elements(sizes: Sizes, bytes_each: int, columns: int = 1) -> int:
    """How many elements move `sizes.nbytes` bytes at so many each, a multiple of `columns`."""
    return max(1, sizes.nbytes // bytes_each // columns) * columns


def _random(K: Backend, *shape: int, stream: int = 0) -> Array:
    """Numbers from -1 to 1, drawn on the device."""
    return K.subtract(K.multiply(K.uniform(shape, 1, stream, 0), 2.0), 1.0)


def _copy(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    x = _random(K, elements(sizes, 8))
    y = K.copy(x)
    return lambda: K.copyto(y, x)


def _update(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    n = elements(sizes, 28)
    arrays = [_random(K, n, stream=i) for i in range(2)]
    arrays += [K.zeros((n,), np.float32) for _ in range(2)]
    return lambda: K.adam_update(*arrays, lr=1e-3, step=7)


def _layer_norm(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    rows = elements(sizes, 8, COLUMNS) // COLUMNS
    x, w, b = _random(K, rows, COLUMNS), _random(K, COLUMNS), _random(K, COLUMNS)
    return lambda: K.layer_norm(x, w, b, 1, 1e-5)


def _layer_norm_backward(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    rows = elements(sizes, 12, COLUMNS) // COLUMNS
    x, dy = _random(K, rows, COLUMNS), _random(K, rows, COLUMNS, stream=1)
    w = _random(K, COLUMNS)
    _, mean, rstd = K.layer_norm(x, w, None, 1, 1e-5)
    return lambda: K.layer_norm_backward(dy, x, w, mean, rstd, 1)


def _logits(K: Backend, sizes: Sizes, bytes_each: int) -> tuple[Array, Array]:
    rows = elements(sizes, bytes_each, CLASSES) // CLASSES
    target = np.random.default_rng(0).integers(0, CLASSES, rows)
    return _random(K, rows, CLASSES), K.asarray(target)


def _cross_entropy(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    x, target = _logits(K, sizes, 4)
    return lambda: K.softmax_cross_entropy(x, target)


def _cross_entropy_backward(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    x, target = _logits(K, sizes, 8)
    _, top, total = K.softmax_cross_entropy(x, target)
    dy = K.full((x.shape[0],), 1.0 / x.shape[0], np.float32)
    return lambda: K.softmax_cross_entropy_backward(dy, x, top, total, target)


def _gelu(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    x = _random(K, elements(sizes, 8))
    return lambda: K.gelu(x)


def _gelu_backward(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    x, dy = (_random(K, elements(sizes, 12), stream=i) for i in range(2))
    return lambda: K.gelu_backward(dy, x)


def _gemm(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    x, y = (_random(K, sizes.gemm, sizes.gemm, stream=i) for i in range(2))
    out = K.empty(x.shape, np.float32)
    return lambda: K.matmul(x, y, out=out)


def _gemm_tf32(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    if not K.has_tf32:
        raise AbsentError(f"{K.device} has no TF32 units")
    plain = _gemm(K, sizes)

    def call() -> None:
        before = K.precision
        K.precision = "tf32"
        try:
            plain()
        finally:
            K.precision = before

    return call


def _gemm_bf16(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise AbsentError("ml_dtypes, which has bfloat16, is not installed") from None

    def made(n: int) -> Callable[[], Any]:
        x, y = (K.astype(_random(K, n, n, stream=i), bfloat16) for i in range(2))
        return lambda: K.matmul(x, y)

    taken = 0.0
    # A small product says too little of a device that is fast at large ones.
    for small in (n for n in (128, 512, 1024) if n <= sizes.gemm):
        taken = best(Candidate(made(small), K.clock()), 2, 0.0) * (sizes.gemm / small) ** 3
        if taken < SLOWEST:
            break
    if taken > SLOWEST:
        raise AbsentError(f"{K.device} has no bfloat16 units: a product would take {taken:.0f} s")
    return made(sizes.gemm)


def _image(K: Backend, sizes: Sizes) -> tuple[Array, Array]:
    x = _random(K, sizes.images, IMAGE, IMAGE, CHANNELS)
    return x, _random(K, CHANNELS, CHANNELS, KERNEL, KERNEL, stream=1)


_STRIDE, _PADDING = (1, 1), ((1, 1), (1, 1))


def _conv(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    x, w = _image(K, sizes)
    return lambda: K.conv(x, w, None, _STRIDE, _PADDING, _STRIDE, 1)


def _conv_input(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    dy, w = _image(K, sizes)
    spatial = (IMAGE, IMAGE)
    return lambda: K.conv_transpose(dy, w, spatial, _STRIDE, _PADDING, _STRIDE, 1)


def _conv_weight(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    x, _ = _image(K, sizes)
    dy = _random(K, *x.shape, stream=2)
    kernel = (KERNEL, KERNEL)
    return lambda: K.conv_weight(x, dy, kernel, _STRIDE, _PADDING, _STRIDE, 1)


def _heads(K: Backend, sizes: Sizes) -> list[Array]:
    return [_random(K, sizes.sequences, HEADS, LENGTH, WIDTH, stream=i) for i in range(4)]


def _attention(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    q, k, v, _ = _heads(K, sizes)
    return lambda: K.attention(q, k, v, causal=True, scale=WIDTH**-0.5)


def _attention_backward(K: Backend, sizes: Sizes) -> Callable[[], Any]:
    q, k, v, dy = _heads(K, sizes)
    y, lse = K.attention(q, k, v, causal=True, scale=WIDTH**-0.5)
    return lambda: K.attention_backward(dy, q, k, v, None, y, lse, causal=True, scale=WIDTH**-0.5)


def _moved(bytes_each: int, columns: int = 1) -> Callable[[Sizes], tuple[int, int]]:
    return lambda sizes: (bytes_each * elements(sizes, bytes_each, columns), 0)


def _gemm_worth(sizes: Sizes) -> tuple[int, int]:
    return 0, 2 * sizes.gemm**3


def _conv_worth(sizes: Sizes) -> tuple[int, int]:
    return 0, 2 * sizes.images * IMAGE**2 * CHANNELS**2 * KERNEL**2


def _attention_worth(products: int) -> Callable[[Sizes], tuple[int, int]]:
    pairs = LENGTH * (LENGTH + 1) // 2
    return lambda s: (0, products * 2 * s.sequences * HEADS * pairs * WIDTH)


CASES: dict[str, Case] = {
    "copy": Case("copy of an array", _copy, "copy", _moved(8)),
    "update": Case("Adam, one pass over all parameters", _update, "copy", _moved(28)),
    "layer-norm": Case("layer norm", _layer_norm, "copy", _moved(8, COLUMNS)),
    "layer-norm-backward": Case("its gradients", _layer_norm_backward, "copy", _moved(12, COLUMNS)),
    "softmax-cross-entropy": Case(
        "cross-entropy of the softmax", _cross_entropy, "copy", _moved(4, CLASSES)
    ),
    "softmax-cross-entropy-backward": Case(
        "its gradient", _cross_entropy_backward, "copy", _moved(8, CLASSES)
    ),
    "gelu": Case("GELU", _gelu, "copy", _moved(8)),
    "gelu-backward": Case("its gradient", _gelu_backward, "copy", _moved(12)),
    "gemm-float32": Case("matrix product", _gemm, "gemm-float32", _gemm_worth),
    "gemm-tf32": Case("matrix product, TF32", _gemm_tf32, "gemm-tf32", _gemm_worth),
    "gemm-bf16": Case("matrix product, bfloat16", _gemm_bf16, "gemm-bf16", _gemm_worth),
    "conv": Case("convolution", _conv, "gemm-float32", _conv_worth),
    "conv-input": Case("its gradient by the image", _conv_input, "gemm-float32", _conv_worth),
    "conv-weight": Case("its gradient by the weight", _conv_weight, "gemm-float32", _conv_worth),
    "attention": Case("causal attention", _attention, "gemm-float32", _attention_worth(2)),
    "attention-backward": Case(
        "its gradients", _attention_backward, "gemm-float32", _attention_worth(5)
    ),
}
"""Every kernel by name; ``copy`` and the matrix products are the ceilings of the others."""


def quick_sizes(backend: Backend) -> Sizes:
    """Sizes for which a call takes about 10 ms on a device, from a short look at it."""
    small = Sizes(1 << 26, 512, 4, 1)
    clock = backend.clock()
    moved = CASES["copy"].work(backend, small)
    product = CASES["gemm-float32"].work(backend, small)
    return Sizes.fitting(
        moved.nbytes / best(Candidate(moved.call, clock)),
        product.flops / best(Candidate(product.call, clock)),
    )
