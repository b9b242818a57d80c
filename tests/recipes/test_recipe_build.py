"""From a recipe to the objects of a run: what is made, on which data, from which seed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gpubackprop import nn, recipes, tensor
from gpubackprop.errors import ConfigError
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.recipes.build import build_schedule, plan_model
from gpubackprop.recipes.costs import LOSSES
from gpubackprop.recipes.layers import INITIALISERS, LAYERS
from gpubackprop.recipes.updates import OPTIMIZERS, SCHEDULES
from gpubackprop.training import Trainer


def recipe(*overrides, base="two-moons"):
    return recipes.load(base, ["train.epochs=2", *overrides])


def regression(tmp_path, *overrides):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3))
    np.savez(tmp_path / "numbers.npz", x=x, y=x[:, 0] * 2 - x[:, 2])
    return recipe(
        "data={name='npz', path='numbers.npz'}",
        "model.layers=[{kind='linear', units=1}]",
        "loss.name=mse",
        *overrides,
    )


def test_a_job_has_what_the_recipe_says():
    job = recipes.build(recipe("train.batch_size=64", "train.drop_last=true"))
    assert [type(m) for m in job.model] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert (job.loader.batch_size, job.loader.drop_last, job.loader.shuffle) == (64, True, True)
    assert not job.validation.shuffle and job.validation.dataset is job.data.test
    assert job.optimizer.param_groups[0]["lr"] == 0.01
    assert job.data.input_shape == (2,) and job.data.classes == 2


def weights(job):
    return {k: v.tobytes() for k, v in job.model.state_dict().items()}


def test_the_seed_settles_weights_and_order_and_nothing_else_does():
    first = recipes.build(recipe("train.seed=3"))
    np.random.seed(1)
    nn.Linear(3, 3)  # moves the ambient generator on
    again, other = recipes.build(recipe("train.seed=3")), recipes.build(recipe("train.seed=4"))
    assert weights(first) == weights(again) != weights(other)
    assert (first.loader.order(1) == again.loader.order(1)).all()
    assert (first.loader.order(1) != other.loader.order(1)).any()
    assert first.data.train.array("input").tobytes() == other.data.train.array("input").tobytes()


def test_double_precision():
    job = recipes.build(recipe("train.dtype=float64"))
    assert {p.dtype for p in job.model.parameters()} == {np.dtype(np.float64)}
    assert job.data.train.array("input").dtype == np.float64
    result = Trainer(job.model, job.loss, job.optimizer, loader=job.loader).fit(1)
    assert np.isfinite(result.train_loss)


def test_a_validation_part_is_taken_from_the_training_part():
    job = recipes.build(recipe("train.validation=0.2"))
    whole = len(job.data.train)
    kept, watched = job.loader.dataset, job.validation.dataset
    assert (len(kept), len(watched)) == (whole * 4 // 5, whole // 5)
    assert not set(kept.indices) & set(watched.indices)
    labels = job.data.train.array("target")
    assert abs(labels[watched.indices].mean() - labels.mean()) < 0.02


def test_a_validation_part_that_would_be_empty():
    with pytest.raises(ConfigError, match=r"\[train\]: validation = .* leaves a part empty"):
        recipes.build(recipe("train.validation=0.0001", "data.n=20"))


IMAGE = {
    "conv2d": ", filters=6, kernel=3",
    "max-pool": ", kernel=2",
    "avg-pool": ", kernel=2",
    "global-avg-pool": "",
    "batch-norm": "",
    "group-norm": ", groups=2",
    "dropout2d": "",
    "residual-block": ", filters=6",
}


TEXT = {
    "gpt": ", layers=1, heads=2, width=6",
    "recurrent-lm": ", embedding=3, hidden=5",
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_is_built_and_counted(kind):
    needed = {"linear": ", units=5"} | IMAGE | TEXT
    made = recipe(f"model.layers=[{{kind='{kind}'{needed.get(kind, '')}}}]")
    shape = (7, 6, 4) if kind in IMAGE else (3,) if kind != "flatten" else (3, 4)
    if kind in TEXT:  # the classes of the plane's data are not those of characters
        made = dataclasses.replace(made, data=dataclasses.replace(made.data, name="text"))
    classes = 4 if kind in TEXT else None
    plan = plan_model(made, shape, classes)
    model = recipes.build_model(made, shape, classes)
    assert sum(p.size for p in model.parameters()) == plan.parameters
    x = tensor(np.full((2, *shape), 0.5, np.float32))
    x = tensor(np.ones((2, *shape), np.int64)) if kind in TEXT else x
    assert model.eval()(x).shape == (2, *plan.shapes[-1])


@pytest.mark.parametrize("name", INITIALISERS)
def test_every_initialiser(name):
    layer = f"{{kind='linear', units=200, init='{name}', bias_init='zeros', init_scale=0.5}}"
    module = recipes.build_model(recipe(f"model.layers=[{layer}]"), (100,))[0]
    weight = module.weight.numpy()
    assert (module.bias.numpy() == 0).all()
    deviation = {
        "xavier-uniform": 0.5 * np.sqrt(2 / 300),
        "xavier-normal": 0.5 * np.sqrt(2 / 300),
        "kaiming-uniform": np.sqrt(2 / 100),
        "kaiming-normal": np.sqrt(2 / 100),
        "orthogonal": 0.5 / np.sqrt(200),
        "normal": 0.5,
        "truncated-normal": 0.5 * 0.8796,
        "zeros": 0.0,
    }[name]
    assert weight.std() == pytest.approx(deviation, rel=0.03)


def test_the_textbook_network_begins_as_in_the_book():
    model = recipes.build_model(recipes.load("mnist-nielsen"), (784,), 10)
    assert [m.weight.shape for m in (model[0], model[2])] == [(30, 784), (10, 30)]
    assert model[0].weight.numpy().std() == pytest.approx(1, rel=0.02)
    assert model[0].bias.numpy().std() == pytest.approx(1, rel=0.4)
    assert not (model[0].bias.numpy() == 0).any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_its_options(name):
    row = OPTIMIZERS[name]
    job = recipes.build(recipe(f"optimizer={{name='{name}'}}"))
    group = job.optimizer.param_groups[0]
    assert type(job.optimizer) is row.make
    assert {k: group[k] for k in row.options} == {k: o.default for k, o in row.options.items()}
    assert Trainer(job.model, job.loss, job.optimizer, loader=job.loader).fit(1).steps == 30


def test_options_of_an_optimizer_that_do_not_go_together():
    with pytest.raises(ConfigError, match=r"two-moons: \[optimizer\]: .*nesterov"):
        recipes.build(recipe("optimizer={name='sgd', nesterov=true}"))


@pytest.mark.parametrize("name", LOSSES)
def test_every_cost_trains(name, tmp_path):
    row = LOSSES[name]
    if "numbers" in row.targets:
        job = recipes.build(regression(tmp_path, f"loss.name={name}"), data_dir=tmp_path)
        before = job.optimizer.arena.values[0].copy()
        result = Trainer(job.model, job.loss, job.optimizer, loader=job.loader).fit(2)
        assert np.isfinite(result.train_loss) and (job.optimizer.arena.values[0] != before).any()
    last = {"nll": "[{kind='linear', units=2}, {kind='log-softmax'}]"}
    layers = last.get(name, "[{kind='linear', units=2}]")
    job = recipes.build(recipe(f"loss.name={name}", f"model.layers={layers}"))
    trainer = Trainer(
        job.model,
        job.loss,
        job.optimizer,
        loader=job.loader,
        validation=job.validation,
        accuracy=True,
    )
    assert trainer.fit(3).history[-1]["val_accuracy"] > 0.7


def test_options_of_a_cost_reach_it():
    job = recipes.build(recipe("loss.label_smoothing=0.3"))
    x, y = tensor(np.array([[1.0, 3.0]], np.float32)), tensor(np.array([0]))
    assert job.loss(x, y).item() == F.cross_entropy(x, y, label_smoothing=0.3).item()
    assert job.loss(x, y).item() != F.cross_entropy(x, y).item()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("constant", "", [1, 1, 1]),
        ("step", "epochs=1, gamma=0.5", [1, 0.5, 0.25]),
        ("milestones", "at=[0.5, 0.9], gamma=0.5", [1, 0.5, 0.25]),
        ("exponential", "gamma=0.5", [1, 0.5, 0.25]),
        ("cosine", "floor=0.2", [1, 0.6, 0.2]),
        ("linear", "", [1, 0.5, 0]),
        ("one-cycle", "rise=0.5, div_factor=10", [0.1, None, None]),
    ],
)
def test_every_schedule_counts_epochs(name, options, expected):
    made = recipe(f"schedule={{name='{name}', {options}}}".replace(", }", "}"))
    schedule = build_schedule(made, per_epoch=100)  # of two epochs
    for epoch, value in enumerate(expected):
        if value is not None:
            assert schedule(100 * epoch) == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_the_list_of_schedules_above_is_complete():
    assert set(SCHEDULES) == {
        "constant",
        "step",
        "milestones",
        "exponential",
        "cosine",
        "linear",
        "one-cycle",
    }


def test_a_warm_up_comes_before_the_schedule():
    made = recipe("schedule={name='linear', warmup_epochs=0.5}")
    schedule = build_schedule(made, per_epoch=100)
    assert schedule(0) == pytest.approx(1 / 51)
    assert schedule(50) == 1
    assert schedule(125) == pytest.approx(0.5)
    assert schedule(200) == pytest.approx(0)
    longer = recipe("schedule={name='cosine', warmup_epochs=50.0}")  # than the run
    assert 0 < build_schedule(longer, per_epoch=100)(199) <= 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.layers.4.units=3"], r"\[model\]: the last layer gives \[3\].*2 classes"),
        (
            ["data={name='digits'}", "model.layers.4.units=10"],
            r"\[\[model\.layers\]\] 0 \(linear\): .*\[8, 8\].*flatten",
        ),
        (["model.layers=[{kind='relu'}]"], r"\[model\]: no layer has parameters"),
        (["data={name='csv'}"], r"\[data\]: .*path"),
        (["data={name='two-moons', scale='units'}"], r"\[data\]: .*did you mean 'unit'"),
        (["data={name='two-moons', n=2.5}"], r"\[data\]: .*'n'.*whole number"),
        (
            ["train.batch_size=1000000", "data.n=2000000", "model.layers.0.units=1000000"],
            "batch_size",
        ),
    ],
)
def test_what_does_not_fit_is_named(overrides, words):
    with pytest.raises(ConfigError, match=rf"two-moons: {words}|{words}") as caught:
        recipes.build(recipe(*overrides))
    assert str(caught.value).startswith("two-moons: ")


def test_costs_and_data_that_do_not_go_together(tmp_path):
    with pytest.raises(ConfigError, match=r"\[loss\]: cross-entropy needs classes.*allowed.*mse"):
        recipes.build(regression(tmp_path, "loss.name=cross-entropy"), data_dir=tmp_path)


def test_numbers_to_predict_are_as_many_as_the_outputs(tmp_path):
    with pytest.raises(ConfigError, match=r"gives \[2\] outputs, but the data have 1 numbers"):
        recipes.build(regression(tmp_path, "model.layers.0.units=2"), data_dir=tmp_path)
    job = recipes.build(regression(tmp_path), data_dir=tmp_path)
    assert job.data.train.array("target").shape == (48, 1)


def test_data_are_used_again():
    made = recipe()
    data = recipes.load_data(made)
    assert recipes.build(made, data=data).data is data


def test_weight_decay_may_spare_vectors():
    job = recipes.build(recipe("optimizer.weight_decay=0.1", "optimizer.decay_vectors=false"))
    matrices, vectors = job.optimizer.param_groups
    assert {p.ndim for p in matrices["params"]} == {2} and matrices["weight_decay"] == 0.1
    assert {p.ndim for p in vectors["params"]} == {1} and vectors["weight_decay"] == 0.0
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(job.model.parameters()))
    history = Trainer(job.model, job.loss, job.optimizer, loader=job.loader).fit(1).history
    assert history[0]["lr"] == 0.01  # one number, since the groups share it
    # A recipe that does not say so is written, and resumed, as before there was the option.
    assert "decay_vectors" not in recipe().as_dict()["optimizer"]
    assert len(recipes.build(recipe()).optimizer.param_groups) == 1
