"""Reading recipes: a wrong one is one clear line, a hostile one is no more."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import tomllib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubackprop import recipes
from gpubackprop.errors import ConfigError, GpubackpropError
from gpubackprop.recipes import reading

GOOD = """
summary = "a test"
[data]
name = "two-moons"
n = 40
[[model.layers]]
kind = "linear"
units = 4
[[model.layers]]
kind = "dropout"
p = 0.25
[[model.layers]]
kind = "linear"
units = 2
[loss]
name = "cross-entropy"
[optimizer]
name = "adam"
betas = [0.8, 0.9]
[train]
epochs = 2
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    return path


def refused(path, *overrides) -> str:
    """The one line of the error."""
    with pytest.raises(ConfigError) as caught:
        recipes.load(path, overrides)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600, text
    return text


def test_a_file_is_read(file):
    recipe = recipes.load(file)
    assert (recipe.name, recipe.source, recipe.summary) == ("mine", str(file), "a test")
    assert (recipe.data.name, dict(recipe.data.options)) == ("two-moons", {"n": 40})
    assert [layer.name for layer in recipe.layers] == ["linear", "dropout", "linear"]
    assert recipe.layers[1].options == {"p": 0.25}
    assert recipe.optimizer.options["betas"] == (0.8, 0.9)
    assert recipe.optimizer.options["lr"] == 1e-3  # by default
    assert recipe.schedule.name == "constant"
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.patience) == (2, 32, None)


@pytest.mark.parametrize("name", recipes.names())
def test_built_in_recipes_are_sound_and_written_as_they_are_read(name, tmp_path):
    recipe = recipes.load(name)
    assert recipe.summary
    copied = tmp_path / f"{name}.toml"
    copied.write_text(recipes.dump(recipe))
    assert recipes.load(copied).as_dict() == recipe.as_dict()
    assert recipes.parse(recipe.as_dict(), name, name) == recipe


def test_the_issue_names_these():
    assert set(recipes.names()) >= {"digits-mlp", "mnist-mlp", "mnist-nielsen", "two-moons"}


def test_a_written_recipe_keeps_every_character(file):
    recipe = recipes.load(file, ['summary="a \\"quoted\\" \\\\ word \\u007f \\u0001 é"'])
    copied = file.with_name("copy.toml")
    copied.write_text(recipes.dump(recipe), encoding="utf-8")
    assert recipes.load(copied).summary == recipe.summary


@pytest.mark.parametrize(
    ("change", "words"),
    [
        # Names of tables, keys and rows, with the nearest.
        ("optimiser.lr=0.1", ["unknown key 'optimiser'", "did you mean 'optimizer'?", "allowed:"]),
        ("train.epoch=3", ["[train]", "unknown key 'epoch'", "did you mean 'epochs'?"]),
        ("optimizer.learning_rate=1", ["[optimizer]", "'learning_rate'", "allowed: name, lr,"]),
        ("optimizer.name=adma", ["[optimizer]", "'adma'", "did you mean 'adam'?"]),
        ("loss.name=crossentropy", ["[loss]", "did you mean 'cross-entropy'?"]),
        ("schedule.name=cosin", ["[schedule]", "did you mean 'cosine'?"]),
        ("data.name=minst", ["[data]", "unknown dataset 'minst'", "did you mean 'mnist'?"]),
        ("data.nose=1", ["[data]", "'nose'", "did you mean 'noise'?"]),
        ("data.one_hot=true", ["[data]", "'one_hot'"]),
        ("model.layers.0.kind=liner", ["[[model.layers]] 0", "did you mean 'linear'?"]),
        ("model.layers.0.unit=3", ["[[model.layers]] 0 (linear)", "did you mean 'units'?"]),
        ("model.layer=3", ["[model]", "did you mean 'layers'?"]),
        ("train.monitor=acc", ["'acc'", "allowed: loss, accuracy"]),
        # Types.
        ("train.epochs=many", ["epochs must be a whole number", "not 'many'"]),
        ("train.epochs=2.0", ["epochs must be a whole number", "not 2.0"]),
        ("train.epochs=true", ["epochs must be a whole number", "not true"]),
        ("train.drop_last=1", ["drop_last must be true or false", "not 1"]),
        ("optimizer.lr=fast", ["lr must be a number", "not 'fast'"]),
        ("optimizer.lr=[1]", ["lr must be a number"]),
        ("optimizer.betas=0.9", ["betas must be a list of 2 entries"]),
        ("optimizer.betas=[0.9]", ["betas must be a list of 2 entries"]),
        ("optimizer.betas=[0.9, 'x']", ["betas must be a list of 2 entries", "not 'x'"]),
        ("optimizer=adam", ["[optimizer]", "must be a table", "not 'adam'"]),
        ("optimizer.name=7", ["name must be a text, not 7"]),
        ("model=3", ["[model]", "must be a table"]),
        ("model.layers=3", ["[model]", "layers must be a list of tables"]),
        ("model.layers=[]", ["[model]", "layers must be a list of tables"]),
        ("model.layers=[1]", ["[[model.layers]] 0", "must be a table"]),
        ("model.layers=[{kind=[1]}]", ["[[model.layers]] 0", "kind must be a text"]),
        ("data.n={a=1}", ["[data]", "n must be a single value"]),
        ("summary=3", ["summary must be a text"]),
        # Ranges.
        ("train.epochs=0", ["epochs must be a whole number at least 1"]),
        ("train.epochs=10000000000", ["at most 1,000,000"]),
        ("train.batch_size=-1", ["batch_size"]),
        ("train.seed=-1", ["seed must be a whole number at least 0"]),
        ("train.seed=18446744073709551616", ["seed"]),
        (f"train.seed={'9' * 4000}", ["seed must be"]),
        (f"optimizer.lr={'9' * 4000}", ["lr must be"]),
        ("optimizer.lr=-0.1", ["lr must be a number at least 0"]),
        ("optimizer.lr=nan", ["lr must be", "not nan"]),
        ("optimizer.lr=inf", ["lr must be", "not inf"]),
        ("optimizer.betas=[0.9, 1.0]", ["betas", "less than 1", "not 1.0"]),
        ("model.layers.1.p=1.0", ["p must be a number at least 0 and less than 1"]),
        ("model.layers.0.units=0", ["units must be a whole number at least 1"]),
        ("model.layers.0.units=1000000000000", ["at most 1,000,000"]),
        ("data.n=1000000000000", ["[data]", "n must be at most 10,000,000"]),
        (f"data.n={1 << 70}", ["[data]", "n is out of range"]),
        ("train.dtype=float16", ["'float16'", "allowed: float32, float64"]),
        # What does not go together.
        ("train.patience=3", ["[train]", "patience needs", "validation = 0.1"]),
        ("train.keep_best=true", ["keep_best needs"]),
    ],
)
def test_a_wrong_key_or_value_is_named(file, change, words):
    text = refused(file, change)
    assert str(file) in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "the table [data] is missing"),
        ('[data]\nname="digits"\n', "the table [model] is missing"),
        ("[data]\nn=1\n[model]\n[loss]\n[optimizer]\n", "[data]: name is missing; allowed: digits"),
    ],
)
def test_what_is_missing(tmp_path, lines, words):
    path = tmp_path / "m.toml"
    path.write_text(lines + "# not empty\n")
    assert words in refused(path)


