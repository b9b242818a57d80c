"""Recipes for texts: layers, costs over sequences, evaluation by the character, and short runs."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop import recipes, tensor
from gpubackprop.backends import get_backend
from gpubackprop.data import text
from gpubackprop.errors import ConfigError
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.recipes import make_trainer
from gpubackprop.recipes.build import build_loss, plan_model
from gpubackprop.testing.standin import StandInBackend
from gpubackprop.training import evaluate

VERSE = "the cat sat on the mat, and the rat sat on the cat. "
GPT = "kind='gpt', layers=2, heads=2, width=8"
LSTM = "kind='recurrent-lm', embedding=6, hidden=7, layers=2"


@pytest.fixture
def verse(tmp_path):
    (tmp_path / "verse.txt").write_text(VERSE * 20)
    return tmp_path


def small(table=GPT, *overrides):
    return recipes.load(
        "shakespeare-gpt",
        [
            "data={name='text', path='verse.txt', context=8, test_fraction=0.2}",
            f"model.layers=[{{{table}}}]",
            "train.epochs=2",
            "train.steps_per_epoch=5",
            "train.batch_size=4",
            "train.eval_batch_size=7",
            *overrides,
        ],
    )


@pytest.mark.parametrize(
    "table",
    [
        GPT,
        GPT + ", bias=false",
        GPT + ", tie_weights=false, positions='rotary'",
        GPT + ", kv_heads=1, positions='sinusoidal', dropout=0.1",
        LSTM,
        LSTM + ", cell='gru', dropout=0.2",
        "kind='recurrent-lm', embedding=7, hidden=7, cell='rnn', tie_weights=true",
    ],
)
def test_shapes_and_parameters_are_known_before_anything_is_allocated(table):
    made = small(table)
    found = plan_model(made, (8,), 11)
    model = recipes.build_model(made, (8,), 11)
    assert found.shapes == ((8,), (8, 11))
    assert sum(p.size for p in model.parameters()) == found.parameters
    assert model(tensor(np.zeros((3, 8), np.int64))).shape == (3, 8, 11)


def test_the_setting_of_nanogpt_has_its_parameters():
    # nanoGPT says "number of parameters: 0.80M"; it leaves out the positions' 64 x 128.
    learned = recipes.load("shakespeare-gpt", ["model.layers.0.positions=learned"])
    found = plan_model(learned, (64,), 65)
    assert found.parameters == 65 * 128 + 64 * 128 + 4 * (12 * 128 * 128 + 2 * 128) + 128


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("kind='gpt', layers=1, heads=3, width=8", "heads = 3 must divide width = 8"),
        ("kind='gpt', layers=1, heads=4, width=8, kv_heads=3", "kv_heads = 3 must divide heads"),
        ("kind='gpt', layers=1, heads=8, width=8, positions='rotary'", "1, an odd number"),
        ("kind='recurrent-lm', embedding=3, hidden=4, tie_weights=true", "to be equal"),
        ("kind='gpt', layers=256, heads=1, width=65536", "parameters; at most"),
        ("kind='linear', units=5", r"gives \[5\] outputs, but a text needs one for each of 11"),
    ],
)
def test_what_does_not_fit_is_said_in_words(table, words):
    with pytest.raises(ConfigError, match=words):
        plan_model(small(table), (8,), 11)


def test_layers_for_texts_want_texts():
    made = recipes.load("digits-mlp", [f"model.layers=[{{{GPT}}}]", "data.flatten=false"])
    with pytest.raises(ConfigError, match=r"needs a sequence of class numbers.*\[8, 8\]"):
        recipes.build(made)
    flat = recipes.load("digits-mlp", [f"model.layers=[{{{GPT}}}]"])
    with pytest.raises(ConfigError, match=r"gives \[64, 10\] outputs, but the data have 10"):
        recipes.build(flat)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.validation=0.999", r"\[train\]: validation = 0.999 of .* leaves a part empty"),
        ("loss.name=mse", r"\[loss\]: mse"),
        ("loss.name=quadratic", r"\[loss\]: quadratic cannot compare sequences"),
        ("augment.crop=1", r"\[augment\]: .*pictures"),
        ("data.scale=unit", r"\[data\]: unknown key 'scale'"),
        ("data.context=0", r"\[data\]: context must be at least 1"),
        ("data.context=2000", "too few for a window"),
    ],
)
def test_what_texts_do_not_have(verse, override, words):
    with pytest.raises(Exception, match=words):
        recipes.build(small(GPT, override), data_dir=verse)


def test_the_cost_is_the_mean_over_every_place():
    rng = np.random.default_rng(0)
    outputs = tensor(rng.standard_normal((3, 4, 5)))
    targets = rng.integers(0, 5, (3, 4))
    targets[2, 1:] = text.IGNORED
    found = build_loss(small())(outputs, tensor(targets))
    kept = targets != text.IGNORED
    wanted = F.cross_entropy(tensor(outputs.numpy()[kept]), tensor(targets[kept]))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    log = build_loss(small(GPT, "loss.name=nll"))
    assert log(F.log_softmax(outputs, -1), tensor(targets)).item() == pytest.approx(found.item())


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_evaluation_counts_each_character_once(verse, size):
    job = recipes.build(small(GPT, f"train.eval_batch_size={size}"), data_dir=verse)
    count = len(VERSE) * 20 - int(len(VERSE) * 20 * 0.8) - 1
    whole = job.data.test
    assert (whole.array("target") != text.IGNORED).sum() == count
    found = evaluate(job.model, job.loss, job.test.batches(0), get_backend("cpu"), accuracy=True)
    outputs = job.model.eval()(tensor(whole.array("input"))).numpy()
    targets = whole.array("target")
    kept = targets != text.IGNORED
    wanted = F.cross_entropy(tensor(outputs[kept]), tensor(targets[kept])).item()
    assert found.loss == pytest.approx(wanted, rel=1e-5)
    assert found.accuracy == pytest.approx((outputs.argmax(-1) == targets)[kept].mean())
    assert found.samples == len(whole)


def test_the_end_of_the_training_part_is_watched(verse):
    made = small(GPT, "train.validation=0.25", "train.keep_best=true")
    job = recipes.build(made, data_dir=verse)
    kept, watched = job.loader.dataset, job.validation.dataset
    # Windows take in the character after them, which they guess.
    assert kept.indices[-1] + 8 < watched.indices[0]
    assert (np.diff(watched.indices) == 8).all()
    assert watched.indices[0] == round(len(job.data.train) * 0.75)
    make_trainer(job).fit(2)


@pytest.mark.parametrize("table", [GPT + ", dropout=0.1", LSTM + ", dropout=0.1"])
def test_a_run_resumes_bit_for_bit(verse, table):
    made = small(table)
    job = recipes.build(made, data_dir=verse)
    straight = make_trainer(job, out=verse / "straight")
    straight.fit(2)
    assert (straight.run.step, straight.run.samples) == (10, 40)
    half = make_trainer(recipes.build(made, data_dir=verse), out=verse / "half")
    half.fit(1)
    again = make_trainer(recipes.build(made, data_dir=verse), out=verse / "half")
    assert again.resume()
    again.fit(2)
    ends = [t.model.state_dict() for t in (straight, again)]
    assert {k: v.tobytes() for k, v in ends[0].items()} == {
        k: v.tobytes() for k, v in ends[1].items()
    }


# Without biases: that of the keys has a gradient of zero but for rounding, which Adam makes steps
# of.
@pytest.mark.parametrize("table", [GPT + ", bias=false", LSTM])
def test_one_network_on_two_backends(verse, table):
    from gpubackprop.inspect.runs import compare_devices

    made = small(table, "train.dtype=float64")
    data = recipes.load_data(made, verse)
    found = compare_devices(made, ("cpu", StandInBackend()), data, 3)
    assert found.agrees, found.divergence


@pytest.mark.parametrize("table", [GPT, LSTM.replace("hidden=7, layers=2", "hidden=32")])
def test_a_verse_is_learnt(verse, table):
    made = small(table, "train.steps_per_epoch=80", "optimizer.lr=2e-2", "train.batch_size=16")
    job = recipes.build(made, data_dir=verse)
    result = make_trainer(job).fit(2)
    assert result.history[0]["val_loss"] > result.history[-1]["val_loss"]
    assert result.history[-1]["val_loss"] < 1.6 and result.history[-1]["val_accuracy"] > 0.5
