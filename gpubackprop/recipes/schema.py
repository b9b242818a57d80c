"""What a recipe is made of, and how a parsed TOML file becomes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpubackprop.backends.precision import PRECISIONS
from gpubackprop.data import DATASETS
from gpubackprop.data.arguments import MAX_SEED
from gpubackprop.data.augment import MAX_CROP, PADDINGS
from gpubackprop.data.registry import DTYPES
from gpubackprop.recipes.costs import LOSSES
from gpubackprop.recipes.layers import LAYERS
from gpubackprop.recipes.options import Option, Place, check_options, known_keys, shorten, table
from gpubackprop.recipes.updates import DECAY, OPTIMIZERS, SCHEDULES, WARMUP
from gpubackprop.suggest import unknown

MAX_LAYERS = 1000

KINDS = tuple(LAYERS)  # a tuple to look into, since the kind in a hostile file need not be hashable

MADE = {"n": 10_000_000, "classes": 10_000}
"""The most that the options of made-up data may ask for: there is no file that bounds them."""

SECTIONS = ("summary", "data", "augment", "model", "loss", "optimizer", "schedule", "train")

AUGMENT: dict[str, Option] = {
    "crop": Option(int, 0, least=0, most=MAX_CROP),
    "padding": Option(str, "zero", choices=PADDINGS),
    "flip": Option(bool, False),
}
"""What ``[augment]`` may hold: how training pictures are changed at random."""

TRAIN: dict[str, Option] = {
    "epochs": Option(int, 10, least=1, most=1_000_000),
    "batch_size": Option(int, 32, least=1, most=1_000_000),
    "steps_per_epoch": Option(int, None, least=1, most=1_000_000_000),
    "drop_last": Option(bool, False),
    "seed": Option(int, 0, least=0, most=MAX_SEED),
    "dtype": Option(str, "float32", choices=DTYPES),
    "validation": Option(float, 0.0, least=0.0, below=1.0),
    "patience": Option(int, None, least=1, most=1_000_000),
    "min_delta": Option(float, 0.0, least=0.0, most=1e9),
    "monitor": Option(str, "loss", choices=("loss", "accuracy")),
    "keep_best": Option(bool, False),
    "clip_norm": Option(float, None, above=0.0, most=1e9),
    "clip_value": Option(float, None, above=0.0, most=1e9),
    "precision": Option(str, None, choices=PRECISIONS),
    "accumulate": Option(int, None, least=1, most=1_000_000),
    "checkpoint_steps": Option(int, None, least=1, most=1_000_000_000),
    "eval_batch_size": Option(int, 1000, least=1, most=1_000_000),
}
"""What ``[train]`` may hold. ``validation`` is the share of the training part that is set aside to
watch; without it the test part is watched, and nothing may be chosen by it. ``precision`` is
``"float32"`` where it is not given. ``accumulate`` cuts each batch into that many pieces that are
computed one after the other."""


@dataclass(frozen=True)
class Choice:
    """A row of a table, with its options.

    Attributes
    ----------
    name : the row.
    options : every option's value; only those that were given where the table belongs to the data.
    """

    name: str
    options: Mapping[str, Any]

    def as_dict(self, key: str = "name") -> dict[str, Any]:
        """As a table of a TOML file."""
        return {key: self.name} | {k: _plain(v) for k, v in self.options.items() if v is not None}


@dataclass(frozen=True)
class Train:
    """The table ``[train]``; the attributes are its keys."""

    epochs: int
    batch_size: int
    steps_per_epoch: int | None
    drop_last: bool
    seed: int
    dtype: str
    validation: float
    patience: int | None
    min_delta: float
    monitor: str
    keep_best: bool
    clip_norm: float | None
    clip_value: float | None
    precision: str | None
    accumulate: int | None
    checkpoint_steps: int | None
    eval_batch_size: int


@dataclass(frozen=True)
class Recipe:
    """A training run, described.

    Attributes
    ----------
    name : of the built-in recipe, or of the file without its ending.
    source : the built-in name or the file, for errors.
    summary : one line.
    data, loss, optimizer : rows of ``DATASETS``, ``LOSSES`` and ``OPTIMIZERS``.
    augment : how training pictures are changed at random; None where they are not.
    layers : rows of ``LAYERS``, in the order of the forward pass.
    schedule : a row of ``SCHEDULES``.
    train : length, batches, seed and the like.
    """

    name: str
    source: str
    summary: str
    data: Choice
    augment: Mapping[str, Any] | None
    layers: tuple[Choice, ...]
    loss: Choice
    optimizer: Choice
    schedule: Choice
    train: Train

    def as_dict(self) -> dict[str, Any]:
        """The recipe as a TOML file would hold it, every option spelled out."""
        train = {k: v for k, v in vars(self.train).items() if v is not None}
        return {
            "summary": self.summary,
            "data": self.data.as_dict(),
            **({} if self.augment is None else {"augment": dict(self.augment)}),
            "model": {"layers": [layer.as_dict("kind") for layer in self.layers]},
            "loss": self.loss.as_dict(),
            "optimizer": self.optimizer.as_dict(),
            "schedule": self.schedule.as_dict(),
            "train": train,
        }

    def place(self, table: str) -> Place:
        """A table of this recipe, for errors."""
        return Place(self.source, f"[{table}]")


def parse(raw: Any, name: str, source: str) -> Recipe:
    """A recipe out of the tables of a TOML file.

    Parameters
    ----------
    raw : what ``tomllib`` gave.
    name : the recipe's name.
    source : the file (or the built-in name), for errors.

    Raises
    ------
    ConfigError
        A table or a key is missing or unknown, or a value is of a wrong type or out of range. The
        error names the file, the table, the key and what is allowed.
    """
    top = Place(source, "")
    raw = table(top, raw)
    known_keys(top, raw, SECTIONS)
    for section in ("data", "model", "loss", "optimizer"):
        if section not in raw:
            raise top.error(f"the table [{section}] is missing")
    summary = Option(str, "").check(top, "summary", raw.get("summary", ""))
    return Recipe(
        name=name,
        source=source,
        summary=" ".join(summary.split())[:200],
        data=_data(Place(source, "[data]"), raw["data"]),
        augment=_augment(Place(source, "[augment]"), raw.get("augment")),
        layers=_layers(source, raw["model"]),
        loss=_choice(Place(source, "[loss]"), raw["loss"], "loss", LOSSES),
        optimizer=_choice(
            Place(source, "[optimizer]"), raw["optimizer"], "optimizer", OPTIMIZERS, DECAY
        ),
        schedule=_choice(
            Place(source, "[schedule]"),
            raw.get("schedule", {"name": "constant"}),
            "schedule",
            SCHEDULES,
            WARMUP,
        ),
        train=_train(Place(source, "[train]"), raw.get("train", {})),
    )


def keys_of_another(section: str, table: Mapping[str, Any], name: Any) -> list[str]:
    """Keys of a table that the row it names has and the row `name` has not.

    Parameters
    ----------
    section : ``"data"``, ``"loss"``, ``"optimizer"`` or ``"schedule"``; others name no rows.
    table : as the recipe has it.
    name : another row; where there is no such row, nothing is known and no key is listed.
    """
    rows, shared = _ROWS.get(section, ({}, {}))
    old = table.get("name")
    if not (isinstance(old, str) and isinstance(name, str) and old in rows and name in rows):
        return []
    kept = {"name", *rows[name].options, *shared}
    return [key for key in table if key in rows[old].options and key not in kept]


_ROWS: dict[str, tuple[Mapping[str, Any], Mapping[str, Option]]] = {
    "data": (DATASETS, {}),
    "loss": (LOSSES, {}),
    "optimizer": (OPTIMIZERS, DECAY),
    "schedule": (SCHEDULES, WARMUP),
}


def _named(place: Place, raw: Any, what: str, rows: Iterable[str], key: str = "name") -> str:
    """Which row a table names."""
    names = list(rows)
    value = table(place, raw).get(key)
    if value is None:
        raise place.error(f"{key} is missing; allowed: {', '.join(names)}")
    if not isinstance(value, str):
        raise place.error(
            f"{key} must be a text, not {shorten(value)}; allowed: {', '.join(names)}"
        )
    if value not in names:
        raise place.error(unknown(what, value[:60], names))
    return value


def _choice(
    place: Place,
    raw: Any,
    what: str,
    rows: Mapping[str, Any],
    shared: Mapping[str, Option] | None = None,
    key: str = "name",
) -> Choice:
    name = _named(place, raw, what, rows, key)
    options = {**rows[name].options, **(shared or {})}
    return Choice(name, check_options(place, raw, options, beside=(key,)))


def _data(place: Place, raw: Any) -> Choice:
    """The data's own options are checked by the reader of the data, which knows them."""
    name = _named(place, raw, "dataset", DATASETS)
    # The loss decides about one_hot, and [train] about the dtype.
    allowed = [k for k in DATASETS[name].options if k not in ("one_hot", "dtype")]
    known_keys(place, raw, ["name", *allowed])
    options = {k: v for k, v in raw.items() if k != "name"}
    for key, value in options.items():
        if not isinstance(value, (bool, int, float, str)):
            raise place.error(f"{key} must be a single value, not {shorten(value)}")
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            raise place.error(f"{key} is out of range: {shorten(value)}")
        if key in MADE and isinstance(value, (int, float)) and value > MADE[key]:
            raise place.error(f"{key} must be at most {MADE[key]:,}, not {value:,}")
    return Choice(name, options)


