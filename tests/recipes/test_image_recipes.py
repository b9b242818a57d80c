"""Recipes for pictures: layers, their shapes in words, augmentation, and short runs."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop import nn, recipes, tensor
from gpubackprop.data import Augment
from gpubackprop.errors import ConfigError
from gpubackprop.recipes import make_trainer
from gpubackprop.recipes.build import plan_model
from gpubackprop.recipes.residual import ResidualBlock
from gpubackprop.testing.standin import StandInBackend


def digits(*overrides):
    return recipes.load("digits-cnn", ["train.epochs=1", *overrides])


def layers(*tables):
    return "model.layers=[" + ", ".join("{" + table + "}" for table in tables) + "]"


def plan(*tables, shape=(9, 8, 4)):
    return plan_model(digits(layers(*tables)), shape)


@pytest.mark.parametrize(
    ("table", "shape", "parameters"),
    [
        ("kind='conv2d', filters=6, kernel=3", (7, 6, 6), 6 * 36 + 6),
        ("kind='conv2d', filters=6, kernel=3, padding='same'", (9, 8, 6), 6 * 36 + 6),
        ("kind='conv2d', filters=6, kernel=2, padding='same'", (9, 8, 6), 6 * 16 + 6),
        ("kind='conv2d', filters=6, kernel=3, padding=1, stride=2", (5, 4, 6), 6 * 36 + 6),
        ("kind='conv2d', filters=6, kernel=3, groups=2, bias=false", (7, 6, 6), 6 * 18),
        ("kind='conv2d', filters=6, kernel=1, stride=9", (1, 1, 6), 30),
        ("kind='max-pool', kernel=2", (4, 4, 4), 0),
        ("kind='max-pool', kernel=3, stride=1", (7, 6, 4), 0),
        ("kind='max-pool', kernel=3, stride=2, padding=1", (5, 4, 4), 0),
        ("kind='avg-pool', kernel=4", (2, 2, 4), 0),
        ("kind='avg-pool', kernel=3, padding=1", (3, 3, 4), 0),
        ("kind='global-avg-pool'", (4,), 0),
        ("kind='batch-norm'", (9, 8, 4), 8),
        ("kind='group-norm', groups=2", (9, 8, 4), 8),
        ("kind='dropout2d', p=0.1", (9, 8, 4), 0),
        ("kind='residual-block', filters=4", (9, 8, 4), 2 * 36 * 4 + 16),
        ("kind='residual-block', filters=6, stride=2", (5, 4, 6), 9 * 6 * 10 + 24),
        (
            "kind='residual-block', filters=2, stride=3, shortcut='B'",
            (3, 3, 2),
            9 * 2 * 6 + 8 + 8 + 4,
        ),
        ("kind='flatten'", (288,), 0),
    ],
)
def test_shapes_and_parameters_are_known_before_anything_is_allocated(table, shape, parameters):
    made = digits(layers(table))
    found = plan_model(made, (9, 8, 4))
    assert (found.shapes[-1], found.parameters) == (shape, parameters)
    model = recipes.build_model(made, (9, 8, 4))
    assert sum(p.size for p in model.parameters()) == parameters
    x = tensor(np.random.default_rng(0).standard_normal((3, 9, 8, 4)).astype(np.float32))
    assert model(x).shape == (3, *shape)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (["kind='conv2d', filters=6, kernel=10"], r"window of 10 x 10 does not fit .* 9 x 8"),
        (["kind='max-pool', kernel=9"], r"window of 9 x 9 does not fit"),
        (
            ["kind='conv2d', filters=6, kernel=3, groups=3"],
            r"groups = 3 must divide the 4 channels",
        ),
        (
            ["kind='conv2d', filters=6, kernel=3, stride=2, padding='same'"],
            r"'same' is for stride = 1.*padding = 1",
        ),
        (
            ["kind='flatten'", "kind='conv2d', filters=6, kernel=3"],
            r"1 \(conv2d\).*\[288\].*before",
        ),
        (["kind='flatten'", "kind='global-avg-pool'"], r"needs pictures of shape"),
        (["kind='max-pool', kernel=2, padding=2"], r"padding = 2 is more than half of kernel = 2"),
        (["kind='group-norm', groups=3"], r"groups = 3 must divide the 4 channels"),
        (["kind='residual-block', filters=3"], r"take shortcut = 'B'"),
        (["kind='linear', units=10"], r"put a layer of kind 'flatten'"),
        (["kind='conv2d', filters=1000000, kernel=1000, padding=1000"], "parameters; at most"),
    ],
)
def test_what_does_not_fit_is_said_in_words(tables, words):
    with pytest.raises(ConfigError, match=words) as caught:
        plan(*tables)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.layers.0.padding=some", "padding must be a whole number .*or 'same', not 'some'"),
        ("model.layers.0.padding=-1", "padding must be a whole number at least 0"),
        ("model.layers.0.kernel=[3, 3]", "kernel must be a whole number"),
        ("model.layers.0.filter=3", "did you mean 'filters'"),
        ("augment.crops=3", r"\[augment\]: unknown key 'crops'.*did you mean 'crop'"),
        ("augment.crop=-3", "crop must be a whole number at least 0"),
        ("augment.flip=1", "flip must be true or false"),
        ("augment.padding=mirror", "unknown value of 'padding'"),
        ("augment=3", r"\[augment\]: must be a table"),
        ("train.steps_per_epoch=0", "steps_per_epoch must be a whole number at least 1"),
        ("schedule={name='milestones', at=0.5}", "at must be a list of one or more entries"),
        ("schedule={name='milestones', at=[]}", "at must be a list of one or more entries"),
        ("schedule={name='milestones', at=[1.5]}", "each a number more than 0 and less than 1"),
    ],
)
def test_wrong_options(override, words):
    with pytest.raises(ConfigError, match=words):
        digits(override)


def test_grey_pictures_without_an_axis_of_channels():
    with pytest.raises(ConfigError, match=r"gets \[8, 8\]; set channel_axis = true in \[data\]"):
        recipes.build(digits("data.channel_axis=false"))


def test_augmentation_is_for_training_batches_alone():
    job = recipes.build(digits("augment={crop=1, flip=true}", "train.validation=0.2"))
    assert isinstance(job.loader.augment, Augment) and repr(job.loader.augment) == (
        "Augment(crop=1, padding='zero', flip=True)"
    )
    assert job.validation.augment is None and job.test.augment is None
    plain = recipes.build(digits("train.validation=0.2"))
    changed = next(job.loader.batches(0)), next(plain.loader.batches(0))
    np.testing.assert_array_equal(changed[0][1], changed[1][1])
    assert (changed[0][0] != changed[1][0]).any()
    with pytest.raises(ConfigError, match=r"\[augment\]: .*samples have shape \[64\]"):
        recipes.build(
            digits(
                "data={name='digits', flatten=true}",
                layers("kind='linear', units=10"),
                "augment.crop=1",
            )
        )


def test_units_may_be_the_classes_of_the_data():
    table = "kind='linear', units='classes'"
    assert plan_model(digits(layers(table)), (5,), 7).shapes[-1] == (7,)
    with pytest.raises(ConfigError, match="units = 'classes' is for data with classes"):
        plan_model(digits(layers(table)), (5,))


def test_residual_block_against_its_formula():
    block = ResidualBlock(2, 5, stride=2).eval()
    x = tensor(np.random.default_rng(0).standard_normal((2, 5, 4, 2)))
    block.to("cpu", dtype="float64")
    passed = np.zeros((2, 3, 2, 5))
    passed[..., :2] = x.numpy()[:, ::2, ::2]
    inner = block.norm2(block.conv2(block.norm1(block.conv1(x)).relu())).numpy()
    np.testing.assert_array_equal(block(x).numpy(), np.maximum(inner + passed, 0))
    same = ResidualBlock(2, 2)
    assert same.shortcut is None
    other = ResidualBlock(2, 1, 1, "B")
    assert [type(m) for m in other.shortcut] == [nn.Conv2d, nn.BatchNorm2d]
    for wrong in ((4, 2, 1, "A"), (2, 4, 1, "C")):
        with pytest.raises(ConfigError, match="shortcut"):
            ResidualBlock(*wrong)


def test_resnet_20_has_the_parameters_of_the_paper():
    # Table 6 of He et al. 2015 gives 0.27 M.
    found = plan_model(recipes.load("cifar-resnet"), (32, 32, 3), 10)
    assert found.parameters == 269_722 and found.shapes[-1] == (10,)
    assert [s for s in found.shapes if len(s) == 3][-1] == (8, 8, 64)


def test_the_convolutional_network_of_mnist():
    # The table that the Keras example prints.
    found = plan_model(recipes.load("mnist-cnn"), (28, 28, 1), 10)
    assert found.parameters == 34_826
    assert [s for s in found.shapes if len(s) == 1][0] == (1600,)


def test_a_run_with_augmentation_resumes_bit_for_bit(tmp_path):
    made = digits("augment={crop=1, flip=true}", "train.epochs=2", "train.steps_per_epoch=20")
    straight = make_trainer(recipes.build(made), out=tmp_path / "straight")
    straight.fit(2)

    class StoppedError(Exception):
        pass

    broken = make_trainer(recipes.build(made), out=tmp_path / "broken")
    save, ask = broken.save, broken._updates.ask

    def stop_in_the_middle(*arguments):
        if broken.run.step == 27:
            save()
            raise StoppedError
        return ask(*arguments)

    broken._updates.ask = stop_in_the_middle
    with pytest.raises(StoppedError):
        broken.fit(2)
    again = make_trainer(recipes.build(made), out=tmp_path / "broken")
    assert again.resume() and (again.run.step, again.run.batch) == (27, 7)
    again.fit(2)
    ends = [t.model.state_dict() for t in (straight, again)]
    assert {k: v.tobytes() for k, v in ends[0].items()} == {
        k: v.tobytes() for k, v in ends[1].items()
    }


def test_one_network_on_two_backends():
    from gpubackprop.inspect.runs import compare_devices

    made = digits("augment={crop=1}", "train.dtype=float64", "train.batch_size=7")
    found = compare_devices(made, ("cpu", StandInBackend()), recipes.load_data(made), 3)
    assert found.agrees, found.divergence
    residual = digits(
        layers(
            "kind='conv2d', filters=4, kernel=3, padding='same', bias=false",
            "kind='batch-norm'",
            "kind='relu'",
            "kind='residual-block', filters=4",
            "kind='residual-block', filters=6, stride=2",
            "kind='dropout2d', p=0.1",
            "kind='group-norm', groups=2",
            "kind='avg-pool', kernel=2",
            "kind='global-avg-pool'",
            "kind='linear', units='classes'",
        ),
        "train.dtype=float64",
        "train.batch_size=5",
    )
    found = compare_devices(residual, ("cpu", StandInBackend()), recipes.load_data(residual), 3)
    assert found.agrees, found.divergence
