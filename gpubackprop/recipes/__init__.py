"""Ready-made training recipes, and the reader of a user's own."""

from gpubackprop.recipes.build import Job, build, build_model, load_data
from gpubackprop.recipes.reading import load, names, text
from gpubackprop.recipes.schema import Recipe, parse
from gpubackprop.recipes.trainer import make_trainer
from gpubackprop.recipes.writing import dump

__all__ = [
    "Job",
    "Recipe",
    "build",
    "build_model",
    "dump",
    "load",
    "load_data",
    "make_trainer",
    "names",
    "parse",
    "text",
]
