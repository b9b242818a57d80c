"""``python -m benchmarks.traffic``: bytes of activations that the kernel calls of one training step
read and write, by dtype: of ResNet-18 for 32 x 32 pictures, and of one block of GPT-2 (768
features, 12 heads, 16 texts of 1,024 tokens), call by call and as a GPU's compiled step makes them.

The step runs on the CPU with a small batch; bytes grow with the batch. Every call counts what it is
given and what it gives, as if it were one kernel that reads and writes all of it once; of arrays
that are views of others nothing counts. Parameters and their gradients are left out.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

Total = Counter[tuple[str, str]]
BATCH, STAGES = 128, ((64, 1), (128, 2), (256, 2), (512, 2))


def network(width: int = 64) -> Any:
    """Channels, and the stride of the first of two blocks: He et al. 2015, table 1, with a first
    convolution for small pictures; `width` channels in the first stage."""
    from gpubackprop import nn
    from gpubackprop.recipes.residual import ResidualBlock

    class Mean(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.mean(axis=(1, 2))

    layers: list[Any] = [
        nn.Conv2d(3, width, 3, padding=1, bias=False, channels_last=True),
        nn.BatchNorm2d(width, channels_last=True),
        nn.ReLU(),
    ]
    before = width
    for channels, stride in STAGES:
        channels = channels * width // 64
        layers += [ResidualBlock(before, channels, stride, "B")]
        layers += [ResidualBlock(channels, channels, 1, "B")]
        before = channels
    return nn.Sequential(*layers, Mean(), nn.Linear(before, 10))


def counted(precision: str, batch: int = 2, width: int = 64) -> Total:
    """Bytes by ``("read" or "written", dtype)`` of one step with `batch` pictures."""
    import gpubackprop as gb
    from gpubackprop import optim
    from gpubackprop.backends import get_backend
    from gpubackprop.backends.interception import intercepted
    from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation

    model, rng = network(width), np.random.default_rng(0)
    rule = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = gb.tensor(rng.standard_normal((batch, 32, 32, 3)).astype(np.float32))
    target = gb.tensor(rng.integers(0, 10, batch))
    total: Total = Counter()

    def pictures(value: Any) -> Iterator[np.ndarray]:
        if isinstance(value, np.ndarray) and value.ndim == 4 and value.shape[0] == batch:
            yield value
        elif isinstance(value, (tuple, list)):
            for v in value:
                yield from pictures(v)

    def call(name: str, kernel: Any, args: Any, kwargs: Any) -> Any:
        result = kernel(*args, **kwargs)
        given, made = list(pictures(args)), list(pictures((result,)))
        if not any(np.shares_memory(a, b) for a in given for b in made):
            for word, arrays in (("read", given), ("written", made)):
                for a in arrays:
                    total[word, a.dtype.name] += a.nbytes
        return result

    with intercepted(get_backend("cpu"), call):
        with gb.precision(precision):
            loss = F.cross_entropy(model(x), target)
        loss.backward()
        rule.step()
    return total


TEXTS, TOKENS, WIDTH, HEADS = 16, 1024, 768, 12


def counted_block(
    precision: str, compiled: bool, tokens: int = 67, width: int = WIDTH, heads: int = HEADS
) -> Total:
    """The same of a block of a transformer, forth and back, with one text of `tokens` tokens: a
    prime number that divides no size but those of activations."""
    import gpubackprop as gb
    from gpubackprop import nn
    from gpubackprop.backends.cpu.backend import NumPyBackend
    from gpubackprop.backends.cuda import attention, chains, norms, products
    from gpubackprop.backends.interception import intercepted
    from gpubackprop.compile.replay import Replay
    from gpubackprop.compile.session import record
    from gpubackprop.compile.tree import take_out

    class LikeAGPU(NumPyBackend):
        """What a GPU's backend says of itself, to the passes of the compiled step."""

        adds_products = products.CudaProducts.adds_products
        rounds_norms = norms.CudaNorm.rounds_norms
        leaves_gaps = attention.CudaAttention.leaves_gaps
        chain_floats = tuple(chains.floats())

        def chain(self, *_: Any) -> Any:
            return lambda: None  # its calls are counted, not run

        # NumPy widens bfloat16 beside a number; a GPU's kernels give what they are given.
        def gelu(self, x: Any) -> Any:
            return super().gelu(x).astype(x.dtype, copy=False)

        def gelu_backward(self, dy: Any, x: Any) -> Any:
            return super().gelu_backward(dy, x).astype(x.dtype, copy=False)

    backend, rng = LikeAGPU(), np.random.default_rng(0)
    block = nn.TransformerBlock(width, heads, device=backend)
    x, dy = (
        gb.tensor(rng.standard_normal((1, tokens, width)).astype(np.float32), device=backend)
        for _ in range(2)
    )
    x.requires_grad = True
    total: Total = Counter()

    def count(word: str, size: int, dtype: np.dtype) -> None:
        if size and size % tokens == 0:
            total[word, dtype.name] += size * dtype.itemsize

    def step(x: Any, dy: Any) -> Any:
        with gb.precision(precision):
            y = block(x)
        y.backward(dy)
        return y

    if compiled:
        step(x, dy)  # its gradients are there from now on
        given: list[Any] = []
        pattern = take_out(((x, dy), {}), given, [])
        outcome = record(step, backend, pattern, given, [t.array for t in given])
        for call in Replay(outcome, backend, fast=False).calls:
            for word, refs in (("read", call.reads), ("written", [*call.outs, *call.writes])):
                for r in refs:
                    count(word, r.size, r.dtype)
        return total

    def arrays(value: Any) -> Iterator[np.ndarray]:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, (tuple, list)):
            for v in value:
                yield from arrays(v)

    def call(name: str, kernel: Any, args: Any, kwargs: Any) -> Any:
        result = kernel(*args, **kwargs)
        given, made = list(arrays(args)), list(arrays((result,)))
        if not any(np.shares_memory(a, b) for a in given for b in made):
            for word, found in (("read", given), ("written", made)):
                for a in found:
                    count(word, a.size, a.dtype)
        return result

    with intercepted(backend, call):
        step(x, dy)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traffic", description=__doc__)
    parser.add_argument("--precision", action="append", help="default: float32 and bf16-mixed")
    batch = 2
    for precision in parser.parse_args().precision or ("float32", "bf16-mixed"):
        said(f"ResNet-18, {precision}", counted(precision, batch), BATCH / batch)
        for compiled, words in ((False, "call by call"), (True, "compiled")):
            found = counted_block(precision, compiled, tokens := 67)
            said(f"GPT-2's block, {precision}, {words}", found, TEXTS * TOKENS / tokens)


def said(what: str, found: Total, times: float) -> None:
    """Print a count, multiplied."""
    parts = [f"{dtype} {word} {n * times / 1e9:.3f}" for (word, dtype), n in found.items()]
    print(f"{what}: {sum(found.values()) * times / 1e9:.2f} GB: {', '.join(parts)}")


if __name__ == "__main__":
    main()
