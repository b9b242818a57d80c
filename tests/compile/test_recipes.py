"""Compiled and eager training agree to rounding for every recipe, over 50 steps."""

from __future__ import annotations

import warnings
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpubackprop import recipes
from gpubackprop.data import ArrayDataset, DataSplit
from gpubackprop.data.prepare import Scaling
from gpubackprop.errors import DataError

STEPS = 50
# Steps of a large network take long, and in float64 no native kernel serves.
BATCHES = {"cifar-resnet": 4, "shakespeare-gpt": 2, "shakespeare-lstm": 4}


def pictures(shape: tuple[int, ...], dtype: str) -> DataSplit:
    """Noise in the form of a data set whose files are not at hand."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((64, *shape)).astype(dtype)
    y = rng.integers(0, 10, 64)
    part = ArrayDataset(x, y)
    return DataSplit(
        train=part,
        test=part,
        input_shape=shape,
        classes=10,
        class_names=None,
        source="noise",
        scaling=Scaling(np.array(0.0), np.array(1.0), np.dtype(dtype)),
    )


def trainer(name: str, dtype: str, compiled: bool, folder: Path | None) -> Any:
    overrides = [f"train.batch_size={BATCHES.get(name, 8)}", f"train.dtype='{dtype}'"]
    if name == "cifar-resnet":
        # Four pictures of noise at the recipe's rate are chaos: any two runs part after ten steps.
        overrides.append("optimizer.lr=0.001")
    recipe = recipes.load(name, overrides)
    data = None
    if name == "cifar-resnet":
        data = pictures((32, 32, 3), dtype)
    try:
        job = recipes.build(recipe, data=data, data_dir=folder)
    except DataError as error:
        pytest.skip(f"no data: {error}")
    return recipes.make_trainer(job, compile=compiled)


def costs(made: Any) -> list[float]:
    made.model.train()
    batches = chain.from_iterable(made.loader.batches(epoch) for epoch in count())
    return [made.update(batch) for batch in islice(batches, STEPS)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [n for n in recipes.names() if n != "pictures"])
def test_compiled_and_eager_training_agree(
    name: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    text = name.startswith(("mnist", "shakespeare"))
    folder = request.getfixturevalue("data_root") if text else None
    eager = trainer(name, dtype, False, folder)
    compiled = trainer(name, dtype, True, folder)
    expected = costs(eager)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # such as: it is not compiled
        found = costs(compiled)
    entries = list(compiled._step._numbers.entries)
    assert sum(e.calls for e in entries) >= STEPS - 1
    # Rounding grows from step to step: Adam divides by small gradients.
    tolerance = 1e-7 if dtype == "float64" else 2e-2
    assert np.allclose(found[:3], expected[:3], rtol=tolerance / 10)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    for (path, a), b in zip(
        eager.model.named_parameters(), compiled.model.parameters(), strict=True
    ):
        gap, size = np.linalg.norm(a.numpy() - b.numpy()), np.linalg.norm(a.numpy())
        assert gap <= tolerance * size + tolerance, path
