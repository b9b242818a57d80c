"""Writing a recipe as TOML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from gpubackprop.recipes.schema import Recipe


def dump(recipe: Recipe) -> str:
    """The recipe as a TOML file, every option spelled out; reading it gives the same recipe."""
    tables = recipe.as_dict()
    lines = [f"summary = {_value(tables.pop('summary'))}"]
    layers = tables.pop("model")["layers"]
    for name, entries in tables.items():
        lines += ["", f"[{name}]", *_entries(entries)]
        if name == "data":  # the network comes after the data that it is for
            for layer in layers:
                lines += ["", "[[model.layers]]", *_entries(layer)]
    return "\n".join(lines) + "\n"


def _entries(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items()]


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    # JSON's numbers, booleans and strings are TOML's too, but for the delete character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
