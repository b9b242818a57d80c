"""Steps per second of two textbook networks: this project (eager), PyTorch (eager) and
scikit-learn, in turns.

    python -m benchmarks.mlp [--only nielsen,mlp512] [--rounds 7] [--seconds 1.0] [--json FILE]

``nielsen``: 784-30-10, sigmoid, quadratic cost, batch 10, SGD 3.0. ``mlp512``: 784-512-512-10,
ReLU, cross-entropy, batch 128, Adam 1e-3; float32. A step is forward, backward and update on a
batch that is already in memory. scikit-learn has no quadratic cost for classes: on ``nielsen`` it
trains the same sizes with its own softmax cross-entropy, and its step includes its shuffling.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import interleave

WORKLOADS = {"nielsen": ([784, 30, 10], 10), "mlp512": ([784, 512, 512, 10], 128)}
CONTENDERS = ("torch", "torch-fused", "gb-eager", "scikit-learn")
BATCHES = 64


def make_data(sizes: list[int], batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Images with about a fifth of the pixels set, as MNIST has, and labels."""
    rng = np.random.default_rng(0)
    n = BATCHES * batch
    images = rng.random((n, sizes[0]), dtype=np.float32) * (rng.random((n, sizes[0])) < 0.2)
    return images.astype(np.float32), rng.integers(0, sizes[-1], n)


def batches(arrays: tuple[Any, ...], batch: int) -> Callable[[], tuple[Any, ...]]:
    """A function that gives the next batch, round and round."""
    parts = [tuple(a[i : i + batch] for a in arrays) for i in range(0, len(arrays[0]), batch)]
    place = -1

    def following() -> tuple[Any, ...]:
        nonlocal place
        place = (place + 1) % len(parts)
        return parts[place]

    return following


def gb_eager(workload: str) -> Callable[[], Any]:
    """One training step in this project."""
    import gpubackprop as gb
    from gpubackprop import nn, optim
    from gpubackprop.nn import functional as F  # noqa: N812

    sizes, batch = WORKLOADS[workload]
    x, labels = make_data(sizes, batch)
    gb.manual_seed(0)
    act = nn.Sigmoid if workload == "nielsen" else nn.ReLU
    layers: list[Any] = []
    for n_in, n_out in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(n_in, n_out), act()]
    model = nn.Sequential(*(layers if workload == "nielsen" else layers[:-1]))
    if workload == "nielsen":
        optimizer: Any = optim.SGD(model.parameters(), lr=3.0)
        target: np.ndarray = np.eye(10, dtype=np.float32)[labels]
        cost: Any = F.quadratic_cost
    else:
        optimizer = optim.Adam(model.parameters(), lr=1e-3)
        target, cost = labels, F.cross_entropy
    following = batches((x, target), batch)

    def step() -> Any:
        inputs, wanted = following()
        optimizer.zero_grad()
        loss = cost(model(gb.tensor(inputs)), gb.tensor(wanted))
        loss.backward()
        optimizer.step()
        return loss

    return step


def torch_eager(workload: str, fused: bool = False) -> Callable[[], Any]:
    """The same step in PyTorch; `fused` uses its fused optimizer."""
    import torch

    sizes, batch = WORKLOADS[workload]
    x, labels = make_data(sizes, batch)
    torch.manual_seed(0)
    act = torch.nn.Sigmoid if workload == "nielsen" else torch.nn.ReLU
    layers: list[Any] = []
    for n_in, n_out in zip(sizes, sizes[1:], strict=False):
        layers += [torch.nn.Linear(n_in, n_out), act()]
    model = torch.nn.Sequential(*(layers if workload == "nielsen" else layers[:-1]))
    if workload == "nielsen":
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=3.0, fused=fused or None)
        target = torch.from_numpy(np.eye(10, dtype=np.float32)[labels])

        def cost(y: Any, t: Any) -> Any:
            return ((y - t) ** 2).sum() / (2 * len(y))
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused or None)
        target, cost = torch.from_numpy(labels), torch.nn.functional.cross_entropy
    following = batches((torch.from_numpy(x), target), batch)

    def step() -> Any:
        inputs, wanted = following()
        optimizer.zero_grad()
        loss = cost(model(inputs), wanted)
        loss.backward()
        optimizer.step()
        return loss

    return step


def sklearn_fit(workload: str) -> Callable[[], Any]:
    """One pass of MLPClassifier over all batches."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore", ConvergenceWarning)
    sizes, batch = WORKLOADS[workload]
    x, labels = make_data(sizes, batch)
    options: dict[str, Any] = {
        "solver": "sgd",
        "activation": "logistic",
        "momentum": 0.0,
        "learning_rate_init": 0.1,
    }
    if workload != "nielsen":
        options = {"solver": "adam", "activation": "relu", "learning_rate_init": 1e-3}
    model = MLPClassifier(
        sizes[1:-1],
        batch_size=batch,
        max_iter=1,
        alpha=0.0,
        random_state=0,
        warm_start=True,
        **options,
    )
    return lambda: model.fit(x, labels)


def worker(name: str, workload: str) -> None:
    """Serve one contender."""
    if name == "gb-eager":
        interleave.serve(gb_eager(workload), {})
    elif name.startswith("torch"):
        interleave.serve(torch_eager(workload, fused=name.endswith("fused")), {})
    else:
        interleave.serve(sklearn_fit(workload), {}, steps_per_call=BATCHES)


def title(workload: str) -> str:
    """A network in words."""
    sizes, batch = WORKLOADS[workload]
    return f"{workload}: {'-'.join(map(str, sizes))}, batch {batch}"


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print the table."""
    return interleave.networks(
        argv, __doc__, "benchmarks.mlp", CONTENDERS, list(WORKLOADS), worker, title
    )


if __name__ == "__main__":
    sys.exit(main())
