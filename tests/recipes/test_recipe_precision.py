"""The key ``precision`` of a recipe's table ``[train]``."""

from __future__ import annotations

import pytest

from gpubackprop import recipes
from gpubackprop.errors import ConfigError


@pytest.mark.parametrize("name", ["tf32", "bf16-mixed", "fp16-mixed"])
def test_it_reaches_the_trainer(name):
    pytest.importorskip("ml_dtypes")
    recipe = recipes.load("two-moons", [f"train.precision={name}"])
    assert recipe.train.precision == name
    assert recipe.as_dict()["train"]["precision"] == name
    trainer = recipes.make_trainer(recipes.build(recipe))
    assert trainer.numerics.name == name
    assert (trainer.numerics.scaler is not None) == (name == "fp16-mixed")


@pytest.mark.parametrize("overrides", [[], ["train.precision=float32"]])
def test_float32_is_what_it_is_without(overrides):
    recipe = recipes.load("two-moons", overrides)
    assert recipe.train.precision is None and "precision" not in recipe.as_dict()["train"]
    assert recipes.make_trainer(recipes.build(recipe)).numerics.name == "float32"


def test_written_and_read_again():
    recipe = recipes.load("two-moons", ["train.precision=bf16-mixed"])
    text = recipes.dump(recipe)
    assert 'precision = "bf16-mixed"' in text


@pytest.mark.parametrize("value", ["bf16", "1", "true", "float16"])
def test_another_name(value):
    with pytest.raises(ConfigError, match="precision"):
        recipes.load("two-moons", [f"train.precision={value}"])


def test_beside_another_dtype():
    with pytest.raises(ConfigError, match="keeps the parameters in float32, but dtype is 'float64"):
        recipes.load("two-moons", ["train.precision=bf16-mixed", "train.dtype=float64"])
    recipes.load("two-moons", ["train.precision=tf32", "train.dtype=float64"])