def test_a_missing_option(file):
    file.write_text(GOOD.replace("units = 4\n", ""))
    assert "[[model.layers]] 0 (linear): units is missing" in refused(file)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epochs", "table.key=VALUE"),
        ("=3", "table.key=VALUE"),
        ("train..epochs=3", "table.key=VALUE"),
        ("train.epochs.more=3", "train.epochs is a single value"),
        ("model.layers.9.units=3", "list of 3 entries"),
        ("model.layers.-1.units=3", "list of 3 entries"),
        ("model.layers.x.units=3", "list of 3 entries"),
        ("model.layers.²=3", "list of 3 entries"),
        (".".join("a" * 40) + "=1", "too many parts"),
        ("summary=\udcff", "UTF-8"),
    ],
)
def test_wrong_overrides(file, override, words):
    text = refused(file, override)
    assert words in text and text.startswith("--set")


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.epochs=7", lambda r: r.train.epochs == 7),
        ("train.epochs = 7", lambda r: r.train.epochs == 7),
        ("optimizer.lr=1", lambda r: r.optimizer.options["lr"] == 1.0),
        ("optimizer.betas=[0, 0.5]", lambda r: r.optimizer.options["betas"] == (0.0, 0.5)),
        ("schedule.name=cosine", lambda r: r.schedule.name == "cosine"),
        ('schedule.name="cosine"', lambda r: r.schedule.name == "cosine"),
        ("model.layers.0.units=9", lambda r: r.layers[0].options["units"] == 9),
        ("train.accumulate=2", lambda r: r.train.accumulate == 2),
        ("train.drop_last=true", lambda r: r.train.drop_last is True),
        ("summary=a b = c", lambda r: r.summary == "a b = c"),
        ("summary=[unclosed", lambda r: r.summary == "[unclosed"),
    ],
)
def test_overrides(file, override, read):
    assert read(recipes.load(file, [override]))


