"""``gpubackprop recipes``: the built-in recipes."""

from __future__ import annotations

import argparse

from gpubackprop import recipes
from gpubackprop.cli.parser import Parser, add_json, print_json


def add_arguments(parser: Parser) -> None:
    """The options of the subcommand."""
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="show this one as TOML")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """List the recipes, or show one."""
    if options.recipe is not None:
        recipe = recipes.load(options.recipe)  # a file is checked before it is shown
        if options.json:
            print_json({"name": recipe.name, **recipe.as_dict()})
        else:
            print(recipes.text(options.recipe), end="")
        return 0
    found = {name: recipes.load(name).summary for name in recipes.names()}
    if options.json:
        print_json({"recipes": [{"name": n, "summary": s} for n, s in found.items()]})
        return 0
    width = max(map(len, found))
    for name, summary in found.items():
        print(f"{name:<{width}}  {summary}")
    return 0
