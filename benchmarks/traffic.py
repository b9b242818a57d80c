"""``python -m benchmarks.traffic``: bytes of pictures that the kernel calls of one training step of
ResNet-18 for 32 x 32 pictures read and write, by dtype.

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


def counted(precision: str, batch: int = 2, width: int = 64) -> Counter[tuple[str, str]]:
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
    total: Counter[tuple[str, str]] = Counter()

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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traffic", description=__doc__)
    parser.add_argument("--precision", action="append", help="default: float32 and bf16-mixed")
    batch = 2
    for precision in parser.parse_args().precision or ("float32", "bf16-mixed"):
        found = counted(precision, batch)
        parts = [
            f"{words[1]} {words[0]} {n * BATCH / batch / 1e9:.3f}" for words, n in found.items()
        ]
        print(
            f"{precision}: {sum(found.values()) * BATCH / batch / 1e9:.2f} GB: {', '.join(parts)}"
        )


if __name__ == "__main__":
    main()
