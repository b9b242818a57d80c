"""The workloads: sizes, made-up data, first weights, and how much arithmetic a step needs.

Weights have PyTorch's shapes and order, and the linear layer behind pictures takes them with their
channels last; each contender brings them into its own form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

BATCHES = 8
ADAM, SGD = 28, 12
"""Bytes that an update moves for each float32 parameter: Adam reads parameter, gradient and two
means and writes all but the gradient; gradient descent reads two numbers and writes one."""


@dataclass(frozen=True)
class Workload:
    """One network and how it is trained.

    Attributes
    ----------
    title : in words.
    kind : ``"mlp"``, ``"cnn"``, ``"gpt"``, ``"lstm"`` or ``"resnet"``.
    batch : examples in a batch.
    shape : shape of one input, channels last; tokens for texts.
    classes : classes, or tokens of the vocabulary.
    shapes : of the parameters, by name, in PyTorch's order.
    cost : ``"quadratic"`` (half the squared distance, mean over the batch) or ``"cross-entropy"``.
    optimizer : ``"sgd"``, ``"adam"`` or ``"adamw"``; weight decay is for matrices only.
    clip : largest global norm of the gradient, or None.
    precision : of the products: ``"float32"``, ``"tf32"`` or ``"bf16-mixed"``.
    products : multiply-adds of one forward pass: those of the first layer if its input needs no
        gradient (else 0), and all others.
    """

    title: str
    kind: str
    batch: int
    shape: tuple[int, ...]
    classes: int
    shapes: dict[str, tuple[int, ...]]
    products: tuple[int, int]
    cost: str = "cross-entropy"
    optimizer: str = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    decay: float = 0.0
    clip: float | None = None
    dropout: float = 0.0
    precision: str = "float32"
    options: dict[str, int] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """How many numbers it learns."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def flops(self) -> int:
        """Floating point operations of a step: two for each multiply-add of the forward pass, twice
        as many backward, less the gradient of an input that needs none."""
        first, others = self.products
        return 2 * (2 * first + 3 * others)

    @property
    def update_bytes(self) -> int:
        """Bytes that the update has to move."""
        return self.parameters * (SGD if self.optimizer == "sgd" else ADAM)

    def floor(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Seconds that a step takes at the machine's rates, arithmetic and update one after the
        other; nothing else is counted."""
        return self.flops / flops_per_s + self.update_bytes / bytes_per_s


def _mlp(sizes: tuple[int, ...], batch: int, title: str, **others: object) -> Workload:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n_in, n_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        shapes |= {f"weight{i}": (n_out, n_in), f"bias{i}": (n_out,)}
    products = [batch * a * b for a, b in zip(sizes, sizes[1:], strict=False)]
    return Workload(
        f"{'-'.join(map(str, sizes))}, {title}, batch {batch}",
        "mlp",
        batch,
        sizes[:1],
        sizes[-1],
        shapes,
        (products[0], sum(products[1:])),
        **others,  # type: ignore[arg-type]
    )


def _cnn() -> Workload:
    shapes = {
        "conv1": (32, 1, 3, 3),
        "bias1": (32,),
        "conv2": (64, 32, 3, 3),
        "bias2": (64,),
        "weight": (10, 1600),
        "bias": (10,),
    }
    n = 128
    first, second = n * 26 * 26 * 32 * 9, n * 11 * 11 * 64 * 9 * 32
    return Workload(
        "convolutional network of the Keras MNIST example, dropout 0.5, batch 128, Adam",
        "cnn",
        n,
        (28, 28, 1),
        10,
        shapes,
        (first, second + n * 1600 * 10),
        dropout=0.5,
    )


def _gpt(layers: int, heads: int, width: int, context: int, vocabulary: int, n: int) -> Workload:
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (vocabulary, width),
        "positions": (context, width),
    }
    for i in range(layers):
        shapes |= {
            f"{i}.norm1": (width,),
            f"{i}.in_proj": (3 * width, width),
            f"{i}.out_proj": (width, width),
            f"{i}.norm2": (width,),
            f"{i}.expand": (4 * width, width),
            f"{i}.contract": (width, 4 * width),
        }
    shapes["norm"] = (width,)
    # Causal: a query meets itself and the keys before it, in two products (scores and values).
    attention = 2 * n * width * context * (context + 1) // 2
    dense = n * context * 12 * width**2
    return Workload(
        f"GPT, {layers} layers, {heads} heads, width {width}, context {context}, no biases, "
        f"learned positions, batch {n}, AdamW, gradients clipped to 1.0",
        "gpt",
        n,
        (context,),
        vocabulary,
        shapes,
        (0, layers * (dense + attention) + n * context * width * vocabulary),
        optimizer="adamw",
        betas=(0.9, 0.99),
        decay=0.1,
        clip=1.0,
        options={"layers": layers, "heads": heads, "width": width},
    )


def _lstm(embedding: int, hidden: int, length: int, vocabulary: int, n: int) -> Workload:
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (vocabulary, embedding),
        "weight_ih": (4 * hidden, embedding),
        "weight_hh": (4 * hidden, hidden),
        "bias_ih": (4 * hidden,),
        "bias_hh": (4 * hidden,),
        "head": (vocabulary, hidden),
        "bias": (vocabulary,),
    }
    each = 4 * hidden * (embedding + hidden) + hidden * vocabulary
    return Workload(
        f"LSTM, {hidden} units, sequence {length}, vocabulary {vocabulary}, batch {n}, Adam",
        "lstm",
        n,
        (length,),
        vocabulary,
        shapes,
        (0, n * length * each),
        options={"embedding": embedding, "hidden": hidden},
    )


def _resnet(blocks: tuple[int, ...], n: int) -> Workload:
    shapes: dict[str, tuple[int, ...]] = {}
    products = []

    def conv(name: str, size: int, n_in: int, n_out: int, kernel: int) -> None:
        shapes[f"{name}.conv"] = (n_out, n_in, kernel, kernel)
        shapes[f"{name}.norm.weight"] = shapes[f"{name}.norm.bias"] = (n_out,)
        products.append(n * size * size * n_in * n_out * kernel**2)

    conv("stem", 32, 3, 64, 3)
    size, channels = 32, 64
    for stage, count in enumerate(blocks):
        filters = 64 << stage
        for k in range(count):
            stride = 2 if stage and not k else 1
            size //= stride
            conv(f"{stage}.{k}.first", size, channels, filters, 3)
            conv(f"{stage}.{k}.second", size, filters, filters, 3)
            if stride != 1 or channels != filters:
                conv(f"{stage}.{k}.shortcut", size, channels, filters, 1)
            channels = filters
    shapes |= {"weight": (10, channels), "bias": (10,)}
    return Workload(
        f"residual network for 32x32 pictures, {2 * sum(blocks) + 2} layers, batch {n}, Adam",
        "resnet",
        n,
        (32, 32, 3),
        10,
        shapes,
        (products[0], sum(products[1:]) + n * channels * 10),
        precision="bf16-mixed",
        options=dict(enumerate_blocks(blocks)),
    )


def enumerate_blocks(blocks: tuple[int, ...]) -> list[tuple[str, int]]:
    """How many residual blocks each stage has, as options."""
    return [(f"stage{i}", count) for i, count in enumerate(blocks)]


WORKLOADS: dict[str, Workload] = {
    "W1": _mlp(
        (784, 30, 10),
        10,
        "sigmoid, quadratic cost, SGD",
        cost="quadratic",
        optimizer="sgd",
        lr=3.0,
    ),
    "W2": _mlp((784, 512, 512, 10), 128, "ReLU, cross-entropy, Adam"),
    "W3": _mlp((1024, 4096, 4096, 1000), 256, "ReLU, cross-entropy, Adam"),
    "W4": _cnn(),
    "W5": _gpt(4, 4, 128, 64, 65, 12),
    "W6": _lstm(128, 128, 64, 65, 32),
}
"""The workloads of the CPU."""

LARGER: dict[str, Workload] = {
    "W3-tf32": replace(WORKLOADS["W3"], precision="tf32"),
    # One block of GPT-2 small with an embedding that is small beside it.
    "G1": replace(_gpt(1, 12, 768, 1024, 256, 16), precision="bf16-mixed"),
    "G2": _resnet((2, 2, 2, 2), 128),
    # The same at a size for tests.
    "G1-small": replace(_gpt(1, 4, 64, 32, 65, 4), precision="bf16-mixed"),
    "G2-small": _resnet((1, 1), 4),
}
"""Further ones for a GPU."""

ALL = WORKLOADS | LARGER
"""Every workload by name."""


def initial(name: str) -> list[np.ndarray]:
    """First weights, float32, the same for every contender."""
    w = ALL[name]
    rng = np.random.default_rng(1)
    made = []
    for key, shape in w.shapes.items():
        if w.kind == "resnet" and len(shape) != 2:
            deviation = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.0
            value = rng.standard_normal(shape) * deviation + key.endswith("norm.weight")
        elif w.kind == "gpt":
            deviation = 0.02 / math.sqrt(2 * w.options["layers"])
            if not key.endswith(("out_proj", "contract")):
                deviation = 0.02
            value = rng.standard_normal(shape) * deviation if len(shape) > 1 else np.ones(shape)
        else:
            bound = 1 / math.sqrt(math.prod(shape[1:]) if len(shape) > 1 else 100)
            value = rng.uniform(-bound, bound, shape)
        made.append(value.astype(np.float32))
    return made


def batches(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs, channels last, and targets.

    All batches have the same inputs but other targets: no network can learn them by heart, so that
    no cost, gradient or running mean goes to zero however many steps are timed, and no processor
    slows down over denormal numbers.
    """
    w = ALL[name]
    rng = np.random.default_rng(0)
    if w.kind in ("gpt", "lstm"):
        tokens = rng.integers(0, w.classes, (w.batch, *w.shape))
        return [(tokens.copy(), rng.integers(0, w.classes, tokens.shape)) for _ in range(BATCHES)]
    x = rng.random((w.batch, *w.shape), dtype=np.float32)
    if w.shape[0] != 1024 and w.kind != "resnet":
        x *= rng.random(x.shape) < 0.2  # about a fifth of the pixels is set, as in MNIST
    return [(x.copy(), rng.integers(0, w.classes, w.batch)) for _ in range(BATCHES)]


def one_hot(labels: np.ndarray, classes: int, dtype: type = np.float32) -> np.ndarray:
    """Rows with a one at the label, for the quadratic cost."""
    return np.eye(classes, dtype=dtype)[labels]


Step = Callable[[int], object]


class AbsentError(RuntimeError):
    """A contender cannot take part, and why."""


@dataclass
class State:
    """Parameters in the workloads' form, and the optimizer's two running means if it has any."""

    weights: list[np.ndarray]
    first: list[np.ndarray] | None
    second: list[np.ndarray] | None


@dataclass
class Contender:
    """One library at one workload, ready to train.

    Attributes
    ----------
    step : ``step(i)`` trains on batch ``i % BATCHES``.
    state : what the steps have made of the weights so far; may share memory with them.
    sync : waits until all steps are done.
    cost : the cost that it trains with, where that is not the workload's.
    plain_eps : whether Adam's eps is added before the correction of the second mean.
    note : what differs from the workload.
    call, steps_per_call : what is timed in place of `step`, and how many steps that is.
    measure : ``measure(call, calls)``: seconds of so many calls by the device's clock; None for the
        host's clock around them and `sync`.
    memory : bytes of the device that the contender has taken; None where it does not tell.
    """

    step: Step
    state: Callable[[], State]
    sync: Callable[[], object] = lambda: None
    cost: str | None = None
    plain_eps: bool = False
    note: str = ""
    call: Callable[[], object] | None = None
    steps_per_call: int = 1
    measure: Callable[[Callable[[], object], int], float] | None = None
    memory: Callable[[], int | None] = lambda: None
