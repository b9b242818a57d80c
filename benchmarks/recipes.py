"""A training step of each recipe: this project (eager) and PyTorch (eager), in turns.

    python -m benchmarks.recipes [--only mnist-cnn,shakespeare-gpt] [--rounds 5] [--seconds 1.0]
                                 [--json FILE]

``torch`` is PyTorch as it comes; ``torch-tuned`` has pictures with their channels last in memory
and the fused optimizer. A step is forward, backward, clipping where the recipe has it, and update,
on made-up batches that are already in memory. Before anything is timed both networks get the same
parameters, and their costs and gradients on one batch must agree (in float64, without dropout).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from benchmarks import interleave

# Shape of one input, and the number of classes or tokens.
WORKLOADS: dict[str, tuple[tuple[int, ...], int]] = {
    "digits-mlp": ((64,), 10),
    "mnist-nielsen": ((784,), 10),
    "mnist-mlp": ((784,), 10),
    "digits-cnn": ((8, 8, 1), 10),
    "mnist-cnn": ((28, 28, 1), 10),
    "cifar-resnet": ((32, 32, 3), 10),
    "shakespeare-lstm": ((50,), 65),
    "shakespeare-gpt": ((64,), 65),
}
CONTENDERS = ("torch", "torch-tuned", "gb-eager")
BATCHES = 4
AGREEMENT = 1e-8
"""How far a gradient may be from PyTorch's, in float64, relative to the largest in its
parameter."""


def is_text(name: str) -> bool:
    """Whether a recipe reads tokens."""
    return name.startswith("shakespeare")


def make_batches(name: str, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Made-up inputs, channels last, and targets."""
    rng = np.random.default_rng(0)
    shape, classes = WORKLOADS[name]
    made = []
    for _ in range(BATCHES):
        if is_text(name):
            tokens = rng.integers(0, classes, (size, shape[0] + 1))
            made.append((tokens[:, :-1].copy(), tokens[:, 1:].copy()))
        else:
            x = rng.standard_normal((size, *shape), dtype=np.float32)
            made.append((x, rng.integers(0, classes, size)))
    return made


class Ours:
    """A recipe's network in this project."""

    def __init__(self, recipe: Any, name: str) -> None:
        import gpubackprop as gb
        from gpubackprop import recipes
        from gpubackprop.data import one_hot
        from gpubackprop.optim import clip_grad_norm_
        from gpubackprop.recipes.build import build_loss
        from gpubackprop.recipes.updates import make_optimizer

        self.recipe, self.tensor, self.clip = recipe, gb.tensor, clip_grad_norm_
        shape, classes = WORKLOADS[name]
        self.model = recipes.build_model(recipe, shape, classes)
        self.loss = build_loss(recipe)
        chosen = recipe.optimizer
        self.optimizer = make_optimizer(chosen.name, chosen.options, self.model.named_parameters())
        rows = recipe.loss.name == "quadratic"
        self.code = (lambda t: one_hot(t, classes, recipe.train.dtype)) if rows else (lambda t: t)

    def backward(self, x: np.ndarray, target: np.ndarray) -> Any:
        """Cost and gradients of a batch."""
        self.optimizer.zero_grad()
        loss = self.loss(self.model(self.tensor(x)), self.tensor(self.code(target)))
        loss.backward()
        return loss

    def step(self, x: np.ndarray, target: np.ndarray) -> Any:
        """One training step."""
        loss = self.backward(x, target)
        if self.recipe.train.clip_norm is not None:
            self.clip(self.optimizer, self.recipe.train.clip_norm)
        self.optimizer.step()
        return loss


