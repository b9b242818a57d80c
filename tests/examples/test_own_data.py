"""docs/own-data.md: its program trains, its recipe predicts, and its table leaves no key out."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gpubackprop.cli import main
from gpubackprop.data import DATASETS
from gpubackprop.recipes.costs import LOSSES
from gpubackprop.recipes.layers import LAYERS
from gpubackprop.recipes.schema import AUGMENT, TRAIN
from gpubackprop.recipes.updates import DECAY, OPTIMIZERS, SCHEDULES, WARMUP
from tests.commands import PROJECT

PAGE = (PROJECT / "docs" / "own-data.md").read_text(encoding="utf-8")
TABLE = PAGE[PAGE.index("## Every key of a recipe") :]


def test_the_program_trains_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(program, "own-data.md", "exec"), names)
    loss, classes = capsys.readouterr().out.splitlines()[-2:]
    monkeypatch.chdir(tmp_path.parent)
    assert float(loss) < 0.65 and len(re.findall(r"[01]", classes)) == 4
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert names["trainer"]().fit(epochs=3).train_loss == float(loss)


def test_the_recipe_of_a_table_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 3)) * [1000.0, 1.0, 0.001]
    price = rows @ [0.002, -1.0, 500.0] + 3.0
    table = np.column_stack([rows[:, 0], price, rows[:, 1:]])
    np.savetxt("houses.csv", table, delimiter=",", header="area,price,b,c", comments="")
    recipe = PROJECT / "examples" / "table.toml"
    found = ["data.path=houses.csv", "data.target=price"]
    assert main(["train", str(recipe), "--set", *found, "--out", "houses"]) == 0
    assert main(["predict", "houses", "houses.csv", "--target", "price", "--out", "p.csv"]) == 0
    assert main(["predict", "houses", "houses.csv"]) == 2
    assert "to leave the target out: --target price" in capsys.readouterr().err
    predicted = np.loadtxt("p.csv", delimiter=",", skiprows=1)[:, 1]
    assert np.abs(predicted - price).mean() < 0.2 * price.std()


@pytest.mark.parametrize("rows", [DATASETS, LAYERS, LOSSES, OPTIMIZERS, SCHEDULES])
def test_every_row_and_key_is_named(rows):
    named = set(re.findall(r"`([\w-]+)`", TABLE))
    missing = {name for name in rows if name not in named}
    for row in rows.values():
        missing |= {key for key in row.options if key not in named and key != "one_hot"}
    assert not missing


def test_every_key_of_the_other_tables_is_named():
    named = set(re.findall(r"`([\w-]+)`", TABLE))
    assert not {*TRAIN, *AUGMENT, *DECAY, *WARMUP} - named