def test_another_row_takes_only_the_keys_that_it_has():
    """No override could take out a key, so what the recipe says of its own row goes with that."""
    load = functools.partial(recipes.load, "shakespeare-gpt")
    found = load(["optimizer.name=sgd", "optimizer.momentum=0.9", "schedule.name=constant"])
    assert found.optimizer.options["lr"] == 1e-3 and found.optimizer.options["momentum"] == 0.9
    assert "betas" not in found.optimizer.options and "floor" not in found.schedule.options
    assert found.schedule.options["warmup_epochs"] == 0.4
    assert recipes.load("digits-mlp", ["loss.name=mse"]).loss.options == {}
    data = recipes.load("digits-cnn", ["data.name=mnist"]).data
    assert dict(data.options) == {"channel_axis": True, "scale": "standard-global"}
    # What was set on purpose does not go in silence, in whichever order.
    for texts in itertools.permutations(["optimizer.name=sgd", "optimizer.betas=[0.8, 0.9]"]):
        with pytest.raises(ConfigError, match="unknown key 'betas'"):
            load(list(texts))
    with pytest.raises(ConfigError, match="unknown optimizer 'sdg'; did you mean 'sgd'"):
        load(["optimizer.name=sdg"])


def test_more_pieces_than_samples_of_a_batch(file):
    text = refused(file, "train.accumulate=33")
    assert "[train]: accumulate = 33 cuts batches of 32 samples" in text


def test_a_value_cannot_smuggle_in_a_second_key(file):
    assert recipes.load(file, ["summary=1\n[train]\nepochs=5"]).train.epochs == 2


def test_the_last_override_counts(file):
    assert recipes.load(file, ["train.epochs=7", "train.epochs=8"]).train.epochs == 8


# Files that are no recipes.
def test_no_such_recipe():
    text = refused("digit-mlp")
    assert "did you mean 'digits-mlp'?" in text and "or the path of a TOML file" in text
    assert "no such file" in refused("absent.toml")
    assert "no such file" in refused("absent/recipe")


HOSTILE = {
    "invalid UTF-8": b'summary = "\xff"\n',
    "UTF-16": GOOD.encode("utf-16"),
    "NUL": b"a = 1\x00\n",
    "deep arrays": b"a = " + b"[" * 100_000,
    "deep tables": b"a = " + b"{a=" * 50_000,
    "deep dotted keys": b".".join([b"a"] * 20_000) + b" = 1\n",
    "many dotted keys": b"\n".join(b"a%d.b.c = 1" % k for k in range(15_000)),
    "a huge number": b"a = " + b"9" * 100_000,
    "a huge exponent": b"[train]\nepochs = 1e999999999\n",
    "a huge text": b'summary = "' + b"x" * 200_000 + b'"',
    "too long": b"# " + b"x" * reading.MAX_BYTES,
    "the same key twice": b"a = 1\na = 2\n",
    "a date": b"[data]\nname = 1979-05-27\n[model]\n[loss]\n[optimizer]\n",
    "unclosed": b"[data",
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "empty": b"",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files(tmp_path, data):
    path = tmp_path / "hostile.toml"
    path.write_bytes(data)
    assert "hostile.toml" in refused(path)


def test_too_many_layers(file):
    file.write_text(GOOD.replace('kind = "dropout"\np = 0.25\n', 'kind = "relu"\n'))
    more = '[[model.layers]]\nkind = "relu"\n' * 1001
    file.write_text(GOOD.replace("[loss]", more + "[loss]"))
    assert "at most 1,000 are allowed" in refused(file)


def test_a_folder_or_a_pipe(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    assert "is a folder" in refused(tmp_path / "folder.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    assert "not a regular file" in refused(tmp_path / "pipe.toml")


def test_a_byte_order_mark_is_passed_over(file):
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert recipes.load(file).train.epochs == 2


def test_a_deep_value_is_shown_short(file):
    deep = "[" * 200 + "]" * 200
    assert len(refused(file, f"train.epochs={deep}")) < 300


def test_a_large_network_is_refused_before_anything_is_allocated(file):
    sizes = [f"model.layers.{k}.units=1000000" for k in (0, 2)]
    recipe = recipes.load(file, sizes)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=r"\[\[model\.layers\]\] 2 \(linear\): .*parameters"):
            recipes.build_model(recipe, (2,))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# Whatever is set to whatever: a recipe, or one clear error.
SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["adam", "sgd", "cosine", "digits", "linear", "nll", ""]),
    st.dates(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
PATHS = st.sampled_from(
    [
        ("summary",),
        ("data",),
        ("data", "name"),
        ("data", "n"),
        ("data", "noise"),
        ("model",),
        ("model", "layers"),
        ("model", "layers", 0),
        ("model", "layers", 0, "kind"),
        ("model", "layers", 0, "units"),
        ("model", "layers", 1, "p"),
        ("loss", "name"),
        ("optimizer",),
        ("optimizer", "betas"),
        ("schedule",),
        ("train",),
        ("train", "seed"),
        ("train", "validation"),
        ("more",),
    ]
)


@given(PATHS, VALUES)
def test_any_value_anywhere(path, value):
    raw = copy.deepcopy(tomllib.loads(GOOD))
    target = raw
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    try:
        recipe = recipes.parse(raw, "any", "any")
    except GpubackpropError as error:
        assert isinstance(error, ConfigError)
        assert str(error).startswith("any: ")
    else:
        assert recipes.parse(recipe.as_dict(), "any", "any") == recipe
