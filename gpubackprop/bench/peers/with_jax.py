"""JAX: each kernel, and the training step of each recipe, in one jitted function."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# JAX would take three quarters of a GPU's memory at its first use; the others need room beside it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax import lax  # noqa: E402

from gpubackprop.bench import kernels  # noqa: E402
from gpubackprop.bench.kernels import Sizes, elements  # noqa: E402
from gpubackprop.bench.measure import AbsentError  # noqa: E402
from gpubackprop.bench.networks import Made  # noqa: E402
from gpubackprop.bench.peers import Twin, jax_networks  # noqa: E402

Call = Callable[[], Any]


class DoneClock:
    """The host's clock until the last result is there: JAX gives no events."""

    source = "perf_counter, until the result is there"

    def seconds(self, call: Call, calls: int = 1) -> float:
        """See :class:`~gpubackprop.backends.timing.Clock`."""
        result = None
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)
        return time.perf_counter() - start


def make(device: str) -> JaxPeer:
    """JAX on a device."""
    kind, _, index = device.partition(":")
    try:
        found = jax.devices("cpu" if kind == "cpu" else "gpu")
    except RuntimeError as error:
        words = " ".join(str(error).split())[:120]
        raise AbsentError(f"JAX {jax.__version__} cannot use {device}: {words}") from None
    return JaxPeer(found[int(index or 0)])


class JaxPeer:
    """See :class:`~gpubackprop.bench.peers.Peer`."""

    title = "JAX, one jitted function,"

    def __init__(self, device: Any) -> None:
        self.device, self.version, self.clock = device, jax.__version__, DoneClock()

    def release(self) -> None:
        """See :class:`~gpubackprop.bench.peers.Peer`."""
        jax.clear_caches()

    def peak(self, run: Call) -> int | None:
        """See :class:`~gpubackprop.bench.peers.Peer`; JAX tells of the whole process alone."""
        return None

    def most(self) -> tuple[int | None, int | None]:
        """See :class:`~gpubackprop.bench.peers.Peer`."""
        found = self.device.memory_stats() or {}
        return found.get("peak_bytes_in_use"), found.get("peak_pool_bytes")

    def twin(self, made: Made, weights: Sequence[np.ndarray]) -> Twin:
        """See :class:`~gpubackprop.bench.peers.Peer`."""
        with jax.default_device(self.device):
            return _twin(self.device, made, weights)

    def work(self, case: str, sizes: Sizes) -> Call:
        """See :class:`~gpubackprop.bench.peers.Peer`."""
        with jax.default_device(self.device):
            function, arguments, precision = CASES[case](self, sizes)
        donated = (0, 2, 3) if case == "update" else ()
        jitted = jax.jit(function, donate_argnums=donated)
        state = list(arguments)

        def call() -> Any:
            with jax.default_matmul_precision(precision):
                result = jitted(*state)
            if donated:
                for place, value in zip(donated, result, strict=True):
                    state[place] = value
            return result

        return call

    def random(self, number: int, *shape: int, dtype: Any = jnp.float32) -> Any:
        """Numbers from -1 to 1 on the device."""
        return jax.random.uniform(jax.random.PRNGKey(number), shape, dtype, -1.0, 1.0)


def _twin(device: Any, made: Made, weights: Sequence[np.ndarray]) -> Twin:
    recipe, key = made.recipe, jax.random.PRNGKey(made.recipe.train.seed)
    loss, chosen, clip = recipe.loss, recipe.optimizer, recipe.train.clip_norm
    batches = [tuple(_narrow(part) for part in batch) for batch in made.batches]

    def cost(p: Any, moving: Any, x: Any, target: Any, drawn: Any) -> Any:
        net = jax_networks.Pass(p, moving, drawn)
        outputs = jax_networks.run(recipe.layers, net, x)
        net.end()
        return jax_networks.cost(loss.name, loss.options, outputs, target), net.moved

    gradient = jax.value_and_grad(cost, has_aux=True)

    def train(state: Any, x: Any, target: Any) -> Any:
        p, kept, moving, number, key = state
        key, drawn = jax.random.split(key)
        (value, moving), g = gradient(p, moving, x, target, drawn)
        g = jax_networks.clipped(g, clip)
        p, kept = jax_networks.update(chosen.name, chosen.options, p, g, kept, number + 1)
        return (p, kept, moving, number + 1, key), value

    first = [jnp.array(w) for w in weights]
    try:
        means, _ = jax_networks.UPDATES[chosen.name]
        _, moved = jax.eval_shape(cost, first, None, *batches[0], key)
    except KeyError as error:
        raise AbsentError(f"there is no twin of {error} in JAX") from None
    moving = [(jnp.zeros(m.shape, m.dtype), jnp.ones(v.shape, v.dtype)) for m, v in moved]
    kept = [tuple(jnp.zeros_like(w) for _ in range(means(chosen.options))) for w in first]
    state: Any = (first, kept, moving, jnp.zeros((), jnp.float32), key)
    jitted = jax.jit(train, donate_argnums=0)
    turns = itertools.cycle(batches)

    def step() -> float:
        nonlocal state
        with jax.default_matmul_precision(FULL):
            state, value = jitted(state, *jax.device_put(next(turns), device))
        return float(value)

    def gradients() -> list[np.ndarray]:
        with jax.default_matmul_precision(FULL):
            _, g = jax.jit(gradient)(state[0], moving, *jax.device_put(batches[0], device), key)
        return [np.asarray(x) for x in g]

    return Twin(step, gradients)