class Theirs:
    """The same network in PyTorch."""

    def __init__(self, recipe: Any, name: str, tuned: bool = False) -> None:
        import torch

        from benchmarks.twins import torch_twins
        from gpubackprop.recipes.build import plan_model

        self.torch, self.twins, self.recipe, self.tuned = torch, torch_twins, recipe, tuned
        shape, classes = WORKLOADS[name]
        shapes = plan_model(recipe, shape, classes).shapes
        self.model = torch_twins.network(recipe.layers, shapes, classes)
        if tuned and len(shape) == 3:
            self.model.to(memory_format=torch.channels_last)
        chosen = recipe.optimizer
        self.optimizer = torch_twins.optimizer(
            chosen.name, chosen.options, self.model.parameters(), tuned
        )

    def ready(self, x: np.ndarray) -> Any:
        """A batch of inputs as PyTorch has them."""
        found = self.torch.from_numpy(x)
        if found.ndim < 4:
            return found
        found = found.permute(0, 3, 1, 2)
        return found if self.tuned else found.contiguous()

    def backward(self, x: Any, target: Any) -> Any:
        """Cost and gradients of a batch."""
        self.optimizer.zero_grad()
        loss = self.twins.cost(
            self.recipe.loss.name, self.recipe.loss.options, self.model(x), target
        )
        loss.backward()
        return loss

    def step(self, x: Any, target: Any) -> Any:
        """One training step."""
        loss = self.backward(x, target)
        if self.recipe.train.clip_norm is not None:
            self.torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.recipe.train.clip_norm
            )
        self.optimizer.step()
        return loss


def check(name: str) -> float:
    """Copy one network's parameters into the other and compare cost and gradients on a batch.

    Returns
    -------
    float
        The largest difference, relative to the largest number of its parameter.

    Raises
    ------
    AssertionError
        The two are not the same function.
    """
    from gpubackprop import recipes
    from gpubackprop.bench.networks import still

    recipe = still(recipes.load(name), "float64")
    ours, theirs = Ours(recipe, name), Theirs(recipe, name)
    theirs.model.double()
    pairs = list(zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True))
    with theirs.torch.no_grad():
        for (path, p), q in pairs:
            assert p.shape == tuple(q.shape), (name, path, p.shape, tuple(q.shape))
            q.copy_(theirs.torch.from_numpy(p.numpy().copy()))
    x, target = make_batches(name, recipe.train.batch_size)[0]
    x = x.astype(np.float64) if x.dtype.kind == "f" else x
    mine = ours.backward(x, target).item()
    their = theirs.backward(theirs.ready(x), theirs.torch.from_numpy(target)).item()
    worst = abs(mine - their) / abs(their)
    for (path, p), q in pairs:
        g, h = p.grad.numpy(), q.grad.numpy()
        apart = float(np.abs(g - h).max() / max(np.abs(h).max(), 1e-6))
        assert apart < AGREEMENT, f"{name}: the gradient by {path} is {apart:.2g} from PyTorch's"
        worst = max(worst, apart)
    assert worst < AGREEMENT, (name, mine, their)
    return worst


def worker(contender: str, name: str) -> None:
    """Serve one contender."""
    from gpubackprop import recipes

    recipe = recipes.load(name)
    made = make_batches(name, recipe.train.batch_size)
    network: Any
    if contender == "gb-eager":
        network = Ours(recipe, name)
        batches: list[tuple[Any, Any]] = list(made)
    else:
        network = Theirs(recipe, name, contender == "torch-tuned")
        batches = [(network.ready(x), network.torch.from_numpy(t)) for x, t in made]
    turn = iter(range(sys.maxsize)).__next__

    def step() -> Any:
        return network.step(*batches[turn() % BATCHES])

    interleave.serve(step, {})


def title(name: str) -> str:
    """What a recipe's comparison with PyTorch found."""
    try:
        return f"{name}: gradients agree with PyTorch's to {check(name):.1e}"
    except ImportError as error:
        return f"{name}: gradients not compared ({error})"


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print the table."""
    return interleave.networks(
        argv, __doc__, "benchmarks.recipes", CONTENDERS, list(WORKLOADS), worker, title, rounds=5
    )


if __name__ == "__main__":
    sys.exit(main())