def _augment(place: Place, raw: Any) -> Mapping[str, Any] | None:
    return None if raw is None else check_options(place, table(place, raw), AUGMENT)


def _layers(source: str, raw: Any) -> tuple[Choice, ...]:
    place = Place(source, "[model]")
    known_keys(place, table(place, raw), ("layers",))
    layers = raw.get("layers")
    if not isinstance(layers, list) or not layers:
        raise place.error("layers must be a list of tables, written [[model.layers]], one a layer")
    if len(layers) > MAX_LAYERS:
        raise place.error(
            f"layers holds {len(layers):,} tables; at most {MAX_LAYERS:,} are allowed"
        )
    found = []
    for number, layer in enumerate(layers):
        kind = layer.get("kind") if isinstance(layer, dict) else None
        label = f"[[model.layers]] {number}" + (f" ({kind})" if kind in KINDS else "")
        found.append(_choice(Place(source, label), layer, "layer", LAYERS, key="kind"))
    return tuple(found)


def _train(place: Place, raw: Any) -> Train:
    train = Train(**check_options(place, table(place, raw), TRAIN))
    if train.accumulate is not None and train.accumulate > train.batch_size:
        raise place.error(
            f"accumulate = {train.accumulate} cuts batches of {train.batch_size} samples "
            "(batch_size) into pieces of less than one"
        )
    if train.precision == "float32":
        train = replace(train, precision=None)  # what it is where it is not given
    if (train.precision or "").endswith("-mixed") and train.dtype != "float32":
        raise place.error(
            f"precision = {train.precision!r} keeps the parameters in float32, but dtype is "
            f"{train.dtype!r}; leave dtype out"
        )
    chooses = train.patience is not None or train.keep_best
    if chooses and not train.validation:
        key = "keep_best" if train.patience is None else "patience"
        raise place.error(
            f"{key} needs samples to choose by that are not the test part: set validation, for "
            "example validation = 0.1"
        )
    return train


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