def _narrow(x: np.ndarray) -> np.ndarray:
    """Class numbers in 32 bits, the widest integers that JAX has unless it is told otherwise."""
    return x if x.dtype.kind == "f" else x.astype(np.int32)


Made_ = tuple[Callable[..., Any], tuple[Any, ...], str]
FULL = "float32"


def _gradient(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The gradients by the first `count` arguments; the last one is the cotangent."""

    def gradients(*arguments: Any) -> Any:
        *given, dy = arguments
        _, pull = jax.vjp(function, *given)
        return pull(dy)[:count]

    return gradients


def _layer_norm(x: Any, w: Any, b: Any) -> Any:
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w + b


def _cross_entropy(x: Any, target: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(x, -1), target[:, None], 1)[:, 0]


def _adam(p: Any, g: Any, m: Any, v: Any) -> Any:
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g * g
    root = (1 - 0.999**7) ** 0.5
    return p - 1e-3 / (1 - 0.9**7) * m / (jnp.sqrt(v) / root + 1e-8), m, v


def _conv(x: Any, w: Any) -> Any:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)


def _attention(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def _rows(peer: JaxPeer, sizes: Sizes, each: int, columns: int, number: int = 0) -> Any:
    return peer.random(number, elements(sizes, each, columns) // columns, columns)


def _logits(peer: JaxPeer, sizes: Sizes) -> tuple[Any, Any]:
    x = _rows(peer, sizes, 8, kernels.CLASSES)
    return x, jax.random.randint(jax.random.PRNGKey(1), (len(x),), 0, kernels.CLASSES)


def _image(peer: JaxPeer, sizes: Sizes) -> tuple[Any, Any, Any]:
    n, c, k = kernels.IMAGE, kernels.CHANNELS, kernels.KERNEL
    x, dy = (peer.random(i, sizes.images, n, n, c) for i in range(2))
    return x, peer.random(2, k, k, c, c), dy


def _heads(peer: JaxPeer, sizes: Sizes) -> list[Any]:
    shape = (sizes.sequences, kernels.LENGTH, kernels.HEADS, kernels.WIDTH)
    return [peer.random(i, *shape) for i in range(4)]


def _norm_arguments(peer: JaxPeer, sizes: Sizes, each: int) -> list[Any]:
    n = kernels.COLUMNS
    return [_rows(peer, sizes, each, n), peer.random(1, n), peer.random(2, n)]


def _product(precision: str, dtype: Any = jnp.float32) -> Callable[[JaxPeer, Sizes], Made_]:
    def made(peer: JaxPeer, sizes: Sizes) -> Made_:
        if peer.device.platform == "cpu" and precision == "tensorfloat32":
            raise AbsentError("a CPU has no TF32 units")
        x, y = (peer.random(i, sizes.gemm, sizes.gemm, dtype=dtype) for i in range(2))
        return jnp.matmul, (x, y), precision

    return made


def _update_arguments(peer: JaxPeer, sizes: Sizes) -> Made_:
    n = elements(sizes, 28)
    state = (peer.random(0, n), peer.random(1, n), jnp.zeros(n), jnp.zeros(n))
    return _adam, state, FULL


def _conv_gradient(place: int) -> Callable[[JaxPeer, Sizes], Made_]:
    def made(peer: JaxPeer, sizes: Sizes) -> Made_:
        def gradient(x: Any, w: Any, dy: Any) -> Any:
            return jax.vjp(_conv, x, w)[1](dy)[place]

        return gradient, _image(peer, sizes), FULL

    return made


CASES: dict[str, Callable[[JaxPeer, Sizes], Made_]] = {
    "copy": lambda peer, s: (jnp.negative, (peer.random(0, elements(s, 8)),), FULL),
    "update": _update_arguments,
    "layer-norm": lambda peer, s: (_layer_norm, tuple(_norm_arguments(peer, s, 8)), FULL),
    "layer-norm-backward": lambda peer, s: (
        _gradient(_layer_norm, 2),
        (*_norm_arguments(peer, s, 12), _rows(peer, s, 12, kernels.COLUMNS, 3)),
        FULL,
    ),
    "softmax-cross-entropy": lambda peer, s: (_cross_entropy, _logits(peer, s), FULL),
    "softmax-cross-entropy-backward": lambda peer, s: (
        jax.grad(lambda x, target: _cross_entropy(x, target).mean()),
        _logits(peer, s),
        FULL,
    ),
    "gelu": lambda peer, s: (
        lambda x: jax.nn.gelu(x, approximate=False),
        (peer.random(0, elements(s, 8)),),
        FULL,
    ),
    "gelu-backward": lambda peer, s: (
        _gradient(lambda x: jax.nn.gelu(x, approximate=False), 1),
        tuple(peer.random(i, elements(s, 12)) for i in range(2)),
        FULL,
    ),
    "gemm-float32": _product(FULL),
    "gemm-tf32": _product("tensorfloat32"),
    "gemm-bf16": _product("bfloat16", jnp.bfloat16),
    "conv": lambda peer, s: (_conv, _image(peer, s)[:2], FULL),
    "conv-input": _conv_gradient(0),
    "conv-weight": _conv_gradient(1),
    "attention": lambda peer, s: (_attention, tuple(_heads(peer, s)[:3]), FULL),
    "attention-backward": lambda peer, s: (
        _gradient(_attention, 3),
        tuple(_heads(peer, s)),
        FULL,
    ),
}
"""Each kernel of the table as JAX has it: a function, its arguments, and the precision of products.
XLA leaves out a copy, so ``copy`` changes the sign."""
