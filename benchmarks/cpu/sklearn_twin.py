"""scikit-learn's contender: ``MLPClassifier.partial_fit``, which takes a step a batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cpu.workloads import (
    BATCHES,
    WORKLOADS,
    AbsentError,
    Contender,
    State,
    batches,
    initial,
)

PASSES = {"W1": 32, "W2": 8, "W3": 1}
"""How often a call of ``partial_fit`` goes through the batches: its checks of the whole array weigh
little then."""
NOTE = "many batches to a call of partial_fit, which shuffles their rows and codes the labels"
OTHER = "no quadratic cost and no last sigmoid: softmax cross-entropy; " + NOTE


def load(variant: str = "") -> None:
    """Import what a step needs."""
    import sklearn.neural_network  # noqa: F401


def build(name: str, variant: str, dropout: float, device: str = "cpu") -> Contender:
    """The step of a workload."""
    from sklearn.neural_network import MLPClassifier

    w = WORKLOADS[name]
    if w.kind != "mlp":
        raise AbsentError("scikit-learn has no such layers")
    sgd = w.optimizer == "sgd"
    sizes = [s[0] for s in w.shapes.values() if len(s) == 2]
    model = MLPClassifier(
        sizes[:-1],
        activation="logistic" if w.cost == "quadratic" else "relu",
        solver=w.optimizer,
        alpha=0.0,
        batch_size=w.batch,
        learning_rate_init=w.lr,
        momentum=0.0,
        nesterovs_momentum=False,
        random_state=0,
    )
    data = batches(name)
    classes = np.arange(w.classes)
    weights = initial(name)

    def step(i: int) -> Any:
        return model.partial_fit(*data[i % BATCHES], classes=classes)

    # The first call allocates the arrays and makes the optimizer; then both start anew.
    step(0)
    for place in range(len(sizes)):
        model.coefs_[place][...] = weights[2 * place].T
        model.intercepts_[place][...] = weights[2 * place + 1]
    optimizer = model._optimizer
    for slot in ("ms", "vs", "velocities"):
        for array in getattr(optimizer, slot, []):
            array[...] = 0
    if not sgd:
        optimizer.t = 0

    def joined(arrays: list[Any]) -> list[np.ndarray]:
        """scikit-learn keeps matrices, transposed, before biases; both in the workloads' order."""
        n = len(arrays) // 2
        pairs = zip(arrays[:n], arrays[n:], strict=True)
        return [a for matrix, bias in pairs for a in (matrix.T, bias)]

    def state() -> State:
        found = joined([*model.coefs_, *model.intercepts_])
        if sgd:
            return State(found, None, None)
        return State(found, joined(optimizer.ms), joined(optimizer.vs))

    images, labels = (np.concatenate([b[part] for b in data] * PASSES[name]) for part in (0, 1))
    other = w.cost == "quadratic"
    return Contender(
        step,
        state,
        cost="cross-entropy",
        plain_eps=True,
        note=OTHER if other else NOTE,
        call=lambda: model.partial_fit(images, labels, classes=classes),
        steps_per_call=PASSES[name] * BATCHES,
    )
